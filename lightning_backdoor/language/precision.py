"""The precision in which language models compute: its names, and which one ``auto`` stands for on a device."""

from __future__ import annotations

import torch

from lightning_backdoor.errors import InputError
from lightning_backdoor.models.precision import has_bfloat16

#: the precision that a device is best at; see :func:`chosen_precision`.
AUTO = "auto"
#: numbers of 32 bits throughout; the names are those of ``trainer.precision``.
FLOAT32 = "32-true"
#: weights and hidden states in bfloat16, log-probabilities and sums in 32 bits or more.
BFLOAT16 = "bf16-true"
#: the precision of ONION's language model: float32, since rounded suspicions depend on the other texts that are read.
DEFAULT = FLOAT32
#: what ``auto`` stands for on devices that have bfloat16 in hardware.
AUTO_ON_BFLOAT16_DEVICES = BFLOAT16

DTYPES = {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16}


def check_precision(precision: str) -> str:
    """Returns a precision that has a name known here.

    Raises:
        InputError: it has none.
    """
    if precision not in (AUTO, *DTYPES):
        raise InputError(
            "precision", f"{precision!r} is unknown", f"give one of {', '.join((AUTO, *DTYPES))}, in quotes"
        )
    return precision


def chosen_precision(precision: str, device: torch.device) -> str:
    """The precision that is computed in on a device: the given one, or what ``auto`` stands for there.

    >>> chosen_precision("32-true", torch.device("cpu"))
    '32-true'
    """
    if precision != AUTO:
        return precision
    return AUTO_ON_BFLOAT16_DEVICES if has_bfloat16(device.type) else FLOAT32
