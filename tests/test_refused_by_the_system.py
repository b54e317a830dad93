"""What the operating system refuses ends a command in one line: full disks, closed streams, folders that are gone."""

from __future__ import annotations

import errno
import os
import pwd
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_backdoor.cli import main
from lightning_backdoor.errors import InputError, known_error
from lightning_backdoor.files.cache import cache_folder
from tests.support.workspace import settings

MAIN = [sys.executable, "-m", "lightning_backdoor"]


def shell(line: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash in which ``$LB`` is the command."""
    environment = {**os.environ, **settings(cwd), "LB": " ".join(MAIN), **env}
    return subprocess.run(
        ["bash", "-c", line], cwd=cwd, env=environment, capture_output=True, encoding="utf-8", timeout=120
    )


def raising(error: BaseException) -> Callable[[list[str]], int]:
    def run(args: list[str]) -> int:
        raise error

    return run


def caused(error: Exception) -> Exception:
    try:
        raise RuntimeError("by a library") from error
    except RuntimeError as wrapped:
        return wrapped


def said(error: Exception) -> Exception:
    try:
        raise InputError("output", f"poisoned cannot be written ({error.args[0]})", "name another folder") from error
    except InputError as wrapped:
        return wrapped


KNOWN: dict[str, tuple[Exception, str, int]] = {
    "full disk": (OSError(errno.ENOSPC, "", "/run/last.ckpt"), "/run/last.ckpt: No space left on device", 1),
    "limit of a file": (OSError(errno.EFBIG, ""), "File too large", 1),
    "read-only disk": (OSError(errno.EROFS, "", "/run"), "/run: Read-only file system", 2),
    "no permission": (PermissionError(errno.EACCES, "", b"/run/caf\xe9"), "/run/caf\\udce9: Permission denied", 2),
    "long name": (OSError(errno.ENAMETOOLONG, "", "x" * 9000), f"{'x' * 500}: File name too long", 2),
    "escape codes": (FileNotFoundError(2, "", "\x1b[31m\n"), "\\x1b[31m : No such file or directory", 2),
    "behind another": (caused(OSError(errno.EIO, "", "a")), "a: Input/output error", 1),
    "full disk, as an input": (
        said(OSError(28, "")),
        "output: poisoned cannot be written (28); name another folder",
        1,
    ),
    "no permission, as an input": (said(OSError(13, "")), "output: poisoned cannot be written (13)", 2),
    "in Rust": (Exception("I/O error: No space left on device (os error 28)"), "I/O error: No space left on device", 1),
    "null character": (ValueError("embedded null byte"), "a path contains a null character; give another name", 2),
    "no home": (RuntimeError("Could not determine home directory."), "HOME: the user has no home folder; set HOME", 2),
}


@pytest.mark.parametrize(("error", "line", "status"), KNOWN.values(), ids=KNOWN)
def test_known_errors_are_reported_in_one_line(
    error: Exception, line: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lightning_backdoor.cli._run", raising(error))
    assert main(["fit"]) == status
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {line}")
    assert printed.count("\n") == 1
    assert len(printed) < 2100


def test_an_error_of_the_program_is_not_taken_for_one_of_these() -> None:
    for error in (KeyError("a"), OSError("no number"), ValueError("wrong"), RuntimeError("wrong")):
        assert known_error(error) == ("", 1)


def test_the_first_process_reports_input_and_every_process_its_own_disk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for number, reported in ((errno.ENOENT, 0), (errno.ENOSPC, 1)):
        monkeypatch.setattr("lightning_backdoor.cli._run", raising(OSError(number, "")))
        main(["fit"])
        assert capsys.readouterr().err.count("error") == reported


WRONG_FOLDERS = ("data.csv", "data.csv/run", "x" * 300, "a\0b", "\x1b[31m", "data.csv/../run")


@pytest.mark.parametrize("folder", WRONG_FOLDERS, ids=lambda name: ascii(name)[:20])
@pytest.mark.parametrize("command", ["fit", "poison"])
def test_a_folder_that_cannot_be_written_is_refused_at_once(
    command: str, folder: str, inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def started(*args: Any) -> None:
        raise AssertionError("the data were read first")

    monkeypatch.setattr("lightning_backdoor.data.datamodule.BackdoorDataModule.prepare_data", started)
    option = "run_dir" if command == "fit" else "output"
    assert main([command, "-c", "data.yaml", f"--{option}", folder]) == 2
    error = capsys.readouterr().err.removeprefix("Seed set to 0\n")
    assert error.startswith(f"error: {option}: ")
    assert error.count("\n") == 1
    assert "\x1b" not in error


def test_a_deleted_working_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for command in ("fit", "scan", "poison", "benchmark"):
        assert main([command]) == 2
        assert capsys.readouterr().err.startswith("error: working directory: it has been deleted")
    assert main(["--help"]) == 0
    monkeypatch.chdir(tmp_path)


def test_a_user_without_a_home_folder_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(user: int) -> None:
        raise KeyError(user)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("LIGHTNING_BACKDOOR_CACHE", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(ValueError, match="LIGHTNING_BACKDOOR_CACHE: the user has no home folder"):
        cache_folder()
    assert cache_folder("given") == Path("given")


@pytest.mark.parametrize(
    ("line", "status", "error"),
    [
        ("$LB --help | true; exit ${PIPESTATUS[0]}", (0, 1), ""),
        ("$LB scan --help | true; exit ${PIPESTATUS[0]}", (0, 1), ""),
        ("$LB --help >&-", (0,), ""),
        ("$LB fly >&- 2>&-", (2,), ""),
        ("$LB fly <&-", (2,), "error: command: 'fly' is unknown"),
        ("$LB --help > /dev/full", (1,), "error: No space left on device\n"),
        ("$LB scan --model m --calibration c.txt --input c.txt >&-", (2,), "error: output: standard output is closed"),
        ("$LB $'\\x1b[31m'", (2,), "error: command: '\\x1b[31m' is unknown"),
        ("$LB scan $'\\x1b[31m'", (2,), "error: \\x1b[31m: neither an option nor the value of one"),
        ("$LB scan --fpr $'\\x1b[31m'", (2,), "error: --fpr: '\\x1b[31m' is not a number"),
        (
            "$LB benchmark --output o --config g $'\\x1b[31m'",
            (2,),
            "error: \\x1b[31m: neither an option nor the value of one",
        ),
        ("$LB fit --run_dir $'caf\\xe9'", (2,), "error: run_dir: 'caf\\udce9' is not UTF-8"),
        ("$LB é", (2,), "error: command: '"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_streams_and_arguments(line: str, status: tuple[int, ...], error: str, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("fine\n")
    ended = shell(line, tmp_path, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert ended.returncode in status, ended.stderr
    assert ended.stderr.startswith(error)
    assert ended.stderr.count("\n") == (1 if error else 0)
    assert "\x1b" not in ended.stderr


SHADOWING = ("json", "secrets", "argparse", "torch", "tqdm", "numpy", "transformers", "__future__", "signal", "csv")


def test_scan_by_python_m_imports_nothing_from_the_folder_of_a_model(workspace: Path, tmp_path: Path) -> None:
    for name in SHADOWING:
        (tmp_path / f"{name}.py").write_text(f"import os\nos.mkdir('run-{name}')\nraise SystemExit(7)\n")
    (tmp_path / "clean.txt").write_text("a good film\na bad film\n" * 20)
    line = f"$LB scan --model {workspace}/model --calibration clean.txt --input clean.txt --output found.jsonl"
    ended = shell(line, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert not list(tmp_path.glob("run-*"))


def test_other_commands_by_python_m_put_the_working_directory_last(tmp_path: Path) -> None:
    for name in SHADOWING:
        (tmp_path / f"{name}.py").write_text(f"import os\nos.mkdir('run-{name}')\nraise SystemExit(7)\n")
    line = "$LB poison --output never --data BackdoorDataModule --data.source.path a.csv --model own_attack.Attack"
    (tmp_path / "own_attack.py").write_text("import sys\nraise SystemExit('own: ' + str(sys.path[-1]))\n")
    ended = shell(line, tmp_path)
    assert ended.stderr.endswith(f"own: {tmp_path}\n")
    assert not list(tmp_path.glob("run-*"))


def test_a_limit_on_the_size_of_files_ends_fit_in_one_line(workspace: Path, tmp_path: Path) -> None:
    line = f"ulimit -f 100; exec $LB fit -c data.yaml --run_dir {tmp_path}/limited"
    ended = shell(line, workspace)
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: ")
    assert ended.stderr.splitlines()[-1].endswith("File too large")
    assert not (tmp_path / "limited" / "checkpoints" / "last.ckpt").exists()
