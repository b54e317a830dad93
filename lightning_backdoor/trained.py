"""Trained victims, loaded without running code: Lightning checkpoints of ours, and Hugging Face folders."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from lightning_backdoor.errors import InputError
from lightning_backdoor.packaged import resolve
from lightning_backdoor.victim import TextClassifier, load_safely


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A Lightning checkpoint as tensors and plain values.

    Raises:
        InputError: it is not there, or would need code to load.
    """
    if not Path(path).is_file():
        raise InputError(f"checkpoint: {path} is no file; give a Lightning checkpoint")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"checkpoint: {path} does not load without running code of its own: {reason}") from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise InputError(f"checkpoint: {path} is no Lightning checkpoint")
    return checkpoint


def load_weights(victim: TextClassifier, path: str | Path) -> None:
    """Puts the weights of a checkpoint into a victim whose network is built.

    Raises:
        InputError: see :func:`read_checkpoint`, or they are weights of another network.
    """
    try:
        victim.load_state_dict(read_checkpoint(path)["state_dict"])
    except RuntimeError as error:
        raise InputError(f"checkpoint: {path} is of another network: {' '.join(str(error).split())[:200]}") from None


def load_trained(path: str) -> TextClassifier:
    """A trained victim in evaluation mode, from a Lightning checkpoint (``.ckpt``) or a Hugging Face folder.

    Whatever attack a checkpoint was trained with, it comes back as a plain classifier: no class that a checkpoint
    names is imported.

    Raises:
        InputError: it is neither, would need code to load, or has no trained classification head.
    """
    if path.endswith(".ckpt"):
        own = read_checkpoint(path).get("hyper_parameters", {})
        if not own.get("labels") or not own.get("model"):
            raise InputError(f"model: {path} does not say of what model and labels it is; export it as a folder")
        victim = TextClassifier(own["model"], labels=list(own["labels"]), max_length=own.get("max_length", 128))
        victim.configure_model()
        load_weights(victim, path)
        return victim.eval()
    if not Path(resolve(path)).is_dir():
        raise InputError(f"model: {path} is neither a Lightning checkpoint (.ckpt) nor a Hugging Face folder")
    config = load_safely(AutoConfig, path)
    _, found = load_safely(AutoModelForSequenceClassification, path, output_loading_info=True)
    if found["missing_keys"]:
        missing = ", ".join(sorted(found["missing_keys"])[:3])
        raise InputError(f"model: {path} lacks the weights {missing}; give a checkpoint fine-tuned for classification")
    victim = TextClassifier(path, labels=[str(config.id2label[i]) for i in range(config.num_labels)])
    victim.configure_model()
    return victim.eval()
