"""Hashes of the content of files and of model folders, the same wherever the file or folder is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

CHUNK_BYTES = 1 << 20

#: suffixes of the files in a model's folder that determine its results: weights, tokenizer and its chat template,
#: configuration.
MODEL_FILES = (".bin", ".gguf", ".jinja", ".json", ".model", ".safetensors", ".txt")


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal; read in chunks, so files may be larger than memory.

    Raises:
        OSError: the file cannot be read.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     file_sha256(Path(file.name))[:16]
    'e3b0c44298fc1c14'
    """
    digest = hashlib.sha256()
    for chunk in file_chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def model_sha256(path: Path) -> str:
    """The sha256 of a model: a file, or the weights, tokenizer and configuration in a folder.

    File names and sizes are hashed as well, the folder's own name is not.

    Raises:
        OSError: a file cannot be read.
    """
    files = sorted(file for file in path.iterdir() if file.suffix in MODEL_FILES) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        for chunk in file_chunks(file):
            digest.update(chunk)
    return digest.hexdigest()


@lru_cache(maxsize=8)
def content_hash(path: Path) -> str:
    """:func:`model_sha256`, computed once per process and path: for models that do not change during the process."""
    return model_sha256(path)


def file_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file in chunks, so that the file may be larger than memory."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
