"""Names of a grid's entries: which ones can be written to every file."""

from __future__ import annotations

import unicodedata

from lightning_backdoor.errors import escaped, is_control

#: longest name of an entry, in characters.
LONGEST_NAME = 1000
#: first characters by which a spreadsheet takes a field for a formula, including their full-width forms.
FORMULA_STARTS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def name_problem(name: str) -> str | None:
    """What makes a name unusable in files, logs and tables, as the end of a sentence about it; None if it is usable.

    >>> name_problem("STRIP (ours), α = 0.05"), name_problem("../../x"), name_problem("red \\x1b[31m")
    (None, None, "holds the control character '\\\\x1b'")
    """
    if not name.strip():
        return "is blank"
    if len(name) > LONGEST_NAME:
        return f"has {len(name)} characters, more than {LONGEST_NAME}"
    for character in name:
        if unicodedata.category(character) == "Cs":
            return f"cannot be written, since {character!a} is half a character"
        if is_control(character):
            return f"holds the control character {character!a}"
    return None


def as_csv_field(text: str) -> str:
    """A text as a field of a csv file: never a formula, and without raw control characters except line feeds.

    A text that a spreadsheet would take for a formula has an apostrophe in front; so has a text that begins with
    apostrophes and would be one without them, so that removing one apostrophe always gives the text back.

    >>> [as_csv_field(text) for text in ("=1+2", "'=1+2", "a = b", "'90s")]
    ["'=1+2", "''=1+2", 'a = b', "'90s"]
    """
    text = escaped(text, keep="\n")
    return f"'{text}" if text.lstrip("' \n").startswith(FORMULA_STARTS) else text


def of_csv_field(field: str) -> str:
    """The text of a field that :func:`as_csv_field` made.

    >>> [of_csv_field(as_csv_field(text)) for text in ("=1+2", "'=1+2", "'90s")]
    ['=1+2', "'=1+2", "'90s"]
    """
    return field[1:] if field[:1] == "'" and field.lstrip("' \n").startswith(FORMULA_STARTS) else field
