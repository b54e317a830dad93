"""Classes and their arguments, read from source files: nothing is imported, so that help and errors come at once."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from inspect import cleandoc
from itertools import takewhile
from typing import NamedTuple

from lightning_backdoor.files.module_sources import imported_name, imports_of, statements_of

#: upper limit on the imports followed from the module that names a class to the module that defines it.
LONGEST_CHAIN = 20


class Argument(NamedTuple):
    """An argument of a class.

    Attributes:
        name: its name.
        type: its annotation, as written; empty without one.
        default: its default, as written; None if it must be given.
        summary: what the docstring says of it, on one line.
        module: the module in which the annotation is written.
    """

    name: str
    type: str
    default: str | None
    summary: str
    module: str

    @property
    def classes(self) -> list[ClassSource]:
        """The classes that the annotation names and that can be read, without those of the standard library."""
        names = dict.fromkeys(re.findall(r"[A-Za-z_][\w.]*", self.type))
        return [source for name in names if self.module and (source := _named(self.module, name)) is not None]


class ClassSource(NamedTuple):
    """The definition of a class in a source file.

    Attributes:
        name: the class's name.
        module: dotted name of the module that defines it.
        node: its definition.
    """

    name: str
    module: str
    node: ast.ClassDef

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (ast.get_docstring(self.node) or "").partition("\n")[0]

    @property
    def is_dataclass(self) -> bool:
        """Whether the class is decorated as a dataclass."""
        return any("dataclass" in ast.unparse(decorator) for decorator in self.node.decorator_list)

    @property
    def base_names(self) -> list[str]:
        """The dotted names of the base classes; one that is not imported is taken for one of the module's own."""
        names = []
        for base in self.node.bases:
            first, _, rest = ast.unparse(base.value if isinstance(base, ast.Subscript) else base).partition(".")
            names.append(".".join(filter(None, (imported_name(self.module, first) or f"{self.module}.{first}", rest))))
        return names

    def bases(self) -> Iterator[tuple[str, ClassSource | None]]:
        """The base classes: the name of each, and its definition where that can be read."""
        for base in self.node.bases:
            name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
            yield name.rpartition(".")[2], _named(self.module, name, before=self.node)

    def line(self) -> dict[ClassSource, set[str]]:
        """The class and all its base classes that can be read, each with the names of its own that cannot.

        Each comes once, also where classes are based on each other, as they never are in a module that can be imported.
        """
        result: dict[ClassSource, set[str]] = {}
        waiting = [self]
        while waiting:
            source = waiting.pop()
            if source not in result:
                bases = [*source.bases()]
                result[source] = {name for name, base in bases if base is None}
                waiting += [base for _, base in bases if base is not None]
        return result

    def ancestors(self) -> set[str]:
        """The names of the class and of all its base classes, as far as they can be read."""
        line = self.line()
        return {source.name for source in line}.union(*line.values())


class ClassArguments(NamedTuple):
    """The arguments of a class.

    Attributes:
        by_name: the arguments, the class's own first.
        complete: False if the class takes more, which a class passes on whose source cannot be read.
    """

    by_name: dict[str, Argument]
    complete: bool


def find_class(class_path: str) -> ClassSource | None:
    """The definition of a class; None if its source cannot be found or read.

    >>> find_class("lightning_backdoor.attacks.BadNets").module
    'lightning_backdoor.attacks.badnets'
    """
    module, _, name = class_path.rpartition(".")
    return _in_module(module, name) if module else None


@cache
def class_arguments(source: ClassSource) -> ClassArguments:
    """The arguments that a class takes, those that it passes on to its base classes included.

    >>> list(class_arguments(find_class("lightning_backdoor.attacks.BadNets")).by_name)[:5]
    ['triggers', 'insertions', 'place', 'target_label', 'poison_rate']
    """
    function = _function(source.node, "__init__")
    documented = _documented(source.node, function)
    if function is None:
        if source.is_dataclass:
            fields = [node for node in source.node.body if isinstance(node, ast.AnnAssign)]
            made = [
                _argument(ast.unparse(node.target), node.annotation, node.value, source.module, documented)
                for node in fields
            ]
            above = _inherited(source, 0, set())
            return ClassArguments(above.by_name | {argument.name: argument for argument in made}, above.complete)
        return _inherited(source, 0, set())
    own = {argument.name: argument for argument in _parameters(function, source.module, documented)}
    if function.args.kwarg is None:
        return ClassArguments(own, True)
    positional, keywords, only_there = _passed_on(function, function.args.kwarg.arg)
    above = _inherited(source, positional, keywords)
    by_name = own | {name: a for name, a in above.by_name.items() if name not in own}
    return ClassArguments(by_name, only_there and above.complete)


