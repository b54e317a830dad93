"""The command line itself: help at once, errors in one line, nothing printed twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_backdoor import __version__
from lightning_backdoor.cli import COMMANDS, main
from lightning_backdoor.commands.run_folder import VARIABLE
from lightning_backdoor.errors import InputError
from tests.benchmark.grids import SMALL

#: commands that need no model, with their status and words of what they print.
WITHOUT_A_MODEL = [
    (["--help"], 0, "usage: lightning-backdoor"),
    (["fit", "--help"], 0, "usage: lightning-backdoor"),
    (["scan", "--help"], 0, "usage: lightning-backdoor"),
    (["poison", "--help"], 0, "usage: lightning-backdoor"),
    (["benchmark", "--help"], 0, "usage: lightning-backdoor"),
    (["list"], 0, "lightning_backdoor.attacks.LWS"),
    (["completion", "bash"], 0, "complete -o"),
    (["fit", "--config", "configs/attack/badnets.yaml", "--model.poison_rat=1"], 2, "did you mean poison_rate?"),
    (["fit", "--config", "data.yaml", "--model.learning_rate=abc"], 2, "'abc' is not a number"),
    (["fit", "--config", "data.yaml", "--model=BadNet"], 2, "did you mean BadNets?"),
    (["test", "--config", "nowhere.yaml"], 2, "there is no file nowhere.yaml"),
    (["scan", "--model", "model"], 2, "--calibration"),
    (["benchmark", "--config", "configs/attack/badnets.yaml", "--output", "x"], 2, "not a grid"),
    (["benchmark", "--config", "grid.yaml", "--output", "planned", "--dry-run"], 0, "5 cells, 2 victims"),
]
#: libraries that take seconds to import, or a part of one; the plan of a grid alone may import numpy.
SLOW = {"torch", "lightning", "transformers", "datasets", "wandb", "pandas", "matplotlib", "plotly", "scipy.stats"}
#: runs commands in one process; prints the seconds of the package's import, and of each command the exit status, what
#: it printed, the modules that are imported after it, and its seconds, all of the processor.
IN_ONE_PROCESS = """
import io, json, sys, time
started = time.process_time()
import lightning_backdoor
answers = [time.process_time() - started]
from lightning_backdoor.cli import main
out = sys.stdout
for args in json.loads(sys.argv[1]):
    started = time.process_time()
    sys.stdout = sys.stderr = io.StringIO()
    try:
        status = main(args)
    except SystemExit as ended:  # as parsers end after their help
        status = ended.code
    answers.append((status, sys.stdout.getvalue(), [*sys.modules], time.process_time() - started))
json.dump(answers, out)
"""


def test_what_needs_no_model_is_answered_within_a_second_without_slow_imports(inside: Path) -> None:
    Path("grid.yaml").write_text(SMALL, encoding="utf-8")
    child = [sys.executable, "-c", IN_ONE_PROCESS, json.dumps([args for args, _, _ in WITHOUT_A_MODEL])]
    printed = subprocess.run(child, capture_output=True, text=True, check=True).stdout
    import_seconds, *answers = json.loads(printed)
    assert import_seconds < 0.05
    for (args, status, words), (ended, text, modules, seconds) in zip(WITHOUT_A_MODEL, answers, strict=True):
        assert ended == status, args
        assert words in text
        assert not SLOW & {*modules}, args
        assert "numpy" not in modules or "--dry-run" in args
        assert seconds < 1, args


def test_help_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)


def test_the_package_can_be_run_with_python_m() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "lightning_backdoor", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"lightning-backdoor {__version__}\n"


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((Path(__file__).parents[1] / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__


def test_an_unknown_command_is_reported_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fly"]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"error: command: 'fly' is unknown; give one of {', '.join(COMMANDS)}\n"
    assert printed.out == ""


#: variables of a launch of two processes, by the one that numbers them.
LAUNCHES = {"RANK": "WORLD_SIZE", "LOCAL_RANK": "WORLD_SIZE", "SLURM_PROCID": "SLURM_NTASKS"}
TOGETHER = (["fit", "--modle", "x"], ["test", "-c", "no.yaml"], ["scan", "--devices=2"], ["scan", "--num_nodes", "2"])
EACH_ITS_OWN = (["fly"], ["list", "nonsense"], ["report", "nowhere"], ["scan", "--shard", "4/16", "--devices", "1"])


@pytest.mark.parametrize("variable", LAUNCHES)
def test_only_the_first_of_the_processes_that_run_a_command_together_prints_an_error(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "environ", {name: os.environ[name] for name in os.environ if "SLURM" not in name})
    monkeypatch.setenv(LAUNCHES[variable], "2")
    for commands, expected in ((TOGETHER, [1, 0]), (EACH_ITS_OWN, [1, 1])):
        for args in commands:
            errors = []
            for rank in ("0", "1"):
                monkeypatch.setenv(variable, rank)
                assert main(args) == 2
                errors.append(capsys.readouterr().err.count("error"))
            assert errors == expected, args
    monkeypatch.setenv(LAUNCHES[variable], "1")  # a process alone, whatever number it has
    assert main(TOGETHER[0]) == 2
    assert "error" in capsys.readouterr().err


def test_an_error_of_a_constructor_is_reported_in_one_line(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", "data.yaml", "--output", "never_written", "--model.poison_rate", "1.5"]
    assert main(["poison", *options]) == 2
    error = capsys.readouterr().err
    assert error == "error: poison_rate: 1.5 is out of range; give a share above 0 and up to 1\n"
    assert not (inside / "never_written").exists()


def test_an_error_that_is_not_bad_input_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("lightning_backdoor.cli._run", broken)
    with pytest.raises(ZeroDivisionError):
        main(["scan"])


def test_control_c_while_modules_are_imported_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(args: list[str]) -> int:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("numpy failed to import") from error

    def wrong(args: list[str]) -> int:
        error = InputError("a", "b")
        try:
            raise TypeError from error
        except TypeError:
            raise error  # noqa: B904 - an error that is behind itself

    for run, status, line in ((interrupted, 130, "interrupted\n"), (wrong, 2, "error: a: b\n")):
        monkeypatch.setattr("lightning_backdoor.cli._run", run)
        assert main(["fit"]) == status
        assert capsys.readouterr().err == line


def test_configs_may_name_classes_in_the_working_directory_but_scan_imports_nothing_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    before = sys.path[:]
    for command, on_path in (("scan", False), ("poison", True)):
        seen: list[bool] = []
        recorded = f"lightning_backdoor.commands.{command}.main"
        monkeypatch.setattr(recorded, lambda args, seen=seen: seen.append(str(Path.cwd()) in sys.path) or 0)
        assert main([command]) == 0
        assert seen == [on_path]
        assert sys.path == before  # the next command may have another working directory


def test_a_command_does_not_pass_its_folder_on_to_the_next(
    inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "left/over")
    assert main(["fly"]) == 2
    assert VARIABLE not in os.environ
