"""Classes read from source files: followed through imports, with the arguments that they pass on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lightning_backdoor.files.class_sources import class_arguments, find_class
from lightning_backdoor.files.module_sources import exported_names, module_file

MODULE = """\
import dataclasses
from typing import TYPE_CHECKING

from lightning_backdoor.attacks import BadNets as Base

if TYPE_CHECKING:
    from lightning_backdoor.data import Source

raise SystemExit("this module must not be run")


class Shout(Base):
    '''Shouts.

    Args:
        word: what is shouted,
            and how: loudly.
        source: where from.
    '''

    def __init__(self, word: str = "WOW", *, source: "Source | None" = None, **kwargs):
        super().__init__([word], insertions=2, **kwargs)


class Kwargs(Base):
    def __init__(self, **options):
        self.options = options
        super().__init__(**options)


@dataclasses.dataclass
class Fields:
    first: int
    second: str = "b"


class Unknown(not_defined.Anywhere):
    pass
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "read_not_run.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return "read_not_run"


def test_a_class_is_read_without_running_its_module(module: str) -> None:
    source = find_class(f"{module}.Shout")
    assert source is not None
    arguments = class_arguments(source)
    assert module not in sys.modules
    assert arguments.complete
    names = list(arguments.by_name)
    assert names[:3] == ["word", "source", "place"]  # triggers and insertions are given by Shout
    assert "poison_rate" in names
    assert arguments.by_name["word"].default == "'WOW'"
    assert arguments.by_name["word"].summary == "what is shouted, and how: loudly."
    assert [found.name for found in arguments.by_name["source"].classes] == ["Source"]
    assert {"Shout", "BadNets", "BackdoorAttack", "LightningModule"} <= source.ancestors()


def test_what_is_passed_on_elsewhere_is_not_known(module: str) -> None:
    for name in ("Kwargs", "Unknown"):
        source = find_class(f"{module}.{name}")
        assert source is not None
        assert not class_arguments(source).complete


def test_the_fields_of_a_dataclass_are_its_arguments(module: str) -> None:
    source = find_class(f"{module}.Fields")
    assert source is not None
    assert source.is_dataclass
    assert [(a.name, a.default) for a in class_arguments(source).by_name.values()] == [
        ("first", None),
        ("second", "'b'"),
    ]


def test_a_class_may_have_the_name_of_its_base_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = "class BadNets(BadNets):\n    pass\n\n\n" * 2
    for name, line in (("named_alike", "BadNets"), ("named_alike_by_star", "*")):
        (tmp_path / f"{name}.py").write_text(f"from lightning_backdoor.attacks import {line}\n\n\n{twice}")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("named_alike", "named_alike_by_star"):
        source = find_class(f"{name}.BadNets")
        assert source is not None
        assert "BackdoorAttack" in source.ancestors()
        assert "poison_rate" in class_arguments(source).by_name


def test_classes_that_are_based_on_each_other_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, other in (("First", "Second"), ("Second", "First")):
        text = f"from in_a_circle_{other} import {other}\n\n\nclass {name}({other}, Base):\n    pass\n"
        (tmp_path / f"in_a_circle_{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    source = find_class("in_a_circle_First.First")
    assert source is not None
    assert source.ancestors() == {"First", "Second", "Base"}
    assert not class_arguments(source).complete


@pytest.mark.parametrize(
    "path", ["Shout", "no_such_package.C", "lightning_backdoor.attacks.C", "lightning_backdoor.x.C", "", "json.C"]
)
def test_what_does_not_exist_is_none(path: str) -> None:
    assert find_class(path) is None


def test_packages_outside_are_read_too() -> None:
    source = find_class("lightning.pytorch.callbacks.EarlyStopping")
    assert source is not None
    assert "monitor" in class_arguments(source).by_name
    assert "EarlyStopping" in exported_names("lightning.pytorch.callbacks")
    assert module_file("lightning_backdoor.callbacks") is not None
