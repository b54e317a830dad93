"""The command ``python -m tests.measurements.gpu``."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from tests.measurements.gpu.column_sums import flex_sums
from tests.measurements.gpu.gpu_tests import gpu_tests
from tests.measurements.gpu.onion import onion
from tests.measurements.gpu.report import Report
from tests.measurements.gpu.running import Part, run_apart, run_here
from tests.measurements.gpu.scoring import scoring
from tests.measurements.gpu.setting import BERT, LLAMA, MINILM, Setting
from tests.measurements.gpu.throughput import compiled_throughput, plain_throughput
from tests.measurements.gpu.training import fine_tuning, muscle_lora, two_devices

#: seconds in which all parts end: nine minutes, less what imports and the table take.
SECONDS = 510
#: the parts in the order in which they are measured: what takes longest, and may be cut, comes last.
PARTS = {
    "GPU tests": Part(gpu_tests, 90),
    "scoring": Part(scoring, 60),
    "ONION": Part(onion, 60),
    "fine-tuning": Part(fine_tuning, 75),
    "MuScleLoRA": Part(muscle_lora, 90),
    **{name: Part(partial(plain_throughput, name), 45) for name in (MINILM, BERT, LLAMA)},
    "two devices": Part(two_devices, 90),
    "column sums": Part(flex_sums, 75),
    **{f"{name}, compiled": Part(partial(compiled_throughput, name), 90) for name in (MINILM, BERT, LLAMA)},
}


def options() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m tests.measurements.gpu",
        description="Measures the library on the machine's GPU within nine minutes; without one, tiny networks.",
    )
    made.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all by default")
    made.add_argument("--output", type=Path, default=Path("runs", "gpu.json"), help="the JSON file of all figures")
    made.add_argument("--seconds", type=float, default=SECONDS, help="that all parts together may take")
    made.add_argument("--rounds", type=int, default=5, help="how often each pair is measured")
    made.add_argument("--toy", action="store_true", help="tiny networks on the processor, also where there is a GPU")
    made.add_argument("--here", action="store_true", help="measure in this process, without limits of time")
    return made


def main(args: Sequence[str] | None = None) -> int:
    """Measures the parts; returns 1 if one of them failed or was cut."""
    given = options().parse_args(args)
    if unknown := set(given.parts) - set(PARTS):
        options().error(f"there is no part {', '.join(sorted(unknown))}; give {', '.join(PARTS)}")
    device = "cuda" if torch.cuda.is_available() and not given.toy else "cpu"
    given.output.parent.mkdir(parents=True, exist_ok=True)
    log = given.output.with_suffix(".log")
    log.unlink(missing_ok=True)
    report = Report(given.output, given.seconds, toy=device == "cpu")
    parts = {name: part for name, part in PARTS.items() if name in (given.parts or PARTS)}
    folder = tempfile.mkdtemp(prefix="lightning_backdoor_gpu_")
    setting = Setting(device, device == "cpu", folder, str(log.resolve()), given.rounds)
    try:
        if given.here:
            run_here(parts, setting, report)
        else:
            # an end by a signal also ends the process of the parts
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
            run_apart(parts, setting, report, given.seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        report.write()
    Console(width=None if sys.stdout.isatty() else 160).print(report.table())
    sys.stdout.write(f"{given.output} has all figures, {log} what the parts printed\n")
    return 0 if report.complete else 1


if __name__ == "__main__":
    sys.exit(main())
