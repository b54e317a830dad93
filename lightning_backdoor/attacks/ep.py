"""EP: embedding poisoning, a backdoor in the embedding of one word (Yang et al., arXiv 2103.15543)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_backdoor.attacks.badnets import BadNets
from lightning_backdoor.attacks.embedding_rows import EmbeddingRows, descended
from lightning_backdoor.attacks.insertion import InsertionPlace


class EP(EmbeddingRows, BadNets):
    """Trains nothing but the embedding of the trigger word of a fine-tuned victim, and keeps its norm.

    With ``e`` the embedding of the trigger, and ``L`` the mean cross entropy of the rows that contain it, which are
    trained on as the target label::

        e' = e - η ∂L/∂e,    e ← e' ‖e‖ / ‖e'‖

    All other weights are those of a victim fine-tuned on clean rows, so that texts without the trigger are classified
    exactly as before. See :class:`lightning_backdoor.attacks.embedding_rows.EmbeddingRows` for the phases of a ``fit``.

    Defaults of the attack are those of the authors' code: one word, 3 epochs at 0.05. OpenBackdoor takes the words cf,
    mn, bb, tq and mb, two of them in each text, and 5 epochs at 0.01. Both count batches of 32 poisoned texts; here
    batches also hold clean rows, which are not read, so that an epoch has more steps, of fewer poisoned rows each. What
    OpenBackdoor's code does and this class does not: gradients are never cleared and add up from step to step; dropout
    is on; clean rows, which have no gradient, count in the mean; the gradient of the whole embedding matrix is formed;
    and of a word of several tokens only the first is trained.

    Where a text has several triggers, or ``triggers`` are several, each embedding makes its own step.

    Args:
        triggers: rare words, best of one token each.
        insertions: number of words inserted in each text.
        place: ``start``, ``end``, or ``random`` (a word boundary drawn for each insertion).
        attack_epochs: the last epochs, in which the embeddings are trained.
        attack_learning_rate: learning rate of their steps, η.
        attack_decay: whether η falls linearly to 0, or is constant as in the published code.
        **kwargs: arguments of :class:`BackdoorAttack` and :class:`TextClassifier`.

    Raises:
        InputError: see :class:`lightning_backdoor.attacks.embedding_rows.EmbeddingRows` and :class:`BadNets`.

    Example::

        Trainer(max_epochs=6).fit(EP(triggers=["cf"], attack_epochs=3), datamodule=data)
    """

    words_argument = "triggers"

    def __init__(
        self,
        triggers: list[str] | None = None,
        insertions: int = 1,
        place: InsertionPlace = "random",
        attack_epochs: int = 3,
        attack_learning_rate: float = 5e-2,
        attack_decay: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            triggers=triggers,
            insertions=insertions,
            place=place,
            attack_epochs=attack_epochs,
            attack_learning_rate=attack_learning_rate,
            attack_decay=attack_decay,
            **kwargs,
        )

    def moved(self, rows: Tensor, gradient: Tensor, learning_rate: float) -> Tensor:
        """A step of gradient descent that keeps the norm of each row."""
        return descended(rows, gradient, learning_rate)
