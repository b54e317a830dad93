"""Imports of large libraries without garbage collection, so that commands start and end sooner."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Imports torch, and what comes with it, without garbage collection, which has nothing to free there.

    What was imported lives until the process ends. It is left out of all later collections as well, such as the last
    ones, when the interpreter exits. Where torch has been imported before, or collection is off, nothing changes.

    Example::

        with quick_imports():
            from lightning_backdoor.commands.fit import run
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.collect()  # what may be freed now would otherwise be kept
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
