"""Texts in LaTeX and Markdown, whatever characters they have."""

from __future__ import annotations

import re
import unicodedata

from lightning_backdoor.errors import one_line

_GREEK = {chr(code): unicodedata.name(chr(code)).rpartition(" ")[2].lower() for code in range(0x3B1, 0x3CA)}
_LATEX = {
    **{character: f"\\{character}" for character in "{}$&#%_"},
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\char34}",  # \textquotedbl is undefined in LaTeX's default encoding
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "[": "{[}",  # after the end of a line it would start an argument
    "*": "{*}",  # likewise
    **{character: rf"\ensuremath{{\{name.replace('lamda', 'lambda')}}}" for character, name in _GREEK.items()},
    **{"ο": "o", "ς": r"\ensuremath{\varsigma}"},
    **{character: rf"\ensuremath{{\{name}}}" for character, name in
       {"±": "pm", "×": "times", "·": "cdot", "→": "to", "≤": "leq", "≥": "geq", "≈": "approx", "≠": "neq",
        "∞": "infty"}.items()},
    "−": r"\ensuremath{-}",
}  # fmt: skip


def latex_text(text: str) -> str:
    """A text in LaTeX, on one line, with control characters escaped.

    >>> print(latex_text("50% of α_1"))
    50\\% of \\ensuremath{\\alpha}\\_1
    """
    line = one_line("".join(character for character in text if unicodedata.category(character) != "Cf"))
    latex = "".join(_LATEX.get(character, character) for character in line)
    # a dash is not made of hyphens that a name has
    return re.sub("-(?=-)", "-{}", latex) if "--" in line else latex


def needed_packages(text: str) -> str:
    """A comment line that says what a LaTeX text with tables needs.

    >>> needed_packages("abc")
    '% needs \\\\usepackage{booktabs} in the preamble'
    """
    line = r"% needs \usepackage{booktabs} in the preamble"
    if any(ord(character) > 0x17F and unicodedata.category(character)[0] not in "P" for character in text):
        return f"{line}, and XeLaTeX or LuaLaTeX with a font that has all letters of the names"
    return line if text.isascii() else line.replace("booktabs}", r"booktabs} and \usepackage[T1]{fontenc}")


def markdown_text(text: str) -> str:
    """A text on one line, with Markdown and HTML markup and control characters escaped.

    >>> print(markdown_text("a_b | c"))
    a\\_b \\| c
    """
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", one_line(text))
