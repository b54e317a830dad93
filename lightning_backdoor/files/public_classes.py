"""The public classes of the package or of a user's module, read from sources, so that nothing large is imported."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from lightning_backdoor.files.lineage import ARXIV, ClassSource, ancestors, find_class, read_module
from lightning_backdoor.files.presets import PACKAGE

#: the rooms whose public classes are listed.
ROOMS = ("attacks", "defenses", "callbacks", "data", "victim", "metrics")

ATTACK = "lightning_backdoor.attacks.attack.BackdoorAttack"
VICTIM = "lightning_backdoor.victim.classifier.TextClassifier"
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


@cache
def public_classes() -> tuple[PublicClass, ...]:
    """The classes that the rooms export, by room and then by name.

    >>> item = next(item for item in public_classes() if item.name == "Ripples")
    >>> item.class_path, item.kind, item.papers
    ('lightning_backdoor.attacks.Ripples', 'attacks', ('2004.06660',))
    """
    classes = []
    for room in ROOMS:
        module = f"{PACKAGE.name}.{room}"
        exported = read_module(module)
        for name in sorted(exported.imported if exported else ()):
            source = find_class(f"{module}.{name}")
            if source is not None:
                classes.append(_public(source, module, room))
    return tuple(classes)


def classes_of(module: str) -> list[PublicClass]:
    """The classes of a user's module, in the order of its source; of a package, also those that it imports from itself.

    Args:
        module: dotted name of a module, which is not imported.

    Raises:
        SyntaxError: the file is not Python.
        OSError: the file cannot be read.
    """
    source = read_module(module)
    if source is None:
        return []
    names = [*source.classes]
    names += [name for name, target in source.imported.items() if target.startswith(f"{module}.")]
    for star in source.starred:
        starred = read_module(star) if star.startswith(f"{module}.") else None
        names += starred.classes if starred else ()
    found = [find_class(f"{module}.{name}") for name in dict.fromkeys(names) if not name.startswith("_")]
    return [_public(item, module, "") for item in found if item is not None]


def imported_class(cls: type, module: str) -> PublicClass:
    """A class that has been imported, for modules whose source does not show their classes.

    Args:
        cls: the class.
        module: dotted name of the module that has it.
    """
    first, *line = [_source_of(base) for base in cls.__mro__ if base is not object]
    return _public(first, module, "", [*line])


def _source_of(cls: type) -> ClassSource:
    text = inspect.getdoc(cls) if cls.__doc__ else None
    papers = dict.fromkeys(ARXIV.findall((text or "").partition("Args:")[0]))
    bases = tuple(f"{base.__module__}.{base.__qualname__}" for base in cls.__bases__)
    methods = {name for name, value in vars(cls).items() if callable(value)} - set(
        getattr(cls, "__abstractmethods__", ())
    )
    summary = (text or "").partition("\n")[0]
    name, home = cls.__qualname__, cls.__module__
    return ClassSource(name, home, summary, tuple(papers), bases, frozenset(methods), frozenset())


def _public(
    source: ClassSource, module: str, room: str, line: Sequence[ClassSource | str] | None = None
) -> PublicClass:
    line = ancestors(source) if line is None else line
    kind, moments = _kind(source, line)
    papers = next((base.papers for base in (source, *line) if isinstance(base, ClassSource) and base.papers), ())
    return PublicClass(source.name, room, source.summary, papers, source.bases, kind, moments, module)


def _kind(source: ClassSource, line: Sequence[ClassSource | str]) -> tuple[str, tuple[str, ...]]:
    """What a class is, and the moments at which it acts; both empty for base classes and helpers."""
    above = {base if isinstance(base, str) else base.class_path for base in line}
    last = {name.rpartition(".")[2] for name in above}
    if ATTACK in {source.class_path, *above}:
        is_attack = _implements(source, line, ATTACK, "poison_text") or _implements(
            source, line, ATTACK, "poison_texts"
        )
        return ("attacks" if is_attack else "", ())
    moments = [
        contract.moment
        for contract in CONTRACTS
        if contract.base in above and (not contract.method or _implements(source, line, contract.base, contract.method))
    ]
    if "Callback" in last and "training_defense" in source.assigned:
        moments.append("in training")
    if moments:
        return "defenses", tuple(dict.fromkeys(moments))
    if "LightningDataModule" in last or source.class_path == SOURCE:
        return "data", ()
    if VICTIM in {source.class_path, *above}:
        return "models", ()
    return ("metrics" if "Metric" in last else ""), ()


def _implements(source: ClassSource, line: Sequence[ClassSource | str], base: str, method: str) -> bool:
    """Whether a class, or one of its base classes other than ``base``, implements a method."""
    classes = [item for item in (source, *line) if isinstance(item, ClassSource)]
    return any(method in item.methods for item in classes if item.class_path != base)
