"""A page for each notebook in ``docs/notebooks``, with its code and its text, and the notebook as a download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from written_pages import fenced, write_pages

INTRODUCTION = "The tests run these notebooks, offline and on a small model. Each page has its notebook as a download."


def page(path: Path) -> str:
    """A notebook as Markdown.

    Args:
        path: the notebook; its first cell is expected to be text that begins with a title.
    """
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = [part for cell in cells for part in _cell(cell)]
    parts.insert(1, f"{{download}}`Download the notebook <../../notebooks/{path.name}>`")
    return "\n\n".join(parts) + "\n"


def _cell(cell: dict[str, Any]) -> list[str]:
    text = "".join(cell["source"])
    if cell["cell_type"] != "code":
        return [text]
    outputs = ["".join(output.get("text", output.get("data", {}).get("text/plain", ""))) for output in cell["outputs"]]
    return [fenced(text, "python"), *(fenced(output, "text") for output in outputs if output.strip())]


def write(app: Sphinx) -> None:
    """Writes the pages, and the page that lists them."""
    notebooks = sorted(Path(app.srcdir, "notebooks").glob("*.ipynb"))
    pages = {path.stem: page(path) for path in notebooks}
    toctree = fenced("\n".join([":maxdepth: 1", "", *pages]), "{toctree}")
    pages["index"] = "\n\n".join(["# Notebooks", INTRODUCTION, toctree]) + "\n"
    write_pages(Path(app.srcdir, "generated", "notebooks"), pages)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects the writer to Sphinx."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
