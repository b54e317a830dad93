"""Files of trained victims, read without running code: Lightning checkpoints of this library, Hugging Face folders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from lightning_backdoor.errors import InputError, reason
from lightning_backdoor.files.names import expanded
from lightning_backdoor.files.packaged import resolve
from lightning_backdoor.models.config_file import label_names
from lightning_backdoor.models.fine_tuning import load_tokenizer
from lightning_backdoor.models.loading import load_network, load_safely
from lightning_backdoor.models.positions import readable_tokens
from lightning_backdoor.models.vocabulary import check_embeddings
from lightning_backdoor.models.weights import shortened
from lightning_backdoor.victim.checkpoint_content import (
    DATA_MODULE,
    check_archive,
    check_content,
    check_dtypes,
    is_flat,
    shown,
    victim_arguments,
)
from lightning_backdoor.victim.network import SEVERAL_ANSWERS
from lightning_backdoor.victim.training_defense import UNMERGED, TrainingDefense

#: upper limit on the default ``max_length`` of a Hugging Face folder's victim; encoders seldom have more positions.
LONGEST = 512
#: characters of a recorded defense that are shown.
SHOWN = 300


def read_checkpoint(path: str | Path, by_lightning: bool = False) -> dict[str, Any]:
    """Reads a Lightning checkpoint that consists of tensors and plain values.

    Args:
        path: path of the file.
        by_lightning: whether Lightning will load it too, which needs to know the version that wrote it.

    Raises:
        InputError: the file does not exist, is damaged, or could only be loaded by running code from it.
    """
    if not Path(path).is_file():
        raise InputError("checkpoint", f"{path} is not a file", "give a Lightning checkpoint")
    check_archive(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises almost any error for a damaged file
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise InputError(
                "checkpoint",
                f"{path} would need code to load ({code[1]}), which is not run",
                "give a checkpoint of tensors and plain values",
            ) from None
        raise InputError("checkpoint", f"{path} is damaged or not a Lightning checkpoint") from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise InputError("checkpoint", f"{path} is not a Lightning checkpoint", "it has no state_dict")
    check_content(checkpoint, path)
    if by_lightning and "pytorch-lightning_version" not in checkpoint:
        raise InputError("checkpoint", f"{path} does not record a pytorch-lightning_version", "give a run's checkpoint")
    return checkpoint


def load_weights(module: nn.Module, path: str | Path) -> dict[str, Any]:
    """Loads the weights of a checkpoint into a module whose network is built.

    Returns:
        The content of the checkpoint.

    Raises:
        InputError: see :func:`read_checkpoint`; or the weights do not fit the network.
    """
    checkpoint = read_checkpoint(path)
    load_state(module, checkpoint["state_dict"], path)
    return checkpoint


def load_state(
    module: nn.Module, state: Mapping[str, Any], path: str | Path, strict: bool = True, assign: bool = False
) -> Any:
    """``torch.nn.Module.load_state_dict``, with an ``InputError`` that names the file if the weights do not fit."""
    check_dtypes(module, state, path)
    try:
        return nn.Module.load_state_dict(module, state, strict, assign)  # a victim's own does not know the file
    except RuntimeError as error:
        problem = f"{path} does not fit the network: {_difference(module, state) or reason(error, 200)}"
        raise InputError("checkpoint", problem, "give one of the same model and labels") from None


def _difference(module: nn.Module, state: Mapping[str, Any]) -> str:
    """How the weights of a checkpoint differ from those of a network in names and shapes."""
    own = module.state_dict(keep_vars=True)
    shapes = {name: tuple(value.shape) for name, value in own.items() if isinstance(value, Tensor)}
    others = {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}
    lists = {
        "it lacks {} of its weights ({})": sorted(own.keys() - state.keys()),
        "it has {} other weights ({})": sorted(state.keys() - own.keys()),
        "{} weights have another shape ({})": sorted(
            name for name in shapes.keys() & others.keys() if shapes[name] != others[name]
        ),
    }
    return "; ".join(text.format(len(names), shortened(names, 1)) for text, names in lists.items() if names)


class TrainedVictim(NamedTuple):
    """The content of a file of a trained victim.

    Attributes:
        arguments: constructor arguments of :class:`TextClassifier` that rebuild the network: ``model``, ``labels``,
            ``max_length``, ``lora_rank``.
        state: the weights of a checkpoint by name, including an attack's own weights; None for a Hugging Face folder,
            which is itself the ``model``.
        trained_on: the state of the data module that a checkpoint was trained with, which records how the training rows
            were cut; None if it is not recorded.
        hyper_parameters: all that a checkpoint records of its module's arguments; None for a Hugging Face folder.
    """

    arguments: dict[str, Any]
    state: dict[str, Tensor] | None
    trained_on: dict[str, Any] | None = None
    hyper_parameters: dict[str, Any] | None = None


def read_trained(path: str, max_length: int | None = None) -> TrainedVictim:
    """Reads a Lightning checkpoint (``.ckpt``) or a Hugging Face folder, see :meth:`TextClassifier.load_trained`.

    Raises:
        InputError: see :meth:`TextClassifier.load_trained`.
    """
    path = expanded(path)
    return _of_checkpoint(path, max_length) if path.endswith(".ckpt") else _of_folder(path, max_length)


def _of_checkpoint(path: str, max_length: int | None) -> TrainedVictim:
    checkpoint = read_checkpoint(path)
    arguments = victim_arguments(checkpoint.get("hyper_parameters"), path, max_length)
    defense = described(checkpoint.get("training_defense"))
    if defense:
        raise InputError("model", f"{path} was trained under {defense}", "give the model folder that its run exported")
    recorded: dict[str, Any] = checkpoint["hyper_parameters"]
    return TrainedVictim(arguments, checkpoint["state_dict"], checkpoint.get(DATA_MODULE), recorded)


def _of_folder(path: str, max_length: int | None) -> TrainedVictim:
    if not Path(resolve(path)).is_dir():
        problem = f"{path} is neither a Lightning checkpoint (.ckpt) nor a Hugging Face folder"
        raise InputError("model", problem, "give a .ckpt, or a folder with config.json, weights and tokenizer")
    if Path(resolve(path), UNMERGED).is_file():
        problem = f"{path} holds a network that cannot be turned into a plain model"
        raise InputError("model", problem, "test the run's checkpoint with the run's config.yaml")
    config = load_safely(AutoConfig, path)
    if config.num_labels < 2:
        raise InputError("model", f"{path} has {config.num_labels} label", "give a classifier of at least two")
    labels = label_names(config, path)
    if config.problem_type in SEVERAL_ANSWERS:
        raise InputError("model", f"{path} {SEVERAL_ANSWERS[config.problem_type]}", "give a classifier of one label")
    new_head = load_network(AutoModelForSequenceClassification, path).new_head
    if new_head is not None:
        raise InputError("model", f"{path} {new_head.problem}", "give a checkpoint fine-tuned for classification")
    tokenizer = load_tokenizer(path)
    check_embeddings(tokenizer, config, path)
    if max_length is None:
        # tokenizers without a declared length have 1e30
        max_length = min(LONGEST, readable_tokens(config) or LONGEST, tokenizer.model_max_length)
    return TrainedVictim({"model": path, "labels": labels, "max_length": max_length, "lora_rank": None}, None)


def described(recorded: object) -> str | None:
    """Name and settings of the training-time defense recorded in a checkpoint, as text; None without a defense.

    >>> described({"name": "MuScleLoRA", "settings": {"lora_rank": 8}}), described("MuScleLoRA(lora=8)")
    ('MuScleLoRA(lora_rank=8)', 'MuScleLoRA(lora=8)')
    """
    if not recorded:
        return None
    if not isinstance(recorded, dict):
        return str(recorded)[:SHOWN] if isinstance(recorded, str) else shown(recorded)
    name, settings = recorded.get("name"), recorded.get("settings")
    pairs = settings.items() if isinstance(settings, dict) else ()
    plain = {str(key)[:60]: value if is_flat(value) else shown(value) for key, value in pairs}
    return str(TrainingDefense(name if isinstance(name, str) else shown(name), plain))[:SHOWN]


def same_defense(recorded: object, defense: TrainingDefense | None) -> bool:
    """Whether a checkpoint's training-time defense, or its absence, is the same as the given one, by name and settings.

    Checkpoints of version 0.1.0 record a string, of which only the name is compared.

    >>> same_defense("MuScleLoRA(lora=8)", TrainingDefense("MuScleLoRA", {"lora_rank": 8})), same_defense(None, None)
    (True, True)
    """
    if not recorded or defense is None:
        return not recorded and defense is None
    if isinstance(recorded, str):
        return recorded.partition("(")[0] == defense.name
    return recorded == {"name": defense.name, "settings": defense.settings}
