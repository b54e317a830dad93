"""A diverged victim ends training and evaluation with its cause in one line; its numbers enter nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import Batch, Victim, batch_of_texts
from lightning_backdoor.callbacks import InferenceDefense, OutcomeWriter, PredictionWriter
from lightning_backdoor.cli import main
from lightning_backdoor.data import BackdoorDataModule, Source
from lightning_backdoor.defenses.defense import Defense, Scores, judge, predict, threshold_at_fpr
from lightning_backdoor.defenses.flagged_share import FlaggedShare
from lightning_backdoor.errors import Diverged, InputError
from lightning_backdoor.metrics import DetectionAUROC
from lightning_backdoor.models.captures import Captures
from lightning_backdoor.victim import TextClassifier
from tests.support.reviews import reviews
from tests.support.tiny import SENTENCES, loaded

LIMITS = ["--data.init_args.max_rows", '{"train": 64, "validation": 60, "test": 16}', "--trainer.logger", "false"]


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        max_epochs=2,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **options,
    )


def victim(folder: str, rate: float = 1e-3) -> BadNets:
    return BadNets(model=folder, learning_rate=rate)


def broken(folder: str) -> BadNets:
    """A victim with the labels of the reviews whose logits are NaN."""
    result = BadNets(model=folder, labels=["negative", "positive"])
    result.configure_model()
    with torch.no_grad():
        result.network.classifier.bias[0] = torch.nan
    return result


def data(folder: Path) -> Any:
    return reviews(folder, 160, max_rows={"train": 32, "test": 16})


@pytest.mark.parametrize("options", [{}, {"limit_val_batches": 0}, {"accumulate_grad_batches": 2}])
def test_fit_ends(options: dict[str, Any], tiny_folder: Callable[[str], str], tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"training diverged in epoch 0, .*; lower learning_rate \(1e\+30\)") as error:
        trainer(tmp_path, **options).fit(victim(tiny_folder("bert"), 1e30), datamodule=data(tmp_path))
    assert "\n" not in str(error.value)


def test_weights_are_checked_before_a_checkpoint_is_kept(tiny_folder: Callable[[str], str], tmp_path: Path) -> None:
    class Breaks(BadNets):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_end(outputs, batch, batch_idx)
            if self.trainer.is_last_batch:  # the last step breaks a weight that no text of the validation reads
                with torch.no_grad():
                    self.network.bert.embeddings.position_embeddings.weight[100, 0] = torch.inf

    runs = trainer(tmp_path)
    with pytest.raises(Diverged, match="NaN or infinite weights: 1"):
        runs.fit(Breaks(model=tiny_folder("bert")), datamodule=data(tmp_path))


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_evaluation_ends_and_writes_nothing(stage: str, tiny_folder: Callable[[str], str], tmp_path: Path) -> None:
    runs = trainer(tmp_path, OutcomeWriter(), PredictionWriter())
    with pytest.raises(Diverged, match=r"the victim diverged: its logits for \d+ of \d+ texts are NaN or infinite"):
        getattr(runs, stage)(broken(tiny_folder("bert")), datamodule=data(tmp_path))
    assert not [*tmp_path.glob("outcomes.csv"), *tmp_path.glob("predictions.jsonl")]


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_nothing_is_counted_of_a_run_that_failed(stage: str, tiny_folder: Callable[[str], str], tmp_path: Path) -> None:
    one = victim(tiny_folder("bert"))
    # as a run on a GPU or on several processes leaves them, where they are checked less often
    one._not_finite, one._diverged_texts, one._texts, one.captures = torch.tensor(1), torch.tensor(1), 8, Captures()
    getattr(trainer(tmp_path), stage)(one, datamodule=data(tmp_path))
    assert one.captures is None


def test_a_victim_that_overflows_on_some_texts_ends_the_test(tiny_folder: Callable[[str], str], tmp_path: Path) -> None:
    one = broken(tiny_folder("bert"))
    with torch.no_grad():
        one.network.classifier.bias[0] = 0.0
        word = one.tokenizer.convert_tokens_to_ids("boring")
        one.network.bert.embeddings.word_embeddings.weight[word] = torch.inf
    with pytest.raises(Diverged, match=r"logits for [1-8] of 8 texts"):
        trainer(tmp_path).test(one, datamodule=data(tmp_path))


def test_no_diverged_victim_is_exported(tiny_folder: Callable[[str], str], tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="not exported"):
        broken(tiny_folder("bert")).save_pretrained(tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_the_command_says_it_in_one_line(inside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    rate = ["--model.init_args.learning_rate", "1.0e30"]
    assert main(["fit", "-c", "data.yaml", "--run_dir", str(run), *rate, *LIMITS]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: training diverged in epoch 0, ")
    assert not [*run.rglob("*.ckpt"), *run.rglob("*.safetensors"), *run.rglob("metrics.json")]


def test_scan_ends(inside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights that are finite may still overflow."""
    large = loaded("model")
    with torch.no_grad():
        large.network.bert.pooler.dense.weight.mul_(1e-3)
        large.network.classifier.weight.fill_(3e38)
    large.save_pretrained(tmp_path / "large")
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    texts = str(tmp_path / "texts.txt")
    output = tmp_path / "scan.jsonl"
    args = ["--model", str(tmp_path / "large"), "--calibration", texts, "--input", texts, "--output", str(output)]
    assert main(["scan", *args]) in (1, 2)
    assert "NaN or infinite" in capsys.readouterr().err.splitlines()[-1]
    assert not output.exists() or not output.read_text(encoding="utf-8")


