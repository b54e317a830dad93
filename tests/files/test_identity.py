"""Identity of code: what of a user's classes changes it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from lightning_backdoor.attacks import BackdoorAttack, BadNets
from lightning_backdoor.files.identity import code_identity

OWN = """
from lightning_backdoor.attacks import BadNets
from {mixin} import Mixin


class Own(Mixin, BadNets):
    pass
"""


def identity_of_own(folder: Path, name: str, mixin: str) -> str | None:
    """The identity of an attack with a mixin that another file defines."""
    (folder / f"{name}_mixin.py").write_text(mixin, encoding="utf-8")
    (folder / f"{name}.py").write_text(OWN.format(mixin=f"{name}_mixin"), encoding="utf-8")
    return code_identity(importlib.import_module(name).Own, BackdoorAttack)


def test_a_mixin_before_the_attack_counts_by_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    first = identity_of_own(tmp_path, "own_one", "class Mixin:\n    word = 'one'\n")
    second = identity_of_own(tmp_path, "own_two", "class Mixin:\n    word = 'two'\n")
    assert first is not None
    assert second is not None
    assert "word = 'one'" in first
    assert "word = 'two'" in second


def test_a_class_of_the_library_counts_by_its_format_number(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_identity(BadNets, BackdoorAttack)
    monkeypatch.setattr(BadNets, "result_format", 2, raising=False)
    assert code_identity(BadNets, BackdoorAttack) != before
