"""Fixtures for tests of grids and their reports."""

from __future__ import annotations

import pytest

from lightning_backdoor.benchmark.report import page


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the files of figures, which take nine tenths of the time of writing the results of a small grid."""
    monkeypatch.setattr(page, "write_figures", lambda folder, figures: None)
