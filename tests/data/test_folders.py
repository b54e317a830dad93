"""Folders: which files are a split, what is refused as ambiguous, and nothing that was edited is read as it was."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from lightning_backdoor.data import Source, reading
from lightning_backdoor.data.source import load_source
from lightning_backdoor.errors import InputError
from tests.data.test_source import error, write


def texts(source: Source) -> dict[str, list[str]]:
    """The texts of each split."""
    return {split: rows.texts for split, rows in load_source(source).splits.items()}


def folder_of(root: Path, *names: str) -> str:
    """A folder with the given files, each of two rows whose texts begin with the file's name."""
    for name in names:
        write(root / name, [f"{name} 0", f"{name} 1"], [0, 1])
    return str(root)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-clean.csv", "train-poison.csv"], "train-clean.csv and train-poison.csv may both be train"),
        (["train-clean.tsv", "train-poison.tsv", "test.csv"], "may both be train"),
        (["train-clean.csv", "train-poison.jsonl"], "train-clean.csv and train-poison.jsonl may both be train"),
        (["train.csv", "test-clean.csv", "test-poison.csv"], "test-clean.csv and test-poison.csv may both be test"),
        (["train.csv", "dev.csv", "val.csv", "valid.csv"], "dev.csv, val.csv and valid.csv may all be validation"),
        (["deep/er/train-a.parquet", "deep/er/train-b.parquet"], "deep/er/train-a.parquet and deep/er/train-b.parquet"),
        (["a/train.csv", "b/train.csv"], "a/train.csv and b/train.csv may both be train"),
        (["train/neg.csv", "train/pos.csv"], "train/neg.csv and train/pos.csv may both be train"),
        (["train-0.1.csv", "train-0.2.csv"], "train-0.1.csv and train-0.2.csv may both be train"),
        (["train-1.csv", "train-3.csv"], "train-1.csv and train-3.csv may both be train"),
        (["one.csv", "two.csv"], "one.csv and two.csv may both be train"),
        ([f"train-{name}.csv" for name in "abcdefghijkl"], "train-j.csv and 2 more may all be train; name one"),
    ],
)
def test_several_files_that_may_be_one_split_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    assert message in error(Source(folder_of(tmp_path, *names)))


@pytest.mark.parametrize("script", ["test", "dev", "train"])
def test_a_script_that_is_named_like_a_split_is_none(tmp_path: Path, script: str) -> None:
    folder = folder_of(tmp_path, "train.csv", "test.csv")
    (tmp_path / script).write_text("#!/bin/sh\n")
    assert texts(Source(folder)).keys() == {"train", "test"}
    splits = {"train": "train.csv", "test": f"./{script}"}
    assert f"{script} is of no known format" in error(Source(folder, splits=splits))


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"],
        ["train_1.csv", "train_2.csv"],
        ["train/0000.parquet", "train/0001.parquet"],
    ],
)
def test_shards_are_one_table(tmp_path: Path, names: list[str]) -> None:
    expected = [f"{name} {i}" for name in names for i in (0, 1)]
    assert texts(Source(folder_of(tmp_path, *names))) == {"train": expected}


def test_missing_shards_are_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="only 1 of 2 shards are there, such as train-00001-of-00002.csv"):
        texts(Source(folder_of(tmp_path, "train-00001-of-00002.csv")))


def test_names_of_files_are_said_without_control_codes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder_of(tmp_path, "train-\x1b[31m-00000-of-00002.csv")
    with pytest.warns(UserWarning, match=r"such as train-\\x1b\[31m-00000-of-00002.csv$"):
        texts(Source(str(tmp_path)))
    folder_of(tmp_path / "twins", "train.\x1b[31m.csv", "train.\x1b[31m.parquet")
    with caplog.at_level("INFO"):
        texts(Source(str(tmp_path / "twins")))
    assert r"train.\x1b[31m.parquet is read, and not train.\x1b[31m.csv beside it" in caplog.text


