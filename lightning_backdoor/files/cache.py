"""The folders of caches: of results that are expensive to compute, and of the models of the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_backdoor.errors import InputError
from lightning_backdoor.files.hashing import content_hash

#: format of dequantized models; increased if the same GGUF file is written as another folder.
DEQUANTIZED_FORMAT = 2


def cache_folder(given: str | Path | None = None) -> Path:
    """The cache folder: ``given``, or else ``LIGHTNING_BACKDOOR_CACHE``, or else ``~/.cache/lightning_backdoor``.

    Raises:
        InputError: the path begins with ``~``, and the user has no home folder.
    """
    default = os.environ.get("LIGHTNING_BACKDOOR_CACHE", "~/.cache/lightning_backdoor")
    try:
        return Path(given or default).expanduser()
    except RuntimeError:
        problem = "the user has no home folder, in which the cache lies by default"
        raise InputError("LIGHTNING_BACKDOOR_CACHE", problem, "set it to a folder") from None


def dequantized_folder(path: Path, given: str | Path | None = None) -> Path:
    """The folder in the cache for a GGUF file's weights, named by the format and the hash of the file's content.

    Args:
        path: the GGUF file.
        given: folder of the cache, as for :func:`cache_folder`.

    Raises:
        OSError: the file cannot be read.
        InputError: see :func:`cache_folder`.
    """
    return cache_folder(given) / "dequantized" / f"{DEQUANTIZED_FORMAT}-{content_hash(path)}"


def hub_folder() -> Path:
    """The cache folder of ``huggingface_hub``, which takes seconds to import."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()
