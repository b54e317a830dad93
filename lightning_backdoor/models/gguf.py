"""GGUF files as folders of transformers: dequantized once, then read like any other model."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lightning_backdoor.errors import InputError, reason
from lightning_backdoor.files.atomic import whole_folder
from lightning_backdoor.files.cache import cache_folder
from lightning_backdoor.files.hashing import content_hash


def dequantized(path: Path, cache_dir: str | Path | None = None) -> Path:
    """The folder in the cache that holds a GGUF file's weights (safetensors, float32), tokenizer and configuration.

    It is made at the first call, under the hash of the file's content, and appears whole or not at all, so that
    processes may share it.

    Args:
        path: of a causal language model.
        cache_dir: folder of the cache; ``LIGHTNING_BACKDOOR_CACHE`` or ``~/.cache/lightning_backdoor`` by default.

    Raises:
        InputError: it is no file, no GGUF file, or of an architecture that transformers does not read from GGUF; or
            the cache cannot be written.
    """
    if not path.is_file():
        raise InputError("model", f"{path} is no GGUF file", "give one, a folder, or a hub name")
    cache = cache_folder(cache_dir)
    folder = cache / "dequantized" / content_hash(path)
    if not folder.exists():
        try:
            _write(path, folder)
        except OSError as error:
            raise InputError("cache_dir", f"{cache} cannot be written ({error})", "name another folder") from error
    return folder


def _write(path: Path, folder: Path) -> None:
    with whole_folder(folder) as partial:
        for part in _read(path):
            part.save_pretrained(partial)


def _read(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    try:
        # on the processor and in float32, whatever the context around builds its tensors as
        with torch.device("cpu"), torch.inference_mode(False):
            network = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**where)
    except Exception as error:  # transformers raises whatever its many loaders do
        raise InputError("model", f"{path} cannot be read as GGUF: {reason(error)}") from error
    quantizer = getattr(network, "hf_quantizer", None)
    if quantizer is not None:  # all it does is to refuse to save
        quantizer.remove_quantization_config(network)
    return network, tokenizer
