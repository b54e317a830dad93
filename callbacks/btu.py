"""A callback that trains any victim under BTU, a training-time defense: finds tokens of triggers and unlearns them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from lightning_backdoor.batch import Batch
from lightning_backdoor.callbacks.shared import (
    data_module,
    own_random_numbers,
    run_seed,
    text_classifier,
    undefended_network,
)
from lightning_backdoor.data.batching import DealtBatches, TokenisedRows
from lightning_backdoor.defenses.btu import Unlearned, distances_moved, most_moved, pooled_loss
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.evaluation_mode import evaluating
from lightning_backdoor.models.fine_tuning import check_learning_rate
from lightning_backdoor.models.precision import evaluation_precision
from lightning_backdoor.models.reparametrised import plain_weights
from lightning_backdoor.victim import TextClassifier
from lightning_backdoor.victim.training_defense import TrainingDefense

#: number of suspicious tokens that are named in the log.
NAMED = 10


class BTU(Callback):
    """Backdoor token unlearning (arXiv 2501.03272), a training-time defense that cuts the embeddings of trigger tokens.

    Before training, three short rounds on the training rows find the tokens whose embeddings move furthest. Training
    then is as without the defense; whenever the victim is evaluated, or exported, the dimensions of these tokens'
    embeddings that training moved far have the values of the padding token's
    (:mod:`lightning_backdoor.defenses.btu`, which also says what the published program does). It sees triggers that
    are made of tokens which other texts hardly have.

    The rounds cost one pass with gradients over the training rows, and two over their embeddings alone, in float32.
    Where the weights are in another precision, as under ``bf16-true``, so is the one pass, but steps and distances are
    in float32. With several processes each makes the same rounds. Checkpoints hold the embeddings twice.

    Args:
        token_share: share of the vocabulary that each round adds to the suspicious tokens, at least one token.
        whole_network: whether the third round, in the whole network, is made.
        learning_rate: learning rate of the rounds.
        batch_size: rows per step of the first two rounds; the third has the training batches' size.
        epochs: passes over the training rows per round.
        seed: seed of the order of the rows, the head and dropout in the rounds; None takes the seed of the run.

    Raises:
        InputError: a value is out of range (here); there is no data module, the embeddings are not trained, or the
            victim has another training-time defense (in ``setup``).

    Example::

        Trainer(max_epochs=3, callbacks=[BTU()]).fit(BadNets(), datamodule=data)
    """

    def __init__(
        self,
        token_share: float = 0.0005,
        whole_network: bool = True,
        learning_rate: float = 2e-5,
        batch_size: int = 256,
        epochs: int = 1,
        seed: int | None = None,
    ) -> None:
        if not 0 < token_share < 1:
            raise InputError("token_share", f"{token_share} is not a share", "give a number between 0 and 1")
        check_learning_rate("learning_rate", learning_rate)
        for name, value in {"batch_size": batch_size, "epochs": epochs}.items():
            if value < 1:
                raise InputError(name, f"{value} is out of range", "give at least 1")
        self.token_share = token_share
        self.whole_network = whole_network
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.epochs = epochs
        self.seed = seed

    def record(self) -> TrainingDefense:
        """The record for the victim and its checkpoints."""
        names = ("token_share", "whole_network", "learning_rate", "batch_size", "epochs")
        return TrainingDefense(type(self).__name__, {name: getattr(self, name) for name in names}, merged)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Changes the embeddings before a checkpoint is restored and the optimizer is created."""
        victim = text_classifier(pl_module, type(self).__name__)
        record = self.record()
        if victim.training_defense != record:
            embeddings = undefended_network(victim).get_input_embeddings()
            if not embeddings.weight.requires_grad:
                problem = "the word embeddings are not trained, so that no token could be told by them"
                raise InputError("callbacks", problem, "leave lora_rank and freeze out")
            cut = Unlearned(embeddings.weight, victim.tokenizer.pad_token_id)
            parametrize.register_parametrization(embeddings, "weight", cut.train(embeddings.training))
            victim.training_defense = record
        if stage == "fit" and data_module(trainer) is None:
            raise InputError("datamodule", "tokens are told by the training rows", "give a BackdoorDataModule")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the suspicious tokens, unless a checkpoint has them."""
        victim = text_classifier(pl_module, type(self).__name__)
        cut = cut_of(victim.network)
        if cut.suspicious.any():
            return
        seed = run_seed() if self.seed is None else self.seed
        with torch.enable_grad(), evaluation_precision(trainer):
            suspicious = self._suspicious(trainer, victim, seed)
        suspicious = trainer.strategy.broadcast(suspicious)  # devices may differ in the last digits
        cut.suspicious.copy_(suspicious)
        ids = suspicious.nonzero().flatten().tolist()
        named = ", ".join(repr(victim.tokenizer.decode([i])) for i in ids[:NAMED])
        rank_zero_info(f"BTU suspects {len(ids)} tokens: {named}{', …' if len(ids) > NAMED else ''}")

    def _suspicious(self, trainer: Trainer, victim: TextClassifier, seed: int) -> Tensor:
        """Marks the tokens that moved furthest in a round, (vocabulary,), bool, on the CPU."""
        data = data_module(trainer)
        assert data is not None
        rows = TokenisedRows(data.training_rows(), victim.tokenizer, victim.max_length)
        special = victim.tokenizer.all_special_ids
        original = cut_of(victim.network).original
        number = max(1, int(self.token_share * len(original)))
        found = torch.zeros(len(original), dtype=torch.bool, device=original.device)
        for name in ("first", "second"):
            own = random.Random(f"{seed}/btu/{name}")
            with own_random_numbers(own.getrandbits(63), original.device):
                # of float32 also where a trainer makes new layers in bfloat16
                head = nn.Linear(original.shape[1], victim.network.config.num_labels, dtype=torch.float32)
            head.to(original.device)
            embeddings = original.to(torch.float32, copy=True).requires_grad_()
            left_out = found.clone()

            def loss(
                batch: Batch, weight: Tensor = embeddings, head: nn.Linear = head, out: Tensor = left_out
            ) -> Tensor:
                return pooled_loss(weight, head, batch, out)

            batches = self._batches(trainer, rows, self.batch_size, own.getrandbits(32))
            moved = distances_moved(embeddings, head.parameters(), batches, loss, self.learning_rate)
            found |= most_moved(moved, number, special)
        if self.whole_network:
            own = random.Random(f"{seed}/btu/third")
            weight = victim.network.get_input_embeddings().parametrizations["weight"].original
            batches = self._batches(trainer, rows, data.batch_size, own.getrandbits(32))
            with own_random_numbers(own.getrandbits(63), original.device):
                moved = distances_moved(weight, (), batches, of_network(victim), self.learning_rate)
            found |= most_moved(moved, number, special)
        return found.cpu()

    def _batches(self, trainer: Trainer, rows: TokenisedRows, size: int, seed: int) -> Iterator[Batch]:
        order = DealtBatches(rows.lengths, size, rank=0, world_size=1, shuffle=True, seed=seed)
        for epoch in range(self.epochs):
            order.set_epoch(epoch)
            for positions in order:
                yield trainer.strategy.batch_to_device(rows[positions])


def of_network(victim: TextClassifier) -> Callable[[Batch], Tensor]:
    """The loss of a batch in the whole network, in training mode."""
    return lambda batch: cross_entropy(victim(batch).float(), batch["label"])


def cut_of(network: PreTrainedModel) -> Unlearned:
    """The parametrisation of a network's word embeddings."""
    cut: Any = network.get_input_embeddings().parametrizations["weight"][0]
    assert isinstance(cut, Unlearned)
    return cut


def merged(network: PreTrainedModel) -> PreTrainedModel:
    """A plain copy of a network with the embeddings that it has in evaluation."""
    with evaluating(network):
        return plain_weights(network)
