"""``test``, ``validate`` and ``predict`` measure no victim whose head is random, and say which checkpoint to give."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from transformers import AutoModel, AutoTokenizer

from lightning_backdoor.cli import main
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim import TextClassifier
from tests.support.reviews import reviews

COMMANDS = ("validate", "test", "predict")
ROWS = ["--data.max_rows", "{train: 60, validation: 60, test: 20}"]


@pytest.fixture
def encoder(inside: Path, tmp_path: Path) -> str:
    """The tiny model without its classification head."""
    AutoModel.from_pretrained(inside / "model").save_pretrained(tmp_path / "encoder")
    AutoTokenizer.from_pretrained(inside / "model").save_pretrained(tmp_path / "encoder")
    return str(tmp_path / "encoder")


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_checkpoint_the_one_of_the_run_is_named(
    command: str, trained: Path, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name for path in trained.iterdir()}
    assert main([command, "-c", str(trained / "config.yaml")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ckpt_path: not given")
    assert error.endswith(f"give --ckpt_path {trained.resolve() / 'checkpoints' / 'best.ckpt'}")
    assert main([command, "-c", str(trained / "config.yaml"), "--run_dir", "nowhere"]) == 2
    assert "there is no nowhere/checkpoints/best.ckpt: train the run first" in capsys.readouterr().err
    assert {path.name for path in trained.iterdir()} == before


@pytest.mark.parametrize("command", COMMANDS)
def test_a_new_head_is_not_measured(
    command: str, encoder: str, inside: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = str(trained / "checkpoints" / "best.ckpt")
    runs = set(inside.glob("runs/*"))
    for options, remedy in (([], "--ckpt_path RUN/checkpoints/best.ckpt"), (["--model.published", best], best)):
        assert main([command, "-c", "data.yaml", *ROWS, "--model.model", encoder, *options]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: model: {encoder} lacks the weights classifier.bias, classifier.weight")
        assert "nothing trained would be measured" in error
        assert remedy in error
    assert {path for path in inside.glob("runs/*") if (path / command).exists()} <= runs


def test_a_fine_tuned_model_is_measured_without_a_checkpoint(trained: Path, inside: Path) -> None:
    assert main(["validate", "-c", "data.yaml", *ROWS, "--model.model", str(trained / "model")]) == 0


def test_python_measures_no_new_head_either(encoder: str, tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    with pytest.raises(InputError, match="nothing trained would be measured"):
        trainer.test(TextClassifier(encoder), datamodule=reviews(tmp_path), verbose=False)
    victim = TextClassifier(encoder, labels=["negative", "positive"])
    victim.configure_model()
    victim.load_state_dict(victim.state_dict())  # with a head that the caller has trained
    trainer.test(victim, datamodule=reviews(tmp_path), verbose=False)
