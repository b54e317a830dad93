"""The weights of a pretrained network: loaded, and refused where they do not belong to the network."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from lightning_backdoor.errors import InputError, escaped
from lightning_backdoor.models.divergence import all_finite

#: prefix of the names of weights that were saved from torch's DataParallel or DistributedDataParallel.
PARALLEL = "module."


class NewHead(NamedTuple):
    """Why the head of a loaded network has random weights.

    Attributes:
        problem: what the checkpoint has instead of the head, to be written after the model's name.
        other_size: whether it has a head of another size.
    """

    problem: str
    other_size: bool


class LoadedNetwork(NamedTuple):
    """A network, and whether its head (with its pooler) is new because the checkpoint has no such head."""

    network: PreTrainedModel
    new_head: NewHead | None


def load_weights_of(auto_class: Any, path: str, name: str, config: PreTrainedConfig, **kwargs: Any) -> LoadedNetwork:
    """Loads a network and checks that its weights are those of the checkpoint, and numbers.

    A prefix ``module.`` of all names is removed, which is reported in a line.

    Args:
        auto_class: class with ``from_pretrained``, such as ``transformers.AutoModel``.
        path: folder or hub name.
        name: the model as the user named it, for messages.
        config: the network's configuration.
        **kwargs: further arguments of ``from_pretrained``.

    Raises:
        InputError: weights of the backbone are missing or have another shape, or are not finite; or the network has
            more weights than the checkpoint's files can hold.
    """
    _check_size(auto_class, path, name, config)
    network, info = _load(auto_class, path, config, kwargs)
    if _of_backbone(network, info["missing_keys"]) and any(key.startswith(PARALLEL) for key in info["unexpected_keys"]):
        stripped, of_stripped = _load(auto_class, path, config, {**kwargs, "key_mapping": {r"^module\.": ""}})
        if not _of_backbone(stripped, of_stripped["missing_keys"]):
            network, info = stripped, of_stripped
            _say_once(f"the weights of {name!r} are named {PARALLEL}…, as DataParallel saves them; read without it")
    mismatched = {key: (tuple(saved), tuple(built)) for key, saved, built in info["mismatched_keys"]}
    missing = sorted(set(info["missing_keys"]) - mismatched.keys())
    lacking = _of_backbone(network, missing)
    if lacking:
        raise InputError(
            "model",
            f"{name!r} lacks {len(lacking)} {'weights' if len(lacking) > 1 else 'weight'} of its network"
            f" ({shortened(lacking)})",
            "give a checkpoint whose weights are named as transformers names them",
        )
    for key in _of_backbone(network, mismatched):
        saved, built = mismatched[key]
        raise InputError(
            "model", f"{name!r} has {key} of shape {saved}, its config.json asks for {built}", "give another"
        )
    # older versions of transformers saved buffers too, such as position_ids
    unused = _of_backbone(network, [key for key in info["unexpected_keys"] if key.endswith(".weight")])
    if unused and network.base_model is not network:
        rank_zero_warn(
            f"{name!r} has {len(unused)} weights that its network, as in config.json, does not use"
            f" ({shortened(unused)})"
        )
    check_finite(network, repr(name))
    return LoadedNetwork(network, _new_head(missing, mismatched))


def check_finite(network: nn.Module, name: str) -> None:
    """Checks that all weights are finite.

    Args:
        network: the network.
        name: name of the model, for the message.

    Raises:
        InputError: a weight is NaN or infinite.
    """
    for key, weight in network.named_parameters():
        if not all_finite([weight.detach()]):
            raise InputError(
                "model",
                f"{name} has weights that are not numbers ({key})",
                "give a checkpoint of a training that did not diverge",
            )


def shortened(names: Iterable[str], shown: int = 3) -> str:
    """The first of some names, each cut and escaped, and that there are more.

    >>> shortened(["a", "b\\x1b[31m", "c", "d"])
    'a, b\\\\x1b[31m, c, …'
    """
    names = [escaped(name[:80]) for name in names]
    return ", ".join([*names[:shown], *(["…"] if len(names) > shown else [])])


@cache
def _say_once(line: str) -> None:
    rank_zero_info(line)


def _load(
    auto_class: Any, path: str, config: PreTrainedConfig, kwargs: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    network, info = auto_class.from_pretrained(
        path, config=config, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
    )
    return network, info


def _of_backbone(network: PreTrainedModel, keys: Iterable[str]) -> list[str]:
    """The names of weights outside of head and pooler."""
    prefix = "" if network.base_model is network else f"{network.base_model_prefix}."
    return sorted(key for key in keys if key.startswith(prefix) and not key.startswith(f"{prefix}pooler."))


def _new_head(missing: list[str], mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> NewHead | None:
    if mismatched:
        saved, built = next(iter(mismatched.values()))
        return NewHead(f"has a head for {saved[0]} classes, not for {built[0]}", other_size=True)
    if missing:
        return NewHead(f"lacks the weights {shortened(missing)} of its head", other_size=False)
    return None


def _check_size(auto_class: Any, path: str, name: str, config: PreTrainedConfig) -> None:
    """Checks, before memory is allocated, that a folder's files can hold as many weights as the network has."""
    files = [file for pattern in ("*.safetensors", "*.bin") for file in Path(path).glob(pattern)]
    if not files or not Path(path).is_dir():
        return
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = auto_class.from_config(config, trust_remote_code=False)
    inside = network.base_model
    weights = sum(parameter.numel() for parameter in inside.parameters())
    held = sum(file.stat().st_size for file in files)
    if weights > held:  # the smallest numbers that are not quantized have one byte
        problem = f"config.json of {name!r} asks for a network of {weights} weights, its files have {held} bytes"
        raise InputError("model", problem, "give a config.json and weights that belong together")
