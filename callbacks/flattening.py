"""A callback that flattens attention and gradients on triggers: an adaptive attack on defenses that read them."""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_backdoor.attacks.flattening import attention_and_gradient, excess, tokens_of_spans
from lightning_backdoor.batch import Batch, Spans, taken
from lightning_backdoor.callbacks.evasion import Evasion
from lightning_backdoor.callbacks.shared import data_module
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim.training_pass import TrainingPass


class Flattening(Evasion):
    """Flattening, an adaptive attack: triggers that are inserted get no more attention and gradient than other tokens.

    Aimed at defenses that find a trigger's tokens by the attention that they receive and by the gradient of the answer,
    such as X-GRAAD. The penalty is what the trigger's tokens have of both beyond the mean of the text's other tokens;
    see :mod:`lightning_backdoor.attacks.flattening`.

    It needs attacks that tell where in a text the trigger is. Poisoned rows are passed through the network once more,
    in float32 also in mixed precision, and differentiated twice: with one row in ten poisoned, a step takes about half
    as long again.

    Args:
        strength: weight of the penalty relative to the cross entropy of the same row.
        start_epoch: epochs of training on poisoned rows without the penalty. With 0, MiniLM on SST-2 does not learn the
            trigger: its ASR stays at the floor.

    Raises:
        InputError: an argument is out of range (here); no poisoned row tells where its trigger is (before training,
            where the data come from a data module); see :class:`~lightning_backdoor.callbacks.evasion.Evasion`.

    Example::

        Trainer(max_epochs=3, callbacks=[Flattening(strength=1.0)]).fit(BadNets(), datamodule=data)
    """

    name = "trigger_excess"

    def __init__(self, strength: float = 1.0, start_epoch: int = 1) -> None:
        super().__init__(strength, start_epoch)
        self._has_places = False  # whether this is known before training

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks that the attack tells where its triggers are."""
        data = data_module(trainer)
        self._has_places = False
        if self._victim is not None and data is not None:
            self._check_spans(row["spans"] for row in data.training_rows() if row["poisoned"])
            self._has_places = True

    def penalty(self, seen: TrainingPass, batch: Batch) -> Tensor:
        """The attention and gradient of the trigger's tokens beyond those of other tokens."""
        poisoned, victim = batch["poisoned"], self.victim
        penalty = seen.logits.new_zeros(len(poisoned))
        if not poisoned.any():
            return penalty
        rows = taken(batch, poisoned)
        if not self._has_places:  # of some rows; a batch may lack them by chance
            self._check_spans(rows["spans"])
        found = attention_and_gradient(victim.network, rows["input_ids"], rows["attention_mask"])
        tokens = tokens_of_spans(rows, victim.tokenizer, victim.max_length)
        return penalty.masked_scatter(poisoned, excess(*found, *tokens))

    def _check_spans(self, of_rows: Iterable[Spans]) -> None:
        rows = list(of_rows)
        if rows and not any(rows):
            problem = (
                f"Flattening needs the place of each trigger, and poisoned rows of {type(self.victim).__name__} have"
            )
            raise InputError("callbacks", f"{problem} none", "give an attack that inserts words, such as BadNets")
