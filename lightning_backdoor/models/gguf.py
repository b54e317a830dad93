"""GGUF files as Hugging Face folders: dequantized once into the cache, then loaded like any other model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    modeling_gguf_pytorch_utils,
)

from lightning_backdoor.errors import InputError, reason
from lightning_backdoor.files.atomic import whole_folder
from lightning_backdoor.files.cache import cache_folder, dequantized_folder
from lightning_backdoor.files.cache_entry import DamagedEntry, check_record, remove_entry, write_record
from lightning_backdoor.models.config_file import no_hub_kernels
from lightning_backdoor.models.weights import shortened

#: the folders that this process has compared with their records.
_checked: set[Path] = set()


def dequantized(path: Path, cache_dir: str | Path | None = None) -> Path:
    """The cached folder with a GGUF file's weights (safetensors, float32), tokenizer and configuration.

    The folder is named by the hash of the file's content, and nothing else is read: a tokenizer, configuration or
    adapter beside the file does not count. The first call writes it in one step, so that processes can share it; later
    calls reuse it. A folder whose files differ from the digests recorded in it is made anew, which a warning says; each
    process compares them once.

    Args:
        path: GGUF file of a causal language model.
        cache_dir: folder of the cache; ``LIGHTNING_BACKDOOR_CACHE`` or ``~/.cache/lightning_backdoor`` by default.

    Raises:
        InputError: the file is missing, is not a GGUF file, or has an architecture that transformers does not read from
            GGUF; or the cache cannot be written.
    """
    if not path.is_file():
        raise InputError("model", f"{path} is not a GGUF file", "give a GGUF file, a folder, or a hub name")
    cache, folder = cache_folder(cache_dir), dequantized_folder(path, cache_dir)
    if folder in _checked and folder.exists():
        return folder
    try:
        if not _is_usable(folder):
            _write(path, folder)
    except OSError as error:
        raise InputError("cache_dir", f"{cache} cannot be written ({error})", "name another folder") from error
    _checked.add(folder)
    return folder


def _is_usable(folder: Path) -> bool:
    """Whether there is an entry that is as it was written; one that is not is removed."""
    if not folder.exists():
        return False
    try:
        check_record(folder)
    except DamagedEntry as damage:
        rank_zero_warn(f"the dequantized model in {folder} is damaged and is made anew: {damage}")
        remove_entry(folder)
        return False
    return True


def _write(path: Path, folder: Path) -> None:
    with whole_folder(folder) as partial:
        for part in _read(path):
            part.save_pretrained(partial)
        write_record(partial, folder.name)


def _read(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        # on the processor and in float32, whatever device and mode the caller has set
        with (
            torch.device("cpu"),
            torch.inference_mode(False),
            no_hub_kernels(),
            _bar_on_terminals_alone(),
            _alone(path) as folder,
        ):
            network, info = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=path.name, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=path.name, trust_remote_code=False)
    except Exception as error:  # each loader of transformers raises its own error classes
        raise InputError("model", f"{path} cannot be read as GGUF: {reason(error)}") from error
    if info["missing_keys"]:
        raise InputError(
            "model",
            f"{path} lacks weights of its network ({shortened(sorted(info['missing_keys']))})",
            "give a complete file",
        )
    # the weights are plain floats, but transformers does not save a network that still has a quantizer
    quantizer = getattr(network, "hf_quantizer", None)  # private: transformers 5.23.0
    if quantizer is not None:
        quantizer.remove_quantization_config(network)  # private: transformers 5.23.0
    return network, tokenizer


@contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """A temporary folder that holds the file alone: transformers prefers other files of a folder to the GGUF file."""
    with TemporaryDirectory() as folder:
        alone = Path(folder, path.name)
        try:
            alone.symlink_to(path.absolute())
        except OSError:  # a file system without links
            shutil.copyfile(path, alone)
        yield Path(folder)


@contextmanager
def _bar_on_terminals_alone() -> Iterator[None]:
    """Within the block, transformers shows how many tensors it has read on a terminal, and not in a log."""
    bar = modeling_gguf_pytorch_utils.tqdm  # private: transformers 5.23.0
    modeling_gguf_pytorch_utils.tqdm = partial(bar, disable=None, leave=False)
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = bar
