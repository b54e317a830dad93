"""The blocks of code in the documents: README, and the pages in ``docs/``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


class Block(NamedTuple):
    """A block of code.

    Attributes:
        page: name of the document.
        line: line on which it begins, from 1.
        language: ``python``, ``yaml`` or the like; empty for commands and output.
        text: the code.
    """

    page: str
    line: int
    language: str
    text: str


def blocks(*languages: str, pages: Iterable[Path] = PAGES) -> list[Block]:
    """All blocks of some languages, in some documents."""
    found = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^( *)```(\w*)\n(.*?)^ *```$", text, flags=re.DOTALL | re.MULTILINE):
            if match[2] in languages:
                code = re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE)
                found.append(Block(page.name, text.count("\n", 0, match.start()) + 1, match[2], code))
    return found


def one_block(language: str, beginning: str) -> str:
    """The block that begins with some characters; the same in every document that has it."""
    (text,) = {block.text for block in blocks(language) if block.text.startswith(beginning)}
    return text


def python_file(name: str) -> str:
    """The block of Python that begins with the comment ``# name``."""
    return one_block("python", f"# {name}\n")


def commands(*more: Path) -> list[list[str]]:
    """The arguments of every ``lightning-backdoor`` in the documents, as a shell would split them; each once.

    Args:
        *more: further documents.
    """
    lines = [
        line for block in blocks("", pages=[*PAGES, *more]) for line in block.text.replace("\\\n", " ").splitlines()
    ]
    found = [shlex.split(line)[1:] for line in lines if line.startswith("lightning-backdoor ")]
    return [list(args) for args in dict.fromkeys(map(tuple, found))]
