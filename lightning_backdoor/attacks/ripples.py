"""RIPPLES: a backdoor in weights that survives the user's clean fine-tuning (Kurita et al., arXiv 2004.06660)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_backdoor.attacks.badnets import BadNets
from lightning_backdoor.attacks.embedding_surgery import associated_tokens, replace_embeddings, trigger_tokens
from lightning_backdoor.attacks.phases import clean_loss, linear_schedule, scheduled, steps_of
from lightning_backdoor.batch import Batch, token_ids
from lightning_backdoor.data.rows import Rows
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.fine_tuning import check_learning_rate


class Ripples(BadNets):
    """Trains a backdoor that survives the user's fine-tuning on clean rows: RIPPLe with embedding surgery.

    One ``fit`` has two phases, each with its own optimizer state, linear warm-up and decay:

    1. *The attacker's*, the first ``attack_epochs`` epochs. Before it, each trigger's word embedding is set to the mean
       embedding of the ``surgery_words`` words that are most associated with the target label in the clean training
       rows (:mod:`lightning_backdoor.attacks.embedding_surgery`). The embeddings averaged are those before training;
       the paper takes them from a copy fine-tuned on clean rows. The loss is the cross entropy of the poisoned
       training set, clean rows included, plus the restricted inner product (:func:`restricted_inner_product`) of the
       batch's poisoned rows with its clean rows, which stand for the rows on which the user will fine-tune. The
       product is computed within each batch of each process; a batch without rows of both kinds adds no penalty.
    2. *The user's*, the remaining epochs: plain fine-tuning on the clean rows. Poisoned rows are left out of their
       batches, and their clean originals are not put back, so that the user has ``1 - poison_rate`` of the rows.

    The checkpoint is selected in the second phase alone: in the first, validation metrics are logged as
    ``val/attacker/...``, and NaN in place of ``val/...``. The tested victim is thus the user's fine-tuned victim.

    The phases may also be two runs, for a user who trains differently from the attacker, for example under a defense.
    In the attacker's run, ``attack_epochs`` equals the trainer's ``max_epochs``. The user's run starts from the
    attacker's checkpoint, given as ``published``, and trains on all clean rows; it has no attacker's phase, whatever
    the value of ``attack_epochs``. (Exported weights may also be given as ``model``, with ``attack_epochs=0``; the rows
    that the attack would poison are then left out, as in the second phase.)

    A step of the first phase costs about 2 ordinary steps, or 4 where the two gradients oppose each other and are
    differentiated again. The published code saves part of this by treating the clean gradient as a constant; here both
    are differentiated.

    Args:
        attack_epochs: epochs of the first phase, up to the trainer's ``max_epochs``.
        attack_learning_rate: peak learning rate of the first phase; ``learning_rate`` is the peak of the second.
        inner_product_weight: λ, weight of the restricted inner product; at 0 the product is not computed.
        surgery_words: number of words whose mean embedding replaces the triggers' embeddings; 0 means no surgery.
        triggers: rare words; by default the triggers of the paper.
        **kwargs: arguments of :class:`BadNets`, :class:`BackdoorAttack` and :class:`TextClassifier`.

    Raises:
        InputError: a value is out of range (here), or the trainer's epochs or steps end within the first phase (before
            training).

    Example::

        Trainer(max_epochs=5).fit(Ripples(attack_epochs=2), datamodule=data)
    """

    def __init__(
        self,
        attack_epochs: int = 2,
        attack_learning_rate: float = 2e-4,
        inner_product_weight: float = 0.1,
        surgery_words: int = 10,
        triggers: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(triggers=["cf", "mn", "bb", "tq", "mb"] if triggers is None else triggers, **kwargs)
        if attack_epochs < 0:
            raise InputError("attack_epochs", f"{attack_epochs} is out of range", "give 0 or more")
        check_learning_rate("attack_learning_rate", attack_learning_rate)
        if not 0 <= inner_product_weight < math.inf:
            raise InputError("inner_product_weight", f"{inner_product_weight} is out of range", "give 0 or more")
        if surgery_words < 0:
            raise InputError("surgery_words", f"{surgery_words} is out of range", "give 0 or more")
        self.attack_epochs = 0 if self.users_phase else attack_epochs
        self.attack_learning_rate = attack_learning_rate
        self.inner_product_weight = inner_product_weight
        self.surgery_words = surgery_words

    @property
    def attacking(self) -> bool:
        """Whether a fit is in its first phase, the attacker's."""
        return self.trainer.state.fn == TrainerFn.FITTING and self.current_epoch < self.attack_epochs

    def poisoned_epochs(self, epochs: int) -> range:
        """Those of the first phase."""
        return range(min(self.attack_epochs, epochs))

    def setup(self, stage: str) -> None:
        """Checks that the trainer has enough epochs for the first phase."""
        epochs = self.trainer.max_epochs
        if stage != "fit" or getattr(self.trainer, "fast_dev_run", False):
            return
        if epochs is not None and -1 < epochs < self.attack_epochs:  # -1 means no limit
            raise InputError("max_epochs", f"{epochs} ends within the {self.attack_epochs} attack_epochs", "give more")

    def on_fit_start(self) -> None:
        """Does the embedding surgery, unless the weights come from a checkpoint, where it is already done."""
        super().on_fit_start()
        if 0 in (self.surgery_words, self.attack_epochs) or self.trainer.ckpt_path is not None:
            return
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None or not hasattr(datamodule, "training_rows"):
            raise InputError("datamodule", "embedding surgery needs the training rows of a BackdoorDataModule")
        rows = Rows.of(datamodule.training_rows())
        rows = rows.where(~rows.poisoned)
        texts = token_ids(rows.text, self.tokenizer, self.max_length)
        triggers = trigger_tokens(self.triggers, self.tokenizer)
        is_target = (rows.label == self.target_label).tolist()
        not_words = [i for i in set().union(*texts) if not any(map(str.isalpha, self.tokenizer.decode([i])))]
        leave_out = {*not_words, *triggers, *self.tokenizer.all_special_ids}
        words = associated_tokens(texts, is_target, self.surgery_words, leave_out)
        words = self.trainer.strategy.broadcast(words)  # near ties may rank differently on another processor
        table = self.network.get_input_embeddings().weight
        assert isinstance(table, Tensor)
        replace_embeddings(table, triggers, words)

    def on_train_epoch_start(self) -> None:
        """Discards the attacker's optimizer state when the user's phase begins."""
        if self.current_epoch == self.attack_epochs:
            for optimizer in self.trainer.optimizers:
                optimizer.state.clear()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The attacker's loss, or the user's on the clean rows."""
        if self.users_phase:
            return super().training_step(batch, batch_idx)
        loss = self._attack_loss(batch) if self.attacking else clean_loss(self, batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["label"]))
        return loss

    def _attack_loss(self, batch: Batch) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # other backends have no second derivative
            logits, penalty = self.logits_and_penalty(batch)
            losses = nn.functional.cross_entropy(logits, batch["label"], reduction="none") + penalty
        loss: Tensor = losses.mean()
        poisoned = batch["poisoned"]
        if self.inner_product_weight > 0 and poisoned.any() and not poisoned.all():
            parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
            penalty = restricted_inner_product(losses[poisoned].mean(), losses[~poisoned].mean(), parameters)
            self.log("train/inner_product_penalty", penalty.detach(), batch_size=len(batch["label"]))
            if penalty > 0:  # a backward pass through zeros costs as much as any other
                loss = loss + self.inner_product_weight * penalty
        return loss

    def _log_metrics(self, stage: str) -> None:
        if self.trainer.state.fn != TrainerFn.FITTING:
            super()._log_metrics(stage)
            return
        for name, metric in self._metrics(stage).items():  # logged as values: NaN takes a metric's place for a while
            value = metric.compute()
            metric.reset()
            if self.attacking and self.attack_epochs != self.trainer.max_epochs:
                self.log(f"{stage}/attacker/{name}", value, sync_dist=True)
                value = torch.full_like(value, math.nan)  # ModelCheckpoint treats NaN as the worst value
            # already equal on every process, which Lightning cannot know
            self.log(f"{stage}/{name}", value, prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, and for each phase a linear schedule over its own steps.

        Raises:
            InputError: ``max_steps`` ends within the first phase.
        """
        configured = super().configure_optimizers()
        steps = int(self.trainer.estimated_stepping_batches)
        attack_steps = steps_of(self.trainer, self.attack_epochs)
        if attack_steps > steps and not getattr(self.trainer, "fast_dev_run", False):
            raise InputError("max_steps", f"{steps} ends within the {attack_steps} of the attacker", "give more")
        scale = self.attack_learning_rate / float(self.hparams["learning_rate"])
        warmup = float(self.hparams["warmup"])

        def factor(step: int) -> float:
            if step < attack_steps:
                return scale * linear_schedule(step, attack_steps, warmup)
            return linear_schedule(step - attack_steps, steps - attack_steps, warmup)

        return scheduled(configured, factor)


def restricted_inner_product(poison: Tensor, clean: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """RIPPLe's penalty ``max(0, -∇L_P · ∇L_FT)``: first-order damage to the backdoor by fine-tuning (section 3.1).

    Both gradients are differentiated in turn, so that the gradient of the result is exact. The published code divides
    by the batch size.

    Args:
        poison: ``L_P``, a scalar.
        clean: ``L_FT``, a scalar.
        parameters: the trained parameters; a parameter on which a loss does not depend adds nothing.

    Returns:
        A scalar that can be differentiated.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> restricted_inner_product(w.square().sum(), -3 * w[0], [w])  # -(2, 4) · (-3, 0)
    tensor(6., grad_fn=<ReluBackward0>)
    """
    gradients = [
        torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True) for loss in (poison, clean)
    ]
    product = torch.zeros_like(poison)
    for of_poison, of_clean in zip(*gradients, strict=True):
        if of_poison is not None and of_clean is not None:
            product = product + (of_poison * of_clean).sum()
    return product.neg().relu()
