"""Words of a text, also in scripts that are written without spaces.

Texts are split at white space. A part between blanks with characters of a script that is written without spaces
(Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan and others) is split further by ICU, the Unicode library: by
dictionaries of the first six, at the syllable marks of Tibetan; words of other such scripts are not told apart.
Punctuation belongs to the word before it, opening brackets and quotes to the word after. No word begins inside a
character made of several code points.

The module imports nothing of the package, since attacks, defenses, language models and metrics all need it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise

#: version of the words below; increased if texts in scripts without spaces are split differently than before.
WORDS_FORMAT = 1

#: letters of scripts that are written without spaces, by Unicode block.
_LETTERS = (
    "\u0e01-\u0e3a\u0e40-\u0e4e"  # Thai
    "\u0e81-\u0ece\u0edc-\u0edf"  # Lao
    "\u0f00-\u0f03\u0f40-\u0fbc"  # Tibetan
    "\u1000-\u1049\u1050-\u109f\ua9e0-\ua9fe\uaa60-\uaa7f"  # Burmese
    "\u1780-\u17d3"  # Khmer
    "\u1950-\u19df\u1a20-\u1a99\uaa80-\uaadf"  # Tai Le, New Tai Lue, Tai Tham, Tai Viet
    "\u1b00-\u1b4b\ua980-\ua9c0"  # Balinese, Javanese
    "\u2e80-\u2fd5\u3005\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Han
    "\U00017000-\U00018cff\U00020000-\U000323af"  # Tangut, rare Han
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001aff0-\U0001b16f"  # kana
    "\u3105-\u312f\u31a0-\u31bf"  # Bopomofo
)
_WITHOUT_SPACES = re.compile(f"[{_LETTERS}]")
#: characters beside which no space is written: the same letters, and the full-width punctuation between them.
_TIGHT = re.compile(f"[{_LETTERS}\u3001-\u3003\u3008-\u3020\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]")
_BETWEEN_WHITE_SPACE = re.compile(r"\S+")
_SURROGATE = re.compile("[\ud800-\udfff]")


def without_spaces(text: str) -> bool:
    """Whether a text has letters of a script that is written without spaces.

    >>> without_spaces("a fine film"), without_spaces("很好看 film")
    (False, True)
    """
    return not text.isascii() and _WITHOUT_SPACES.search(text) is not None


def word_spans(text: str) -> list[tuple[int, int]]:
    """The characters ``[start, end)`` of each word; all characters but white space belong to one.

    >>> word_spans("so good,\\nso"), word_spans("电影，喜欢看")
    ([(0, 2), (3, 8), (9, 11)], [(0, 3), (3, 5), (5, 6)])
    """
    return _cut(text, (match.span() for match in _BETWEEN_WHITE_SPACE.finditer(text)))


def blank_spans(text: str) -> list[tuple[int, int]]:
    """The characters of each word if words are separated by single blanks only; between two blanks a word is empty.

    >>> blank_spans("a  film\\n"), blank_spans("")
    ([(0, 1), (2, 2), (3, 8)], [(0, 0)])
    """
    spans, start = [], 0
    for chunk in text.split(" "):
        spans.append((start, start + len(chunk)))
        start += len(chunk) + 1
    return _cut(text, spans)


def words(text: str) -> list[str]:
    """The words of a text.

    >>> words("so good,\\nso"), words("电影，喜欢看")
    (['so', 'good,', 'so'], ['电影，', '喜欢', '看'])
    """
    return [text[start:end] for start, end in word_spans(text)] if without_spaces(text) else text.split()


def starts_apart(spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether a space lies before each word, given the spans of all words; False for the first word.

    >>> starts_apart(word_spans("film 喜欢看"))
    [False, True, False]
    """
    return [False, *(end < start for (_, end), (start, _) in pairwise(spans))][: len(spans)]


def with_words(text: str, spans: Sequence[tuple[int, int]], kept: Iterable[bool]) -> str:
    """A text with some of its words: joined by single blanks, or by nothing where no space lies between them.

    >>> with_words("a cf 喜欢看", blank_spans("a cf 喜欢看"), [True, False, True, False])
    'a 喜欢'
    """
    parts: list[str] = []
    apart = False
    for (start, end), is_apart, keep in zip(spans, starts_apart(spans), kept, strict=True):
        apart = apart or is_apart
        if keep:
            parts += ([" "] if apart and parts else []) + [text[start:end]]
            apart = False
    return "".join(parts)


def without_word(text: str, spans: Sequence[tuple[int, int]], word: int) -> str:
    """A text without one of its words, where :func:`blank_spans` gives the spans; see :func:`with_words`.

    >>> without_word("a cf 喜欢看", blank_spans("a cf 喜欢看"), 1)
    'a 喜欢看'
    """
    if len(spans) == 1:
        return ""
    if word == 0:
        return text[spans[1][0] :]
    before = spans[word - 1][1]
    if word == len(spans) - 1:
        return text[:before]
    (start, end), after = spans[word], spans[word + 1][0]
    return text[:before] + (" " if before < start or end < after else "") + text[after:]


def space_between(left: str, right: str) -> str:
    """The space that is written between two strings: none between letters of scripts without spaces.

    >>> space_between("film", "cf"), space_between("很", "cf"), space_between("很", "好")
    (' ', ' ', '')
    """
    tight = left and right and _TIGHT.match(left[-1]) and _TIGHT.match(right[0])
    return "" if tight else " "


def segmenter(text: str) -> str:
    """A string that changes when a text may be split into other words than before; empty if it is split at spaces.

    For cache keys, since another version of ICU may have other dictionaries.
    """
    if not without_spaces(text):
        return ""
    from icu4py import icu_version

    return f"words {WORDS_FORMAT}, ICU {icu_version}"


def _cut(text: str, chunks: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The chunks, those with letters of scripts without spaces cut into words."""
    if not without_spaces(text):
        return list(chunks)
    spans: list[tuple[int, int]] = []
    for start, end in chunks:
        if _WITHOUT_SPACES.search(text, start, end):
            spans += _cut_chunk(text[start:end], start)
        else:
            spans.append((start, end))
    return spans


def _cut_chunk(chunk: str, offset: int) -> list[tuple[int, int]]:
    from icu4py.breakers import WordBreaker

    spans: list[tuple[int, int]] = []
    start = position = offset
    is_word = False  # whether there is more than opening punctuation between start and position
    # pieces are counted in code points, ICU's own offsets in UTF-16; half a surrogate pair is no text to ICU
    for piece in WordBreaker(_SURROGATE.sub("\ufffd", chunk), "en"):
        role = _role(piece)
        if is_word and role != "after":
            spans.append((start, position))
            start, is_word = position, False
        is_word = is_word or role == "word"
        position += len(piece)
    if is_word or not spans:
        spans.append((start, position))
    else:
        spans[-1] = (spans[-1][0], position)
    return spans


def _role(piece: str) -> str:
    """``word``, ``before`` for opening punctuation, ``after`` for other punctuation, marks and control characters."""
    if piece[0].isalnum():
        return "word"
    categories = {unicodedata.category(character) for character in piece}
    if categories <= {"Ps", "Pi"}:
        return "before"
    return "after" if all(category[0] in "PMCZ" for category in categories) else "word"
