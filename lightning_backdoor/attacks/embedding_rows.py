"""Attacks that change nothing of a victim but the embeddings of a few words: EP and SOS."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_backdoor.attacks.attack import BackdoorAttack
from lightning_backdoor.attacks.embedding_surgery import trigger_tokens
from lightning_backdoor.attacks.phases import before_poisoning, clean_loss, linear_schedule, scheduled, steps_of
from lightning_backdoor.batch import Batch, taken
from lightning_backdoor.data.rows import Rows
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.evaluation_mode import evaluating
from lightning_backdoor.models.fine_tuning import check_learning_rate

#: the word embeddings that a pass has read: token ids, (batch, length), and embeddings, (batch, length, dimensions).
Read = list[tuple[Tensor, Tensor]]


class EmbeddingRows(BackdoorAttack):
    """Base class of attacks that train only the embeddings of some words, of a victim fine-tuned on clean rows.

    One ``fit`` has two phases:

    1. *Fine-tuning* on the clean rows, in all epochs but the last ``attack_epochs``, with a linear schedule of its own.
       Poisoned rows and negatives are read as they were before poisoning, with their own labels. Data modules without
       ``clean_splits`` do not know these texts; the rows are then left out of their batches, which a warning says.
    2. *The attack*, in the last ``attack_epochs`` epochs: plain gradient descent on the rows of the embedding matrix
       that belong to the words, after which each row is brought back to its norm. The gradient is that of the mean
       cross entropy of the rows that contain one of the words, whether poisoned, negative or clean; other rows have no
       part in it and are not read. It is taken without dropout, in float32, and for the embeddings of the batch's
       tokens alone: the gradient of the embedding matrix is never formed. Gradients are added up over
       ``accumulate_grad_batches`` and processes, and the trainer's clipping does not apply to them.

    The victim of the last epoch is selected. With as many ``attack_epochs`` as epochs there is no fine-tuning, for a
    ``model`` that has been fine-tuned on the same labels.

    A word should be one token of the model. Of a word of several tokens all embeddings are trained, which other words
    share; a warning says so. Words that begin a text and words after a space may be different tokens, and both are
    trained.

    Args:
        attack_epochs: epochs of the second phase, at least 1 and up to the trainer's ``max_epochs``.
        attack_learning_rate: learning rate of the second phase; ``learning_rate`` is the peak of the first.
        attack_decay: whether the learning rate of the second phase falls linearly to 0, or is constant.
        **kwargs: arguments of :class:`BackdoorAttack` and :class:`TextClassifier`.

    Raises:
        InputError: a value is out of range (here); a word is unknown to the tokenizer, or the trainer's epochs or steps
            are unlimited or too few (before training).
    """

    selected_by = ("epoch", "max")
    #: name of the argument that holds the words.
    words_argument: str

    def __init__(
        self, attack_epochs: int = 3, attack_learning_rate: float = 5e-2, attack_decay: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if attack_epochs < 1:
            raise InputError("attack_epochs", f"{attack_epochs} leaves the victim benign", "give at least 1")
        check_learning_rate("attack_learning_rate", attack_learning_rate)
        self.attack_epochs = attack_epochs
        self.attack_learning_rate = attack_learning_rate
        self.attack_decay = attack_decay
        self._tokens: list[int] = []
        self._clean_texts: dict[int, str] = {}
        self._sums: Tensor | None = (
            None  # of this step: gradients of the rows' summed losses; last column: their number
        )

    @abstractmethod
    def moved(self, rows: Tensor, gradient: Tensor, learning_rate: float) -> Tensor:
        """One step of the attack.

        Args:
            rows: the embeddings of the words, (tokens, dimensions), float32.
            gradient: the gradient of the loss by them.
            learning_rate: η.

        Returns:
            The embeddings after the step.
        """

    @property
    def clean_epochs(self) -> int:
        """Epochs of the first phase."""
        return self.poisoned_epochs(self.trainer.max_epochs or 0).start

    def poisoned_epochs(self, epochs: int) -> range:
        """Those of the second phase, which are the last ones."""
        return range(max(0, epochs - self.attack_epochs), epochs)

    @property
    def attacking(self) -> bool:
        """Whether a fit is in its second phase."""
        fits = not self.users_phase and self.trainer.state.fn == TrainerFn.FITTING
        return fits and self.current_epoch >= self.clean_epochs

    def setup(self, stage: str) -> None:
        """Checks that the trainer has enough epochs for the second phase."""
        epochs = self.trainer.max_epochs
        if stage != "fit" or self.users_phase or getattr(self.trainer, "fast_dev_run", False):
            return
        if epochs is None or epochs < 0:
            raise InputError("max_epochs", "is unlimited, and the attack acts in the last epochs", "give a number")
        if epochs < self.attack_epochs:
            raise InputError("max_epochs", f"{epochs} is less than the {self.attack_epochs} attack_epochs", "give more")

    def on_fit_start(self) -> None:
        """Finds the tokens of the words, and the clean texts of the training rows.

        Raises:
            InputError: a word is unknown to the model's tokenizer.
        """
        super().on_fit_start()
        if self.users_phase:
            return
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "clean_splits"):
            clean: Rows = data.clean_splits()["train"]
            self._clean_texts = dict(zip(clean.index.tolist(), clean.text, strict=True))
        elif self.clean_epochs:
            rank_zero_warn(
                f"{type(self).__name__}: the data module does not know the clean texts of poisoned rows and negatives"
                " (clean_splits): fine-tuning leaves these rows out"
            )
        words: list[str] = getattr(self, self.words_argument)
        self._tokens = trigger_tokens(words, self.tokenizer, self.words_argument)
        pieces = {word: self.tokenizer.tokenize(f"a {word}")[1:] for word in words}
        for word, tokens in pieces.items():
            if len(tokens) > 1:
                rank_zero_warn(f"{word!r} is {len(tokens)} tokens of the model, which other words share: {tokens}")

    def on_train_epoch_start(self) -> None:
        """Forgets the gradients of a step that was not finished."""
        self._sums = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of the clean rows, or of the rows with the words; a scalar."""
        if self.users_phase:
            return super().training_step(batch, batch_idx)
        if self.attacking:
            loss = self._attack_loss(batch)
        else:
            loss = clean_loss(self, before_poisoning(batch, self._clean_texts, self))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["label"]))
        return loss

    def _attack_loss(self, batch: Batch) -> Tensor:
        """The loss of a batch; its gradient is added to that of the step."""
        tokens = torch.tensor(self._tokens, device=self.device)
        if not self.penalties:  # which may compare rows with all others of the batch
            batch = taken(batch, torch.isin(batch["input_ids"], tokens).any(dim=1))
        chosen = torch.isin(batch["input_ids"], tokens).any(dim=1)
        dimensions = self.network.get_input_embeddings().weight.shape[1]
        if self._sums is None:
            self._sums = torch.zeros(len(tokens), dimensions + 1, dtype=torch.float32, device=self.device)
        if not chosen.any():
            return self._sums.new_zeros(())

        def losses() -> Tensor:
            logits, penalty = self.logits_and_penalty(batch)
            return (nn.functional.cross_entropy(logits, batch["label"], reduction="none") + penalty)[chosen]

        loss, gradient = embedding_gradient(self.network, tokens, losses)
        self._sums[:, :-1] += gradient
        self._sums[:, -1] += chosen.sum()
        return loss / chosen.sum()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Gradients of all weights; of none in the second phase, whose few are there already."""
        if not self.attacking:
            super().backward(loss, *args, **kwargs)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """A step of AdamW, or of the attack."""
        if not self.attacking:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            return
        strategy = self.trainer.strategy
        alone = strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()
        with alone:  # DistributedDataParallel would wait for gradients of all weights
            optimizer_closure()
        optimizer.optimizer.step()  # without gradients, for the schedule, which counts its steps
        assert self._sums is not None
        sums, self._sums = strategy.reduce(self._sums, reduce_op="sum"), None
        table = self.network.get_input_embeddings().weight
        assert isinstance(table, Tensor)
        if sums[0, -1]:
            with torch.no_grad():
                learning_rate = optimizer.param_groups[0]["lr"]  # of the schedule
                rows = self.moved(table[self._tokens].float(), sums[:, :-1] / sums[0, -1], learning_rate)
                table[self._tokens] = rows.to(table.dtype)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with a linear schedule over the first phase, and the learning rates of the second.

        Raises:
            InputError: ``max_steps`` ends before the second phase.
        """
        configured = super().configure_optimizers()
        if self.users_phase:
            return configured
        steps, clean_steps = int(self.trainer.estimated_stepping_batches), steps_of(self.trainer, self.clean_epochs)
        if steps <= clean_steps:
            raise InputError("max_steps", f"{steps} ends before the attack, after {clean_steps}", "give more")
        warmup = float(self.hparams["warmup"])
        scale = self.attack_learning_rate / float(self.hparams["learning_rate"])

        def factor(step: int) -> float:
            if step < clean_steps:
                return linear_schedule(step, clean_steps, warmup)
            left = (steps - step) / (steps - clean_steps) if self.attack_decay else 1.0
            return scale * max(0.0, left)

        return scheduled(configured, factor)


