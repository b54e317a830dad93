"""Docstrings as this project writes them, for Sphinx: short names that are unambiguous, and colons in sentences."""

from __future__ import annotations

import re
import sys
from functools import cache
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

PACKAGE = "lightning_backdoor"
#: sections in whose first line napoleon takes words before a colon for a type; types are in the signatures here.
TYPED = re.compile(r"(Returns|Yields):")


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.Element) -> nodes.Element | None:
    """Links ``InputError`` or ``Defense.purify`` where one object of the site has that name.

    A name inside the package that the site does not show stays as it is; any other is reported as missing.
    """
    domain = env.domains["py"]
    assert isinstance(domain, PythonDomain)
    if node.get("refdomain") != "py":
        return None
    target: str = node["reftarget"]
    found = {(entry.docname, entry.node_id) for name, entry in domain.objects.items() if name.endswith(f".{target}")}
    if len(found) == 1:
        ((docname, node_id),) = found
        return make_refnode(app.builder, node["refdoc"], docname, node_id, [text])
    return text if target in names_inside() else None


@cache
def names_inside() -> frozenset[str]:
    """The modules of the package, and all that they define, by dotted and by short names."""
    modules = {name: module for name, module in sys.modules.items() if name.startswith(f"{PACKAGE}.")}
    short = {name for module in modules.values() for name in vars(module)}
    dotted = {f"{path}.{name}" for path, module in modules.items() for name in vars(module)}
    return frozenset(modules.keys() | short | dotted)


def guard_colons(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Keeps napoleon from reading ``The key: a string`` as an object of the type "The key".

    An escaped blank, which is not shown, is put on a line before the sentence; napoleon looks at that line only.
    """
    starts = [number + 1 for number in range(len(lines) - 1) if TYPED.fullmatch(lines[number].strip())]
    for start in reversed(starts):
        indent = re.match(r" *", lines[start])
        lines.insert(start, f"{indent[0] if indent else ''}\\ ")
    if what in ("attribute", "data", "property"):
        lines.insert(0, "\\ ")


def skip_fields(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: Any) -> bool | None:
    """Leaves out the fields of named tuples, which their class explains and Python calls "Alias for field number 0"."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects all to Sphinx."""
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-docstring", guard_colons, priority=400)  # before napoleon, at 500
    app.connect("autodoc-skip-member", skip_fields)
    return {"parallel_read_safe": True}
