"""English words that say little."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files


@lru_cache(maxsize=1)
def stop_words() -> frozenset[str]:
    """The words of ``stop_words.txt``, where their source is stated."""
    lines = files("lightning_backdoor.language").joinpath("stop_words.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))
