"""The style that the project keeps: ruff and mypy, over everything, callbacks under the name they are imported by."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("command", [("check",), ("format", "--check")], ids=" ".join)
def test_ruff_finds_nothing(command: tuple[str, ...]) -> None:
    result = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_mypy_finds_nothing(tmp_path: Path) -> None:
    # mypy follows no package-dir mapping: a folder of links shows it the package as it is imported
    package = tmp_path / "lightning_backdoor"
    package.mkdir()
    for path in (ROOT / "lightning_backdoor").iterdir():
        (package / path.name).symlink_to(path)
    (package / "callbacks").symlink_to(ROOT / "callbacks")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "lightning_backdoor"]
    result = subprocess.run([*command, "-p", "tests"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
