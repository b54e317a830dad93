"""Writing the generated pages of the site: files that did not change keep their time, so that Sphinx skips them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write_pages(folder: Path, pages: Mapping[str, str]) -> None:
    """Writes pages into a folder, and removes the pages of an earlier build that are no longer made.

    Args:
        folder: the folder, which holds generated pages only.
        pages: Markdown by file name without ending.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.md"):
        if path.stem not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def fenced(text: str, language: str = "") -> str:
    """A block of code in Markdown."""
    return f"```{language}\n{text.strip()}\n```"