@pytest.mark.parametrize("root", ["", "data"])
def test_of_twins_that_poison_writes_the_parquet_file_is_read(tmp_path: Path, root: str) -> None:
    folder_of(tmp_path / root, "train.csv", "train.parquet", "test.csv", "test.parquet")
    expected = {split: [f"{split}.parquet 0", f"{split}.parquet 1"] for split in ("train", "test")}
    assert texts(Source(str(tmp_path))) == expected


def test_a_split_may_be_chosen_among_several_files(tmp_path: Path) -> None:
    path = folder_of(tmp_path, "train-clean.csv", "train-poison.csv", "test-clean.csv", "test-poison.csv")
    chosen = {"train": "train-poison.csv", "test": "test-clean"}
    assert texts(Source(path, splits=chosen)) == {
        "train": ["train-poison.csv 0", "train-poison.csv 1"],
        "test": ["test-clean.csv 0", "test-clean.csv 1"],
    }


def test_a_folder_of_more_than_tables_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_FILES", 2)
    within = tmp_path / "home" / "reviews"
    within.mkdir(parents=True)
    for number in range(3):
        (within / f"{number}.txt").touch()
    with pytest.raises(InputError, match="holds more than 2 files; give the folder of the tables alone"):
        load_source(Source(str(tmp_path)))


def test_files_that_a_readme_lists_are_one_table(tmp_path: Path) -> None:
    path = folder_of(tmp_path, "a.csv", "b.csv")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: [a.csv, b.csv]\n---\n"
    )
    assert texts(Source(path)) == {"train": ["a.csv 0", "a.csv 1", "b.csv 0", "b.csv 1"]}


@pytest.mark.parametrize("as_dict", [False, True])
def test_what_save_to_disk_wrote_reads(tmp_path: Path, as_dict: bool) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    data = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, 1]}, features).select([2, 1])
    others = Dataset.from_dict({"text": ["d", "e"], "label": [1, 0]}, features)
    saved: Any = DatasetDict(train=data, validation=others) if as_dict else data
    saved.save_to_disk(tmp_path / "saved")
    loaded = load_source(Source(str(tmp_path / "saved")))
    assert loaded.label_names == ["neg", "pos"]
    assert list(loaded.splits) == (["train", "validation"] if as_dict else ["train"])
    assert loaded.splits["train"] == (["c", "b"], [1, 0])
    assert not as_dict or loaded.splits["validation"] == (["d", "e"], [1, 0])


@pytest.mark.parametrize(
    "name",
    [
        "rows.csv",
        "rows.jsonl",
        "rows.parquet",
        "folder/train.csv",
        "folder/data/train-00000-of-00001.parquet",
        "folder/data/train.jsonl",
        "listed/train.csv",
        "saved",
    ],
)
def test_an_edited_file_is_read_anew_whatever_its_size_and_time(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    source = Source(str(tmp_path / target.relative_to(tmp_path).parts[0]))

    def written(rows: list[str]) -> dict[str, list[str]]:
        """What is read after these rows have been written, all files with the same modification time."""
        if name == "saved":
            Dataset.from_dict({"text": rows, "label": [0, 1, 1][: len(rows)]}).save_to_disk(target)
        else:
            write(target, rows, [0, 1, 1][: len(rows)])
        if name.startswith("listed"):
            (target.parent / "README.md").write_text(
                "---\nconfigs:\n- config_name: default\n  data_files: '*.csv'\n---"
            )
        for path in tmp_path.rglob("*"):
            os.utime(path, (1, 1))
        return texts(source)

    for rows in (["one", "two"], ["ONE", "TWO"], ["ONE", "TWO", "three"]):
        assert written(rows) == {"train": rows}


def test_a_split_without_labels_may_be_left_out(tmp_path: Path) -> None:
    path = folder_of(tmp_path, "train.csv")
    (tmp_path / "test.csv").write_text("id,text\n0,a\n")
    assert error(Source(path)).endswith("has no column 'label'; it has 'id', 'text', or leave test out by splits")
    assert list(texts(Source(path, splits={"train": "train"}))) == ["train"]