def embedding_gradient(network: PreTrainedModel, tokens: Tensor, losses: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """The gradient of a loss by some rows of the embedding matrix, without dropout and in float32.

    Args:
        network: any network of transformers; its mode and weights are left as they are.
        tokens: numbers of the rows, (tokens,), int64.
        losses: passes texts through the network, and returns losses, which are summed.

    Returns:
        The loss, a scalar, and the gradient, (tokens, dimensions), float32.
    """
    with torch.autocast(tokens.device.type, enabled=False):  # which would also act on the backward pass
        with evaluating(network), embeddings_read(network) as read:
            loss = losses().sum()
        leaves = [embeddings for _, embeddings in read]
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        ids = torch.cat([ids.flatten() for ids, _ in read])
        gradient = torch.cat([part.flatten(0, -2) for part in gradients]).float()
        scale = float(getattr(network.get_input_embeddings(), "embed_scale", 1.0))  # some, as Gemma, scale rows
        return loss.detach(), scale * ((tokens[:, None] == ids).float() @ gradient)


@contextmanager
def embeddings_read(network: PreTrainedModel) -> Iterator[Read]:
    """Within the block, keeps the word embeddings that passes read, by which losses can then be differentiated."""
    read: Read = []

    def keep(module: nn.Module, args: Sequence[Any], output: Tensor) -> Tensor:
        read.append((args[0], output.detach().requires_grad_()))
        return read[-1][1]

    handle = network.get_input_embeddings().register_forward_hook(keep)
    try:
        yield read
    finally:
        handle.remove()


def descended(rows: Tensor, gradient: Tensor, learning_rate: float) -> Tensor:
    """A step of gradient descent after which each row has its norm again: ``r' = r - η g``, then ``r' ‖r‖ / ‖r'‖``.

    Args:
        rows: (rows, dimensions).
        gradient: likewise.
        learning_rate: η.

    >>> descended(torch.tensor([[0.0, 1.0]]), torch.tensor([[-2.0, 0.0]]), 0.5)
    tensor([[0.7071, 0.7071]])
    """
    norm = rows.double().norm(dim=1, keepdim=True)
    moved = rows.double() - learning_rate * gradient.double()
    kept: Tensor = moved * (norm / moved.norm(dim=1, keepdim=True))
    return kept.to(rows)
