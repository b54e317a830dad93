"""Where the callbacks of a run write their files: the logger's folder, a given folder, or nowhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.callbacks import (
    CleaningWriter,
    FourierView,
    GradientAttentionDefense,
    InspectionCallback,
    OutcomeWriter,
    OutputFolder,
    PredictionWriter,
)
from lightning_backdoor.callbacks.output_folder import folder_of
from lightning_backdoor.data.cleaning import CleaningRecord
from lightning_backdoor.defenses.flagged_share import FlaggedShare
from lightning_backdoor.defenses.gradient_attention import GradientAttention
from tests.support.reviews import reviews

WRITTEN = {"outcomes.csv", "texts.jsonl", "token_view.html", "inspection.json", "predictions.jsonl"}
WRITTEN |= {"words.json", "cleaning.json", "fourier.csv", "fourier.html"}


class Remote(DummyLogger):
    """A logger without a ``log_dir``, as those of W&B and MLflow; it keeps its files in folders of ``save_dir``."""

    save_dir = "kept"
    name = "project"
    version = "run-1"


def trainer_with(logger: Logger | bool, *callbacks: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_steps=1,
        limit_val_batches=0,
        logger=logger,
        callbacks=[*callbacks],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.mark.parametrize(
    ("logger", "given", "folder"),
    [
        (False, [], None),
        (CSVLogger("log", name="mine", version="v"), [], "log/mine/v"),
        (False, [OutputFolder("results")], "results"),
    ],
    ids=["without a logger", "with a logger", "with a folder"],
)
def test_every_callback_writes_into_the_loggers_folder_or_nowhere(
    logger: Logger | bool,
    given: list[Any],
    folder: str | None,
    tmp_path: Path,
    tiny_folder: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    data: Any = reviews(tmp_path, rows=120, max_rows={"train": 16, "validation": 24, "test": 8})
    data.cleaning = CleaningRecord(rows=16, removed=1, changed=0, precision=1.0, recall=1.0)
    inspection = InspectionCallback(FlaggedShare(GradientAttention()))
    writers = [CleaningWriter(), FourierView(rows=4), GradientAttentionDefense(), inspection]
    trainer = trainer_with(logger, *writers, OutcomeWriter(), PredictionWriter(), *given)
    attack = BadNets(model=tiny_folder("bert"), poison_rate=0.3)
    trainer.fit(attack, datamodule=data)
    trainer.test(attack, datamodule=data, verbose=False)
    trainer.predict(attack, datamodule=data, return_predictions=False)
    written = {path.relative_to(working).as_posix() for path in working.rglob("*") if path.is_file()}
    of_logger = {"hparams.yaml", "metrics.csv"}
    if folder is None:
        assert not written
    else:
        assert {f"{folder}/{name}" for name in WRITTEN} == {f for f in written if Path(f).name not in of_logger}


class Fails(Callback):
    """Ends a prediction in its second batch."""

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 1:
            raise RuntimeError("stopped")


def test_predictions_are_written_without_those_of_a_run_that_failed(
    tmp_path: Path, tiny_folder: Callable[[str], str]
) -> None:
    victim, writer = BadNets(model=tiny_folder("bert")), PredictionWriter()
    data, folder = reviews(tmp_path, rows=120), OutputFolder(tmp_path)
    trainer_with(False, writer, folder).predict(victim, datamodule=data)
    expected = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8")
    with pytest.raises(RuntimeError, match="stopped"):
        trainer_with(False, writer, folder, Fails()).predict(victim, datamodule=data)
    trainer_with(False, writer, folder).predict(victim, datamodule=data)
    assert (tmp_path / "predictions.jsonl").read_text(encoding="utf-8") == expected


def test_the_first_logger_that_has_a_folder_is_taken() -> None:
    assert folder_of(trainer_with(Remote())) == Path("kept/project/run-1")
    several = trainer_with(False)
    several.loggers = [DummyLogger(), CSVLogger("log", version="v"), Remote()]
    assert folder_of(several) == Path("log/lightning_logs/v")
    several.loggers = [DummyLogger()]
    assert folder_of(several) is None
