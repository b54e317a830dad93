"""The precision that victims were trained in: read from their configs, and shown with the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_backdoor.benchmark.grid_file import GridFile
from lightning_backdoor.benchmark.precision import precision_comment, trained_precision


def run(folder: Path, **trainer: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"trainer": trainer}), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("trainer", "known"),
    [
        ({"precision": "bf16-mixed"}, "bf16-mixed"),
        ({"precision": None}, "32-true"),  # as version 0.1.0 wrote it
        ({"precision": None, "plugins": ["of.a.Precision"]}, None),
        ({"precision": "of a stranger\n"}, None),
        ({}, None),
    ],
)
def test_the_precision_of_a_run_is_read_from_its_config(
    tmp_path: Path, trainer: dict[str, Any], known: str | None
) -> None:
    assert trained_precision(run(tmp_path / "run", **trainer)) == known
    assert trained_precision(tmp_path) is None


def test_victims_are_counted_by_their_precision_and_the_grid_stays_a_grid(tmp_path: Path) -> None:
    for name, precision in (("a", "bf16-mixed"), ("b", None), ("c", "bf16-mixed")):
        run(tmp_path / "victims" / name, precision=precision)
    run(tmp_path / "outside", precision="64-true")
    comment = precision_comment(tmp_path, ["a", "b", "b", "c", "not trained", "../outside", ""])
    assert comment == "# victims by the precision that they were trained in: 32-true (1), bf16-mixed (2)\n"
    grid = {"datasets": {"d": {"class_path": "stub.Data"}}, "models": {"m": "m"}, "attacks": {"none": None}}
    (tmp_path / "grid.yaml").write_text(comment + yaml.safe_dump({**grid, "defenses": {"none": None}}))
    assert GridFile(tmp_path / "grid.yaml").seeds == [0]
    assert not precision_comment(tmp_path, [])
