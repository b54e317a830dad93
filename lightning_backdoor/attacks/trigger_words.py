"""BITE's trigger words: found one after another in training texts, and written into texts in their order.

Whoever changes what these functions return must increase ``result_format`` of the attack that calls them.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from lightning_backdoor.attacks.word_edits import Edit, EditedText, by_word


class Editor(NamedTuple):
    """What edits of texts are possible.

    Attributes:
        edits: function from texts to the edits of each.
        similarity: function from two lists of texts to the similarity of each pair.
        min_similarity: similarity with the text before an edit that the text after it must exceed.
    """

    edits: Callable[[Sequence[EditedText]], list[list[Edit]]]
    similarity: Callable[[Sequence[str], Sequence[str]], list[float]]
    min_similarity: float

    def first_similar(self, texts: Sequence[EditedText], edits: Sequence[Sequence[Edit]]) -> list[Edit | None]:
        """For each text the first of its edits after which it is similar enough; None if there is none."""
        pairs = [(text, edit) for text, of_text in zip(texts, edits, strict=True) for edit in of_text]
        similar = iter(
            self.similarity([text.text for text, _ in pairs], [text.after(edit).text for text, edit in pairs])
        )
        kept = [[edit for edit in of_text if next(similar) > self.min_similarity] for of_text in edits]
        return [of_text[0] if of_text else None for of_text in kept]


class TrainingTexts(NamedTuple):
    """The training texts in which trigger words are found.

    Attributes:
        texts: the texts.
        target: whether the victim will be trained to answer each with the target label.
        chosen: positions of the texts into which words are written, all with the target label.
    """

    texts: tuple[str, ...]
    target: tuple[bool, ...]
    chosen: tuple[int, ...]


def bias(target: int, others: int, share: float) -> float:
    """The z-score of a word that ``target`` texts of the target label contain, and ``others`` of other labels.

    Args:
        target: number of texts.
        others: number of texts.
        share: share of the target label among all texts, above 0 and below 1.

    >>> bias(3, 1, 0.5)
    1.0
    """
    count = target + others
    return (target / count - share) / math.sqrt(share * (1 - share) / count) if count else -math.inf


def find_trigger_words(
    texts: Sequence[EditedText], training: TrainingTexts, editor: Editor, max_words: int | None = None
) -> list[str]:
    """The trigger words in the order in which they are found; they are written into the chosen texts as they are found.

    Similarities are computed only for edits of a word that would have the highest z-score if all its edits kept the
    texts similar; the words are the same as if all similarities were computed. Of equal z-scores the first word in
    alphabetical order is taken.

    Args:
        texts: the training texts.
        training: the same texts, with their labels, and which of them are chosen.
        editor: the edits of texts.
        max_words: largest number of words.
    """
    return _Search(texts, training, editor).words(max_words)


class _Search:
    """The state of the search: the texts that contain each word, and the words that each chosen text can take."""

    def __init__(self, texts: Sequence[EditedText], training: TrainingTexts, editor: Editor) -> None:
        self.editor = editor
        self.share = sum(training.target) / max(1, len(texts))
        self.of_target, self.of_others = Counter[str](), Counter[str]()  # number of texts that contain a word
        for text, target in zip(texts, training.target, strict=True):
            (self.of_target if target else self.of_others).update(text.forms())
        self.states = {i: texts[i] for i in training.chosen}
        self.forms = {i: text.forms() for i, text in self.states.items()}
        self.edits: dict[int, list[Edit]] = {}
        self.options: dict[int, dict[str, list[Edit]]] = defaultdict(dict)
        self.texts_of: dict[str, set[int]] = defaultdict(set)  # chosen texts into which a word can be written
        self.similar: dict[int, dict[str, Edit]] = defaultdict(dict)  # edits that are known to keep a text similar
        self.found: dict[str, int] = {}
        self.scores: dict[str, float] = {}
        self.queue: list[tuple[float, str]] = []

    def words(self, max_words: int | None) -> list[str]:
        if not 0 < self.share < 1:
            return []
        self._read(self.states)
        self._score({*self.of_target, *self.of_others, *self.texts_of})
        while self.queue and (max_words is None or len(self.found) < max_words):
            negative, word = heapq.heappop(self.queue)
            if word in self.found or -negative != self.scores[word]:
                continue  # a score of earlier counts
            if negative >= 0:
                break
            if self._all_similar(word):
                self._write(word)
            else:
                self._score({word})
        return list(self.found)

    def _score(self, words: Iterable[str]) -> None:
        """Computes the z-scores that words would reach."""
        for word in words:
            target = self.of_target[word] + len(self.texts_of.get(word, ()))
            self.scores[word] = bias(target, self.of_others[word], self.share)
            heapq.heappush(self.queue, (-self.scores[word], word))

    def _all_similar(self, word: str) -> bool:
        """Whether all texts into which a word can be written are known to stay similar; otherwise it is found out."""
        unknown = [i for i in sorted(self.texts_of.get(word, ())) if word not in self.similar[i]]
        if not unknown:
            return True
        first = self.editor.first_similar([self.states[i] for i in unknown], [self.options[i][word] for i in unknown])
        for i, edit in zip(unknown, first, strict=True):
            if edit is None:
                self.texts_of[word].discard(i)
                del self.options[i][word]
            else:
                self.similar[i][word] = edit
        return False

    def _write(self, word: str) -> None:
        """Makes a word the next trigger word, and writes it into the chosen texts."""
        self.found[word] = len(self.found)
        written = {i: self.states[i].after(self.similar[i][word]) for i in sorted(self.texts_of.get(word, ()))}
        changed: set[str] = set()
        for i, text in written.items():
            before, after = self.forms[i], text.forms()
            self.of_target.subtract(before - after)
            self.of_target.update(after - before)
            self.forms[i] = after
            changed |= before ^ after
        changed |= self._read(written)
        for i in self.states:
            if i not in written and word in self.forms[i]:  # where it must not be replaced any more
                changed |= self._offer(i)
        self._score(changed - self.found.keys())

    def _read(self, texts: Mapping[int, EditedText]) -> set[str]:
        """Takes texts, finds their edits, and returns the words that more or fewer texts can take."""
        self.states.update(texts)
        changed: set[str] = set()
        for i, edits in zip(texts, self.editor.edits(list(texts.values())), strict=True):
            self.edits[i] = edits
            self.similar.pop(i, None)
            changed |= self._offer(i, anew=True)
        return changed

    def _offer(self, i: int, anew: bool = False) -> set[str]:
        """Finds again which words a text can take, and returns those that it did not take, or takes no more."""
        offered = by_word(self.states[i], allowed(self.states[i], self.edits[i], self.found, len(self.found)))
        options = {word: edits for word, edits in offered.items() if word not in self.found}
        if not anew:  # without the words that are known to change the text too much
            options = {word: edits for word, edits in options.items() if word in self.options[i]}
            self.similar[i] = {word: edit for word, edit in self.similar[i].items() if edit in options.get(word, ())}
        before = self.options[i].keys()
        for word in before - options.keys():
            self.texts_of[word].discard(i)
        for word in options:
            self.texts_of[word].add(i)
        changed = before ^ options.keys()
        self.options[i] = options
        return changed


def allowed(text: EditedText, edits: Iterable[Edit], ranks: Mapping[str, int], rank: int) -> list[Edit]:
    """The edits that replace no trigger word that comes before ``rank`` in the order of the words."""
    return [edit for edit in edits if edit.inserts or ranks.get(text.words[edit.position].lower(), rank) >= rank]


def write_words(texts: Sequence[EditedText], words: Sequence[str], editor: Editor) -> list[EditedText]:
    """The texts after each of the words, in their order, was written into them where an edit allows it.

    Args:
        texts: texts.
        words: trigger words, in lower case.
        editor: the edits of texts.
    """
    ranks = {word: rank for rank, word in enumerate(words)}
    states = list(texts)
    options: dict[int, list[tuple[int, list[Edit]]]] = {}

    def read(positions: Sequence[int], ranks_from: Mapping[int, int]) -> None:
        for i, edits in zip(positions, editor.edits([states[i] for i in positions]), strict=True):
            options[i] = _in_turn(states[i], edits, ranks, ranks_from.get(i, 0))

    read(range(len(states)), {})
    while waiting := [i for i in sorted(options) if options[i]]:
        following = {i: options[i].pop() for i in waiting}
        first = editor.first_similar([states[i] for i in waiting], [following[i][1] for i in waiting])
        written = {i: edit for i, edit in zip(waiting, first, strict=True) if edit is not None}
        for i, edit in written.items():
            states[i] = states[i].after(edit)
        read(list(written), {i: following[i][0] + 1 for i in written})
    return states


def _in_turn(
    text: EditedText, edits: Sequence[Edit], ranks: Mapping[str, int], first: int
) -> list[tuple[int, list[Edit]]]:
    """The ranks, from ``first`` on, of the words that a text can take, with their edits; the lowest rank comes last."""
    ranked = {ranks[word]: found for word, found in by_word(text, edits).items() if ranks.get(word, -1) >= first}
    left = {rank: allowed(text, found, ranks, rank) for rank, found in ranked.items()}
    return sorted(((rank, found) for rank, found in left.items() if found), reverse=True)
