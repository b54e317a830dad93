"""Loading of pretrained models and tokenizers without running any code that comes with them."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from lightning_backdoor.errors import InputError, reason
from lightning_backdoor.files.packaged import resolve
from lightning_backdoor.models.adapters import Adapter, find_adapter
from lightning_backdoor.models.config_file import check_config_file, no_hub_kernels, use_plain_attention
from lightning_backdoor.models.gguf import dequantized
from lightning_backdoor.models.vocabulary import check_vocabulary
from lightning_backdoor.models.weights import LoadedNetwork, load_weights_of


def load_safely(auto_class: Any, name: str, **kwargs: Any) -> Any:
    """Loads a model, tokenizer or configuration without running code of its own.

    Weights are read from safetensors, or unpickled with ``weights_only``; GGUF files are dequantized first. The folder
    of a PEFT adapter stands for the model that it names, with the adapter merged. Warnings of transformers are not
    shown.

    Args:
        auto_class: class with ``from_pretrained``, such as ``transformers.AutoModel``.
        name: hub name, folder, or GGUF file, also as ``package://`` name.
        **kwargs: further arguments of ``from_pretrained``.

    Raises:
        InputError: the object cannot be loaded, for whatever reason: a tokenizer without a vocabulary, a network that
            lacks weights other than its pooler, ...
    """
    if auto_class not in (AutoConfig, AutoTokenizer):
        network, new_head = load_network(auto_class, name, **kwargs)
        if new_head is not None and auto_class is not AutoModel:  # of which no caller reads the pooler
            raise InputError("model", f"{name!r} {new_head.problem}", "give a model that has it")
        return network
    path, shown, adapter = _located(name)
    with _one_line_errors(path, shown):
        if auto_class is AutoConfig:
            return _config(path, shown, adapter, **kwargs)
        if adapter is not None and adapter.has_tokenizer:
            path = str(adapter.folder)
        check_config_file(path, shown)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **kwargs)
        check_vocabulary(tokenizer, shown)
        return tokenizer


def load_network(auto_class: Any, name: str, config: PreTrainedConfig | None = None, **kwargs: Any) -> LoadedNetwork:
    """Loads a network as :func:`load_safely` does; its head may be new.

    Args:
        auto_class: class with ``from_pretrained``, such as ``transformers.AutoModelForSequenceClassification``.
        name: see :func:`load_safely`.
        config: the network's configuration; by default the model's.
        **kwargs: further arguments of ``from_pretrained``.

    Raises:
        InputError: the network cannot be loaded, or weights of its backbone are missing.
    """
    path, shown, adapter = _located(name)
    with _one_line_errors(path, shown):
        if config is None:
            config = _config(path, shown, adapter)
        check_config_file(path, shown)
        loaded = load_weights_of(auto_class, path, shown, config, **kwargs)
        return loaded if adapter is None else adapter.merged(loaded)


def adapter_of(name: str) -> Adapter | None:
    """The adapter that the name of a model stands for; None if the model has no base.

    Raises:
        InputError: see :func:`lightning_backdoor.models.adapters.find_adapter`; or the model cannot be looked up.
    """
    path = resolve(name)
    if path.endswith(".gguf") or Path(path).is_file():
        return None
    with _one_line_errors(path, name):
        return find_adapter(path)


def _located(name: str) -> tuple[str, str, Adapter | None]:
    """The path or hub name of a model or of an adapter's base, what messages call it, and the adapter."""
    path = _path(name)
    with _one_line_errors(path, name):
        adapter = find_adapter(path)
    return (path, name, None) if adapter is None else (_path(adapter.base), f"{adapter.base}, base of {name}", adapter)


def _path(name: str) -> str:
    path = resolve(name)
    return str(dequantized(Path(path))) if path.endswith(".gguf") else path


def _config(path: str, name: str, adapter: Adapter | None, **kwargs: Any) -> PreTrainedConfig:
    classes = None if adapter is None else adapter.classes()
    if classes is not None:
        kwargs = {"num_labels": classes, **kwargs}
    check_config_file(path, name)
    config: PreTrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False, **kwargs)
    return use_plain_attention(config)


@contextmanager
def _one_line_errors(path: str, name: str) -> Iterator[None]:
    """Runs loaders of transformers without their warnings and kernels, and with their errors as an ``InputError``."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    hides_bar = transformers_logging.is_progress_bar_enabled() and Path(path).exists()  # only for downloads
    if hides_bar:
        transformers_logging.disable_progress_bar()
    try:
        with no_hub_kernels():
            yield
    except InputError:
        raise
    except Exception as error:  # each loader of transformers raises its own error classes
        cause = f"{reason(error)} is unknown" if isinstance(error, KeyError) else reason(error)
        # these messages would advise users to allow the code
        if isinstance(error, pickle.UnpicklingError) or "trust_remote_code" in str(error):
            cause = "it would need code of its own to load, which is not run"
        problem = f"{name!r} cannot be loaded as a safe checkpoint: {cause}"
        remedy = "give another, such as a folder with config.json, weights and tokenizer"
        raise InputError("model", problem, remedy) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if hides_bar:
            transformers_logging.enable_progress_bar()
