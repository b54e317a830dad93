"""Classes as their source files define them, with their base classes, read without importing anything."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

from lightning_backdoor.files.presets import PACKAGE, ROOTS

ARXIV = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")
#: packages whose classes are known by their names alone.
UNREAD = {
    *sys.stdlib_module_names,
    "datasets",
    "lightning",
    "pytorch_lightning",
    "torch",
    "torchmetrics",
    "transformers",
}


class ClassSource(NamedTuple):
    """A class at the top level of a module.

    Attributes:
        name: its name.
        module: dotted name of the module that defines it.
        summary: first line of its docstring.
        papers: arXiv ids in its docstring, its arguments left out, and in the docstring of its module.
        bases: dotted names of its base classes.
        methods: names of the methods that it implements; abstract ones are left out.
        assigned: names of the attributes that its methods set on other objects than ``self``.
    """

    name: str
    module: str
    summary: str
    papers: tuple[str, ...]
    bases: tuple[str, ...]
    methods: frozenset[str]
    assigned: frozenset[str]

    @property
    def class_path(self) -> str:
        """Dotted name of the class in the module that defines it."""
        return f"{self.module}.{self.name}"


class ModuleSource(NamedTuple):
    """A module.

    Attributes:
        path: its file.
        classes: the classes that it defines at its top level, by name.
        imported: dotted name of what it imports, by the name that it has in the module.
        starred: modules of which it imports all names.
    """

    path: Path
    classes: dict[str, ClassSource]
    imported: dict[str, str]
    starred: tuple[str, ...]


def source_path(module: str) -> Path | None:
    """The source file of a module; None if there is none. Nothing is imported, nor are the packages around it.

    >>> source_path("lightning_backdoor.attacks.badnets").name, source_path("no_such_module")
    ('badnets.py', None)
    """
    first, *others = module.split(".")
    if not all(part.isidentifier() for part in (first, *others)):
        return None
    if first == PACKAGE.name:  # in a clone, callbacks/ lies beside the package
        inner = Path(*others)
        files = [path for root in ROOTS for path in (root / inner / "__init__.py", (root / inner).with_suffix(".py"))]
        return next((path for path in files if path.is_file()), None) if others else PACKAGE / "__init__.py"
    spec = PathFinder.find_spec(first)
    name = first
    for part in others:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, [*spec.submodule_search_locations])
    path = Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None
    return path if path is not None and path.suffix == ".py" else None


@cache
def read_module(module: str) -> ModuleSource | None:
    """Reads a module; None if it has no source file.

    Raises:
        SyntaxError: the file is not Python.
        OSError: the file cannot be read.
    """
    path = source_path(module)
    if path is None:
        return None
    tree = ast.parse(path.read_bytes(), str(path))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    imported, starred = {}, []
    for name, target in _imports(tree, package):
        if name == "*":
            starred.append(target)
        else:
            imported[name] = target
    unknown = f"{module}." if starred else ""  # a name that is not known otherwise may come from a star import
    local = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    names = {**{name: f"{module}.{name}" for name in local}, **{k: v for k, v in imported.items() if k not in local}}
    described = ast.get_docstring(tree) or ""
    classes = {
        node.name: _class(node, module, names, unknown, described)
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    return ModuleSource(path, classes, imported, tuple(starred))


def find_class(dotted: str) -> ClassSource | None:
    """The class of a dotted name, which may be that of a module that imports it; None if it cannot be read.

    >>> find_class("lightning_backdoor.attacks.BadNets").class_path
    'lightning_backdoor.attacks.badnets.BadNets'
    """
    return _find(dotted, frozenset())


def _find(dotted: str, seen: frozenset[str]) -> ClassSource | None:
    module, _, name = dotted.rpartition(".")
    if not module or dotted in seen or dotted.partition(".")[0] in UNREAD:
        return None
    source = read_module(module)
    if source is None:
        return None
    if name in source.classes:
        return source.classes[name]
    targets = [source.imported[name]] if name in source.imported else [f"{star}.{name}" for star in source.starred]
    return next(filter(None, (_find(target, seen | {dotted}) for target in targets)), None)


def ancestors(source: ClassSource) -> list[ClassSource | str]:
    """All base classes of a class, nearest first; those that cannot be read by their dotted names.

    >>> line = ancestors(find_class("lightning_backdoor.attacks.Ripples"))
    >>> [base.name for base in line if isinstance(base, ClassSource)][:3]
    ['BadNets', 'BackdoorAttack', 'TextClassifier']
    """
    result: dict[str, ClassSource | str] = {}
    waiting = list(source.bases)
    while waiting:
        dotted = waiting.pop(0)
        base = find_class(dotted)
        key = dotted if base is None else base.class_path
        if key not in result and key != source.class_path:
            result[key] = base or dotted
            waiting += base.bases if base is not None else ()
    return [*result.values()]


def _imports(tree: ast.Module, package: str) -> Iterator[tuple[str, str]]:
    """What a module imports: the name in the module, ``*`` for all names, and the dotted name that it stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                yield (alias.asname, alias.name) if alias.asname else (first, first)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield ("*", source) if alias.name == "*" else (alias.asname or alias.name, f"{source}.{alias.name}")


def _class(node: ast.ClassDef, module: str, names: dict[str, str], unknown: str, described: str) -> ClassSource:
    text = inspect.cleandoc(ast.get_docstring(node) or "")
    papers = dict.fromkeys(ARXIV.findall(f"{text.partition('Args:')[0]}\n{described}"))
    bases = []
    for base in node.bases:
        first, _, rest = ast.unparse(base.value if isinstance(base, ast.Subscript) else base).partition(".")
        bases.append(".".join(filter(None, (names.get(first, unknown + first), rest))))
    methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    concrete = {m.name for m in methods if not any("abstract" in ast.unparse(d) for d in m.decorator_list)}
    targets = [
        target
        for item in ast.walk(node)
        if isinstance(item, ast.Assign | ast.AnnAssign)
        for target in (item.targets if isinstance(item, ast.Assign) else [item.target])
    ]
    assigned = {t.attr for t in targets if isinstance(t, ast.Attribute) and ast.unparse(t.value) != "self"}
    first_line = text.partition("\n")[0]
    return ClassSource(
        node.name, module, first_line, tuple(papers), tuple(bases), frozenset(concrete), frozenset(assigned)
    )
