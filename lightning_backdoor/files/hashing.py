"""Hashes that say whether two files, or two folders of a model, hold the same."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

#: suffixes of the files in a model's folder that decide what it computes: weights, tokenizer, configuration.
MODEL_FILES = (".bin", ".gguf", ".json", ".model", ".safetensors", ".txt")


@lru_cache(maxsize=8)
def content_hash(path: Path) -> str:
    """sha256 of a model file, or of the weights, tokenizer and configuration in a folder; computed once per process."""
    files = sorted(file for file in path.iterdir() if file.suffix in MODEL_FILES) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
