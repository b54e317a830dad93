"""The size of a model's weights, and the disk space of a grid, without loading or downloading anything."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lightning_backdoor.benchmark.disk_space import DEFAULT_MODEL, disk_text
from lightning_backdoor.benchmark.grid import all_victims
from lightning_backdoor.files.model_size import size_text, weights_bytes
from lightning_backdoor.victim import TextClassifier
from tests.benchmark.grids import stub_grid


@pytest.fixture
def model(tiny_folder: Callable[[str], str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder("bert"), tmp_path / "model"))


def test_weights_are_counted_in_single_precision(model: Path, tmp_path: Path) -> None:
    state = load_file(model / "model.safetensors")
    size = 4 * sum(tensor.numel() for tensor in state.values())
    assert weights_bytes(str(model)) == size
    (tmp_path / "adapter").mkdir()
    adapter = {"base_model_name_or_path": str(model)}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(adapter), encoding="utf-8")
    assert weights_bytes(str(tmp_path / "adapter")) == size
    (model / "model.safetensors").unlink()
    torch.save(state, model / "pytorch_model.bin")
    assert size <= (weights_bytes(str(model)) or 0) < 1.3 * size


def test_a_hub_model_is_looked_up_where_it_was_downloaded(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert weights_bytes("someone/bert") is None
    shutil.copytree(model, tmp_path / "home" / "hub" / "models--someone--bert" / "snapshots" / "1")
    assert weights_bytes("someone/bert") == weights_bytes(str(model))


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x02\0\0\0\0\0\0\0[]", b"\x04\0\0\0\0\0\0\0null"])
def test_files_that_cannot_be_read_have_no_size(content: bytes, model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").write_bytes(content)
    assert weights_bytes(str(model)) is None
    assert weights_bytes("package://no_such_package/model") is None
    (tmp_path / "m.gguf").write_bytes(content)
    assert weights_bytes(str(tmp_path / "m.gguf")) is None


def test_a_plan_says_the_space_of_the_victims_to_be_trained(model: Path, tmp_path: Path) -> None:
    grid = stub_grid(tmp_path / "grid.yaml", attacks=2, defenses=1, seeds=2)
    victims = [*all_victims(grid.cells).values()]
    assert disk_text(victims, 1) == (
        "disk: not known for 4 victims of stub, each 2 times its weights, which are not on this machine\n"
    )
    for victim in victims:
        victim.config["model"]["init_args"]["model"] = str(model)
    size = weights_bytes(str(model)) or 0
    kept, more = size_text(2 * 4 * size), size_text(3 * 2 * size)
    assert disk_text(victims, 2) == f"disk: about {kept} for 4 victims to be trained; up to {more} more meanwhile\n"
    assert disk_text([], 2) == "disk: nothing is to be trained\n"
    victims[0].config["model"]["init_args"]["model"] = ["a"]
    assert "not known for 1 victims of ['a'], each" in disk_text(victims[:1], 1)


def test_a_config_without_a_model_has_the_default_of_the_classifier() -> None:
    assert inspect.signature(TextClassifier).parameters["model"].default == DEFAULT_MODEL
