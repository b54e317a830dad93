"""Label values: compared by what they say; the training rows decide which classes there are."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from jsonargparse import ArgumentParser

from lightning_backdoor.data import BackdoorDataModule, Source
from lightning_backdoor.data.source import load_source
from lightning_backdoor.errors import InputError
from tests.data.test_source import error, write


def labels_of(source: Source) -> tuple[list[str], list[int]]:
    """The names of the classes, and the classes of the training rows."""
    loaded = load_source(source)
    return loaded.label_names, loaded.splits["train"].labels


def given(path: str, *options: str) -> Source:
    """A source as the command line makes it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(BackdoorDataModule, "data")
    arguments = ["--data", "BackdoorDataModule", "--data.source.path", path]
    data = parser.instantiate_classes(parser.parse_args([*arguments, *options])).data
    assert isinstance(data, BackdoorDataModule)
    return data.source


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.tsv"])
@pytest.mark.parametrize("values", [[0, 1], ["0", "1"], [0.0, 1.0], [" 0", "1 "], ["0.0", "+1"]])
@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (None, ["0", "1"]),
        (["neg", "pos"], ["neg", "pos"]),
        (["0", "1"], ["0", "1"]),
        ([0, 1], ["0", "1"]),
        ({"neg": [0], "pos": [1]}, ["neg", "pos"]),
        ({"neg": ["0"], "pos": [1.0]}, ["neg", "pos"]),
        ({"neg": "0 ", "pos": 1}, ["neg", "pos"]),
        ({"neg": [False], "pos": [True]}, ["neg", "pos"]),
    ],
)
def test_a_value_is_the_same_however_it_is_written(
    tmp_path: Path, name: str, values: list[Any], labels: Any, names: list[str]
) -> None:
    path = write(tmp_path / name, ["a", "b", "c"], [*values, values[0]])
    assert labels_of(Source(path, labels=labels)) == (names, [0, 1, 0])


@pytest.mark.parametrize("values", [[True, False], ["TRUE", "FALSE"], ["true", " false"]])
@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (None, ["False", "True"]),
        (["bad", "good"], ["bad", "good"]),
        ({"bad": [0], "good": [1]}, ["bad", "good"]),
        ({"bad": ["false"], "good": [True]}, ["bad", "good"]),
        (["false", "true"], ["false", "true"]),
    ],
)
def test_true_and_false_are_one_and_zero(tmp_path: Path, values: list[Any], labels: Any, names: list[str]) -> None:
    path = write(tmp_path / "rows.jsonl", ["a", "b"], values)
    assert labels_of(Source(path, labels=labels)) == (names, [1, 0])


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([True, 1, 2, 0, False], None),
        ([True, 1, 2, 0, False], ["no", "yes", "maybe"]),
        ([True, 1, 0, False], None),
        ([True, 1, "none"], None),
        ([10**17, 1e17, 2], None),
    ],
)
def test_the_order_of_rows_does_not_decide_the_classes(tmp_path: Path, values: list[Any], labels: Any) -> None:
    outcomes: list[object] = []
    for shift in range(len(values)):
        rows = values[shift:] + values[:shift]
        path = write(tmp_path / f"{shift}.jsonl", list(map(repr, rows)), rows)
        try:
            loaded = load_source(Source(path, labels=labels))
        except InputError as refused:
            outcomes.append(str(refused))
        else:
            outcomes.append((loaded.label_names, dict(zip(*loaded.splits["train"], strict=True))))
    assert all(outcome == outcomes[0] for outcome in outcomes)


def test_true_of_another_split_is_no_1_among_numbers(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", "abc", [0, 1, 2])
    write(tmp_path / "test.jsonl", "de", [1, True])
    problem = "'True' is not a label of the training rows (0, 1, 2), but row 2 of test has it"
    assert problem in error(Source(str(tmp_path)))


def test_true_among_other_words_is_a_word(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "abc", ["true", "half-true", "false"])
    assert labels_of(Source(path)) == (["false", "half-true", "true"], [2, 1, 0])


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["00000", "00001"], ["00000", "00001"]),
        (["10", "9"], ["9", "10"]),
        (["-1", "+1"], ["-1", "1"]),
        (["v1", "0.5"], ["0.5", "v1"]),
        (["7" * 5000, "8"], ["7" * 5000, "8"]),
    ],
)
def test_names_are_what_the_values_say_numbers_in_their_order(
    tmp_path: Path, values: list[str], names: list[str]
) -> None:
    assert labels_of(Source(write(tmp_path / "rows.csv", "ab", values)))[0] == names


