"""Modules as their source files have them: statements, imports and docstring; none of them is imported."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from lightning_backdoor.files.presets import ROOTS

OWN_PACKAGE = __name__.partition(".")[0]


def module_file(module: str) -> Path | None:
    """The source file of a module outside of the standard library; no package is imported to find it."""
    with suppress(LookupError, OSError):  # OSError: too long for a file name
        return _module_file(module, os.getcwd(), tuple(sys.path))  # noqa: PTH109
    return None


@cache  # an error is not kept, so that a file written in the meantime is read
def _module_file(module: str, working_directory: str, import_path: tuple[str, ...]) -> Path:
    """The source file of a module, looked for in a working directory and on an import path.

    Raises:
        LookupError: it has none that can be read.
    """
    top, *rest = module.split(".")
    if top in sys.stdlib_module_names or not all(part.isidentifier() for part in (top, *rest)):
        raise LookupError(module)
    roots = list(ROOTS) if top == OWN_PACKAGE else []
    if not roots:
        spec = None
        with suppress(ImportError, ValueError):
            spec = find_spec(top)
        if spec is not None and not spec.submodule_search_locations and not rest:
            if spec.origin and spec.origin.endswith(".py"):
                return Path(spec.origin)
            raise LookupError(module)
        roots = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    for root in roots:
        base = root.joinpath(*rest)
        for path in (base / "__init__.py", base.parent / f"{base.name}.py"):
            if path.is_file():
                return path
    raise LookupError(module)


def module_docstring(module: str) -> str:
    """The docstring of a module; empty without one."""
    tree = _tree(module)
    return (ast.get_docstring(tree) or "") if tree is not None else ""


def statements_of(module: str) -> Iterator[ast.stmt]:
    """The statements of a module, those under ``if`` and ``try`` included; none if its source cannot be read."""
    return _statements(_tree(module) or ast.Module([], []))


def classes_in(module: str) -> list[str]:
    """The names of the classes that a module defines."""
    nodes = statements_of(module)
    return [node.name for node in nodes if isinstance(node, ast.ClassDef)]


def exported_names(package: str) -> list[str]:
    """The names of classes that a package imports into its ``__init__``."""
    return [name for name in imports_of(package) if name[:1].isupper()]


def imported_name(module: str, name: str) -> str:
    """The dotted name that a module imports under a name; empty if it imports nothing under it."""
    return imports_of(module).get(name, [""])[0] if name != "*" else ""


def imports_of(module: str) -> dict[str, list[str]]:
    """The dotted names that a module imports, by its names for them; under ``*`` the modules that it imports whole."""
    tree = _tree(module)
    return {} if tree is None else _imports(module, tree)


@cache
def _imports(module: str, tree: ast.Module) -> dict[str, list[str]]:
    path = module_file(module)
    package = module if path is not None and path.name == "__init__.py" else module.rpartition(".")[0]
    result: dict[str, list[str]] = {}
    for node in _statements(tree):
        if isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                target = source if alias.name == "*" else f"{source}.{alias.name}"
                result.setdefault(alias.asname or alias.name, []).append(target)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                result.setdefault(name, []).append(alias.name if alias.asname else name)
    return result


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements of a module, those under ``if`` and ``try`` included."""
    for node in tree.body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements(ast.Module([*node.body, *node.orelse], []))


def _tree(module: str) -> ast.Module | None:
    """The source of a module as it is now; None if it cannot be read."""
    path = module_file(module)
    with suppress(OSError, ValueError, SyntaxError, RecursionError):
        return None if path is None else _parsed(path, path.stat().st_mtime_ns, path.stat().st_size)
    return None


@cache
def _parsed(path: Path, changed_at: int, size: int) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
