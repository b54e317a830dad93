"""Files and folders: atomic writes, content hashes, the cache, and data in installed packages.

This package imports no third-party package, so that commands that load no model start at once.
"""

from lightning_backdoor.files.atomic import whole_folder, write_whole
from lightning_backdoor.files.cache import cache_folder
from lightning_backdoor.files.hashing import content_hash, file_sha256
from lightning_backdoor.files.identity import code_identity
from lightning_backdoor.files.packaged import resolve

__all__ = [
    "cache_folder",
    "code_identity",
    "content_hash",
    "file_sha256",
    "resolve",
    "whole_folder",
    "write_whole",
]
