"""Docstrings as this project writes them, for Sphinx: short names that are unambiguous, and colons in sentences."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

#: sections in whose first line napoleon takes words before a colon for a type; types are in the signatures here.
TYPED = re.compile(r"(Returns|Yields):")


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.Element) -> nodes.Element | None:
    """Resolves ``InputError`` or ``Defense.purify`` where one object of the whole site has that name.

    A function that a room exports is looked up there, whatever module of the room a docstring names.
    """
    domain = env.domains["py"]
    assert isinstance(domain, PythonDomain)
    if node.get("refdomain") != "py" or "." in node.get("reftarget", ".")[:1]:
        return None
    target = node["reftarget"]
    parts = target.split(".")
    exported = f"{parts[0]}.{parts[1]}.{parts[-1]}" if len(parts) > 3 else ""
    found = {
        (entry.docname, entry.node_id)
        for name, entry in domain.objects.items()
        if name.endswith(f".{target}") or name == exported
    }
    if len(found) != 1:
        return None
    ((docname, node_id),) = found
    return make_refnode(app.builder, node["refdoc"], docname, node_id, [text])


def guard_colons(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Keeps napoleon from reading ``The key: a string`` as an object of the type "The key"."""
    if what in ("attribute", "data", "property"):
        lines.insert(0, "\\ ")
    for number in reversed(range(len(lines) - 1)):
        if TYPED.fullmatch(lines[number].strip()):
            first = lines[number + 1]
            indent = first[: len(first) - len(first.lstrip())]
            lines.insert(number + 1, f"{indent}\\ ")


def skip_fields(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: Any) -> bool | None:
    """Leaves out the fields of named tuples, which their class explains and Python calls "Alias for field number 0"."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects all to Sphinx."""
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-docstring", guard_colons, priority=400)  # before napoleon, at 500
    return {"parallel_read_safe": True}
