"""A target label given by its name, which is looked up once the labels are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.data import BackdoorDataModule, Source
from lightning_backdoor.errors import InputError

LABELS = ["negative", "positive"]


@pytest.fixture
def reviews(tmp_path: Path) -> Source:
    rows = [f"a film of {word},{i % 2}" for i, word in enumerate("abcdefghijklmnopqrstuvwxyz" * 3)]
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    return Source(str(tmp_path / "data.csv"), labels=[*LABELS])


def test_the_data_know_the_name(reviews: Source, tmp_path: Path) -> None:
    by_name, by_index = BadNets(target_label="negative"), BadNets(target_label=0)
    splits = []
    for attack in (by_name, by_index):
        data = BackdoorDataModule(reviews, cache_dir=str(tmp_path / "cache"))
        data.attack = attack
        splits.append(data.poisoned_splits())
    assert splits[0] == splits[1]
    assert by_name.target_label == 0
    assert by_name.hparams["target_label"] == 0  # in checkpoints and cache keys
    assert by_name.poison_key() == by_index.poison_key()


def test_given_labels_know_the_name_without_data() -> None:
    assert BadNets(target_label="positive", labels=[*LABELS]).target_label == 1
    with pytest.raises(InputError, match="'positive' is a name, and the labels are not known yet; give labels"):
        BadNets(target_label="positive").target_label  # noqa: B018 - reading it is the test


def test_another_name_is_refused_with_the_names(reviews: Source) -> None:
    data = BackdoorDataModule(reviews)
    data.attack = BadNets(target_label="positiv")
    with pytest.raises(InputError, match=r"did you mean positive\? the labels are negative, positive"):
        data.poisoned_splits()


def test_the_index_follows_the_labels_of_the_data(reviews: Source) -> None:
    attack = BadNets(target_label="negative")
    for labels, index in ((LABELS, 0), (LABELS[::-1], 1)):
        preview = BackdoorDataModule(replace(reviews, labels=[*labels])).preview(10, attack)
        assert attack.target_label == index
        assert {row.poisoned_label for row in preview} == {"negative", None}


def test_a_target_that_is_changed_is_that_of_the_poisoned_rows(reviews: Source, tmp_path: Path) -> None:
    attack = BadNets(target_label=1)
    data = BackdoorDataModule(reviews, cache_dir=str(tmp_path / "cache"))
    data.attack = attack
    data.poisoned_splits()  # now in the cache
    attack.target_label = 0
    data.attack = attack
    assert attack.poison_key() == BadNets(target_label=0).poison_key() != BadNets(target_label=1).poison_key()
    changed = BackdoorDataModule(reviews, cache_dir=str(tmp_path / "cache"))
    changed.attack = BadNets(target_label=0)
    assert data.poisoned_splits() == changed.poisoned_splits()