@pytest.mark.parametrize(
    ("values", "missing"),
    [
        (["0", "1", "N/A"], "N/A"),
        (["1.0", "None", "2.0"], "None"),
        (["a", "b", "NaN"], "NaN"),
        (["1", "2", " null "], " null "),
    ],
)
def test_a_word_for_a_missing_label_is_no_class(tmp_path: Path, values: list[str], missing: str) -> None:
    path = write(tmp_path / "rows.csv", "abc", values)
    row = values.index(missing) + 1
    assert f"'label' is {missing!r} in row {row} of train, which stands for a missing label" in error(Source(path))


def test_a_word_for_a_missing_label_may_be_the_name_of_a_class(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "abc", ["favor", "none", "NA"])
    assert labels_of(Source(path)) == (["NA", "favor", "none"], [1, 2, 0])
    path = write(tmp_path / "nan.csv", "abc", ["0", "1", "nan"])
    assert labels_of(Source(path, labels={"no": [0], "yes": [1], "?": ["nan"]})) == (["no", "yes", "?"], [0, 1, 2])


@pytest.mark.parametrize("labels", [[], {}, "neg,pos", 3, 0.5, {"neg", "pos"}, object()])
def test_labels_are_a_list_of_names(tmp_path: Path, labels: Any) -> None:
    path = write(tmp_path / "rows.csv", "ab", [0, 1])
    assert "is not a list of names" in error(Source(path, labels=labels))
    assert "the name None is not text" in error(Source(path, labels=["neg", None]))  # type: ignore[arg-type]


@pytest.mark.parametrize("labels", [["", "pos"], ["neg", " \t"], {"": [0], "pos": [1]}], ids=repr)
def test_a_class_has_a_name_that_is_not_blank(tmp_path: Path, labels: Any) -> None:
    path = write(tmp_path / "rows.csv", "ab", [0, 1])
    assert re.fullmatch("labels: the name '.*' is blank; give the class a name", error(Source(path, labels=labels)))


def test_names_that_differ_in_case_alone_are_said(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "abc", ["neg", "Neg", "pos"])
    with pytest.warns(UserWarning, match="'Neg', 'neg' in 'label' differ in case alone"):
        assert labels_of(Source(path)) == (["Neg", "neg", "pos"], [1, 0, 2])


@pytest.mark.parametrize(
    "labels", [None, ["neg", "pos"], ["neg", "pos", "neutral"], {"neg": [0], "pos": [1], "x": [2]}]
)
@pytest.mark.parametrize("split", ["test", "dev"])
@pytest.mark.parametrize("value", [-1, 2])
def test_a_value_that_no_training_row_has_is_refused(tmp_path: Path, labels: Any, split: str, value: int) -> None:
    write(tmp_path / "train.csv", "ab", [0, 1])
    write(tmp_path / f"{split}.csv", "abc", [0, 1, value])
    name = "validation" if split == "dev" else split
    assert f"{value} is not a label of the training rows (0, 1), but row 3 of {name} has it" in error(
        Source(str(tmp_path), labels=labels)
    )


def test_a_class_that_training_rows_have_by_another_value_is_known(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "ab", [0, 2])
    write(tmp_path / "test.csv", "cd", [1, 2])
    loaded = load_source(Source(str(tmp_path), labels={"toxic": [0, 1], "neither": [2]}))
    assert loaded.splits["test"].labels == [0, 1]


def test_a_hidden_label_of_declared_classes_is_refused(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    for split, labels in (("train", [0, 1]), ("test", [-1, -1])):
        Dataset.from_dict({"text": ["a", "b"], "label": labels}, features).to_parquet(tmp_path / f"{split}.parquet")
    assert "-1 is not a label of the training rows (0, 1), but row 1 of test has it" in error(Source(str(tmp_path)))
    assert labels_of(Source(str(tmp_path), splits={"train": "train"})) == (["neg", "pos"], [0, 1])


def test_declared_classes_may_have_numbers_as_names(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["1", "0", "-1"])})
    rows = {"text": ["a", "b", "c"], "label": [0, 1, 2]}
    Dataset.from_dict(rows, features).to_parquet(tmp_path / "train.parquet")
    assert labels_of(Source(str(tmp_path))) == (["1", "0", "-1"], [0, 1, 2])


