"""Trained victims, loaded without running code: Lightning checkpoints of ours, and Hugging Face folders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from lightning_backdoor.errors import InputError, reason
from lightning_backdoor.files.packaged import resolve
from lightning_backdoor.models.loading import load_safely
from lightning_backdoor.victim import TextClassifier
from lightning_backdoor.victim.training_defense import TrainingDefense

#: tokens that a text is cut at where a model would read more: encoders seldom do, and decoders as many as fit.
LONGEST = 512


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A Lightning checkpoint as tensors and plain values.

    Raises:
        InputError: it is not there, is damaged, or would need code to load.
    """
    if not Path(path).is_file():
        raise InputError("checkpoint", f"{path} is no file", "give a Lightning checkpoint")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file makes torch raise almost anything
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise InputError(
                "checkpoint",
                f"{path} would need code to load ({code[1]}), which is not run",
                "give one of tensors and plain values",
            ) from None
        raise InputError("checkpoint", f"{path} is damaged or no Lightning checkpoint") from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise InputError("checkpoint", f"{path} is no Lightning checkpoint", "it has no state_dict")
    return checkpoint


def load_weights(victim: TextClassifier, path: str | Path) -> None:
    """Puts the weights of a checkpoint into a victim whose network is built.

    Raises:
        InputError: see :func:`read_checkpoint`, or they are weights of another network.
    """
    _load_state(victim, read_checkpoint(path)["state_dict"], path)


def _load_state(victim: TextClassifier, state: dict[str, Any], path: str | Path) -> None:
    try:
        victim.load_state_dict(state)
    except RuntimeError as error:
        raise InputError("checkpoint", f"{path} is of another network: {reason(error, 200)}") from None


def load_trained(path: str, max_length: int | None = None) -> TextClassifier:
    """A trained victim in evaluation mode, from a Lightning checkpoint (``.ckpt``) or a Hugging Face folder.

    Whatever attack a checkpoint was trained with, it comes back as a plain classifier: no class that a checkpoint
    names is imported.

    Args:
        path: of the checkpoint or folder.
        max_length: tokens a text is cut at; None takes the length a checkpoint was trained with, or for a folder the
            length that its tokenizer declares, or else its positions, up to ``LONGEST``: what the model reads in use.

    Raises:
        InputError: it is neither, would need code to load, has no trained classification head, or is not usable.
    """
    victim = _of_checkpoint(path, max_length) if path.endswith(".ckpt") else _of_folder(path, max_length)
    for name, weight in victim.network.named_parameters():
        if not weight.isfinite().all():
            raise InputError(
                "model", f"{path} has weights that are no numbers ({name})", "give one whose training held"
            )
    return victim.eval()


def _of_checkpoint(path: str, max_length: int | None) -> TextClassifier:
    checkpoint = read_checkpoint(path)
    own = checkpoint.get("hyper_parameters")
    if not isinstance(own, dict) or not own.get("labels") or not own.get("model"):
        raise InputError("model", f"{path} does not say of what model and labels it is", "export it as a folder")
    defense = checkpoint.get("training_defense")
    if defense:
        raise InputError(
            "model",
            f"{path} was trained under {TrainingDefense(**defense) if isinstance(defense, dict) else defense}",
            "give the model folder that its run exported",
        )
    length = own.get("max_length", 128) if max_length is None else max_length
    rank = own.get("lora_rank")
    victim = TextClassifier(own["model"], labels=list(own["labels"]), max_length=length, lora_rank=rank)
    victim.configure_model()
    # an attack may have weights of its own; the classifier is the network
    _load_state(victim, {k: v for k, v in checkpoint["state_dict"].items() if k.startswith("network.")}, path)
    return victim


def _of_folder(path: str, max_length: int | None) -> TextClassifier:
    if not Path(resolve(path)).is_dir():
        raise InputError("model", f"{path} is neither a Lightning checkpoint (.ckpt) nor a Hugging Face folder")
    config = load_safely(AutoConfig, path)
    if config.num_labels < 2:
        raise InputError("model", f"{path} has {config.num_labels} label", "give a classifier of at least two")
    _, found = load_safely(AutoModelForSequenceClassification, path, output_loading_info=True)
    if found["missing_keys"]:
        missing = ", ".join(sorted(found["missing_keys"])[:3])
        raise InputError(
            "model", f"{path} lacks the weights {missing}", "give a checkpoint fine-tuned for classification"
        )
    labels = [str(config.id2label[i]) for i in range(config.num_labels)]
    victim = TextClassifier(path, labels=labels, max_length=LONGEST if max_length is None else max_length)
    if max_length is None:
        positions = getattr(config, "max_position_embeddings", None) or LONGEST
        # a tokenizer that declares no length says 1e30; RoBERTa-like models count positions from 2
        declared = victim.tokenizer.model_max_length
        victim.max_length = min(LONGEST, positions, declared if declared <= positions else positions - 2)
    victim.configure_model()
    return victim
