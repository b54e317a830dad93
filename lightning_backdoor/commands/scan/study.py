"""The sums of the defenses of a scan that study texts before they judge them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_backdoor.batch import unlabelled
from lightning_backdoor.commands.scan.calibration import Guard, batches_on_device
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.captures import Captures, sharing
from lightning_backdoor.victim import TextClassifier


def study_group(
    guards: Sequence[Guard], victim: TextClassifier, texts: Sequence[str], batch_size: int
) -> tuple[int, dict[str, Tensor]]:
    """Studies texts that are read together; the sums depend on these texts alone, to the last digit.

    Args:
        guards: calibrated defenses that study.
        victim: the victim, in evaluation mode and with its network built.
        texts: the texts, of which those of similar length are studied together; there may be none.
        batch_size: number of texts studied at once.

    Returns:
        The number of texts, and the sums over them by the name of the defense, float64, on the processor.

    Raises:
        InputError: a sum is not finite.
    """
    captures = Captures()  # defenses that read the same share its passes
    captures.begin(victim.network)
    found = {}
    for name, defense in guards:
        with sharing(captures), torch.inference_mode():
            sums = defense.study(victim, map(unlabelled, batches_on_device(victim, texts, batch_size)))
        if not sums.isfinite().all():
            raise InputError(
                name, "its sums over the texts are NaN or infinite", "see that the victim has not diverged"
            )
        # a copy made outside of inference mode may be changed, and a contiguous one can be written
        found[name] = sums.to("cpu", torch.float64, copy=True).contiguous()
    return len(texts), found
