"""The content of a checkpoint file, checked value by value: files of strangers hold anything that can be pickled."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_backdoor.errors import InputError
from lightning_backdoor.models.adapters import MAX_RANK
from lightning_backdoor.models.config_file import MAX_LABELS

#: name under which a checkpoint holds the state of the data module.
DATA_MODULE = "BackdoorDataModule"
#: largest number of tokens at which a checkpoint may cut texts.
MAX_LENGTH = 10**6
#: largest number of bytes of a checkpoint besides its tensors; a checkpoint of this library has some hundred thousand.
MAX_PICKLE = 32 * 2**20
#: longest label name, and longest name or path of a model, in characters.
MAX_NAME = 1000
#: longest list that is shown.
LONGEST_LIST = 20
#: parts of a Lightning checkpoint that loading reads, with their types; a part may be absent.
PARTS: dict[str, type | tuple[type, ...]] = {
    DATA_MODULE: dict,
    "callbacks": dict,
    "epoch": int,
    "global_step": int,
    "hyper_parameters": dict,
    "loops": dict,
    "lr_schedulers": list,
    "optimizer_states": list,
    "precision": str,
    "pytorch-lightning_version": str,
    "random_states": dict,
    "training_defense": (str, dict, type(None)),
    "validation_metrics": dict,
}


def check_archive(path: str | Path) -> None:
    """Checks that a checkpoint is an archive as torch writes it, without compression, so that it cannot grow in memory.

    Raises:
        InputError: the file is not such an archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # zipfile raises several error classes for a damaged file
        raise InputError("checkpoint", f"{path} is damaged or not a Lightning checkpoint") from None
    total = sum(entry.file_size for entry in entries)
    if any(entry.filename.endswith(".pkl") and entry.file_size > MAX_PICKLE for entry in entries):
        raise InputError("checkpoint", f"{path} has more than {MAX_PICKLE} bytes besides its tensors", "give another")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or total > Path(path).stat().st_size:
        raise InputError("checkpoint", f"{path} is compressed, which torch does not do", "give the original file")


