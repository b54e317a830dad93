"""The versions that a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import version

#: the packages whose versions are recorded, by distribution.
PACKAGES = ("lightning-backdoor", "lightning", "torch", "transformers")


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a result depends on most."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