class Says(Defense):
    """A defense with given scores."""

    def __init__(self, *scores: float) -> None:
        super().__init__()
        self.scores = scores

    def score(self, victim: Victim, batch: Batch) -> Scores:
        return Scores(torch.tensor(self.scores[: len(batch["text"])]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_not_finite_are_refused(value: float, bert: TextClassifier) -> None:
    batch = batch_of_texts(SENTENCES[:3], bert.tokenizer, bert.max_length)
    lowest = torch.finfo(torch.float32).min  # what ONION gives a text without a score
    good, bad = Says(lowest, 0.0, 1.0), Says(0.0, value, 1.0)
    good.calibrate(bert, [batch])
    threshold_at_fpr(torch.tensor([0.0, lowest]), 0.1)
    with pytest.raises(InputError, match="Says: 1 of 3 scores are NaN or infinite"):
        bad.calibrate(bert, [batch])
    assert bad.threshold.isnan()
    bad.threshold.fill_(0.5)
    for refused in (
        lambda: judge(bad, bert, batch),
        lambda: FlaggedShare(bad).calibrate(bert, [batch]),
        lambda: threshold_at_fpr(torch.tensor([0.0, value]), 0.1),
        lambda: DetectionAUROC().update(torch.tensor([value, 0.0]), torch.tensor([True, False])),
    ):
        with pytest.raises(ValueError, match=r"1 of \d scores are NaN or infinite"):
            refused()


def test_a_diverged_victim_is_told_from_a_bad_score(tiny_folder: Callable[[str], str], tmp_path: Path) -> None:
    one = broken(tiny_folder("bert")).eval()
    batch = batch_of_texts(SENTENCES[:3], one.tokenizer, one.max_length)
    defense = Says(0.0, 1.0, 2.0)
    defense.threshold.fill_(0.5)
    for refused in (lambda: judge(defense, one, batch), lambda: predict(one, SENTENCES[:3])):
        with pytest.raises(Diverged, match="logits for 3 of 3 texts"):
            refused()
    with pytest.raises(Diverged, match="the victim diverged"):
        trainer(tmp_path, InferenceDefense(Says(*map(float, range(64))))).test(one, datamodule=data(tmp_path))


def test_a_loss_is_not_checked_where_a_scaler_skips_steps(bert: TextClassifier) -> None:
    class Precision:
        scaler = object()

    class Runs:
        precision_plugin = Precision()
        world_size = 1

    bert._trainer = Runs()  # type: ignore[assignment]
    bert.on_train_batch_end({"loss": torch.tensor(torch.nan)}, None, 0)
    Precision.scaler = None
    with pytest.raises(AttributeError):  # it asks the strategy for the count of all processes
        bert.on_train_batch_end({"loss": torch.tensor(torch.nan)}, None, 0)


@pytest.mark.parametrize("labels", [["a", "b", "c"], ["negative", "positive"]])
def test_a_head_that_is_not_trained_is_said_or_refused(
    labels: list[str], tiny_folder: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": f"{text} {i}", "label": labels[i % len(labels)]} for i, text in enumerate(SENTENCES * 8)]
    (tmp_path / "three.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = Source(str(tmp_path / "three.jsonl"), labels=labels)
    three = BackdoorDataModule(source, batch_size=16, cache_dir=str(tmp_path / "cache"))
    said: list[str] = []
    monkeypatch.setattr("lightning_backdoor.victim.checkpointing.rank_zero_info", said.append)
    one = TextClassifier(tiny_folder("bert"))
    if len(labels) == 2:
        trainer(tmp_path).test(one, datamodule=three)
        assert said == []
        return
    with pytest.raises(InputError, match=r"has a head for 2 classes, not for 3"):
        trainer(tmp_path).test(one, datamodule=three)
    trainer(tmp_path, limit_train_batches=1).fit(TextClassifier(tiny_folder("bert")), datamodule=three)
    assert "has a head for 2 classes, not for 3" in said[0]
