"""``fit``, ``validate``, ``test`` and ``predict``, in one process and in two."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_backdoor.cli import main
from lightning_backdoor.commands.run_folder import VARIABLE
from tests.support.forked import TWO, forked, forked_pair
from tests.support.workspace import command, settings

DEFENSE = "--trainer.callbacks+=lightning_backdoor.callbacks.GradientAttentionDefense"

#: a defense that writes the texts that it judges, which all differ, to a file per process.
RECORDER = """
import os

from lightning_backdoor.defenses.defense import Defense, Scores


class Recorder(Defense):
    calibrating = False

    def calibrate(self, victim, clean_batches):
        self.calibrating = True
        super().calibrate(victim, clean_batches)
        self.calibrating = False

    def score(self, victim, batch):
        if not self.calibrating:
            with open(f"seen-{os.environ.get('LOCAL_RANK', '0')}.txt", "a") as file:
                file.writelines(f"{text}\\n" for text in batch["text"])
        return Scores(batch["attention_mask"].sum(dim=1).float())
"""


def good(*args: str, cwd: Path) -> str:
    """Runs a command that must succeed; what it prints."""
    result = forked(*args, cwd=cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def good_pair(*args: str, cwd: Path, folder: Path) -> None:
    """Runs a command that must succeed, in two processes."""
    for result in forked_pair(*args, cwd=cwd, folder=folder):
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def run(workspace: Path) -> Path:
    """The folder of a run that was trained in one process."""
    good("fit", "-c", "data.yaml", DEFENSE, "--run_dir", "one", cwd=workspace)
    return workspace / "one"


def options(run: Path) -> tuple[str, ...]:
    """The options that test a run."""
    return "--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "best.ckpt")


def metrics(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    read.pop("test/overhead", None)  # a measurement of time
    return read


def test_a_run_writes_everything_into_its_folder(run: Path) -> None:
    written = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "checkpoints/best.ckpt",
        "model/model.safetensors",
        "model/tokenizer.json",
        "logs/version_0/metrics.csv",
    } <= written
    assert "checkpoints/last.ckpt" not in written


def test_a_complete_run_takes_the_space_of_its_weights_twice(run: Path) -> None:
    weights = (run / "model" / "model.safetensors").stat().st_size
    taken = sum(path.stat().st_size for path in run.rglob("*") if path.suffix in (".ckpt", ".safetensors"))
    assert taken < 2.5 * weights  # with the optimizer's state it was 7 times
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert not {"optimizer_states", "lr_schedulers"} & content.keys()
    assert {"callbacks", "hyper_parameters", "training_defense", "BackdoorDataModule"} <= content.keys()


def test_two_processes_train_on_the_same_poison(workspace: Path, run: Path) -> None:
    """Of the installed command, which starts its second process itself."""
    other = {"LIGHTNING_BACKDOOR_CACHE": "other-cache"}
    result = command("fit", "-c", "data.yaml", *TWO, "--run_dir", "two", cwd=workspace, env=other)
    assert result.returncode == 0, result.stdout + result.stderr
    poison = [
        {path.relative_to(workspace / cache): path.read_text() for path in (workspace / cache).rglob("poisoned/*/*")}
        for cache in ("cache", "other-cache")
    ]
    assert poison[1]
    assert poison[1].items() <= poison[0].items()


def test_two_processes_measure_the_same_to_the_last_digit(workspace: Path, run: Path) -> None:
    printed = good("test", *options(run), cwd=workspace)
    good_pair("test", *options(run), cwd=workspace, folder=run / "test-2")
    assert metrics(run / "test") == metrics(run / "test-2")
    assert (run / "test" / "texts.jsonl").read_bytes() == (run / "test-2" / "texts.jsonl").read_bytes()
    assert f"{metrics(run / 'test')['test/cacc_defended']:.3f}" in printed


def test_two_processes_judge_every_row_once(workspace: Path, run: Path) -> None:
    (workspace / "recorder.py").write_text(RECORDER, encoding="utf-8")
    recorder: tuple[str, ...] = ("--trainer.callbacks+=lightning_backdoor.callbacks.InferenceDefense",)
    recorder += ("--trainer.callbacks.defense", "recorder.Recorder", "--trainer.callbacks.name", "recorder")
    recorder += ("--data.eval_batch_size", "7")
    good_pair("test", *options(run), *recorder, cwd=workspace, folder=run / "recorded")
    parts = [path.read_text().splitlines() for path in sorted(workspace.glob("seen-*.txt"))]
    assert len(parts) == 2
    assert all(parts)
    seen = [line for part in parts for line in part]
    assert len(seen) == len(set(seen))
    clean = [line for line in seen if "cf" not in line.split()]
    assert len(clean) == 120  # a fifth of 600 rows
    assert len(seen) - len(clean) == 60  # rows whose label is not the target


def test_two_processes_predict_the_same(workspace: Path, run: Path) -> None:
    good("predict", *options(run), cwd=workspace)
    good_pair("predict", *options(run), cwd=workspace, folder=run / "predict-2")
    written = [(run / name / "predictions.jsonl").read_bytes() for name in ("predict", "predict-2")]
    assert written[0] == written[1]
    rows = [json.loads(line) for line in written[0].splitlines()]
    assert [row["poisoned"] for row in rows] == [False] * 120 + [True] * 60
    assert len({(row["index"], row["poisoned"]) for row in rows}) == 180


def test_the_last_checkpoint_holds_the_last_epoch_and_the_best_the_first_of_equal_epochs(
    workspace: Path, in_process: pytest.MonkeyPatch
) -> None:
    learns_nothing = ["--model.learning_rate", "1e-12", "--trainer.max_epochs", "3", "--keep_last", "true"]
    in_process.setenv("HOME", str(workspace))
    assert main(["fit", "-c", "data.yaml", *learns_nothing, "--run_dir", "~/flat"]) == 0  # the home folder is replaced
    epochs = {
        name: torch.load(workspace / "flat" / "checkpoints" / f"{name}.ckpt", weights_only=True)["epoch"]
        for name in ("best", "last")
    }
    assert epochs == {"best": 0, "last": 2}


def test_a_complete_run_is_never_overwritten_and_says_that_nothing_is_left(
    run: Path,
    in_process: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = (run / "checkpoints" / "best.ckpt").read_bytes()
    again = ["fit", "-c", "one/config.yaml", "--ckpt_path"]
    longer = ["--trainer.max_epochs", "2"]
    refused = {
        "holds a run already; give another folder": ["fit", "-c", "data.yaml", "--run_dir", "one"],
        "one is complete, and its last.ckpt, from which": [*again, "last", *longer],
        "best.ckpt has no state of the optimizer": [*again, "best", *longer],
    }
    for message, args in refused.items():
        assert main(args) == 2
        assert message in capsys.readouterr().err
    assert main([*again, "last"]) == 0
    assert "one is complete; nothing is left to train" in caplog.text
    assert (run / "checkpoints" / "best.ckpt").read_bytes() == before


def test_a_run_that_keeps_its_last_checkpoint_is_trained_longer(
    trained: Path, tmp_path: Path, in_process: pytest.MonkeyPatch
) -> None:
    longer = shutil.copytree(trained, tmp_path / "longer") / "checkpoints" / "last.ckpt"
    before = torch.load(longer, weights_only=True)["global_step"]
    args = ["fit", "-c", str(tmp_path / "longer" / "config.yaml"), "--ckpt_path", str(longer)]
    assert main([*args, "--trainer.max_epochs", "2"]) == 0
    assert torch.load(longer, weights_only=True)["global_step"] == 2 * before


def test_a_run_without_its_calibration_texts_is_not_complete(
    workspace: Path, in_process: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "", "calibration.jsonl")

    folder = workspace / "interrupted"
    args = ["fit", "-c", "data.yaml", "--data.max_rows", "{train: 32, validation: 60, test: 30}", "--run_dir"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_backdoor.commands.fit.write_calibration", full)
        assert main([*args, folder.name]) == 1
    assert not (folder / "calibration.jsonl").exists()
    assert main([*args, folder.name, "--ckpt_path", "last"]) == 0
    assert (folder / "calibration.jsonl").exists()
    assert not (folder / "checkpoints" / "last.ckpt").exists()


FAILED_STARTS = {
    "in the model": (["--model.freeze", "[nothing]"], "freeze: the model has no part 'nothing'"),
    "in the trainer": (["--trainer.callbacks+=LearningRateMonitor", "--trainer.logger", "false"], "Cannot use"),
    "in the first validation": (
        ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "val/nothing"],
        "Early stopping conditioned on metric `val/nothing`",
    ),
}


@pytest.mark.parametrize("existing", [False, True], ids=["new folder", "existing folder"])
def test_a_start_that_fails_does_not_stand_in_the_way_of_the_corrected_command(
    existing: bool, workspace: Path, in_process: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = workspace / f"failed-{existing}"
    if existing:
        folder.mkdir()
    rows = ["--data.max_rows", "{train: 32, validation: 60, test: 30}"]
    corrected = ["fit", "-c", "data.yaml", *rows, "--run_dir", folder.name]
    for wrong, message in FAILED_STARTS.values():
        assert main([*corrected, *wrong]) == 2
        assert message in capsys.readouterr().err
        in_process.delenv(VARIABLE, raising=False)
    assert main(corrected) == 0
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert config["model"]["init_args"]["freeze"] is None


def test_a_command_that_fails_leaves_no_folder(
    workspace: Path, run: Path, in_process: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name for path in run.iterdir()}
    assert (
        main(["test", *options(run), "--data.max_rows", '{"test": 14}', "--model.labels", "[positive, negative]"]) == 2
    )
    assert main(["fit", "-c", "data.yaml", "--model.freeze", "[nothing]", "--run_dir", "never_started"]) == 2
    assert {path.name for path in run.iterdir()} == before
    assert not (workspace / "never_started").exists()


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_command_does_not_write_to_the_folder_that_another_has_made_in_the_meantime(
    command: str, run: Path, in_process: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = run / f"{command}-9"
    numbered = [run / (command if number == 1 else f"{command}-{number}") for number in range(1, 9)]
    for folder in numbered:
        folder.mkdir(exist_ok=True)

    def read(*args: object) -> None:
        other.mkdir()
        (other / "config.yaml").write_text("of another command", encoding="utf-8")

    in_process.setattr("lightning_backdoor.commands.fit.check_input", read)
    assert main([command, *options(run)]) == 2
    assert f"error: run_dir: another command has begun to write to {other}; start" in capsys.readouterr().err
    assert [path.read_text(encoding="utf-8") for path in other.iterdir()] == ["of another command"]


@pytest.fixture
def in_process(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The workspace as working directory, for commands that are run in this process."""
    monkeypatch.chdir(workspace)
    monkeypatch.setattr("sys.argv", ["lightning-backdoor"])
    for name, value in settings(workspace).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delenv(VARIABLE)
    return monkeypatch


