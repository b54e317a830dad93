"""Model folders that differ from a whole one in one respect, and checks of how victims begin with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_backdoor.errors import InputError
from lightning_backdoor.victim import TextClassifier

#: names of weights and their values.
State = dict[str, Tensor]
LABELS = ["negative", "positive"]


def changed_config(model: str, folder: Path, **values: object) -> str:
    """A copy of a model folder whose ``config.json`` has other values; returns its path."""
    shutil.copytree(model, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")
    return str(folder)


def changed_weights(model: str, folder: Path, change: Callable[[State], State], pickled: bool = False) -> str:
    """A copy of a model folder with other weights, as safetensors or as ``pytorch_model.bin``; returns its path."""
    shutil.copytree(model, folder)
    file = folder / "model.safetensors"
    state = {name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}
    file.unlink()
    if pickled:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, file, metadata={"format": "pt"})
    return str(folder)


def without_tokenizer(model: str, folder: Path) -> str:
    """A copy of a model folder with configuration and weights alone; returns its path."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(model, name), folder)
    return str(folder)


def begun(model: str, labels: list[str] = LABELS) -> TextClassifier:
    """A victim whose network is built, as a fit builds it."""
    victim = TextClassifier(model, labels=labels)
    victim.load_config()
    victim.configure_model()
    return victim


def refused(load: Callable[[], object], match: str) -> None:
    """Checks that loading fails in one short line that matches a pattern."""
    with pytest.raises(InputError, match=match) as error:
        load()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
