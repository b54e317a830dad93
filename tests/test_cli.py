"""The command line itself: help at once, errors in one line, nothing printed twice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_backdoor import __version__
from lightning_backdoor.cli import COMMANDS, main
from lightning_backdoor.commands.run_folder import VARIABLE
from tests.support.workspace import inside, workspace

__all__ = ["inside", "workspace"]

SCRIPT = Path(sys.executable).parent / "lightning-backdoor"


@pytest.mark.parametrize(
    "args", [["--help"], ["scan", "--help"], ["poison", "--help"], ["benchmark", "--help"]], ids=" ".join
)
def test_help_answers_within_a_second_and_imports_nothing_heavy(args: list[str]) -> None:
    seconds = []
    for _ in range(3):  # the fastest of three, since other processes may slow one down
        started = time.perf_counter()
        result = subprocess.run(
            [sys.executable, "-X", "importtime", SCRIPT, *args], capture_output=True, text=True, check=True
        )
        seconds.append(time.perf_counter() - started)
        if seconds[-1] < 1:
            break
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert result.stdout.startswith("usage: lightning-backdoor")
    assert "lightning_backdoor" in imported
    assert not imported & {"torch", "lightning", "transformers", "datasets", "numpy"}
    assert min(seconds) < 1


def test_help_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)


def test_the_package_can_be_run_with_python_m() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "lightning_backdoor", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"lightning-backdoor {__version__}\n"


def test_an_unknown_command_is_reported_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fly"]) == 2
    printed = capsys.readouterr()
    assert (
        printed.err
        == "error: command: 'fly' is unknown; give one of fit, validate, test, predict, benchmark, poison, scan\n"
    )
    assert printed.out == ""


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_only_the_first_process_prints_an_error(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = []
    for rank in ("0", "1"):
        monkeypatch.setenv(variable, rank)
        assert main(["fly"]) == 2
        errors.append(capsys.readouterr().err.count("error"))
    assert errors == [1, 0]


def test_an_error_of_a_constructor_is_reported_in_one_line(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", "data.yaml", "--output", "never", "--model.poison_rate", "1.5"]
    assert main(["poison", *options]) == 2
    error = capsys.readouterr().err
    assert error == "error: poison_rate: 1.5 is out of range; give a share above 0 and up to 1\n"
    assert not (inside / "never").exists()


def test_an_error_that_is_not_bad_input_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("lightning_backdoor.cli._run", broken)
    with pytest.raises(ZeroDivisionError):
        main(["scan"])


def test_configs_may_name_classes_in_the_working_directory_but_scan_imports_nothing_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    for command, on_path in (("scan", False), ("poison", True)):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert (str(Path.cwd()) in sys.path) is on_path


def test_a_command_does_not_pass_its_folder_on_to_the_next(
    inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "left/over")
    assert main(["fly"]) == 2
    assert VARIABLE not in os.environ