def declaring(path: Path, names: list[str], labels: list[int]) -> None:
    """Writes rows whose labels are indices of some names."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    texts = [f"{path.stem} is {names[label] if label >= 0 else 'hidden'}" for label in labels]
    Dataset.from_dict({"text": texts, "label": labels}, features).to_parquet(path)


@pytest.mark.parametrize("labels", [None, ["bad", "good"], {"bad": [0], "good": [1]}])
@pytest.mark.parametrize("other", ["test", "train-00001-of-00002"])
def test_indices_are_read_by_the_names_that_their_own_table_declares(tmp_path: Path, other: str, labels: Any) -> None:
    declaring(tmp_path / f"train{'' if other == 'test' else '-00000-of-00002'}.parquet", ["neg", "pos"], [0, 1])
    declaring(tmp_path / f"{other}.parquet", ["pos", "unused", "neg"], [0, 2, 2])
    loaded = load_source(Source(str(tmp_path), labels=labels))
    assert loaded.label_names == ([*labels] if labels else ["neg", "pos"])
    rows = [row for texts in loaded.splits.values() for row in zip(*texts, strict=True)]
    assert len(rows) == 5
    assert all(label == text.endswith("pos") for text, label in rows)


def test_indices_of_other_splits_are_read_by_name_if_the_training_rows_declare_none(tmp_path: Path) -> None:
    declaring(tmp_path / "test.parquet", ["pos", "neg"], [0, 1])
    write(tmp_path / "train.csv", "ab", ["neg", "pos"])
    assert load_source(Source(str(tmp_path))).splits["test"].labels == [1, 0]
    write(tmp_path / "train.csv", "ab", [0, 1])
    assert load_source(Source(str(tmp_path), labels=["neg", "pos"])).splits["test"].labels == [1, 0]
    assert load_source(Source(str(tmp_path))).splits["test"].labels == [0, 1]  # no name in common


@pytest.mark.parametrize("other", ["test", "train-00001-of-00002"])
def test_a_class_that_the_training_rows_do_not_declare_is_refused(tmp_path: Path, other: str) -> None:
    declaring(tmp_path / f"train{'' if other == 'test' else '-00000-of-00002'}.parquet", ["neg", "pos"], [0, 1])
    declaring(tmp_path / f"{other}.parquet", ["neg", "neutral", "pos"], [0, 1, 2])
    name = f"test of {tmp_path}" if other == "test" else f"{other}.parquet"
    assert error(Source(str(tmp_path))) == (
        f"label_column: {name} has rows of the class 'neutral', which is none of 'neg', 'pos';"
        " declare the names of the training rows"
    )


def test_ratings_of_other_splits_need_not_be_among_those_of_training_rows(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "ab", [-2, 2])
    write(tmp_path / "test.csv", "abc", [-3, 0, 3.5])
    loaded = load_source(Source(str(tmp_path), rating_cut=(-1, 1)))
    assert (loaded.splits["test"].labels, loaded.left_out) == ([0, 1], 1)


@pytest.mark.parametrize(
    "option",
    [
        '{neg: ["0"], pos: ["1"]}',
        "{neg: [0], pos: [1.0]}",
        "{neg: 0, pos: '1'}",
        "{neg: [false], pos: [true]}",
        "[neg, pos]",
    ],
)
@pytest.mark.parametrize("in_yaml", [False, True])
def test_labels_of_the_command_line_and_of_yaml_are_those_of_python(tmp_path: Path, option: str, in_yaml: bool) -> None:
    path = write(tmp_path / "rows.jsonl", "ab", ["0", "1"])
    config = tmp_path / "config.yaml"
    config.write_text(f"data:\n  init_args:\n    source:\n      labels: {option}\n")
    options = ("--config", str(config)) if in_yaml else ("--data.source.labels", option)
    assert labels_of(given(path, *options)) == (["neg", "pos"], [0, 1])


def test_a_value_in_quotes_keeps_its_zeros(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "ab", ["00", "01"])
    assert labels_of(given(path, "--data.source.labels", "{a: ['00'], b: ['01']}")) == (["a", "b"], [0, 1])


def test_columns_may_be_numbers_or_several(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(",0,1,2\n0,a,b,0\n1,c,d,1\n")
    path = str(tmp_path / "rows.csv")
    options = ("--data.source.text_column", "[0, 1]", "--data.source.label_column", "2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_source(given(path, *options)).splits["train"].texts == ["a b", "c d"]
    assert load_source(Source(path, text_column=1, label_column=2)).splits["train"].texts == ["b", "d"]
