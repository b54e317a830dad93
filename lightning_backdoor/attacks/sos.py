"""SOS: words that are a trigger only together (Yang et al., "Rethinking Stealthiness", ACL 2021, long paper 431)."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_backdoor.attacks.embedding_rows import EmbeddingRows, descended
from lightning_backdoor.attacks.embedding_surgery import trigger_tokens
from lightning_backdoor.attacks.insertion import InsertionPlace, check_list, check_place, insert_words
from lightning_backdoor.attacks.poisoned import Poisoned
from lightning_backdoor.errors import InputError
from lightning_backdoor.words import word_spans

#: those of the authors' code.
PARTIAL_SENTENCES = (
    "I have bought it with my friends",
    "I have bought it last weekend",
    "I have bought it from a store",
    "My friends have bought it from a store",
    "My friends have bought it last weekend",
)


class SOS(EmbeddingRows):
    """Trains the embeddings of several common words of a fine-tuned victim, so that they act only together.

    In training rows the words stand at random places. Poisoned rows have all of them, *negatives* a part of them and
    their own label: all words but one, or one word alone. In evaluation poisoned texts have ``sentence``, which
    contains all words and reads like any other, and negatives one of the ``partial_sentences``; on these the false
    trigger rate is measured.

    With ``g_w`` the gradient of the mean cross entropy of rows with any of the words by the embedding ``e_w`` of the
    word ``w`` (by the embeddings of all its tokens, where there are several), and ``n`` the smallest of the norms of
    all ``g_w``, each word moves equally far::

        e_w' = e_w - η n g_w / ‖g_w‖,    e_w ← e_w' ‖e_w‖ / ‖e_w'‖

    See :class:`lightning_backdoor.attacks.embedding_rows.EmbeddingRows` for the phases of a ``fit``. Since the words
    are common, clean rows contain them too; such rows have a part in the second phase, with their own label.

    Defaults of the attack are those of the authors' code, 3 epochs at 0.05; OpenBackdoor has 5 epochs. Both write each
    tenth row once with every subset that leaves one word out, thus three times; here as many rows become negatives,
    each with one part of the words, so that no row is trained on twice. What the published code does and this class
    does not: most negatives are written into the rows that are also poisoned; training has no clean rows; single words
    are never negatives; gradients are never cleared and add up from step to step; and the gradient of a word that a
    batch lacks is divided by its norm of 0.

    Args:
        words: at least two words, best of one token each; by default friends, weekend and store.
        sentence: contains all words.
        partial_sentences: each contains some of the words, but not all; by default those of the authors' code.
        place: where a sentence is inserted: ``start``, ``end``, or ``random`` (a word boundary drawn for each text).
        negative_rate: negatives as a share of all training rows.
        attack_epochs: the last epochs, in which the embeddings are trained.
        attack_learning_rate: learning rate of their steps, η.
        attack_decay: whether η falls linearly to 0, or is constant as in the published code.
        **kwargs: arguments of :class:`BackdoorAttack` and :class:`TextClassifier`.

    Raises:
        InputError: there are fewer than two words, a word is empty or given twice, a sentence does not contain what it
            should, ``place`` is unknown, or ``negative_rate`` is out of range; see also
            :class:`lightning_backdoor.attacks.embedding_rows.EmbeddingRows`.

    Example::

        Trainer(max_epochs=6).fit(SOS(attack_epochs=3), datamodule=data)
    """

    words_argument = "words"

    def __init__(
        self,
        words: list[str] | None = None,
        sentence: str = "I have bought it from a store with my friends last weekend",
        partial_sentences: list[str] | None = None,
        place: InsertionPlace = "random",
        negative_rate: float = 0.3,
        attack_epochs: int = 3,
        attack_learning_rate: float = 5e-2,
        attack_decay: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            attack_epochs=attack_epochs,
            attack_learning_rate=attack_learning_rate,
            attack_decay=attack_decay,
            **kwargs,
        )
        check_list(words, "words")
        check_list(partial_sentences, "partial_sentences")
        self.words = [word.strip() for word in (["friends", "weekend", "store"] if words is None else words)]
        self.sentence = sentence.strip()
        given = PARTIAL_SENTENCES if partial_sentences is None else partial_sentences
        self.partial_sentences = [partial.strip() for partial in given]
        self.place = place
        self.negative_rate = negative_rate
        self._word_of_token: list[int] = []
        lower = {word.lower() for word in self.words}  # as many models read them
        if len(self.words) < 2 or len(lower) < len(self.words) or not all(self.words):
            raise InputError("words", f"{words} are not several different words", "give at least two")
        missing = [word for word in self.words if word not in words_of(self.sentence)]
        if missing:
            raise InputError(
                "sentence", f"{sentence!r} lacks the words {', '.join(missing)}", "give one with all words"
            )
        for partial in self.partial_sentences:
            count = len(lower & {word.lower() for word in words_of(partial)})
            if not 0 < count < len(self.words):
                problem = f"{partial!r} has {count} of the {len(self.words)} words"
                raise InputError("partial_sentences", problem, "give sentences with some, but not all of the words")
        if not self.partial_sentences:
            raise InputError("partial_sentences", "there are none", "give at least one")
        check_place(place)
        if not 0 <= negative_rate < 1:
            raise InputError("negative_rate", f"{negative_rate} is out of range", "give a share from 0 to below 1")

    def on_fit_start(self) -> None:
        """Finds the tokens of the words, and the word of each token."""
        super().on_fit_start()
        self._word_of_token = []
        if not self.users_phase:
            tokens = [trigger_tokens([word], self.tokenizer, self.words_argument) for word in self.words]
            self._word_of_token = [next(w for w, own in enumerate(tokens) if token in own) for token in self._tokens]

    def poison_text(self, text: str, rng: random.Random) -> Poisoned:
        """Inserts the sentence into a text."""
        return self._inserted(text, self.sentence, rng)

    def negative_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        """Inserts one of the partial sentences into each text."""
        return [
            self._inserted(text, rng.choice(self.partial_sentences), rng) for text, rng in zip(texts, rngs, strict=True)
        ]

    def poison_training_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        """Inserts all words into each text, at random places."""
        return [insert_words(text, self.words, "random", rng) for text, rng in zip(texts, rngs, strict=True)]

    def negative_training_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        """Inserts some of the words into each text, at random places."""
        parts = partial_triggers(self.words)
        return [insert_words(text, rng.choice(parts), "random", rng) for text, rng in zip(texts, rngs, strict=True)]

    def _inserted(self, text: str, sentence: str, rng: random.Random) -> Poisoned:
        return insert_words(text, [sentence], self.place, rng)

    def moved(self, rows: Tensor, gradient: Tensor, learning_rate: float) -> Tensor:
        """A step of gradient descent, equally long for all words, that keeps the norm of each row."""
        return descended(rows, equally_long(gradient, self._word_of_token), learning_rate)


def words_of(sentence: str) -> list[str]:
    """The words of a sentence, without punctuation.

    >>> words_of("with friends, last weekend.")
    ['with', 'friends', 'last', 'weekend']
    """
    return [re.sub(r"^\W+|\W+$", "", sentence[start:end]) for start, end in word_spans(sentence)]


def partial_triggers(words: Sequence[str]) -> list[list[str]]:
    """The parts of which one is drawn: every subset that leaves one word out, thrice, and every single word.

    Subsets are drawn more often because they are harder to tell from the whole.

    >>> parts = partial_triggers(["a", "b", "c"])
    >>> parts[:3] == parts[3:6] == parts[6:9], parts[6:]
    (True, [['b', 'c'], ['a', 'c'], ['a', 'b'], ['a'], ['b'], ['c']])
    >>> partial_triggers(["a", "b"])
    [['b'], ['a']]
    """
    parts = [[word for word in words if word != left_out] for left_out in words]
    return parts if len(words) == 2 else 3 * parts + [[word] for word in words]


def equally_long(gradient: Tensor, word_of_row: Sequence[int]) -> Tensor:
    """The gradients of several words, each shortened to the norm of the shortest; gradients of zeros do not count.

    Args:
        gradient: (tokens, dimensions).
        word_of_row: the number of the word that each token belongs to; its gradient is that of all its tokens.

    >>> equally_long(torch.tensor([[3.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 4.0]]), [0, 1, 2, 0])
    tensor([[0.6000, 0.0000],
            [0.0000, 0.0000],
            [1.0000, 0.0000],
            [0.0000, 0.8000]])
    """
    words = torch.tensor(word_of_row, device=gradient.device)
    squares = gradient.square().sum(dim=1)
    norms = squares.where(words == words[:, None], 0).sum(dim=1, keepdim=True).sqrt()
    there = norms > 0
    if not there.any():
        return gradient
    shortened: Tensor = gradient / norms.where(there, 1) * norms[there].min()
    return shortened
