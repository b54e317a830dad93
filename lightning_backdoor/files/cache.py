"""The folder in which results that are expensive to compute are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(given: str | Path | None = None) -> Path:
    """The cache folder: ``given``, or else ``LIGHTNING_BACKDOOR_CACHE``, or else ``~/.cache/lightning_backdoor``."""
    default = os.environ.get("LIGHTNING_BACKDOOR_CACHE", "~/.cache/lightning_backdoor")
    return Path(given or default).expanduser()
