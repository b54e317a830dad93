"""Threads of numeric libraries that sleep while they wait, so that other work on the same cores goes on."""

from __future__ import annotations

import os

#: variables by which a user says how threads wait; where one is set, nothing is changed.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


def let_waiting_threads_sleep() -> None:
    """Makes the threads of OpenMP, which torch computes with, sleep soon while they wait for work or for each other.

    By default they keep their cores busy for milliseconds, even while the thread that they wait for needs one of these
    cores: beside one busy core, a computation on two cores could take ten times as long as alone. Must be called before
    torch is imported, since OpenMP reads its variables when it is loaded; processes that are started later inherit
    them.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"
        # GNU's OpenMP: some 50 microseconds, about as long as it takes to wake a thread
        os.environ["GOMP_SPINCOUNT"] = "1000"
