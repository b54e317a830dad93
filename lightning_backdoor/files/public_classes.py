"""The public classes of the package or of a user's module, read from sources, so that nothing large is imported."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

from lightning_backdoor.files.class_sources import ClassSource, find_class
from lightning_backdoor.files.module_sources import classes_in, imports_of, module_docstring
from lightning_backdoor.files.presets import PACKAGE

ARXIV = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")
#: packages whose classes are known by their names alone, since reading them takes long.
UNREAD = {*sys.stdlib_module_names, "datasets", "lightning", "pytorch_lightning", "torch", "torchmetrics"}
#: the rooms whose public classes are listed.
ROOMS = ("attacks", "defenses", "callbacks", "data", "victim", "metrics")

ATTACK = "lightning_backdoor.attacks.attack.BackdoorAttack"
VICTIM = "lightning_backdoor.victim.classifier.TextClassifier"
POISONING = {"poison_text", "poison_texts"}
SOURCE = "lightning_backdoor.data.source.Source"


class Contract(NamedTuple):
    """The base class of defenses that act at one moment.

    Attributes:
        base: dotted name of the base class.
        moment: the moment at which they act.
        method: the method that a defense implements; empty where any subclass is one.
    """

    base: str
    moment: str
    method: str


CONTRACTS = (
    Contract("lightning_backdoor.data.cleaning.DataDefense", "before training", "clean"),
    Contract("lightning_backdoor.callbacks.repair.Repair", "after training", "decide"),
    Contract("lightning_backdoor.defenses.defense.Defense", "at inference", "score"),
    Contract("lightning_backdoor.callbacks.inference_defense.InferenceDefense", "at inference", ""),
    Contract("lightning_backdoor.defenses.inspection.Inspection", "on the trained model", "inspect"),
    Contract("lightning_backdoor.callbacks.inspection_callback.InspectionCallback", "on the trained model", ""),
)


class PublicClass(NamedTuple):
    """A class that a room, or a user's module, exports.

    Attributes:
        name: its name, such as ``BadNets``.
        room: the room that exports it, such as ``attacks``; empty for a class of a user's module.
        summary: first line of its docstring.
        papers: arXiv ids in its docstring and in the docstring of its module; those of the nearest base class that has
            any, where it has none.
        bases: dotted names of its base classes.
        kind: ``attacks``, ``defenses``, ``data``, ``models`` or ``metrics``; empty for base classes and helpers.
        moments: the moments at which a defense acts.
        module: dotted name of the module that exports it.
    """

    name: str
    room: str
    summary: str
    papers: tuple[str, ...]
    bases: tuple[str, ...]
    kind: str = ""
    moments: tuple[str, ...] = ()
    module: str = ""

    @property
    def class_path(self) -> str:
        """The path that a config names it by."""
        return f"{self.module}.{self.name}"


class Facts(NamedTuple):
    """What decides what a class is, whether it has been read or imported.

    Attributes:
        name: dotted name of the class in the module that defines it.
        methods: names of the methods that it implements; abstract ones are left out.
        assigned: names of the attributes that its methods set on other objects than ``self``.
        papers: arXiv ids in its docstring, its arguments left out, and in the docstring of its module.
    """

    name: str
    methods: frozenset[str] = frozenset()
    assigned: frozenset[str] = frozenset()
    papers: tuple[str, ...] = ()


@cache
def public_classes() -> tuple[PublicClass, ...]:
    """The classes that the rooms export, by room and then by name.

    >>> item = next(item for item in public_classes() if item.name == "Ripples")
    >>> item.class_path, item.kind, item.papers
    ('lightning_backdoor.attacks.Ripples', 'attacks', ('2004.06660',))
    """
    modules = {room: f"{PACKAGE.name}.{room}" for room in ROOMS}
    exported = [
        (find_class(f"{module}.{name}"), module, room)
        for room, module in modules.items()
        for name in sorted(imports_of(module))
    ]
    return tuple(_read(source, module, room) for source, module, room in exported if source is not None)


def class_named(name: str, among: Iterable[PublicClass]) -> PublicClass | None:
    """The one of some classes that a name spells, in upper or lower case, with or without ``_``, ``-`` and blanks.

    >>> class_named("gradient_attention", public_classes()).name
    'GradientAttention'
    """
    return next((item for item in among if _letters(item.name) == _letters(name)), None)


def classes_of(module: str) -> list[PublicClass]:
    """The classes of a user's module, in the order of its source; of a package, also those that it imports from itself.

    Args:
        module: dotted name of a module, which is not imported. A module without a source that can be read has none.
    """
    names = classes_in(module)
    for name, targets in imports_of(module).items():
        inner = [target for target in targets if target.startswith(f"{module}.")]
        names += [name] * len(inner) if name != "*" else [one for target in inner for one in classes_in(target)]
    sources = [find_class(f"{module}.{name}") for name in dict.fromkeys(names) if not name.startswith("_")]
    return [_read(source, module, "") for source in sources if source is not None]


def imported_class(cls: type, module: str) -> PublicClass:
    """A class that has been imported, for modules whose source does not show their classes.

    Args:
        cls: the class.
        module: dotted name of the module that has it.
    """
    line = [_facts_of(base) for base in cls.__mro__ if base is not object]
    bases = tuple(f"{base.__module__}.{base.__qualname__}" for base in cls.__bases__)
    summary = (inspect.getdoc(cls) or "").partition("\n")[0] if cls.__doc__ else ""
    return _public(cls.__name__, module, "", summary, bases, line)


def _read(source: ClassSource, module: str, room: str) -> PublicClass:
    line = [_facts(source), *(item if isinstance(item, Facts) else _facts(item) for item in _above(source))]
    return _public(source.name, module, room, source.summary, tuple(source.base_names), line)


def _above(source: ClassSource) -> list[ClassSource | Facts]:
    """All base classes of a class, nearest first; of those that are not read, only the name is known."""
    result: dict[str, ClassSource | Facts] = {}
    waiting = source.base_names
    while waiting:
        dotted = waiting.pop(0)
        base = None if dotted.partition(".")[0] in UNREAD else find_class(dotted)
        name = dotted if base is None else f"{base.module}.{base.name}"
        if name not in result:
            result[name] = base or Facts(name)
            waiting += base.base_names if base is not None else []
    return [*result.values()]


def _facts(source: ClassSource) -> Facts:
    text = ast.get_docstring(source.node) or ""
    papers = dict.fromkeys(ARXIV.findall(f"{text.partition('Args:')[0]}\n{module_docstring(source.module)}"))
    methods = [node for node in source.node.body if isinstance(node, ast.FunctionDef)]
    concrete = {node.name for node in methods if not any("abstract" in ast.unparse(d) for d in node.decorator_list)}
    assignments = [node for node in ast.walk(source.node) if isinstance(node, ast.Assign)]
    attributes = [t for node in assignments for t in node.targets if isinstance(t, ast.Attribute)]
    assigned = {target.attr for target in attributes if ast.unparse(target.value) != "self"}
    return Facts(f"{source.module}.{source.name}", frozenset(concrete), frozenset(assigned), tuple(papers))


def _facts_of(cls: type) -> Facts:
    text = inspect.getdoc(cls) if cls.__doc__ else ""
    papers = dict.fromkeys(ARXIV.findall((text or "").partition("Args:")[0]))
    abstract: frozenset[str] = getattr(cls, "__abstractmethods__", frozenset())
    methods = {name for name, value in vars(cls).items() if callable(value) and name not in abstract}
    return Facts(f"{cls.__module__}.{cls.__qualname__}", frozenset(methods), papers=tuple(papers))


def _public(
    name: str, module: str, room: str, summary: str, bases: tuple[str, ...], line: Sequence[Facts]
) -> PublicClass:
    kind, moments = _kind(line)
    papers = next((facts.papers for facts in line if facts.papers), ())
    return PublicClass(name, room, summary, papers, bases, kind, moments, module)


def _kind(line: Sequence[Facts]) -> tuple[str, tuple[str, ...]]:
    """What a class is, and the moments at which it acts; both empty for base classes and helpers.

    Args:
        line: the class, and all its base classes.
    """
    names = {facts.name for facts in line}
    above = names - {line[0].name}
    last = {name.rpartition(".")[2] for name in above}
    if ATTACK in names:
        return ("attacks" if ATTACK in above and _implemented(line, ATTACK, POISONING) else ""), ()
    moments = [
        contract.moment
        for contract in CONTRACTS
        if contract.base in above and (not contract.method or _implemented(line, contract.base, {contract.method}))
    ]
    if "Callback" in last and any("training_defense" in facts.assigned for facts in line):
        moments.append("in training")
    if moments:
        return "defenses", tuple(dict.fromkeys(moments))
    if "LightningDataModule" in last or line[0].name == SOURCE:
        return "data", ()
    if VICTIM in names:
        return "models", ()
    return ("metrics" if "Metric" in last else ""), ()


def _implemented(line: Sequence[Facts], base: str, methods: set[str]) -> bool:
    """Whether one of the classes, other than ``base``, implements one of some methods."""
    return any(methods & facts.methods for facts in line if facts.name != base)


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()
