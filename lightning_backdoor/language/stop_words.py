"""The English stop words of NLTK: frequent words that carry little meaning."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files


@lru_cache(maxsize=1)
def stop_words() -> frozenset[str]:
    """The stop words in lower case, from ``stop_words.txt``, which states their source."""
    lines = files("lightning_backdoor.language").joinpath("stop_words.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))
