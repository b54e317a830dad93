"""Unsafe checkpoints: each contains code that creates a marker folder if it is run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

KINDS = ("lightning checkpoint", "pickled weights", "code for an unknown model", "code for a known model")


class Payload:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def unsafe_checkpoint(kind: str, folder: Path, model: Path, marker: Path) -> Path:
    """Writes an unsafe checkpoint.

    Args:
        kind: one of ``KINDS``.
        folder: the folder to write, which does not exist yet.
        model: the Hugging Face folder that is copied and made unsafe.
        marker: the folder that the checkpoint's code creates.

    Returns:
        The path to load: the folder, or the checkpoint file in it.
    """
    if kind == "lightning checkpoint":
        folder.mkdir()
        content = {"state_dict": {}, "hyper_parameters": {"labels": ["a", "b"], "model": str(model)}}
        torch.save({**content, "callbacks": Payload(marker)}, folder / "best.ckpt")
        return folder / "best.ckpt"
    shutil.copytree(model, folder)
    if kind == "pickled weights":
        (folder / "model.safetensors").unlink()
        torch.save({"classifier.weight": Payload(marker)}, folder / "pytorch_model.bin")
    else:
        auto = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
        _change(folder / "config.json", auto_map=auto)
        _change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]})
        if kind == "code for an unknown model":
            _change(folder / "config.json", model_type="evil")
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n", encoding="utf-8")
    return folder


def _change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")
