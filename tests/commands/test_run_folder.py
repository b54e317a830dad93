"""The folder that a command writes to: the same in all its processes, and never the folder of another run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from lightning_backdoor.cli import main
from lightning_backdoor.commands.checkpoint_path import resolve_checkpoint
from lightning_backdoor.commands.run_folder import VARIABLE, output_folder
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.presets import preset_path
from tests.support.workspace import make_workspace

LAUNCHERS = ("SLURM_", "TORCHELASTIC_", "WORLD_SIZE", "RANK", "LOCAL_RANK", VARIABLE)
SRUN = {"SLURM_JOB_ID": "71", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train.sh"}
TORCHRUN = {"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}


@pytest.fixture(autouse=True)
def empty_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory and no launcher; what a test sets in the environment is undone."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", dict(os.environ))


def folder(
    command: str,
    run_dir: str | None = None,
    launcher: Mapping[str, str] | None = None,
    resume: bool = False,
    rank: int = 0,
) -> Path:
    """The folder that a process chooses; one of rank 0 is the first of its command and inherits nothing."""
    if rank == 0:
        os.environ.pop(VARIABLE, None)
    os.environ.update(launcher or {})
    return output_folder(command, run_dir, "BadNets", resume)


def finished(path: Path) -> Path:
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.yaml").touch()
    (path / "checkpoints" / "best.ckpt").touch()
    return path


def test_processes_that_a_command_starts_write_to_its_folder(tmp_path: Path) -> None:
    first = folder("fit")
    assert first.parent == tmp_path / "runs"
    assert first.name.startswith("BadNets-2")
    assert not first.exists()
    assert folder("fit", rank=1) == folder("fit", run_dir="elsewhere", rank=2) == first


def test_a_file_in_the_home_folder_is_named_by_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "last.ckpt").touch()
    assert resolve_checkpoint("~/last.ckpt", "fit", tmp_path / "runs", None) == tmp_path / "last.ckpt"
    (tmp_path / "own.yaml").touch()
    assert preset_path("~/own.yaml") == tmp_path / "own.yaml"


def test_runs_that_start_in_the_same_second_have_different_folders() -> None:
    assert len({folder("fit") for _ in range(20)}) == 20


def test_fit_refuses_a_folder_that_holds_a_run_unless_it_resumes_it(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    assert folder("fit", "one") == tmp_path / "one"
    (tmp_path / "one" / "config.yaml").touch()  # left by a start that failed before any training
    assert folder("fit", "one") == tmp_path / "one"
    (tmp_path / "one" / "model").mkdir()
    with pytest.raises(InputError, match="one holds a run already; give another folder"):
        folder("fit", "one")
    (tmp_path / "one" / "model").rmdir()
    (tmp_path / "one" / "checkpoints").mkdir()
    (tmp_path / "one" / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(InputError, match="one holds a run already; resume it with --ckpt_path"):
        folder("fit", "one")
    assert folder("fit", "one", resume=True) == tmp_path / "one"
    assert (
        folder("fit", "one", {"SLURM_RESTART_COUNT": "1"}) == tmp_path / "one"
    )  # SLURM put the job back into the queue


def test_every_test_of_a_run_has_its_own_folder(tmp_path: Path) -> None:
    finished(tmp_path / "one")
    made = [finished(folder("test", "one")) for _ in range(3)]
    assert [path.name for path in made] == ["test", "test-2", "test-3"]
    assert folder("validate", "one") == tmp_path / "one" / "validate"
    assert folder("predict").parent.name.startswith("BadNets-")


def test_processes_of_srun_agree_although_one_has_made_its_folder_already(tmp_path: Path) -> None:
    fit = folder("fit", None, SRUN)
    assert fit == tmp_path / "runs" / "BadNets-71-0"
    fit.mkdir(parents=True)
    assert folder("fit", None, SRUN) == fit
    tested = finished(folder("test", "one", SRUN))
    assert folder("test", "one", SRUN) == tested
    assert folder("test", "one", SRUN | {"SLURM_STEP_ID": "1"}) != tested


@pytest.mark.parametrize(
    "single",
    [{"SLURM_NTASKS": "1"}, {"SLURM_JOB_NAME": "interactive"}, {"SLURM_JOB_NAME": "bash"}],
    ids=lambda changed: "=".join(*changed.items()),
)
def test_a_single_process_in_slurm_overwrites_nothing(tmp_path: Path, single: dict[str, str]) -> None:
    finished(folder("test", "one", SRUN | single))
    assert folder("test", "one", SRUN | single) == tmp_path / "one" / "test-2"
    assert folder("fit", None, SRUN | single) != folder("fit", None, SRUN | single)


def test_processes_of_torchrun_agree_on_a_folder_named_after_their_launch(tmp_path: Path) -> None:
    named = TORCHRUN | {"TORCHELASTIC_RUN_ID": "night"}
    assert folder("fit", None, named) == tmp_path / "runs" / "BadNets-night"
    tested = finished(folder("test", "one", named))
    assert folder("test", "one", named) == tested == tmp_path / "one" / "test-night"


def test_a_launch_without_a_name_is_refused_where_a_new_folder_is_needed(tmp_path: Path) -> None:
    for command, run_dir in (("fit", None), ("test", "one")):
        with pytest.raises(InputError, match=r"run_dir: .*--rdzv-id NAME"):
            folder(command, run_dir, TORCHRUN)
    assert folder("fit", "one", TORCHRUN) == tmp_path / "one"
    assert folder("fit", None, TORCHRUN | {"WORLD_SIZE": "1"}).name.startswith("BadNets-2")


@pytest.mark.parametrize("options", [[], ["--ckpt_path", "last"]], ids=["first", "resumed"])
def test_fit_replaces_no_model_that_is_not_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    folder = make_workspace(tmp_path / "workspace")
    monkeypatch.chdir(folder)
    before = {file.name: file.read_bytes() for file in (folder / "model").iterdir()}
    assert main(["fit", "-c", "data.yaml", "--run_dir", ".", *options]) == 2
    assert "run_dir: . holds a model that is not of a run" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in (folder / "model").iterdir()} == before