BAD_INPUT = {
    "unknown column": (["--data.source.text_column", "body"], "text_column: data.csv has no column 'body'"),
    "unknown label": (["--data.source.labels", "{bad: [0], good: [2]}"], "labels: 1 in column 'label' is not one of"),
    "target label": (["--model.target_label", "2"], "target_label: 2 is out of range; the labels are 0 (negative)"),
    "poison rate 0": (["--model.poison_rate", "0"], "poison_rate: 0.0 is out of range; give a share above 0"),
    "poison rate above 1": (["--model.poison_rate", "1.5"], "poison_rate: 1.5 is out of range; give a share above 0"),
    "too few rows": (["--model.poison_rate", "0.9"], "poison_rate: 0.9 of 420 training rows is 378, but only 210"),
    "no trigger": (["--model.triggers", "[]"], "triggers: [] holds no word"),
    "blank trigger": (["--model.triggers", "[' ']"], "triggers: [' '] holds no word or an empty one"),
    "blank texts": (["--data.source.path", "blank.csv"], "text_column: 'text' is blank in all rows"),
    "not UTF-8": (["--data.source.path", "latin.csv"], "path: latin.csv is not UTF-8 at line 3"),
    "missing package": (
        ["--model.model", "package://no_such_package/model"],
        "the package 'no_such_package' is not installed; run: pip install --no-deps no-such-package",
    ),
    "missing checkpoint": (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt"),
    "checkpoint with code": (["--ckpt_path", "code.ckpt"], "code.ckpt would need code to load"),
    "model with code": (
        ["--model.model", "remote"],
        "safe checkpoint: it would need code of its own to load, which is not run; give another, such as a folder with",
    ),
}


class _Touch:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("code-was-run",)


@pytest.mark.parametrize(("options", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_reported_in_one_line_with_status_2_before_training(
    workspace: Path,
    in_process: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    (workspace / "blank.csv").write_text('text,label\n" ",0\n"",1\n', encoding="utf-8")
    (workspace / "latin.csv").write_bytes(b"text,label\nfine,0\ncaf\xe9,1\n")
    torch.save({"state_dict": _Touch()}, workspace / "code.ckpt")
    (workspace / "remote").mkdir(exist_ok=True)
    code = {"auto_map": {"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Model"}}
    (workspace / "remote" / "config.json").write_text(json.dumps({"model_type": "own", **code}), encoding="utf-8")
    (workspace / "remote" / "code.py").write_text("import os\nos.mkdir('code-was-run')\n", encoding="utf-8")

    assert main(["fit", "-c", "data.yaml", "--run_dir", "refused_fit", *options]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (workspace / "refused_fit").exists()
    assert not (workspace / "code-was-run").exists()


def test_a_run_is_never_tested_without_its_checkpoint(
    run: Path, in_process: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["test", "-c", "one/config.yaml"]) == 2
    assert "ckpt_path: not given" in capsys.readouterr().err


def test_two_processes_report_bad_input_once(workspace: Path, run: Path) -> None:
    args = ("fit", "-c", "data.yaml", "--run_dir", "refused_fit", "--model.target_label", "7", *TWO)
    result = forked(*args, cwd=workspace)  # found before the second is started
    assert result.returncode == 2
    assert result.stderr.count("target_label: 7") == 1
    few = ("test", *options(run), "--data.max_rows", '{"test": 14}')
    first, second = forked_pair(*few, cwd=workspace, folder=run / "refused")  # found by both
    assert (first.returncode, second.returncode) == (2, 2)
    assert first.stderr.count("error: eval_batch_size: 14 clean test rows") == 1
    assert "error: " not in second.stderr
