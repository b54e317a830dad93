"""The tests that need a GPU, run by pytest in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from tests.measurements.gpu.report import Row
from tests.measurements.gpu.setting import Setting, Skipped

ROOT = Path(__file__).resolve().parents[3]
FILE = "tests/test_gpu.py"


def gpu_tests(setting: Setting) -> Iterator[Row]:
    """Runs the tests.

    Raises:
        Skipped: all tests were skipped.
        RuntimeError: a test failed, or none could be run.
    """
    xml = Path(setting.folder, "gpu_tests.xml")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={xml}", FILE]
    finished = subprocess.run(command, cwd=ROOT)
    if not xml.exists():
        raise RuntimeError(f"pytest ended with status {finished.returncode} and no results")
    yield from outcome(xml)


def outcome(xml: Path) -> Iterator[Row]:
    """The row of a file of results; see :func:`gpu_tests`."""
    tests = list(ElementTree.parse(xml).iter("testcase"))
    skipped = [test for test in tests if test.find("skipped") is not None]
    failed = [
        test.get("name", "") for test in tests if test.find("failure") is not None or test.find("error") is not None
    ]
    if skipped and len(skipped) == len(tests):
        raise Skipped(f"{len(skipped)} tests need a GPU")
    passed = len(tests) - len(skipped) - len(failed)
    yield Row(f"{FILE}", "tests passed", passed, precision="", note=f"{len(skipped)} skipped, {len(failed)} failed")
    if failed or not passed:
        raise RuntimeError(f"{len(failed)} of {len(tests)} tests failed: {', '.join(failed)}")
