"""How much longer ONION takes beside one busy core: python -m tests.measurements.busy_core --precision bf16-true.

``--from-python`` leaves out what the command line does before torch is imported, as when the library is imported.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time

from lightning_backdoor.commands.threads import let_waiting_threads_sleep

if "--from-python" not in sys.argv:
    let_waiting_threads_sleep()

from lightning_backdoor.language import Perplexity
from lightning_backdoor.language.precision import BFLOAT16, FLOAT32
from tests.support.workspace import labelled_texts

TEXTS = [text for text, _ in labelled_texts(12)]


def seconds(perplexity: Perplexity) -> float:
    """The time that the texts take with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        perplexity.cache_dir = folder
        started = time.perf_counter()
        perplexity.leave_one_out(TEXTS)
        return time.perf_counter() - started


def main() -> None:
    """Prints the time alone, the time beside a loop on the last core, and their ratio, alternately."""
    options = argparse.ArgumentParser(description="How much longer ONION takes beside one busy core.")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--precision", choices=(FLOAT32, BFLOAT16), default=FLOAT32, help="of the language model")
    options.add_argument("--from-python", action="store_true", help="without what the command line sets")
    args = options.parse_args()
    core = max(os.sched_getaffinity(0))
    perplexity = Perplexity(precision=args.precision)
    seconds(perplexity)  # loads the model
    for _ in range(args.rounds):
        alone = seconds(perplexity)
        loop = f"import os\nos.sched_setaffinity(0, [{core}])\nwhile True: pass"
        with subprocess.Popen([sys.executable, "-c", loop]) as busy:
            beside = seconds(perplexity)
            busy.kill()
        sys.stdout.write(f"alone {alone:.2f} s, beside a busy core {beside:.2f} s: {beside / alone:.2f} times\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
