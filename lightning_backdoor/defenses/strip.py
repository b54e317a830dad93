"""STRIP for text: STRIP-ViTA (arXiv 1911.10312).

A trigger dominates its text: the victim's prediction stays certain when half of the words are replaced. Several copies
are made per text, in each of which some words are replaced by characteristic words of a clean text; where a trigger
survives in the copies, the victim's mean entropy over them is low. The defaults are the defaults of OpenBackdoor, which
also draws the replaced positions with replacement: some positions are drawn twice, so that with "half of the words"
about four tenths change.

OpenBackdoor's code differs in ways that are not followed here: it averages over the wrong axis, over copies of
*different* texts (it reshapes the entropies to copies by texts, but they come text by text), so that a score depends
little on its text; where a clean text has fewer words than are replaced, it takes words that the text does not have
(here the text's words are reused from the first); it does not perturb texts of one word; and it takes the TF-IDF and
the threshold from the same rows.
"""

from __future__ import annotations

import math
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lightning_backdoor.batch import Batch, pad, token_ids
from lightning_backdoor.defenses.defense import Defense, Scores, Victim
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.stop_words import stop_words
from lightning_backdoor.models.captures import plain_logits
from lightning_backdoor.words import space_between, starts_apart, without_spaces, word_spans, words

TFIDF_WORD = re.compile(r"\w\w+")


def words_by_tfidf(texts: Sequence[str]) -> list[list[str]]:
    """The distinct words of each text in descending order of TF-IDF, ties in the order of the text.

    Words are in lower case, have at least two characters, or one in scripts without spaces, and exclude stop words. The
    TF-IDF of a word in a text is ``count * (ln((1 + texts) / (1 + texts with the word)) + 1)``: raw counts, smoothed
    idf, not normalised, as in the published code. Texts without such words are left out.

    >>> words_by_tfidf(["A dull film, a film.", "The dull plot", "It is what it is"])
    [['film', 'dull'], ['plot', 'dull']]
    """
    counts = [Counter(word for word in _tfidf_words(text.lower()) if word not in stop_words()) for text in texts]
    texts_with = Counter(word for count in counts for word in count)
    idf = {word: math.log((1 + len(texts)) / (1 + number)) + 1 for word, number in texts_with.items()}
    return [sorted(count, key=lambda word: -count[word] * idf[word]) for count in counts if count]


def _tfidf_words(text: str) -> list[str]:
    if not without_spaces(text):
        return TFIDF_WORD.findall(text)
    result: list[str] = []
    for word in words(text):
        result += [_bare(word)] if without_spaces(word) else TFIDF_WORD.findall(word)
    return result


def _bare(word: str) -> str:
    """A word without the punctuation around it."""
    punctuation = {character for character in word if unicodedata.category(character)[0] in "PZC"}
    return word.strip("".join(punctuation))


