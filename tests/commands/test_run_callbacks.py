"""The callbacks that commands attach beside those that their options name."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch import Callback

from lightning_backdoor.callbacks import GradientAttentionDefense, InspectionCallback
from lightning_backdoor.commands.run_callbacks import command_callbacks
from lightning_backdoor.commands.run_checkpoints import checkpoint_callbacks
from lightning_backdoor.data import BackdoorDataModule, Source
from lightning_backdoor.defenses.flagged_share import FlaggedShare
from lightning_backdoor.victim import TextClassifier

VICTIM = TextClassifier(model="never loaded", labels=["negative", "positive"])
DATA = BackdoorDataModule(Source("reviews.csv"))
INSPECTION = InspectionCallback(FlaggedShare())


@pytest.mark.parametrize(
    ("command", "given", "names"),
    [
        ("fit", [], ["CleaningWriter"]),
        ("validate", [], []),
        ("predict", [], ["PredictionWriter"]),
        ("test", [], ["OutcomeWriter"]),
        ("test", [INSPECTION], ["OutcomeWriter"]),  # it answers no text
        ("test", [INSPECTION, GradientAttentionDefense()], []),  # the defense writes the outcomes
    ],
)
def test_outcomes_are_written_once_with_or_without_a_defense(
    command: str, given: list[Callback], names: list[str], tmp_path: Path
) -> None:
    added = [type(callback).__name__ for callback in command_callbacks(command, VICTIM, given, tmp_path)]
    assert added == ["RunLabels", "OutputFolder", "ProgressWriter", *names]


def test_without_validation_the_best_checkpoint_is_the_last(tmp_path: Path) -> None:
    best, last = checkpoint_callbacks(VICTIM, DATA, tmp_path, validated=True)
    assert (best.filename, best.monitor, best.mode) == ("best", "val/cacc", "max")
    assert (last.filename, last.monitor, last.mode) == ("last", None, "min")
    assert checkpoint_callbacks(VICTIM, DATA, tmp_path, validated=False)[0].monitor is None
    assert best.state_key != last.state_key


def test_on_trusted_rows_the_last_epoch_is_the_best(tmp_path: Path) -> None:
    data = BackdoorDataModule(Source("reviews.csv"), train_on="trusted")
    best, last = checkpoint_callbacks(VICTIM, data, tmp_path, validated=True)
    assert (best.monitor, best.mode, last.mode) == ("epoch", "max", "min")
