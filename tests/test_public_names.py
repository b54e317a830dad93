"""``import lightning_backdoor``: every public name is there, and nothing is imported before it is used."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import lightning_backdoor as lb
from lightning_backdoor.files.public_classes import ROOMS, public_classes


def test_every_public_class_is_there() -> None:
    for item in public_classes():
        assert getattr(lb, item.name) is getattr(import_module(item.module), item.name)


@pytest.mark.parametrize("room", [*ROOMS, "language"])
def test_everything_that_a_room_exports_is_there(room: str) -> None:
    module = import_module(f"lightning_backdoor.{room}")
    assert set(module.__all__) <= set(lb.__all__)
    assert all(getattr(lb, name) is getattr(module, name) for name in module.__all__)
    assert getattr(lb, room) is module


def test_every_name_exists_and_is_completed() -> None:
    assert all(getattr(lb, name) is not None for name in lb.__all__)
    assert set(lb.__all__) <= set(dir(lb))
    assert len(lb.__all__) == len({*lb.__all__})
    assert {"attacks", "testing", "__version__"} <= set(dir(lb))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'lightning_backdoor' has no attribute 'BadNet'"):
        lb.BadNet  # type: ignore[attr-defined]  # noqa: B018


def test_the_package_imports_nothing_large() -> None:
    code = "import sys, lightning_backdoor as lb; dir(lb); lb.InputError; print(sorted(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'lightning_backdoor.errors'" in printed
    assert not [name for name in ("'torch'", "'lightning'", "'numpy'", "'pandas'", "'ast'") if name in printed]
