"""A callback that trains few parameters of a victim: low-rank updates, adapters, or a prefix."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from transformers import PreTrainedModel

from lightning_backdoor.callbacks.shared import text_classifier, undefended_network
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.bottleneck import insert_adapters
from lightning_backdoor.models.lora import insert_lora, merge_lora
from lightning_backdoor.models.prefix import insert_prefix
from lightning_backdoor.models.reparametrised import plain_weights, reparametrise
from lightning_backdoor.victim.network import train_head
from lightning_backdoor.victim.training_defense import TrainingDefense

#: why the network of a method cannot be turned into a plain one; methods without a reason can.
UNMERGEABLE = {
    "adapter": "adapters are layers of their own, which no plain model has",
    "prefix": "a prefix adds keys and values to the attention, which no plain model has",
}
#: standard deviation of the initial values of the networks that reparametrise a method's weights.
STD = {"adapter": 0.01}


class LowCapacity(Callback):
    """Trains few parameters instead of the network, so that it learns the task before it learns a backdoor.

    These are the baselines *LoRA*, *Adapter* and *Prefix-Tuning* in the tables of MuScleLoRA (arXiv 2402.12026), with
    the settings of its program, in which all other weights are frozen, the new classification head included. The paper
    trains with a learning rate of 2e-5, 10 epochs, ``gradient_clip_val=1``, without weight decay and without warm-up.

    - ``lora``: low-rank updates (arXiv 2106.09685) of query and value, by peft. They are merged into the exported
      model.
    - ``adapter``: bottleneck layers (arXiv 1902.00751) after attention and feed-forward, before the residual
      connection. peft has none of this kind. MuScleLoRA's program puts them after the residual connection and the
      layer norm.
    - ``prefix``: keys and values before those of the text in every layer (arXiv 2101.00190), by the encoder of peft.
      For architectures whose attention takes them: BERT, RoBERTa, ELECTRA and decoders.

    Adapters and a prefix cannot be merged into weights. The ``model`` folder of such a run holds the weights of the
    whole network and cannot be loaded as a model; the checkpoint is tested under the same callback.

    Args:
        method: ``lora``, ``adapter`` or ``prefix``.
        size: rank of the updates, hidden units of an adapter, or length of the prefix.
        alpha: weight of low-rank updates, which are scaled by ``alpha / size``.
        targets: names of the layers that get low-rank updates; by default the layers that peft lists for the
            architecture, in most architectures the query and value projections.
        prefix_hidden: hidden units of the network that computes the prefix; None trains its keys and values directly.
        head: train the classification head too, including its pooler.
        bottleneck: hidden units of the networks from which the trained weights are computed
            (:mod:`lightning_backdoor.models.reparametrised`); None trains the weights themselves.

    Raises:
        InputError: a value is out of range (here); the method does not fit the architecture, or the victim has LoRA of
            its own or another training-time defense (in ``setup``).

    Example::

        trainer = Trainer(max_epochs=10, gradient_clip_val=1.0, callbacks=[LowCapacity("prefix")])
        trainer.fit(BadNets(), datamodule=data)
    """

    def __init__(
        self,
        method: Literal["lora", "adapter", "prefix"] = "lora",
        size: int = 8,
        alpha: int = 32,
        targets: list[str] | None = None,
        prefix_hidden: int | None = 512,
        head: bool = False,
        bottleneck: int | None = None,
    ) -> None:
        if method not in ("lora", "adapter", "prefix"):
            raise InputError("method", f"{method!r} is not known", "give lora, adapter or prefix")
        for name, value in {"size": size, "alpha": alpha, "prefix_hidden": prefix_hidden}.items():
            if value is not None and value < 1:
                raise InputError(name, f"{value} is out of range", "give at least 1")
        if bottleneck is not None and bottleneck < 1:
            raise InputError("bottleneck", f"{bottleneck} is out of range", "give at least 1, or leave it out")
        self.method = method
        self.size = size
        self.alpha = alpha
        self.targets = targets
        self.prefix_hidden = prefix_hidden
        self.head = head
        self.bottleneck = bottleneck

    def record(self) -> TrainingDefense:
        """The record for the victim and its checkpoints, with the settings that the method uses."""
        settings: dict[str, Any] = {"method": self.method, "size": self.size, "head": self.head}
        if self.method == "lora":
            settings |= {"alpha": self.alpha, "targets": self.targets}
        if self.method == "prefix":
            settings |= {"prefix_hidden": self.prefix_hidden}
        if self.bottleneck is not None:
            settings |= {"bottleneck": self.bottleneck}
        return TrainingDefense(type(self).__name__, settings, merged, UNMERGEABLE.get(self.method, ""))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Changes the network before a checkpoint is restored and the optimizer is created."""
        victim = text_classifier(pl_module, type(self).__name__)
        record = self.record()
        if victim.training_defense != record:
            if victim.hparams["lora_rank"] is not None:
                raise InputError("lora_rank", "the victim has LoRA of its own", "leave it out")
            self._insert(undefended_network(victim))
            victim.training_defense = record

    def _insert(self, network: PreTrainedModel) -> None:
        if self.method == "lora":
            try:
                insert_lora(network, self.size, self.alpha, self.targets)
            except InputError as error:
                raise error.under("targets") from None
        elif self.method == "adapter":
            insert_adapters(network, self.size)
        else:
            insert_prefix(network, self.size, self.prefix_hidden)
        if self.head:
            train_head(network)
        if self.bottleneck is not None:
            reparametrise(network, self.bottleneck, STD.get(self.method))


def merged(network: PreTrainedModel) -> PreTrainedModel:
    """A plain copy of a network with low-rank updates; the same function in evaluation."""
    return merge_lora(plain_weights(network))
