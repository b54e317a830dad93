"""Loading of pretrained models and tokenizers without running any code that comes with them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from lightning_backdoor.errors import InputError, reason
from lightning_backdoor.files.packaged import resolve
from lightning_backdoor.models.gguf import dequantized


def load_safely(auto_class: Any, name: str, **kwargs: Any) -> Any:
    """Loads a model, tokenizer or configuration without running code of its own.

    Weights are read from safetensors, or unpickled with ``weights_only``; GGUF files are dequantized first. Warnings of
    transformers, such as the warning about a new classification head, are not shown.

    Args:
        auto_class: class with ``from_pretrained``, such as ``transformers.AutoModel``.
        name: hub name, folder, or GGUF file, also as ``package://`` name.
        **kwargs: further arguments of ``from_pretrained``.

    Raises:
        InputError: the object cannot be loaded, for whatever reason.
    """
    path = resolve(name)
    if path.endswith(".gguf"):
        path = str(dequantized(Path(path)))
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    hides_bar = transformers_logging.is_progress_bar_enabled() and Path(path).exists()  # only for downloads
    if hides_bar:
        transformers_logging.disable_progress_bar()
    try:
        return auto_class.from_pretrained(path, trust_remote_code=False, **kwargs)
    except Exception as error:  # each loader of transformers raises its own error classes
        cause = reason(error)
        # these messages would advise users to allow the code
        if isinstance(error, pickle.UnpicklingError) or "trust_remote_code" in str(error):
            cause = "it would need code of its own to load, which is not run"
        raise InputError("model", f"{name!r} cannot be loaded as a safe checkpoint: {cause}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if hides_bar:
            transformers_logging.enable_progress_bar()