def perturbed(text: str, lenders: Sequence[Sequence[str]], replaced: float, rng: random.Random) -> str:
    """A copy of a text with some words replaced by the first words of one clean text, the lender.

    Args:
        text: any text; it is split into words (:mod:`lightning_backdoor.words`), which are joined by single spaces, or
            by nothing in scripts without spaces.
        lenders: the words of clean texts, see :func:`words_by_tfidf`; one lender is drawn. Where it has fewer words
            than are replaced, its words are reused from the first.
        replaced: replacements per word of the text; their number is rounded down, but at least 1 where there is a word.
        rng: random generator that draws the lender, then the replaced positions, with replacement.

    >>> copy = perturbed("a dull film , all said", [["plot"]], 0.5, random.Random(0))
    >>> len(copy.split()), 1 <= copy.count("plot") <= 3
    (6, True)
    >>> perturbed("liked", [["film", "dull"]], 0.5, random.Random(0))
    'film'
    """
    copy = words(text)
    lender = rng.choice(lenders)
    if not copy:
        return ""
    count = max(1, int(replaced * len(copy) + 1e-9))  # 0.29 * 100 is 28.999…
    positions = rng.choices(range(len(copy)), k=count)
    for i, position in enumerate(positions):
        copy[position] = lender[i % len(lender)]
    if not without_spaces(text):
        return " ".join(copy)
    changed = set(positions)
    spaces = ["", *(space_between(left, right) for left, right in pairwise(copy))]
    for position, apart in enumerate(starts_apart(word_spans(text))):
        if apart:
            spaces[position] = " "
        elif position not in changed and position - 1 not in changed:
            spaces[position] = ""
    return "".join(space + word for space, word in zip(spaces, copy, strict=True))


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of each row's softmax, in float32; (texts, classes) to (texts,).

    >>> entropy(torch.tensor([[0.0, 0.0], [200.0, -200.0]])).tolist()
    [0.6931471824645996, 0.0]
    """
    log_p = logits.float().log_softmax(dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1) + 0.0  # turns -0.0 into 0.0


class Strip(Defense):
    """STRIP (STRIP-ViTA, arXiv 1911.10312): rejects texts whose prediction stays certain when words are replaced.

    Each text is copied several times, and in every copy some words are replaced by words of clean texts. A text's score
    is minus the mean entropy, in nats, of the victim's predictions on the copies *of that text*. It depends only on the
    text, the seed, the learned words and the victim. An empty text has nothing to replace and is scored unchanged.

    Args:
        copies: number of perturbed copies per text.
        replaced: replacements in each copy, as a share of the text's words, above 0 and at most 1.
        fpr: share of clean texts, above 0 and below 1, that the threshold may flag; called FRR in the paper.
        seed: seed of the copies; None takes the seed of the run.

    Raises:
        InputError: a value is out of range.

    Example::

        defense = Strip()
        defense.learn(victim, clean_reference_batches)
        defense.calibrate(victim, clean_threshold_batches)
        scores = defense.score(victim, batch)  # scores.text: (batch,)
    """

    def __init__(self, copies: int = 5, replaced: float = 0.5, fpr: float = 0.01, seed: int | None = None) -> None:
        super().__init__(fpr=fpr, seed=seed)
        if copies < 1:
            raise InputError("copies", f"{copies} copies leave nothing to score", "give at least 1")
        if not 0 < replaced <= 1:
            raise InputError(
                "replaced", f"{replaced} is not a share of the words", "give a number above 0 and at most 1"
            )
        self.copies = copies
        self.replaced = replaced
        self._lenders: list[list[str]] = []

    def get_extra_state(self) -> list[list[str]]:
        """The learned words, for checkpoints."""
        return self._lenders

    def set_extra_state(self, state: list[list[str]]) -> None:
        """Restores the learned words from a checkpoint."""
        self._lenders = state

    def learn(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        """Learns the words of the clean texts, ordered by TF-IDF.

        Raises:
            InputError: the clean texts have no words other than stop words.
        """
        self._lenders = words_by_tfidf([text for batch in clean_batches for text in batch["text"]])
        if not self._lenders:
            raise InputError(
                "reference rows",
                "the clean texts have no words to put into copies",
                "give texts with other words than stop words",
            )

    @torch.no_grad()
    def score(self, victim: Victim, batch: Batch) -> Scores:
        """Scores each text by minus the mean entropy, in nats, over its copies.

        Raises:
            RuntimeError: :meth:`learn` has not been called.
        """
        if not self._lenders:
            raise RuntimeError("Strip has no words to put into its copies; call learn with clean reference batches")
        copies = [copy for text in batch["text"] for copy in self._copies(text)]
        ids = token_ids(copies, victim.tokenizer, victim.max_length)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # sorted by length to reduce padding
        device = victim.network.device
        entropies = torch.empty(len(ids), dtype=torch.float32, device=device)
        for start in range(0, len(ids), len(batch["text"])):
            part = order[start : start + len(batch["text"])]
            input_ids, mask = pad([ids[i] for i in part], victim.tokenizer)
            entropies[part] = entropy(plain_logits(victim.network, input_ids.to(device), mask.to(device)))
        return Scores(-entropies.view(-1, self.copies).mean(dim=1))  # each row holds the copies of one text

    def _copies(self, text: str) -> list[str]:
        rng = random.Random(f"{self.seed or 0}/strip/{text}")
        return [perturbed(text, self._lenders, self.replaced, rng) for _ in range(self.copies)]
