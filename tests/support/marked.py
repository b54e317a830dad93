"""Writing of the parts of a text file that stand between two marks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def marked(path: Path, name: str) -> str:
    """The text between the file's marks ``<!-- name -->`` and ``<!-- /name -->``; empty if there is none yet."""
    _, _, rest = path.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    return rest.partition(f"<!-- /{name} -->")[0].removesuffix("\n")


def replace_marked(path: Path, parts: Mapping[str, str]) -> None:
    """Puts each text between the file's marks ``<!-- name -->`` and ``<!-- /name -->``.

    Raises:
        ValueError: the file lacks a mark; it is left as it is.
    """
    text = path.read_text(encoding="utf-8")
    for name, lines in parts.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(begin)
        if end not in rest:
            raise ValueError(f"{path} has no part between {begin} and {end}")
        text = before + begin + "\n" + lines + "\n" + end + rest.partition(end)[2]
    path.write_text(text, encoding="utf-8")
