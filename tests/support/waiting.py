"""Waiting for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(done: Callable[[], object], seconds: float = 120.0, what: str = "what the test waits for") -> None:
    """Waits until a function returns something true.

    Raises:
        TimeoutError: it did not in time.
    """
    stop = time.monotonic() + seconds
    while not done():
        if time.monotonic() > stop:
            raise TimeoutError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.05)
