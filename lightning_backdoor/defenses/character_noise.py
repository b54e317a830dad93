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
    parts: list[str] = []  # from the end of the text to its beginning
    following = ""  # the character after the span, in the new text
    replaced_from = kept_from = len(text)  # the text from kept_from on is in parts
    for start, end in sorted(spans, reverse=True):
        if start == end or end > replaced_from:
            continue
        replaced_from = begin = start
        rest = text[end:kept_from]
        following = rest[:1] or following
        if not replacement and start > 0 and text[start - 1].isspace() and (not following or following.isspace()):
            begin -= 1
        parts += [rest, replacement]
        following = replacement[:1] or following
        kept_from = begin
    result = "".join([text[:kept_from], *reversed(parts)])
    space_left = not replacement and parts and kept_from == 0 and replaced_from == 0 and result[:1].isspace()
    return result[1:] if space_left else result
