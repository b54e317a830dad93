"""Models and tokenizers of others, loaded without running code of theirs."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from lightning_backdoor.errors import InputError, reason
from lightning_backdoor.files.packaged import resolve
from lightning_backdoor.models.gguf import dequantized


def load_safely(auto_class: Any, name: str, **kwargs: Any) -> Any:
    """``from_pretrained`` from safetensors or with ``weights_only``, never with remote code; GGUF files dequantized.

    Raises:
        InputError: whatever went wrong, as one line.
    """
    path = resolve(name)
    if path.endswith(".gguf"):
        path = str(dequantized(Path(path)))
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # a new classification head is what fine-tuning means
    bars = transformers_logging.is_progress_bar_enabled() and Path(path).exists()
    if bars:  # a bar is for downloads
        transformers_logging.disable_progress_bar()
    try:
        return auto_class.from_pretrained(path, trust_remote_code=False, **kwargs)
    except Exception as error:  # transformers raises whatever its many loaders do
        cause = reason(error)
        if isinstance(error, pickle.UnpicklingError) or "trust_remote_code" in cause:  # their advice is to run it
            cause = "it would need code of its own to load, which is not run"
        raise InputError("model", f"{name!r} cannot be loaded as a safe checkpoint: {cause}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
