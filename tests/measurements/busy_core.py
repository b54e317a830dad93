"""How much longer ONION takes beside one busy core: python -m tests.measurements.busy_core [rounds]."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

from lightning_backdoor.commands.threads import let_waiting_threads_sleep

let_waiting_threads_sleep()

from lightning_backdoor.language import Perplexity  # noqa: E402 - imports torch
from tests.support.workspace import labelled_texts  # noqa: E402

TEXTS = [text for text, _ in labelled_texts(12)]


def seconds(perplexity: Perplexity) -> float:
    """The time that the texts take with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        perplexity.cache_dir = folder
        started = time.perf_counter()
        perplexity.leave_one_out(TEXTS)
        return time.perf_counter() - started


def main(rounds: int) -> None:
    """Prints the time alone, the time beside a loop on the last core, and their ratio, alternately."""
    core = max(os.sched_getaffinity(0))
    perplexity = Perplexity()
    perplexity.leave_one_out(["the model is loaded"])
    for _ in range(rounds):
        alone = seconds(perplexity)
        loop = f"import os\nos.sched_setaffinity(0, [{core}])\nwhile True: pass"
        with subprocess.Popen([sys.executable, "-c", loop]) as busy:
            beside = seconds(perplexity)
            busy.kill()
        sys.stdout.write(f"alone {alone:.2f} s, beside a busy core {beside:.2f} s: {beside / alone:.2f} times\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
