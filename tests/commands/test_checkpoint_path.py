"""``ckpt_path``: keywords and addresses are resolved and checked like a path, and nothing turns safe loading off."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_backdoor.cli import main
from lightning_backdoor.commands.checkpoint_path import resolve_checkpoint
from lightning_backdoor.commands.run_checkpoints import RunCheckpoint
from lightning_backdoor.commands.run_cli import RunCLI
from lightning_backdoor.commands.run_folder import VARIABLE
from lightning_backdoor.errors import InputError
from tests.support.unsafe import unsafe_checkpoint

SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train.sh", "SLURM_RESTART_COUNT": "1"}


@pytest.fixture
def run(inside: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a run, of which every checkpoint would run code: that creates the folder ``marker`` beside it."""
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delenv(VARIABLE)
    run = shutil.copytree(trained, tmp_path / "run")
    unsafe = unsafe_checkpoint("lightning checkpoint", tmp_path / "unsafe", inside / "model", tmp_path / "marker")
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "hpc_ckpt_2.ckpt"):
        shutil.copy(unsafe, run / name)
    (run / "hpc_ckpt_10.ckpt").write_bytes(unsafe.read_bytes())
    return run


@pytest.mark.parametrize("spelling", ["false", "False", "no", "off", "FALSE"])
def test_no_spelling_turns_safe_loading_off(
    spelling: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "off.yaml"
    config.write_text(f"weights_only: {spelling}\nckpt_path: last\n", encoding="utf-8")
    for options in (["-c", str(config)], [f"--weights_only={spelling}", "--ckpt_path", "last"]):
        assert main(["fit", "-c", str(run / "config.yaml"), *options]) == 2
        assert capsys.readouterr().err.count("weights_only: ") == 1
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_every_command_loads_safely_whatever_its_config_says(command: str, run: Path) -> None:
    with pytest.raises(InputError, match="weights_only: False lets a checkpoint run code; leave it out"):
        RunCLI(command, ["-c", str(run / "config.yaml"), "--weights_only", "false"])
    cli = RunCLI(command, ["-c", str(run / "config.yaml"), "--weights_only", "null", "--ckpt_path", "last"])
    assert cli.method_arguments["weights_only"] is True
    assert cli.method_arguments["ckpt_path"] == str(run / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize(
    "given", ["best", "last", "hpc", "file://{run}/checkpoints/last.ckpt", "FILE://localhost{run}/hpc_ckpt_2.ckpt"]
)
@pytest.mark.parametrize("command", ["fit", "test"])
def test_what_keywords_and_addresses_name_is_checked_like_a_path(
    command: str, given: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "-c", str(run / "config.yaml"), "--ckpt_path", given.format(run=run)]) == 2
    assert "would need code to load" in capsys.readouterr().err
    assert not (tmp_path / "marker").exists()


ADDRESSES = ("http://a.b/c.ckpt", "https://a.b/c.ckpt", "s3://a/b", "gs://a/b", "hf://a/b", "memory://a", "local:///a")
MORE_ADDRESSES = ("simplecache::file:///a", "file://host/a.ckpt", "registry", "REGISTRY:name", "registry:a:version:1")


@pytest.mark.parametrize("given", [*ADDRESSES, *MORE_ADDRESSES])
def test_other_addresses_are_refused(given: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ckpt_path: .* is not a local file"):
        resolve_checkpoint(given, "fit", tmp_path, None)


@pytest.mark.parametrize("given", ["", "a\0b", "a\x1b[31m.ckpt", "nowhere.ckpt", "x" * 5000, "."])
def test_names_of_no_file_are_refused(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InputError, OSError)) as error:
        resolve_checkpoint(given, "fit", tmp_path, None)
    assert "\x1b" not in str(error.value)


def test_a_path_is_made_absolute_since_lightning_would_take_some_names_for_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("httpd.ckpt").touch()
    Path("a b%.ckpt").touch()
    assert resolve_checkpoint("httpd.ckpt", "fit", tmp_path, None) == tmp_path / "httpd.ckpt"
    assert resolve_checkpoint(f"file://{tmp_path}/a%20b%25.ckpt", "fit", tmp_path, None) == tmp_path / "a b%.ckpt"


def test_keywords_without_a_checkpoint_are_refused_and_the_first_fit_starts_from_the_beginning(tmp_path: Path) -> None:
    run_dir = str(tmp_path)
    assert resolve_checkpoint("last", "fit", tmp_path, run_dir) is None
    for given, command in (("best", "fit"), ("hpc", "fit"), ("last", "test")):
        with pytest.raises(InputError, match=f"ckpt_path: {tmp_path} has no "):
            resolve_checkpoint(given, command, tmp_path, run_dir)


@pytest.mark.parametrize(("given", "command"), [("best", "test"), ("last", "fit"), ("best", "fit"), ("hpc", "fit")])
def test_a_keyword_without_the_folder_of_a_run_is_refused(given: str, command: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"ckpt_path: '{given}' names a checkpoint of a run; give --run_dir too"):
        resolve_checkpoint(given, command, tmp_path, None)


def test_a_launch_that_is_started_again_finds_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "night")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert resolve_checkpoint("last", "fit", tmp_path, None) == tmp_path / "checkpoints" / "last.ckpt"


