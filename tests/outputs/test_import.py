"""The packages for files and outputs import quickly, since commands that load no model use them."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "datasets", "lightning", "wandb", "plotly"}


@pytest.mark.parametrize("package", ["files", "outputs"])
def test_the_package_imports_nothing_heavy(package: str) -> None:
    code = f"import sys, lightning_backdoor.{package}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"lightning_backdoor.{package}" in result.stdout.split()
    assert not HEAVY & set(result.stdout.split())
