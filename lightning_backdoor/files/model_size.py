"""The size of a model's weights, from the headers of its files; nothing is loaded or downloaded."""

from __future__ import annotations

import json
import math
from pathlib import Path

from lightning_backdoor.errors import InputError
from lightning_backdoor.files.cache import dequantized_folder, hub_folder
from lightning_backdoor.files.packaged import resolve

#: upper limit on the bytes of the header of a safetensors file, as in the format's own reader.
MAX_HEADER = 100_000_000
#: copies of the weights that a victim takes once it is trained (best.ckpt, model/), and in addition until then
#: (last.ckpt with the two moments of AdamW).
KEPT_COPIES, TEMPORARY_COPIES = 2, 3


def weights_bytes(model: str) -> int | None:
    """The bytes of a model's weights in single precision, in which victims are trained.

    Args:
        model: hub name, folder, adapter folder or GGUF file, also as a ``package://`` name.

    Returns:
        The number of bytes; None if the weights are not on this machine, or cannot be read.
    """
    try:
        path = Path(resolve(model))
        if path.suffix == ".gguf":
            path = dequantized_folder(path)
        elif not path.is_dir():
            path = _downloaded(model)
        adapter = path / "adapter_config.json"
        if adapter.is_file():
            base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
            return None if base == model else weights_bytes(base)
        weights = [_parameters(file) * 4 for file in path.glob("*.safetensors")]
        weights = weights or [file.stat().st_size for file in path.glob("pytorch_model*.bin")]
    except (InputError, OSError, AttributeError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return sum(weights) or None


def size_text(size: float) -> str:
    """A number of bytes in words.

    >>> [size_text(size) for size in (400_000, 182_000_000, 2_400_000_000)]
    ['0.4 MB', '182 MB', '2.4 GB']
    """
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e6:.1f} MB"


def _parameters(file: Path) -> int:
    """The number of weights in a safetensors file."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > MAX_HEADER:
            raise ValueError(length)
        header = json.loads(opened.read(length))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _downloaded(name: str) -> Path:
    """The folder of the newest version of a hub model in the cache of ``huggingface_hub``."""
    versions = Path(hub_folder(), f"models--{name.replace('/', '--')}", "snapshots").iterdir()
    return max(versions, key=lambda version: version.stat().st_mtime)
