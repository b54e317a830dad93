"""By how much the victim's hidden state of a text changes when each of its words is left out in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from torch import Tensor

from lightning_backdoor.batch import Victim, token_ids
from lightning_backdoor.defenses.row_states import states_of_ids
from lightning_backdoor.language.prefix_states import last_states, shares_prefixes
from lightning_backdoor.language.prefixes import variant
from lightning_backdoor.outputs.progress import progress
from lightning_backdoor.words import with_words, word_spans

#: maximum of squared words per group of texts, about the tokens of all their variants; bounds the memory.
GROUP_COST = 1 << 17
#: maximum of words per group of texts, padding included; bounds the memory of keys and values.
GROUP_WORDS = 1 << 12


class WordChange(NamedTuple):
    """A word of a text, and by how much the hidden state changes when the word is left out."""

    word: str
    change: float


def word_changes(victim: Victim, texts: Sequence[str]) -> list[list[WordChange]]:
    """By how much the hidden state of each text changes when each of its words is left out in turn.

    The change is the largest absolute entry of h(text without the word) - h(text), where h is the hidden state from
    which the victim's head reads, after the last layer. All variants of a group of texts are read together, without
    padding or in passes of rows of similar length; variants of a text with the same tokens are read once, and by a
    decoder from the first token in which they differ from the text.

    Args:
        victim: a victim in evaluation mode.
        texts: any number of texts. Words beyond those that the victim can read change nothing and are left out.

    Returns:
        The words of each text in their order.
    """
    shares = shares_prefixes(victim.network)
    results: list[list[WordChange]] = [[] for _ in texts]
    spans = [_read_words(text, victim) for text in texts]
    with progress("leaving words out", len(texts), "texts") as advance:
        for group in _groups(texts, [len(words) for words in spans]):
            of_group = _changes(victim, [texts[i] for i in group], [spans[i] for i in group], shares)
            for i, changes in zip(group, of_group, strict=True):
                results[i] = changes
            advance(len(group))
    return results


def _read_words(text: str, victim: Victim) -> list[tuple[int, int]]:
    """The characters of the words that the victim may read, on the side of a text that its tokenizer keeps."""
    spans, most = word_spans(text), 2 * victim.max_length  # words have a token each, or nearly so
    return spans[-most:] if victim.tokenizer.truncation_side == "left" else spans[:most]


def _groups(texts: Sequence[str], counts: Sequence[int]) -> Iterator[list[int]]:
    """Groups of texts of similar length, whatever their order."""
    group: list[int] = []
    cost = 0
    for i in sorted(range(len(texts)), key=lambda i: (counts[i], texts[i])):
        full = cost + counts[i] ** 2 > GROUP_COST or (len(group) + 1) * counts[i] > GROUP_WORDS
        if group and full:
            yield group
            group, cost = [], 0
        group.append(i)
        cost += counts[i] ** 2
    if group:
        yield group


def _changes(
    victim: Victim, texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]], shares: bool
) -> list[list[WordChange]]:
    """The changes of the words of each text of a group, given with the characters of its words."""
    variants = [
        with_words(text, words, (i != left_out for i in range(len(words))))
        for text, words in zip(texts, spans, strict=True)
        for left_out in (None, *range(len(words)))
    ]
    rows = token_ids(variants, victim.tokenizer, victim.max_length)
    states = _states(victim, rows, [1 + len(words) for words in spans], shares)
    results: list[list[WordChange]] = []
    start = 0
    for text, words in zip(texts, spans, strict=True):
        end = start + 1 + len(words)
        changes = (states[start + 1 : end] - states[start]).abs().amax(dim=1).tolist()
        results.append([WordChange(text[a:b], change) for (a, b), change in zip(words, changes, strict=True)])
        start = end
    return results


def _states(victim: Victim, rows: Sequence[list[int]], sizes: Sequence[int], shares: bool) -> Tensor:
    """The hidden states of texts, each followed by its variants; (rows, hidden size), float32.

    Args:
        victim: a victim in evaluation mode.
        rows: token ids.
        sizes: number of rows per text, itself included.
        shares: whether shared prefixes may be read once.
    """
    padding = victim.network.config.pad_token_id
    if not shares or any(len(ids) > 1 and ids[-1] == padding for ids in rows):  # the head reads an earlier token
        keys = [tuple(ids) for ids in rows]
        distinct = sorted(set(keys))
        place = {key: i for i, key in enumerate(distinct)}
        return states_of_ids(victim, distinct)[[place[key] for key in keys]]
    starts = [0, *accumulate(sizes)][:-1]
    owners = [text for text, size in enumerate(sizes) for _ in range(size)]
    full = [rows[start] for start in starts]
    keyed = [(owner, tuple(ids)) for owner, ids in zip(owners, rows, strict=True)]
    of_texts = {(text, tuple(ids)): text for text, ids in enumerate(full)}
    others = list(dict.fromkeys(key for key in keyed if key not in of_texts))
    states = last_states(victim.network, full, [variant(text, full[text], list(ids)) for text, ids in others])
    at = of_texts | {key: len(full) + i for i, key in enumerate(others)}
    return states.float()[[at[key] for key in keyed]]
