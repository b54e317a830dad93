"""Character noise on one token of a text, by which X-GRAAD repairs texts (arXiv 2510.04347)."""

from __future__ import annotations

import random
import string

from lightning_backdoor.batch import Spans


def noisy(word: str, rng: random.Random) -> str:
    """A word with one or two random letters inserted at one position, or with one character replaced by them.

    For words of at most two characters the result is empty, since noise would leave nothing to recognise.

    >>> noisy("cf", random.Random(0))
    ''
    >>> noisy("watch", random.Random(0)) != "watch"
    True
    """
    if len(word) <= 2:
        return ""
    while True:
        position = rng.randrange(len(word))
        removed = rng.randint(0, 1)
        added = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 2)))
        result = word[:position] + added + word[position + removed :]
        if result.lower() != word.lower():  # a change of case alone is invisible to an uncased victim
            return result


def replace_spans(text: str, spans: Spans, replacement: str) -> str:
    """A text with the characters of every span replaced and all other characters kept.

    With an empty replacement, one of the spaces around the span is removed as well. Of overlapping spans (byte-level
    tokens of one character) only the last is replaced.

    Args:
        text: any text.
        spans: characters ``[start, end)``; empty spans are skipped.
        replacement: text that replaces every span.

    >>> replace_spans("a cf film cf", [(2, 4), (10, 12)], "")
    'a film'
    >>> replace_spans("so Good, good!", [(3, 7), (9, 13)], "gqood")
    'so gqood, gqood!'
    """
    replaced_from = len(text)
    for start, end in sorted(spans, reverse=True):
        if start == end or end > replaced_from:
            continue
        replaced_from = start
        if not replacement:
            after_space = start > 0 and text[start - 1].isspace()
            if after_space and (end == len(text) or text[end].isspace()):
                start -= 1
            elif start == 0 and end < len(text) and text[end].isspace():
                end += 1
        text = text[:start] + replacement + text[end:]
    return text
