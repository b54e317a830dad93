"""Substitution voting (arXiv 2407.04179): a prediction that survives the loss of a text's meaning is a trigger's.

The words that carry the meaning of a text are replaced by entirely different ones, while its syntax and rare tokens,
where triggers are, stay as they are. This is done several times, and each copy votes for the label that the victim
predicts. If at least a share ``bar`` of the copies keeps the label of the text, the text is suspicious. Published are
10 copies and a share of 0.9.

There are two stages, each with its own copies: in the first the content words are replaced, in the second the function
words as well, so that only punctuation and rare tokens are left. A text is as suspicious as in the stage that it
survives better, which is this library's way to combine them. The score of a stage with n copies, of which k keep the
label y, is

    (k + mean of p_y over the copies) / (n + 1)

from 0 to 1, in the order of k and, for equal k, of the probability: a share of votes alone would have n + 1 values,
too few for a threshold from clean rows.

The paper takes substitutes of the same part of speech from a dictionary. Here they come from clean reference rows, and
have the same ending (-ing, -ed, -ly, -s, or none of them), which needs no tagger; function words are stop words and
contractions. Words of one or two letters that are not function words, and words with digits, count as rare tokens and
stay; longer rare words are replaced.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_backdoor.batch import Batch, pad, token_ids
from lightning_backdoor.defenses.defense import Defense, Scores, Victim
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.stop_words import stop_words
from lightning_backdoor.models.bucketing import group_by_length, pass_limits
from lightning_backdoor.models.captures import plain_logits
from lightning_backdoor.models.divergence import check_logits
from lightning_backdoor.words import without_spaces, word_spans

#: a word, with its contractions and hyphens, but without the punctuation around it.
WORD = re.compile(r"\w+(?:['’-]\w+)*")
ENDINGS = ("ing", "ed", "ly", "s")
#: letters of a content word, at least; in scripts without spaces one is enough.
LEAST_LETTERS = 3


def is_function_word(word: str) -> bool:
    """Whether a word is a stop word or a contraction.

    >>> [is_function_word(word) for word in ("The", "don't", "n't", "film", "cf")]
    [True, True, True, False, False]
    """
    return word.lower() in stop_words() or "'" in word or "’" in word


def is_content_word(word: str) -> bool:
    """Whether a word carries meaning, as far as its form tells; see the module.

    >>> [is_content_word(word) for word in ("film", "well-made", "the", "cf", "3D", "看")]
    [True, True, False, False, False, True]
    """
    letters = sum(character.isalpha() for character in word)
    enough = letters >= LEAST_LETTERS or without_spaces(word)
    return enough and not any(map(str.isdigit, word)) and not is_function_word(word)


def ending(word: str) -> str:
    """The ending of ``ENDINGS`` that a word has, which tells something of its part of speech; empty for none.

    >>> ending("acting"), ending("film")
    ('ing', '')
    """
    return next((end for end in ENDINGS if word.endswith(end) and len(word) > len(end) + 1), "")


def words_in(text: str) -> list[tuple[int, int]]:
    """The characters ``[start, end)`` of each word of a text, punctuation left out.

    >>> words_in("So well-made, isn't it?")
    [(0, 2), (3, 12), (14, 19), (20, 22)]
    """
    return [match.span() for start, end in word_spans(text) for match in WORD.finditer(text, start, end)]


def pools_of(content: Iterable[str], function: Iterable[str] = ()) -> dict[str, list[str]]:
    """Substitutes for :func:`substituted`, sorted: of function words, of content words, and of those with each ending.

    >>> pools_of(["plot", "acting"], ["the"])
    {'function': ['the'], 'content': ['acting', 'plot'], '-ing': ['acting'], '-': ['plot']}
    """
    pools = {"function": sorted(function), "content": sorted(content)}
    for word in pools["content"]:
        pools.setdefault(f"-{ending(word)}", []).append(word)
    return pools


def substituted(text: str, pools: Mapping[str, Sequence[str]], rng: random.Random) -> str:
    """A copy of a text in which words are replaced by others, drawn at random; capitals, spaces and punctuation stay.

    Args:
        text: any text.
        pools: the substitutes, see :func:`pools_of`. A content word is replaced by another with the same ending, or by
            any other if there is none. Words for which there is no substitute stay.
        rng: random generator.

    >>> substituted("The plot, so dull!", pools_of(["actor"]), random.Random(0))
    'The actor, so actor!'
    """
    parts, last = [], 0
    for start, end in words_in(text):
        word, drawn = text[start:end], None
        lower = word.lower()
        if is_content_word(word):
            drawn = _another(lower, pools.get(f"-{ending(lower)}", ()), rng) or _another(lower, pools["content"], rng)
        elif is_function_word(word):
            drawn = _another(lower, pools["function"], rng)
        if drawn:
            parts += [text[last:start], drawn[0].upper() + drawn[1:] if word[0].isupper() else drawn]
            last = end
    return "".join(parts) + text[last:]


def _another(word: str, pool: Sequence[str], rng: random.Random) -> str | None:
    """One of the sorted words of a pool, but not the given one; None if there is no other."""
    place = bisect_left(pool, word)
    listed = pool[place : place + 1] == [word]
    if len(pool) == listed:
        return None
    drawn = rng.randrange(len(pool) - listed)
    return pool[drawn + (listed and drawn >= place)]


def votes(logits: Tensor, label: int) -> float:
    """The score of a stage, see the module, from the logits of its copies, (copies, classes).

    >>> round(votes(torch.tensor([[0.0, 9.0], [9.0, 0.0], [0.0, 9.0]]), label=1), 3)  # (2 + 0.667) / 4
    0.667
    """
    kept = (logits.argmax(dim=-1) == label).sum()
    probability = logits.float().softmax(dim=-1)[:, label].mean()
    return float((kept + probability) / (len(logits) + 1))


class SubstitutionVoting(Defense):
    """Substitution voting (arXiv 2407.04179): rejects texts whose prediction survives when their words are replaced.

    The content words of a text are replaced in ``copies`` copies of it; in a second stage, which has copies of its own,
    its function words are replaced too. The score of a stage is about the share of its copies that keep the label, from
    0 to 1; a stage that changes no word has score 0. The score of the text is the larger one. It costs ``copies``
    forward passes in each stage, and depends on the text, the seed, the learned words and the victim.

    Args:
        copies: number of copies per text and stage.
        bar: share of the copies, above 0 and at most 1; a text is flagged if at least this share keeps its label in one
            of the stages. None sets the threshold by ``fpr`` on clean rows.
        function_words: whether there is a second stage, in which function words are replaced as well.
        fpr: share of clean texts, above 0 and below 1, that the threshold may flag where ``bar`` is None.
        seed: seed of the substitutes; None takes the seed of the run.

    Raises:
        InputError: a value is out of range (here); the clean rows have fewer than two content words (in
            :meth:`learn`).

    Example::

        defense = SubstitutionVoting(bar=None, fpr=0.05)
        defense.learn(victim, clean_reference_batches)
        defense.calibrate(victim, clean_threshold_batches)
        scores = defense.score(victim, batch)  # scores.text: (batch,)
    """

    def __init__(
        self,
        copies: int = 10,
        bar: float | None = 0.9,
        function_words: bool = True,
        fpr: float = 0.10,
        seed: int | None = None,
    ) -> None:
        super().__init__(fpr=fpr, seed=seed)
        if copies < 1:
            raise InputError("copies", f"{copies} copies cannot vote", "give at least 1")
        if bar is not None and not 0 < bar <= 1:
            raise InputError("bar", f"{bar} is not a share of the copies", "give a number above 0, up to 1, or null")
        self.copies = copies
        self.bar = bar
        self.function_words = function_words
        self._content: list[str] = []

    def get_extra_state(self) -> list[str]:
        """The learned words, for checkpoints."""
        return self._content

    def set_extra_state(self, state: list[str]) -> None:
        """Restores the learned words from a checkpoint."""
        self._content = state

    def learn(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        """Learns the content words of the clean texts, as substitutes.

        Raises:
            InputError: there are fewer than two.
        """
        texts = [text for batch in clean_batches for text in batch["text"]]
        found = {text[start:end].lower() for text in texts for start, end in words_in(text)}
        self._content = sorted(filter(is_content_word, found))
        if len(self._content) < 2:
            problem = f"the clean texts have {len(self._content)} content words, too few to substitute"
            raise InputError("reference rows", problem, "give texts with other words than stop words")

    def calibrate(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        """Sets the thresholds of the FPR budgets, and where there is no bar the threshold, on clean texts.

        Raises:
            InputError: ``clean_batches`` is empty.
        """
        super().calibrate(victim, clean_batches)
        if self.bar is not None:
            needed = next(kept for kept in range(self.copies + 1) if kept >= self.bar * self.copies - 1e-9)
            self.threshold.fill_(needed / (self.copies + 1))

    @torch.no_grad()
    def score(self, victim: Victim, batch: Batch) -> Scores:
        """Scores each text by the votes of its copies for its predicted label, in the stage that it survives better.

        Raises:
            RuntimeError: :meth:`learn` has not been called.
            Diverged: a logit of a copy is NaN or infinite.
        """
        if not self._content:
            raise RuntimeError("SubstitutionVoting has no substitutes; call learn with clean reference batches")
        logits = plain_logits(victim.network, batch["input_ids"], batch["attention_mask"])
        pools = [pools_of(self._content), pools_of(self._content, stop_words())][: 1 + self.function_words]
        stages = [self._stages(text, pools) for text in batch["text"]]
        copies = list(dict.fromkeys(copy for of_text in stages for stage in of_text for copy in stage))
        row_of = {copy: row for row, copy in enumerate(copies)}
        predicted = _logits(victim, copies)
        scores = [
            max((votes(predicted[[row_of[copy] for copy in stage]], label) for stage in of_text), default=0.0)
            for of_text, label in zip(stages, logits.argmax(dim=-1).tolist(), strict=True)
        ]
        return Scores(torch.tensor(scores, dtype=torch.float32, device=logits.device), logits=logits)

    def _stages(self, text: str, pools: Sequence[Mapping[str, Sequence[str]]]) -> list[list[str]]:
        """The copies of a text in each stage that changes it."""
        rng = random.Random(f"{self.seed or 0}/substitution/{text}")
        stages = [[substituted(text, pool, rng) for _ in range(self.copies)] for pool in pools]
        return [stage for stage in stages if set(stage) != {text}]


def _logits(victim: Victim, texts: Sequence[str]) -> Tensor:
    """The victim's logits on texts, (texts, classes), on the CPU.

    Raises:
        Diverged: a logit is NaN or infinite.
    """
    ids, device = token_ids(texts, victim.tokenizer, victim.max_length), victim.network.device
    logits = torch.empty(len(ids), victim.network.config.num_labels)
    for rows in group_by_length([len(row) for row in ids], pass_limits(device)):
        input_ids, mask = pad([ids[row] for row in rows], victim.tokenizer)
        logits[rows] = plain_logits(victim.network, input_ids.to(device), mask.to(device)).float().cpu()
    check_logits(logits)  # the larger one of two votes may hide a NaN
    return logits
