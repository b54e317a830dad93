"""Spellings of names: ``-`` for ``_``, and British for American."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: British spellings and the American ones that stand for both in comparisons.
AMERICAN = (
    (r"is(e|ed|er|ers|es|ing|ation|ations)(?![a-z])", r"iz\1"),
    (r"ys(e|ed|er|ing)(?![a-z])", r"yz\1"),
    (r"our", "or"),
    (r"(def|off|lic)ence", r"\1ense"),
    (r"tre(s?)(?![a-z])", r"ter\1"),
    (r"ogue(s?)(?![a-z])", r"og\1"),
    (r"ll(ed|ing|er)(?![a-z])", r"l\1"),
)


def one_spelling(name: str) -> str:
    """A name in the one spelling by which names are compared; not a name to show.

    >>> one_spelling("data-defence") == one_spelling("data_defense")
    True
    >>> one_spelling("Localisation") == one_spelling("Localization")
    True
    """
    name = name.replace("-", "_")
    for british, american in AMERICAN:
        name = re.sub(british, american, name)
    return name


def known_spelling(name: str, known: Iterable[str]) -> str | None:
    """The one of some names that a name spells, or None.

    >>> known_spelling("max-neighbours", ["max_neighbors", "max_rows"])
    'max_neighbors'
    """
    names = list(known)
    if name in names:
        return name
    same = [other for other in names if one_spelling(other) == one_spelling(name)]
    return same[0] if len(same) == 1 else None
