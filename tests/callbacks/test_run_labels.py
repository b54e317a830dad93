"""Labels of a run: which defenses they name, in the order in which the defenses act."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import Victim
from lightning_backdoor.callbacks import InferenceDefense, InspectionCallback, MuScleLoRA, RunLabels
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.data.cleaning import DataDefense, LabelledText, TrustedRows
from lightning_backdoor.defenses import FlaggedShare, Strip
from lightning_backdoor.victim import TextClassifier
from tests.support.reviews import reviews


class Idle(DataDefense):
    """A data defense that changes nothing."""

    def clean(self, rows: Sequence[LabelledText], trusted: TrustedRows, victim: Victim | None) -> list[str | None]:
        return [row.text for row in rows]


def labels_of_fit(
    folder: Path, module: LightningModule, data: BackdoorDataModule, *callbacks: Callback
) -> dict[str, str]:
    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        max_epochs=1,
        limit_val_batches=0,
        logger=CSVLogger(folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, RunLabels()],
    )
    trainer.fit(module, datamodule=data)
    (path,) = folder.glob("lightning_logs/*/hparams.yaml")
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split(": ", 1) for line in lines if ": " in line)


def test_defenses_of_every_moment_are_named(tmp_path: Path, tiny_folder: Callable[[str], str]) -> None:
    callbacks = [
        MuScleLoRA(lora_rank=2, radial_scalings=[1, 2], reference_size=4),
        InferenceDefense(Strip(), name="strip"),
        InspectionCallback(FlaggedShare()),
    ]
    attack = BadNets(model=tiny_folder("bert"))
    labels = labels_of_fit(tmp_path, attack, reviews(tmp_path, data_defense=Idle()), *callbacks)
    assert labels["defense"] == "Idle on training rows+MuScleLoRA+FlaggedShare+Strip"
    training = labels["training_defense"].strip("'")
    assert training.startswith("MuScleLoRA(lora_rank=2, lora_alpha=32")
    assert labels["published"] == "null"


@pytest.mark.parametrize(("train_on", "rows"), [("trusted", "trusted rows"), ("train", "training rows")])
def test_a_victim_that_began_with_a_published_one_names_it(
    tmp_path: Path, tiny_folder: Callable[[str], str], train_on: str, rows: str
) -> None:
    data = reviews(tmp_path, train_on=train_on)
    victim = TextClassifier(tiny_folder("bert"), labels=data.label_names)
    victim.configure_model()
    victim.save_pretrained(tmp_path / "published")
    attack = BadNets(model=tiny_folder("bert"), published=str(tmp_path / "published"))
    labels = labels_of_fit(tmp_path, attack, data)
    assert labels["published"] == str(tmp_path / "published")
    assert labels["defense"] == f"fine-tuning on {rows}"
    assert labels["training_defense"] == "none"
