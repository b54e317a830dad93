"""Character noise on one token of a text, as gradient-attention scoring repairs it (arXiv 2510.04347)."""

from __future__ import annotations

import random
import string

from lightning_backdoor.batch import Spans


def noisy(word: str, rng: random.Random) -> str:
    """The word with one or two characters inserted at one place, or one replaced by one or two.

    Words of at most two characters are dropped: nothing of them would be left to recognise.

    >>> noisy("cf", random.Random(0))
    ''
    >>> noisy("watch", random.Random(0)) != "watch"
    True
    """
    if len(word) <= 2:
        return ""
    while True:
        place = rng.randrange(len(word))
        removed = rng.randint(0, 1)
        added = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 2)))
        result = word[:place] + added + word[place + removed :]
        if result.lower() != word.lower():  # uncased victims would see no change
            return result


def replace_spans(text: str, spans: Spans, replacement: str) -> str:
    """The text with the characters of every span replaced; all others stay.

    A dropped word takes one of the two spaces around it along. Spans that share characters (bytes of one character)
    are replaced once, the last of them.

    >>> replace_spans("a cf film cf", [(2, 4), (10, 12)], "")
    'a film'
    >>> replace_spans("so Good, good!", [(3, 7), (9, 13)], "gqood")
    'so gqood, gqood!'
    """
    done = len(text)
    for start, end in sorted(spans, reverse=True):
        if start == end or end > done:
            continue
        done = start
        if not replacement:
            after_space = start > 0 and text[start - 1].isspace()
            if after_space and (end == len(text) or text[end].isspace()):
                start -= 1
            elif start == 0 and end < len(text) and text[end].isspace():
                end += 1
        text = text[:start] + replacement + text[end:]
    return text
