"""The wheel: complete, and importable from anywhere with ``callbacks/`` inside the package."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, unpacked."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("lightning_backdoor", "callbacks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy)
    built = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(built)]
    result = subprocess.run([*command, str(copy)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    unpacked = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(next(built.glob("*.whl"))).extractall(unpacked)
    return unpacked


def test_the_wheel_holds_all_that_the_package_needs(wheel: Path) -> None:
    def files(folder: Path) -> set[str]:
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}

    expected = files(ROOT / "lightning_backdoor") | {f"callbacks/{name}" for name in files(ROOT / "callbacks")}
    assert files(wheel / "lightning_backdoor") == {name for name in expected if "__pycache__" not in name}
    assert not (wheel / "callbacks").exists()


@pytest.mark.parametrize("installed", ["wheel", "editable"])
def test_callbacks_are_imported_from_any_folder(wheel: Path, tmp_path: Path, installed: str) -> None:
    code = "import lightning_backdoor.callbacks as c; print(c.GradientAttentionDefense.__module__, c.__file__)"
    env = {"PYTHONPATH": str(wheel)} if installed == "wheel" else {}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    module, file = result.stdout.split()
    assert module == "lightning_backdoor.callbacks.gradient_attention_defense"
    expected = wheel / "lightning_backdoor" / "callbacks" if installed == "wheel" else ROOT / "callbacks"
    assert Path(file).parent == expected


def test_every_package_is_listed() -> None:
    listed = set(
        re.findall(r'^    "(lightning_backdoor[\w.]*)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    )
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("lightning_backdoor/**/__init__.py")}
    assert listed == found | {"lightning_backdoor.callbacks"}


def test_what_is_installed_is_pinned() -> None:
    lines = (ROOT / "requirements-offline.txt").read_text(encoding="utf-8").splitlines()
    assert all("--hash=sha256:" in line for line in lines if not line.startswith("#"))
    pinned = {canonicalize_name(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    wanted = {canonicalize_name(Requirement(line).name) for line in requires("lightning-backdoor") or []}
    assert wanted <= pinned
