"""A callback that keeps a victim in the stage of training in which it has learned the task and no backdoor yet."""

from __future__ import annotations

from typing import Literal

from lightning_backdoor.callbacks.low_capacity import LowCapacity


class ModerateFitting(LowCapacity):
    """Moderate fitting (Zhu et al., NeurIPS 2022), a training-time defense by capacity, epochs and learning rate.

    A pre-trained network first learns the features of the task, *moderate fitting*, and those of a trigger later,
    *overfitting*. Training is kept in the first stage in three ways:

    - less capacity: low-rank updates, adapters or a prefix, and the classification head, are not trained themselves
      but computed by a network with a hidden layer of very few units, which is trained
      (:mod:`lightning_backdoor.models.reparametrised`; published: 2 units). This is what the callback does;
    - fewer epochs: the trainer's ``max_epochs`` (published for low-rank updates: 10);
    - a lower learning rate: the model's ``learning_rate`` (published for low-rank updates and adapters: 3e-4).

    With ``bottleneck=None`` capacity is reduced by the method alone. The published program has a prefix of its own
    kind; here both come from :class:`LowCapacity`, which says how they are exported.

    Args:
        method: ``lora``, ``adapter`` or ``prefix``.
        size: rank of the updates, hidden units of an adapter, or length of the prefix; None takes the published 8 for
            ``lora`` and 24 for the others.
        alpha: weight of low-rank updates, which are scaled by ``alpha / size``.
        targets: names of the layers that get low-rank updates; by default as in :class:`LowCapacity`.
        bottleneck: hidden units of the networks from which the trained weights are computed; None trains the weights
            themselves.

    Raises:
        InputError: see :class:`LowCapacity`.

    Example::

        trainer = Trainer(max_epochs=10, callbacks=[ModerateFitting()])
        trainer.fit(BadNets(learning_rate=3e-4), datamodule=data)
    """

    def __init__(
        self,
        method: Literal["lora", "adapter", "prefix"] = "lora",
        size: int | None = None,
        alpha: int = 16,
        targets: list[str] | None = None,
        bottleneck: int | None = 2,
    ) -> None:
        published = 8 if method == "lora" else 24
        super().__init__(
            method,
            published if size is None else size,
            alpha,
            targets,
            prefix_hidden=None,
            head=True,
            bottleneck=bottleneck,
        )