def check_content(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Checks the parts of a checkpoint: their types, and that the state consists of dense tensors.

    Raises:
        InputError: a part is of another type, or an entry of ``state_dict`` cannot be a weight.
    """
    for name, types in PARTS.items():
        if name in checkpoint and not isinstance(checkpoint[name], types):
            problem = f"{path} has a {type(checkpoint[name]).__name__} as {name}"
            raise InputError("checkpoint", problem, "it is damaged, or not of this library")
    version = checkpoint.get("pytorch-lightning_version")
    if version is not None and not re.fullmatch(r"\d+(\.\d+){1,3}[.\w+]*", version[:MAX_NAME]):
        raise InputError("checkpoint", f"{path} is of the Lightning version {shown(version)}", "it is damaged")
    trained_on = checkpoint.get(DATA_MODULE)
    if trained_on is not None and not (
        trained_on.keys() >= {"source", "cut"} and all(map(is_flat, trained_on.values()))
    ):
        raise InputError(
            "checkpoint", f"{path} has a {DATA_MODULE} that is not one", "it is damaged, or not of this library"
        )
    for name, value in checkpoint["state_dict"].items():
        wrong = _not_a_weight(name, value)
        if wrong:
            raise InputError("checkpoint", f"the weight {str(name)[:80]!r} in {path} is {wrong}", "give dense tensors")


def _not_a_weight(name: object, value: object) -> str | None:
    if not isinstance(name, str):
        return f"named by a {type(name).__name__}"
    if name.endswith("_extra_state"):  # which torch keeps for modules that ask for it; plain values
        return None
    if type(value) not in (Tensor, nn.Parameter):
        return f"a {type(value).__name__}"
    assert isinstance(value, Tensor)
    if value.layout != torch.strided or value.is_quantized or value.is_complex():
        return f"a tensor of {value.dtype} in layout {value.layout}"
    if value.device.type != "cpu":
        return f"a tensor on the device {value.device}"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"of shape {tuple(value.shape)}, but the file holds fewer numbers"
    return None


def check_dtypes(module: nn.Module, state: Mapping[str, Any], path: str | Path) -> None:
    """Checks that floating point weights are loaded from floating point tensors.

    Raises:
        InputError: a weight has another kind of numbers.
    """
    for name, own in module.state_dict(keep_vars=True).items():
        value = state.get(name)
        if not isinstance(value, Tensor) or not isinstance(own, Tensor):
            continue
        if own.is_floating_point() != value.is_floating_point():
            problem = f"the weight {name} in {path} is of {value.dtype}, not of {own.dtype}"
            raise InputError("checkpoint", problem, "give a checkpoint of this network")


def victim_arguments(recorded: object, path: str, max_length: int | None) -> dict[str, Any]:
    """The constructor arguments of a victim, from the hyperparameters in its checkpoint.

    The checkpoint decides which model the network is built from, as a config does: a hub name, folder or file, which is
    loaded without running code.

    Args:
        recorded: the checkpoint's ``hyper_parameters``.
        path: path of the checkpoint, for messages.
        max_length: tokens at which texts are cut; None takes the recorded number.

    Returns:
        ``model``, ``labels``, ``max_length`` and ``lora_rank``.

    Raises:
        InputError: model or labels are not recorded, or a value is not one that this library writes.
    """
    model, labels = (recorded.get("model"), recorded.get("labels")) if isinstance(recorded, dict) else (None, None)
    if not isinstance(recorded, dict) or model is None or labels is None:
        raise InputError("model", f"{path} does not record its model and labels", "export it as a folder")
    if not isinstance(model, str) or not 0 < len(model) <= MAX_NAME or not model.isprintable():
        raise _wrong(path, "model", model, "the name or path of a model")
    if not isinstance(labels, list | tuple) or not 2 <= len(labels) <= MAX_LABELS:
        raise _wrong(path, "labels", labels, f"a list of 2 to {MAX_LABELS} names")
    for label in labels:
        if not isinstance(label, str) or len(label) > MAX_NAME or _has_control_characters(label):
            raise _wrong(path, "labels", label, "names without control characters")
    if len(set(labels)) < len(labels):
        raise _wrong(path, "labels", labels, "distinct names")
    length = recorded.get("max_length", 128) if max_length is None else max_length
    if not _whole(length, 1, MAX_LENGTH):
        raise _wrong(path, "max_length", length, f"a number from 1 to {MAX_LENGTH}")
    rank = recorded.get("lora_rank")
    if rank is not None and not _whole(rank, 1, MAX_RANK):
        raise _wrong(path, "lora_rank", rank, f"a number from 1 to {MAX_RANK}, or nothing")
    return {"model": model, "labels": list(labels), "max_length": length, "lora_rank": rank}


def shown(value: object) -> str:
    """A value of a stranger's file for a message; of large or nested containers only the type.

    >>> shown("ab"), shown([1, 2.5]), shown([[]])
    ("'ab'", '[1, 2.5]', 'a list')
    """
    if isinstance(value, str):
        return repr(value[:60])
    return repr(value)[:100] if is_flat(value) else f"a {type(value).__name__}"


def is_flat(value: object) -> bool:
    """Whether a value is a string, a number or nothing, or a short list of them, so that it can be shown in a message.

    Containers that hold each other many times are small in a file, and endless when they are shown or compared.
    """
    if isinstance(value, list | tuple):
        return len(value) <= LONGEST_LIST and all(_is_plain(item) for item in value)
    return _is_plain(value)


def _is_plain(value: object) -> bool:
    if isinstance(value, int):
        return abs(value) < 2**63  # Python refuses to write numbers of thousands of digits
    return isinstance(value, str | float | None)


def _whole(value: object, lowest: int, highest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest


def _has_control_characters(text: str) -> bool:
    return any(
        character < " " or "\x7f" <= character <= "\x9f" or "\ud800" <= character <= "\udfff" for character in text
    )


def _wrong(path: str, name: str, value: object, right: str) -> InputError:
    return InputError("model", f"{path} records {shown(value)} as its {name}", f"it should be {right}")
