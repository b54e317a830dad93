"""The file ``config.json`` of a pretrained model, checked before transformers builds anything from it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.integrations import hub_kernels
from transformers.utils import cached_file

from lightning_backdoor.errors import InputError

#: key under which this library states in a ``config.json`` how a victim was trained; transformers keeps it unread.
STATEMENT = "lightning_backdoor"
#: largest JSON file of a model that is read, in bytes.
MAX_BYTES = 16 * 2**20
#: largest number of classes of a classifier; transformers makes two entries per class of any number it reads.
MAX_LABELS = 100_000
#: largest numbers of layers, and of experts per layer, for which modules are made.
MAX_LAYERS, MAX_EXPERTS = 256, 1024
#: attention that computes with torch alone; other implementations come from packages, or from the hub.
PLAIN_ATTENTION = ("eager", "sdpa")
_PACKAGED_ATTENTION = re.compile(r"(paged\|)?(eager|sdpa|flex_attention|flash_attention_\d+)")
_LAYERS = re.compile(r"(^|_)layers?$|^depth$")
#: implementations of mixtures of experts that compute with torch alone.
PLAIN_EXPERTS = ("eager", "batched_mm", "grouped_mm")


def check_config_file(path: str, name: str) -> None:
    """Checks the ``config.json`` of a folder or hub name; does nothing if there is none.

    Args:
        path: folder or hub name.
        name: the model as the user named it, for the messages.

    Raises:
        InputError: the file is too large or not a JSON object, has too many labels or layers, or labels without a
            number from 0 each; or the weights are quantized, or need a kernel, which is code that transformers would
            download from the hub.
    """
    file = _file(path)
    if file is None:
        return
    for part in _objects(read_object(file, f"config.json of {name!r}")):
        _check_part(part, name)


def read_object(file: Path, shown: str) -> dict[str, Any]:
    """The content of a model's JSON file; ``shown`` is what messages call the file.

    Raises:
        InputError: the file is too large or not a JSON object.
    """
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise InputError("model", f"{shown} has {size} bytes", f"give one of at most {MAX_BYTES}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError("model", f"{shown} is not JSON ({type(error).__name__})", "give the original file") from None
    if not isinstance(content, dict):
        raise InputError("model", f"{shown} is not a JSON object", "give one as transformers and peft write it")
    return content


def _file(path: str) -> Path | None:
    if Path(path).is_dir():
        file = Path(path, "config.json")
        return file if file.is_file() else None
    # a missing file or repository is reported by the load that follows
    cached = cached_file(
        path,
        "config.json",
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(cached) if cached else None


def _objects(content: object) -> Iterator[dict[str, Any]]:
    """All JSON objects in a value, itself included: configurations of parts repeat the keys of the whole."""
    if isinstance(content, dict):
        yield content
        for key, value in content.items():
            if key != STATEMENT:
                yield from _objects(value)
    elif isinstance(content, list):
        for value in content:
            yield from _objects(value)


def _check_part(part: dict[str, Any], name: str) -> None:
    file = f"config.json of {name!r}"
    for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        for wanted in _values(part.get(key)):
            if wanted is not None and not (isinstance(wanted, str) and _PACKAGED_ATTENTION.fullmatch(wanted)):
                raise _code(file, key, wanted)
    for key in ("experts_implementation", "_experts_implementation", "_experts_implementation_internal"):
        for wanted in _values(part.get(key)):
            if wanted is not None and wanted not in PLAIN_EXPERTS:
                raise _code(file, key, wanted)
    if part.get("use_kernels") or part.get("kernel_config"):
        raise _code(file, "use_kernels", "true")
    quantization = part.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        problem = f"{name!r} has quantized weights ({str(method)[:40]})"
        raise InputError("model", problem, "give the unquantized model, or a GGUF file")
    labels, number = part.get("id2label"), part.get("num_labels")
    count = len(labels) if isinstance(labels, dict) else 0
    if isinstance(number, int):
        count = max(count, number)
    if count > MAX_LABELS:
        raise InputError("model", f"{file} has {count} labels", f"give a classifier of at most {MAX_LABELS}")
    if labels is not None:
        _check_label_keys(labels, file)
    for key, value in part.items():
        bound = MAX_LAYERS if _LAYERS.search(key) else MAX_EXPERTS if key.endswith("experts") else None
        lowest = 1 if key == "num_hidden_layers" else 0
        if bound is not None and isinstance(value, int) and not lowest <= value <= bound:
            raise InputError("model", f"{file} has {key[:60]} {value}", f"{lowest} to {bound} are read")


def _values(value: object) -> list[object]:
    return list(value.values()) if isinstance(value, dict) else [value]


def _code(file: str, key: str, wanted: object) -> InputError:
    problem = f"{file} asks for a kernel ({key}: {str(wanted)[:80]}), which is code from elsewhere and not run"
    return InputError("model", problem, f"remove {key} from it")


def _check_label_keys(labels: object, file: str) -> None:
    if not isinstance(labels, dict):
        raise InputError("model", f"id2label in {file} is not an object", "give a name per number, from 0")
    for key in labels:
        try:
            int(key)
        except ValueError:
            problem = f"id2label in {file} has the key {key[:40]!r}, which is not a number"
            raise InputError(
                "model", problem, "give a name per number, from 0; names and numbers may be swapped"
            ) from None


def label_names(config: PreTrainedConfig, name: str) -> list[str]:
    """The names of a classifier's labels in the order of its outputs.

    Raises:
        InputError: a number between 0 and the number of labels has no name, or two labels have the same name.
    """
    names: Mapping[int, object] = config.id2label or {}
    gaps = [number for number in range(len(names)) if number not in names]
    if gaps:
        problem = f"id2label of {name!r} has {len(names)} names and none for {gaps[0]}"
        raise InputError("model", problem, "number the labels from 0 without gaps")
    result = [str(names[number]) for number in range(len(names))]
    twice = next((label for label in result if result.count(label) > 1), None) if len(result) <= 1000 else None
    if twice is not None:
        raise InputError("model", f"two labels of {name!r} are named {twice[:60]!r}", "give each its own name")
    return result


def use_plain_attention(config: PreTrainedConfig) -> PreTrainedConfig:
    """Replaces an attention implementation that needs another package by the default of transformers, in place."""
    if config._attn_implementation not in (None, *PLAIN_ATTENTION):  # private: transformers 5.23.0
        config._attn_implementation = None  # private: transformers 5.23.0
    return config


@contextmanager
def no_hub_kernels() -> Iterator[None]:
    """Within the block, transformers cannot fetch kernels, compiled code from the hub, for any architecture."""

    def refuse(kernel_name: str, *args: object, **kwargs: object) -> None:
        raise ImportError(f"it asks for the kernel {kernel_name}, which is code from the hub and not run")

    get_kernel = hub_kernels.get_kernel  # private: transformers 5.23.0
    hub_kernels.get_kernel = refuse
    try:
        yield
    finally:
        hub_kernels.get_kernel = get_kernel
