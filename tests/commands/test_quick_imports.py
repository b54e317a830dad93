"""Large libraries are imported without garbage collection, and left out of later ones."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from importlib import import_module

import pytest

from lightning_backdoor.commands.quick_imports import quick_imports


@pytest.fixture
def before_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The import system as it is before torch is imported; what is frozen meanwhile is released."""
    monkeypatch.delitem(sys.modules, "torch")
    frozen = gc.get_freeze_count()
    yield
    if not frozen:
        gc.unfreeze()


@pytest.mark.usefixtures("before_torch")
def test_collection_is_off_for_the_imports_and_leaves_out_what_they_made() -> None:
    frozen = gc.get_freeze_count()
    with quick_imports():
        assert not gc.isenabled()
        made: list[object] = []
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen
    assert not any(item is made for item in gc.get_objects())


@pytest.mark.usefixtures("before_torch")
def test_collection_goes_on_after_an_import_that_fails() -> None:
    with pytest.raises(ImportError), quick_imports():
        import_module("no_such_package")
    assert gc.isenabled()


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_changes_where_torch_is_imported_or_the_user_has_turned_collection_off(
    enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not enabled:
        monkeypatch.delitem(sys.modules, "torch")
        gc.disable()
    frozen = gc.get_freeze_count()
    try:
        with quick_imports():
            assert gc.isenabled() is enabled
        assert gc.isenabled() is enabled
        assert gc.get_freeze_count() <= frozen  # what is freed meanwhile is no longer counted
    finally:
        gc.enable()