def method_arguments(source: ClassSource, method: str) -> dict[str, Argument]:
    """The arguments of a method that a class defines, without ``self``; empty if it defines none of this name."""
    function = _function(source.node, method)
    parameters = [] if function is None else _parameters(function, source.module, _documented(function))
    return {argument.name: argument for argument in parameters}


def _inherited(source: ClassSource, positional: int, keywords: set[str]) -> ClassArguments:
    """The arguments of the base classes, without those that the class itself gives to them."""
    by_name: dict[str, Argument] = {}
    complete = True
    for name, base in source.bases():
        if base is None or source in base.line():
            complete &= name in ("ABC", "object", "Module", "Generic", "Protocol")
            continue
        above = class_arguments(base)
        complete &= above.complete
        left = list(above.by_name.values())[positional:]
        by_name |= {a.name: a for a in left if a.name not in by_name and a.name not in keywords}
    return ClassArguments(by_name, complete)


def _function(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((child for child in node.body if isinstance(child, ast.FunctionDef) and child.name == name), None)


def _passed_on(function: ast.FunctionDef, kwargs: str) -> tuple[int, set[str], bool]:
    """What ``super().__init__`` is given: the number of arguments by position, the names of others, and all of kwargs.

    The last is False if ``**kwargs`` is used anywhere else, so that the names in it cannot be known from here.
    """
    uses = sum(isinstance(node, ast.Name) and node.id == kwargs for node in ast.walk(function))
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__":
            by_name = {keyword.arg for keyword in node.keywords if keyword.arg}
            given = [argument for argument in node.args if not isinstance(argument, ast.Starred)]
            return len(given), by_name, uses == len(node.keywords) - len(by_name) == 1
    return 0, set(), uses == 0


def _parameters(function: ast.FunctionDef, module: str, documented: dict[str, str]) -> list[Argument]:
    arguments = [*function.args.posonlyargs, *function.args.args]
    defaults: list[ast.expr | None] = [None] * (len(arguments) - len(function.args.defaults))
    pairs = [*zip(arguments, [*defaults, *function.args.defaults], strict=True)][1:]
    pairs += zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    return [_argument(a.arg, a.annotation, default, module, documented) for a, default in pairs]


def _argument(
    name: str, annotation: ast.expr | None, default: ast.expr | None, module: str, documented: dict[str, str]
) -> Argument:
    written = None if default is None else ast.unparse(default)
    return Argument(
        name, "" if annotation is None else ast.unparse(annotation), written, documented.get(name, ""), module
    )


def _documented(*nodes: ast.ClassDef | ast.FunctionDef | None) -> dict[str, str]:
    """The descriptions in the sections ``Args:`` of docstrings, by argument."""
    result: dict[str, str] = {}
    for node in nodes:
        text = cleandoc(ast.get_docstring(node) or "") if node is not None else ""
        section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", text, re.MULTILINE)
        lines = cleandoc(section[1]).splitlines() if section else []
        name = ""
        for line in lines:
            begun = re.match(r"\*{0,2}(\w+)(?: \([^)]*\))?: *(.*)", line)
            if begun:
                name, line = begun[1], begun[2]
            result[name] = f"{result.get(name, '')} {line.strip()}".strip()
    return result


def _named(module: str, name: str, before: ast.ClassDef | None = None) -> ClassSource | None:
    """The class that a module knows by a name, which may have dots; a base class before the class that it is of."""
    first, *rest = name.split(".")
    if not rest:
        return _in_module(module, name, before=before)
    imported = imported_name(module, first)
    return find_class(".".join([imported, *rest])) if imported else None


def _in_module(module: str, name: str, depth: int = 0, before: ast.ClassDef | None = None) -> ClassSource | None:
    """The class that a module defines, before a certain class if one is given, or imports under a name."""
    if depth > LONGEST_CHAIN:
        return None
    for node in takewhile(lambda node: node is not before, statements_of(module)):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return ClassSource(name, module, node)
    imported = imported_name(module, name)
    if not imported:
        sources = (_in_module(starred, name, depth + 1) for starred in imports_of(module).get("*", []))
        return next(filter(None, sources), None)
    above, _, original = imported.rpartition(".")
    return _in_module(above, original, depth + 1) if above else None
