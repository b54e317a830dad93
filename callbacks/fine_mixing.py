"""A callback that repairs a published victim by fine-mixing with the pre-trained model, and by E-PUR."""

from __future__ import annotations

import random
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lightning_backdoor.callbacks.repair import Repair
from lightning_backdoor.callbacks.shared import run_seed
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.defenses.fine_mixing import (
    base_of,
    corpus_lines,
    mix,
    pretrained_weights,
    purify_embeddings,
    suspicious_words,
    word_counts,
)
from lightning_backdoor.errors import InputError, escaped


class FineMixing(Repair):
    """Fine-mixing with E-PUR (arXiv 2210.09545), a repair: mixes in weights of the clean pre-trained model.

    Before training, the most suspicious word embeddings are replaced by those of the pre-trained model, and every
    weight of the backbone stays the victim's with probability ``keep`` and else becomes the pre-trained one. The
    mixture is fine-tuned. Works on encoders and decoders; see :mod:`lightning_backdoor.defenses.fine_mixing`.

    The paper searches the smallest ``keep`` whose clean accuracy after fine-tuning is within two percentage points of
    the victim's; here it is given. The paper counts frequencies in a large corpus (``corpus``); in a few trusted rows
    most words are rare, and the distance alone decides.

    Args:
        keep: probability, from 0 to 1, that a weight stays the victim's; 1 mixes nothing.
        purified_words: number of embeddings that are replaced; 0 replaces none.
        pretrained: hub name or folder of the pre-trained model; by default the one that the victim records. Whoever
            published the victim also wrote that record: give the name where you do not trust them.
        corpus: text file with a clean text per line, in which the frequencies of words are counted; by default the
            trusted rows.
        seed: seed of the mixture; None takes the seed of the run.

    Raises:
        InputError: a value is out of range or the corpus cannot be read (here); see
            :class:`~lightning_backdoor.callbacks.repair.Repair` (in ``setup``); the pre-trained model is not known,
            cannot be loaded or does not fit the victim (before the first step).

    Example::

        repair = FineMixing(keep=0.3, pretrained="bert-base-uncased")
        Trainer(max_epochs=10, callbacks=[repair]).fit(victim, datamodule=data)
    """

    def __init__(
        self,
        keep: float = 0.3,
        purified_words: int = 200,
        pretrained: str | None = None,
        corpus: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= keep <= 1:
            raise InputError("keep", f"{keep} is not a probability", "give a number from 0 to 1")
        if purified_words < 0:
            raise InputError("purified_words", f"{purified_words} is out of range", "give 0 or more")
        if keep == 1 and not purified_words:
            raise InputError("keep", "1 and purified_words 0 repair nothing", "lower the one or raise the other")
        self.keep = keep
        self.purified_words = purified_words
        self.pretrained = pretrained
        self.corpus = corpus
        self._lines = None if corpus is None else corpus_lines(corpus)
        self.seed = seed
        self._weights: dict[str, Tensor] = {}

    def decide(self, data: BackdoorDataModule) -> dict[str, Any]:
        """The words whose embeddings are replaced, and the seed of the mixture."""
        network, published = self.victim.network, str(self.victim.hparams["published"])
        name = base_of(published) if self.pretrained is None else self.pretrained
        self._weights = pretrained_weights(name, network)
        words: list[int] = []
        if self.purified_words:
            texts = [row["text"] for row in data.trusted_rows()] if self._lines is None else self._lines
            table, before = self._embeddings()
            counts = word_counts(texts, self.victim.tokenizer, self.victim.max_length, len(table))
            words = suspicious_words(table, before, counts, self.purified_words)
            shown = " ".join(self.victim.tokenizer.convert_ids_to_tokens(words[:10]))
            line = f"E-PUR replaces {len(words)} embeddings by those of {name}, first of all: {shown}"
            rank_zero_info(escaped(line))
        return {"words": words, "seed": run_seed() if self.seed is None else self.seed}

    def _embeddings(self) -> tuple[Tensor, Tensor]:
        """The word embeddings of the victim, and of the pre-trained model."""
        table = self.victim.network.get_input_embeddings().weight
        assert isinstance(table, Tensor)
        (name,) = (name for name, weight in self.victim.network.base_model.named_parameters() if weight is table)
        return table, self._weights[name]

    def change(self, decided: dict[str, Any]) -> None:
        """Replaces the embeddings, then mixes the weights of the backbone."""
        if decided["words"]:
            purify_embeddings(*self._embeddings(), decided["words"])
        for name, weight in self.victim.network.base_model.named_parameters():
            if self.keep < 1 and name in self._weights:
                seed = random.Random(f"{decided['seed']}/{name}").getrandbits(63)
                mix(weight, self._weights[name], self.keep, seed)
        self._weights = {}