def test_a_job_that_slurm_queued_again_checks_the_newest_checkpoint_that_it_finds(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert resolve_checkpoint(None, "fit", run, None) == run / "hpc_ckpt_10.ckpt"
    assert resolve_checkpoint(None, "fit", tmp_path, None) is None
    assert main(["fit", "-c", str(run / "config.yaml")]) == 2
    assert "hpc_ckpt_10.ckpt would need code to load" in capsys.readouterr().err
    assert not (tmp_path / "marker").exists()


def test_what_an_error_left_behind_is_checked_before_lightning_resumes_from_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = ["--trainer.callbacks+=lightning.pytorch.callbacks.OnExceptionCheckpoint"]
    left += ["--trainer.callbacks.dirpath", str(run / "checkpoints"), "--trainer.callbacks.filename", "last"]
    assert main(["fit", "-c", "data.yaml", "--run_dir", str(tmp_path / "new"), *left]) == 2
    assert "last.ckpt would need code to load" in capsys.readouterr().err
    assert not (tmp_path / "marker").exists()


def test_a_moved_run_is_tested_and_resumed_where_it_is(
    inside: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    before = sorted(path.name for path in trained.iterdir())
    moved = shutil.copytree(trained, tmp_path / "elsewhere" / "moved")
    config, best = moved / "config.yaml", moved / "checkpoints" / "best.ckpt"
    assert main(["test", "-c", str(config), "--ckpt_path", "best"]) == 0
    assert (moved / "test" / "metrics.json").is_file()
    assert main(["fit", "-c", str(config), "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    last = torch.load(moved / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["epoch"] == 1
    states = [state for key, state in last["callbacks"].items() if key.startswith("ModelCheckpoint")]
    assert [state["best_model_path"] for state in states] == [str(best), str(moved / "checkpoints" / "last.ckpt")]
    assert yaml.safe_load(config.read_text(encoding="utf-8"))["run_dir"] == str(moved)
    assert sorted(path.name for path in trained.iterdir()) == before


def test_the_best_checkpoint_so_far_is_known_after_a_move(tmp_path: Path) -> None:
    best = tmp_path / "best.ckpt"
    best.touch()
    callback, score = RunCheckpoint(tmp_path, monitor="val/cacc", mode="max"), torch.tensor(0.9)
    before = {"best_model_path": "/before/best.ckpt", "best_model_score": score, "dirpath": "/before"}
    before |= {"kth_best_model_path": "/before/best.ckpt", "kth_value": score, "last_model_path": "/before/gone.ckpt"}
    callback.load_state_dict({**before, "best_k_models": {"/before/best.ckpt": score}})
    assert callback.best_k_models == {str(best): score}
    assert (callback.best_model_path, callback.best_model_score) == (str(best), score)
    assert callback.last_model_path == "/before/gone.ckpt"
    assert callback.state_key == ModelCheckpoint(tmp_path, monitor="val/cacc", mode="max").state_key


def test_a_config_that_a_person_wrote_keeps_its_run_dir(inside: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    written = (inside / "data.yaml").read_text(encoding="utf-8") + f"run_dir: {tmp_path}/out\n"
    (tmp_path / "config.yaml").write_text(written, encoding="utf-8")
    assert RunCLI("fit", ["-c", str(tmp_path / "config.yaml")], with_trainer=False).folder == tmp_path / "out"
