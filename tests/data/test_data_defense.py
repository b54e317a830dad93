"""A data defense on the training rows: after poisoning, before fit, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import Victim
from lightning_backdoor.data import BackdoorDataModule, Source
from lightning_backdoor.data.cleaning import LabelledText, TrustedRows
from lightning_backdoor.data.poisoning import Row
from lightning_backdoor.defenses.onion import Onion
from lightning_backdoor.errors import InputError
from tests.data.examples import rows
from tests.data.test_datamodule import seen
from tests.data.test_source import write

CONFIG = Path(__file__).parents[2] / "configs" / "defense" / "onion_data.yaml"


class TriggerHunt:
    """Drops texts that begin with the trigger, takes it out of the others; remembers what it was given."""

    def __init__(self, drop_all: bool = False) -> None:
        self.drop_all = drop_all
        self.asked: list[tuple[list[str], list[str]]] = []

    def clean(self, rows: Sequence[LabelledText], trusted: TrustedRows, victim: Victim | None) -> list[str | None]:
        texts = [row.text for row in rows]
        self.asked.append((texts, [row.text for row in trusted.threshold]))
        dropped = [self.drop_all or text.startswith("cf") for text in texts]
        return [None if drop else text.replace("cf ", "") for drop, text in zip(dropped, texts, strict=True)]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., BackdoorDataModule]:
    texts = [row["text"].replace("cf ", "") for row in rows(200)]
    source = Source(write(tmp_path / "rows.csv", texts, [i % 2 for i in range(200)]))

    def data(**settings: Any) -> BackdoorDataModule:
        return BackdoorDataModule(source, batch_size=8, cache_dir=str(tmp_path / "cache"), **settings)

    return data


@pytest.fixture
def attack(tiny_folder: Callable[[str], str]) -> BadNets:
    return BadNets(model=tiny_folder("bert"), triggers=["cf"], poison_rate=0.4)


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_steps=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )


def test_training_rows_are_what_the_defense_leaves(make: Callable[..., BackdoorDataModule], attack: BadNets) -> None:
    defense = TriggerHunt()
    data = make(data_defense=defense)
    data.attack = attack
    before = data.poisoned_splits().train
    poisoned = [row for row in before if row["poisoned"]]
    first = {row["index"] for row in poisoned if row["text"].startswith("cf")}
    expected = [
        Row({**row, "text": row["text"].replace("cf ", ""), "spans": []}) if "cf " in row["text"] else row
        for row in before
        if row["index"] not in first
    ]
    assert 0 < len(first) < len(poisoned)
    data.setup("fit")
    assert data.training_rows() == expected
    assert defense.asked == [
        ([row["text"] for row in before], [row["text"] for row in data.clean_validation().threshold])
    ]
    batches = list(data.train_dataloader())
    assert sum(len(batch["text"]) for batch in batches) == len(expected)
    assert {row["index"] for row in seen(batches)} == {row["index"] for row in expected}


def test_evaluation_rows_are_left_alone(make: Callable[..., BackdoorDataModule], attack: BadNets) -> None:
    plain, defended = make(), make(data_defense=TriggerHunt())
    plain.attack = defended.attack = attack
    for ours, theirs in zip(defended.test_dataloader(), plain.test_dataloader(), strict=True):
        assert seen(ours) == seen(theirs)


def test_a_run_says_what_was_left_out_and_only_fit_asks(
    make: Callable[..., BackdoorDataModule], attack: BadNets, trainer: Trainer, caplog: pytest.LogCaptureFixture
) -> None:
    defense = TriggerHunt()
    data = make(data_defense=defense)
    with caplog.at_level("INFO"):
        trainer.test(attack, datamodule=data, verbose=False)
        assert defense.asked == []
        trainer.fit(attack, datamodule=data)
    assert defense.asked
    texts = defense.asked[0][0]
    out = sum(text.startswith("cf") for text in texts)
    changed = sum("cf " in text for text in texts) - out
    assert f"TriggerHunt left out {out} of {len(texts)} training rows and changed {changed}" in caplog.text


def test_a_defense_that_leaves_nothing_is_bad_input(make: Callable[..., BackdoorDataModule], attack: BadNets) -> None:
    data = make(data_defense=TriggerHunt(drop_all=True))
    data.attack = attack
    with pytest.raises(InputError, match="data_defense: TriggerHunt leaves no training row"):
        data.training_rows()


def test_a_config_makes_it(tmp_path: Path) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(BackdoorDataModule, "data")
    settings = yaml.safe_load(CONFIG.read_text())["data"]["init_args"]
    parsed = parser.parse_object({"data": {"source": {"path": str(tmp_path)}, **settings}})
    assert isinstance(parser.instantiate(parsed).data.data_defense, Onion)
