"""Sources: what is read is what was written, and what cannot be read says why in one line."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest

from lightning_backdoor.data import Source
from lightning_backdoor.data.source import LabelledTexts, load_source
from lightning_backdoor.errors import InputError
from tests.support.shared_files import shared_path, sst2

TEXTS = [
    "null",
    "NA",
    "nan",
    "007",
    'she said "no" twice',
    '"quoted"',
    'an open "quote',
    "comma, semicolon; 'apostrophe'",
    " spaces around ",
    "ümläut 🎬 שלום",
    "",
    "-",
]
LABELS = [i % 2 for i in range(len(TEXTS))]


def write(path: Path, texts: Sequence[Any] = TEXTS, labels: Sequence[Any] = LABELS) -> str:
    """Writes a table in the format that its name says."""
    compressed, plain = path.suffix == ".gz", path.with_suffix("") if path.suffix == ".gz" else path
    path.parent.mkdir(parents=True, exist_ok=True)
    if plain.suffix == ".parquet":
        datasets.Dataset.from_dict({"text": list(texts), "label": list(labels)}).to_parquet(path)
        return str(path)
    with (gzip.open if compressed else open)(path, "wt", encoding="utf-8", newline="") as file:
        if plain.suffix == ".jsonl":
            for text, label in zip(texts, labels, strict=True):
                file.write(json.dumps({"text": text, "label": label}) + "\n")
        elif plain.suffix == ".tsv":  # without quoting
            file.write(
                "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in zip(texts, labels, strict=True))
            )
        else:
            csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])
    return str(path)


def error(source: Source) -> str:
    """The message with which a source fails."""
    with pytest.raises(InputError) as caught:
        load_source(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "rows.csv",
        "rows.tsv",
        "rows.jsonl",
        "rows.parquet",
        "rows.csv.gz",
        "rows.tsv.gz",
        "rows.jsonl.gz",
        "rows.v1.CSV",
    ],
)
def test_all_formats_read_alike_to_the_last_character(tmp_path: Path, name: str) -> None:
    loaded = load_source(Source(write(tmp_path / name)))
    assert loaded.splits == {"train": LabelledTexts(TEXTS, LABELS)}
    assert loaded.label_names == ["0", "1"]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_a_text_may_span_lines(tmp_path: Path, name: str) -> None:
    texts = ["one\ntwo", "three"]
    assert load_source(Source(write(tmp_path / name, texts, [0, 1]))).splits["train"].texts == texts


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path, name: str) -> None:
    file = Path(write(tmp_path / name))
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_source(Source(str(file))).splits["train"].texts == TEXTS


def test_a_path_is_the_text_of_it(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv")
    source = Source(Path(path))  # type: ignore[arg-type]
    assert load_source(source).splits["train"].texts == TEXTS
    assert repr(source) == repr(Source(path))  # by which checkpoints know it


def test_a_missing_text_is_an_empty_one(tmp_path: Path) -> None:
    loaded = load_source(Source(write(tmp_path / "rows.jsonl", [None, "fine"], [0, 1])))
    assert loaded.splits["train"].texts == ["", "fine"]


@pytest.mark.parametrize(
    ("splits", "files"),
    [
        (None, ("train.csv", "dev.csv", "test.csv")),
        (None, ("train.jsonl.gz", "valid.tsv", "test.parquet")),
        ({"train": "a.csv", "validation": "sub/b.csv", "test": "c.tsv"}, ("a.csv", "sub/b.csv", "c.tsv")),
        ({"train": "a", "validation": "b", "test": "c"}, ("a.csv", "b.csv", "c.tsv")),
    ],
)
def test_a_folder_of_files_is_read_like_the_files(
    tmp_path: Path, splits: dict[str, str] | None, files: tuple[str, str, str]
) -> None:
    texts = [["null", 'open "quote', "train"], ["NA", "validation"], ["nan", "test"]]
    for file, rows in zip(files, texts, strict=True):
        write(tmp_path / file, rows, range(len(rows)))
    loaded = load_source(Source(str(tmp_path), splits=splits))
    expected = zip(("train", "validation", "test"), texts, strict=True)
    assert loaded.splits == {split: LabelledTexts(rows, list(range(len(rows)))) for split, rows in expected}


def test_two_files_for_one_split_are_not_chosen_between(tmp_path: Path) -> None:
    for name in ("train.csv", "train.jsonl"):
        write(tmp_path / name)
    assert error(Source(str(tmp_path))) == "splits: train.csv and train.jsonl may both be train; name one by splits"


def test_sst2_is_read_row_by_row_as_published() -> None:
    loaded = load_source(Source(str(shared_path("data/sst2")), labels=["negative", "positive"]))
    assert {split: len(rows.texts) for split, rows in loaded.splits.items()} == {
        "train": 6920,
        "validation": 872,
        "test": 1821,
    }
    for split, rows in loaded.splits.items():
        assert list(zip(*rows, strict=True)) == sst2(split)


def test_declared_names_follow_labels_counted_from_0(tmp_path: Path) -> None:
    loaded = load_source(Source(write(tmp_path / "rows.csv", ["a", "b", "c"], [2, 0, 1]), labels=["x", "y", "z"]))
    assert (loaded.label_names, loaded.splits["train"].labels) == (["x", "y", "z"], [2, 0, 1])


def test_declared_names_give_named_labels_their_order(tmp_path: Path) -> None:
    loaded = load_source(Source(write(tmp_path / "rows.csv", ["a", "b"], ["spam", "ham"]), labels=["spam", "ham"]))
    assert (loaded.label_names, loaded.splits["train"].labels) == (["spam", "ham"], [0, 1])


def test_one_name_may_stand_for_several_values(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", ["a", "b", "c"], [0, 1, 2])
    loaded = load_source(Source(path, labels={"neither": [2], "toxic": [0, 1]}))
    assert (loaded.label_names, loaded.splits["train"].labels) == (["neither", "toxic"], [1, 1, 0])


def test_without_declared_names_the_values_in_order_are_the_names(tmp_path: Path) -> None:
    loaded = load_source(Source(write(tmp_path / "rows.csv", ["a", "b", "c"], [10, 9, 10])))
    assert (loaded.label_names, loaded.splits["train"].labels) == (["9", "10"], [1, 0, 1])


def test_ratings_are_cut_at_both_numbers_and_left_out_between(tmp_path: Path) -> None:
    ratings = [-1.0, -0.99, 0, 1, 0.5, 4]
    path = write(tmp_path / "rows.csv", [f"text {rating}" for rating in ratings], ratings)
    loaded = load_source(Source(path, rating_cut=(-1, 1)))
    assert loaded.label_names == ["negative", "positive"]
    assert loaded.splits["train"] == LabelledTexts(["text -1.0", "text 1", "text 4"], [0, 1, 1])
    assert loaded.left_out == 3


@pytest.mark.parametrize(
    ("field", "source"),
    [("text_column", {"text_column": "review"}), ("label_column", {"label_column": "stars"})],
)
def test_an_unknown_column_is_named_with_those_there_are(tmp_path: Path, field: str, source: dict[str, Any]) -> None:
    path = write(tmp_path / "rows.csv")
    column = source[field]
    assert error(Source(path, **source)) == f"{field}: {path} has no column {column!r}; it has 'text', 'label'"


@pytest.mark.parametrize(
    ("labels", "declared", "message"),
    [
        ([0, 1, 2], ["no", "yes"], "labels: 2 in column 'label' is not one of the labels 0, 1"),
        ([0, -1, 1], ["no", "yes"], "labels: -1 in column 'label' is not one of the labels 0, 1"),
        (
            ["no", "maybe", "yes"],
            ["no", "yes"],
            "labels: 'maybe' in column 'label' is not one of the labels 'no', 'yes'",
        ),
        ([0, 1, 2], {"no": [0], "yes": ["x", 2]}, "labels: 1 in column 'label' is not one of the labels 0, 'x', 2"),
        ([0, 1, 1], ["no", "no"], "labels: ['no', 'no'] gives two classes the same name or value"),
    ],
)
def test_an_unknown_label_is_named_with_those_there_are(
    tmp_path: Path, labels: list[Any], declared: Any, message: str
) -> None:
    assert error(Source(write(tmp_path / "rows.csv", "abc", labels), labels=declared)).partition("; ")[0] == message


@pytest.mark.parametrize(("name", "missing"), [("rows.csv", ""), ("rows.csv", " "), ("rows.jsonl", None)])
def test_a_missing_label_is_an_error_and_no_class(tmp_path: Path, name: str, missing: str | None) -> None:
    path = write(tmp_path / name, "abc", ["no", "yes", missing])
    assert error(Source(path)) == "label_column: 'label' is empty in row 3 of train; label every row"


@pytest.mark.parametrize("labels", [None, ["ham", "spam"]])
def test_rows_of_one_class_are_an_error(tmp_path: Path, labels: list[str] | None) -> None:
    path = write(tmp_path / "rows.csv", "abc", ["ham"] * 3)
    assert error(Source(path, labels=labels)) == (
        "label_column: all training rows are 'ham' by 'label'; a classifier needs at least two classes"
    )


@pytest.mark.parametrize("texts", [["", ""], [" ", "\t"]])
def test_a_blank_text_column_is_an_error(tmp_path: Path, texts: list[str]) -> None:
    path = write(tmp_path / "rows.csv", texts, [0, 1])
    assert error(Source(path)) == "text_column: 'text' is blank in all rows of train; name another"


def test_a_source_without_rows_is_an_error(tmp_path: Path) -> None:
    between = write(tmp_path / "rows.csv", "ab", [0, 0.5])
    assert error(Source(between, rating_cut=(-1, 1))) == (
        f"path: train of {between} has no rows; name another source or split"
    )
    header_alone = write(tmp_path / "header.csv", [], [])
    assert error(Source(header_alone)) == f"path: train of {header_alone} has no rows; name another source or split"


def test_lists_are_neither_texts_nor_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [["a"], ["b"]], [[0], [1]])
    assert error(Source(path)) == f"text_column: 'text' of {path} holds lists; name a column of single values"
    assert "label_column: 'label'" in error(Source(write(tmp_path / "labels.jsonl", "ab", [[0], [1]])))


@pytest.mark.parametrize("rating", ["good", "nan", "inf", "-Infinity", "1e400", "1_0"])
def test_a_rating_that_is_no_number_is_an_error(tmp_path: Path, rating: str) -> None:
    path = write(tmp_path / "rows.csv", "abc", [-2, rating, 2])
    message = error(Source(path, rating_cut=(-1, 1)))
    assert message == f"label_column: {rating!r} in 'label' is not a rating; name a column of numbers"


def test_a_number_that_is_too_large_is_no_rating(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", "abc", [-2, 10**400, 2])
    assert error(Source(path, rating_cut=(-1, 1))).endswith("in 'label' is not a rating; name a column of numbers")


def test_an_infinite_number_is_no_class(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", "abc", [0, 1, float("inf")])
    assert error(Source(path)) == "label_column: 'label' holds an infinite number; label every row with a class"
    assert load_source(Source(write(tmp_path / "words.csv", "ab", ["inf", "fin"]))).label_names == ["fin", "inf"]


def test_fractions_are_no_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "abc", [0.5, 1.5, 2.0])
    assert error(Source(path)) == "label_column: 'label' holds fractions; set rating_cut for ratings"


def test_a_rating_cut_must_cut_into_two(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "abc", [0.5, 1.5, 2.0])
    cuts = ((1, -1), (float("nan"), 1))
    for source in (
        *(Source(path, rating_cut=cut) for cut in cuts),
        Source(path, rating_cut=(0, 1), labels=list("abc")),
    ):
        assert error(source).startswith("rating_cut: [")


@pytest.mark.parametrize("cut", [(1, 2, 3), (1,), (), 2, "24", ("2", "4"), (None, 4), (True, 4)], ids=repr)
def test_a_rating_cut_is_two_numbers(tmp_path: Path, cut: Any) -> None:
    path = write(tmp_path / "rows.csv", "abc", [0.5, 1.5, 2.0])
    assert error(Source(path, rating_cut=cut)) == f"rating_cut: {cut} is not two numbers; give [low, high]"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["bad", "bad "], "labels: ['bad', 'bad '] gives two classes the same name or value; give different ones"),
        ([None, True], "labels: the name None is not text, as YAML reads it; put it in quotes"),
        (["bad", True], "labels: the name True is not text, as YAML reads it; put it in quotes"),
        ("ab", "labels: 'ab' is not a list of names; give [negative, positive]"),
        ([], "labels: '[]' is not a list of names; give [negative, positive]"),
        (
            {"bad": [1, 2], "good": [4, 5]},
            "labels: a mapping to values has no effect, since rating_cut decides the classes; give a list of two names,"
            " or leave rating_cut out",
        ),
    ],
)
def test_names_of_a_rating_cut_are_checked_like_others(tmp_path: Path, labels: Any, message: str) -> None:
    path = write(tmp_path / "rows.csv", "abc", [1, 3, 5])
    assert error(Source(path, rating_cut=(2, 4), labels=labels)) == message
    assert load_source(Source(path, rating_cut=(2, 4), labels=[" bad", "1"])).label_names == ["bad", "1"]


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl", "rows.csv.gz"])
@pytest.mark.parametrize(("bad", "line"), [(b"caf\xe9\n", 5), (b"\xc3", 5)])
def test_a_file_that_is_not_utf8_names_the_line(tmp_path: Path, name: str, bad: bytes, line: int) -> None:
    rows = [f'{{"text": "{text}", "label": 1}}' if "jsonl" in name else f"{text},1" for text in ("fine", "good", "é")]
    lines = "\n".join(["" if "jsonl" in name else "text,label", *rows, ""])
    content = (lines.replace(",", "\t") if "tsv" in name else lines).encode() + bad
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    message = error(Source(str(tmp_path / name)))
    assert message == f"path: {name} is not UTF-8 at line {line}; convert it to UTF-8"


def test_the_line_is_right_in_a_large_file(tmp_path: Path) -> None:
    rows = 200_000  # some megabytes, read in several pieces; characters of two bytes fall on their edges
    (tmp_path / "rows.csv").write_bytes(b"text,label\n" + "éééééé,1\n".encode() * rows + b"\xff,1\n")
    assert f"is not UTF-8 at line {rows + 2};" in error(Source(str(tmp_path / "rows.csv")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b'text,label\na,0\n"b,1\nc,0\n', "{path}, line 3: is malformed (unexpected end of data); correct"),
        ("rows.csv", b'text,label\n"two\nlines",0\n"a"b,1\n', "{path}, line 4: is malformed (',' expected after '\"'"),
        ("rows.csv", b'text,label\n"two\nlines",0\n\nc,0,1\n', "{path}, line 5: has 3 fields, the header has 2"),
        (
            "rows.csv.gz",
            gzip.compress(b"text,label\na,0\nb\n", mtime=0),
            "{path}, line 3: has 1 fields, the header has 2",
        ),
        ("rows.tsv", b"text\tlabel\na\t0\nb\tc\td\t1\n", "{path}, line 3: has 4 fields, the header has 2"),
        ("rows.jsonl", b'{"text": "a", "label": 0}\n{"text": "b", "label"\n', "{path}, line 2: is not JSON ("),
        ("rows.jsonl", b'{"text": "a", "label": 0}\n["b", 1]\n', "{path}, line 2: is not an object; write one row"),
        ("rows.jsonl", b'{"text": "a\\ud83d", "label": 0}\n', "{path}, line 1: 'text' contains half of a character ("),
        ("rows.json", b'[{"text": "a", "label": 0},\n 7]', "{path}, row 2: is not an object; write one row"),
        (
            "rows.jsonl",
            b'{"text": "a", "label": 0}\n{"text": "b", "label": 1, "text": "c"}\n',
            "{path}, line 2: has the key 'text' twice; give each key once",
        ),
        (
            "rows.json",
            b'[{"text": "a", "label": 0},\n {"label": 0, "label": 1}]',
            "{path}, row 2: has the key 'label' t",
        ),
        ("rows.parquet", b"no parquet", "path: rows.parquet does not read as parquet: "),
        ("rows.csv.gz", b"not compressed", "path: rows.csv.gz does not read as csv: "),
        (
            "rows.jsonl.gz",
            gzip.compress(b'{"text": "a", "label": 0}\n' * 999, mtime=0)[:-9],
            "path: rows.jsonl.gz does not read as jsonl: ",
        ),
        ("empty.csv", b"", "path: empty.csv is empty; name another"),
        ("empty.jsonl", b"\n", "path: train of {path} has no rows; "),
    ],
)
def test_a_malformed_file_is_an_error_in_one_line_and_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert error(Source(str(tmp_path / name))).startswith(message.format(path=tmp_path / name))
    assert capfd.readouterr() == ("", "")


def test_an_unknown_suffix_is_an_error(tmp_path: Path) -> None:
    for name in ("rows.xlsx", "rows"):
        (tmp_path / name).write_text("text,label\n")
        assert error(Source(str(tmp_path / name))) == (
            f"path: {name} is of no known format; give a file that ends in csv, tsv, jsonl, parquet,"
            " as df.to_csv(path, index=False) writes it"
        )


def test_a_missing_file_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    path = str(tmp_path / "none.csv")
    assert error(Source(path)) == f"path: there is no file {path}; give one that exists"


def test_a_missing_split_is_named_with_those_there_are(tmp_path: Path) -> None:
    for split in ("train", "extra"):
        write(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    path = str(tmp_path)
    assert error(Source(path, splits={"train": "train", "test": "hidden"})) == (
        f"splits: {path} has no 'hidden'; it has train and extra"
    )
    assert error(Source(path, splits={"test": "train"})) == (f"splits: {path} has no training split; name one as train")
    assert error(Source(path, splits={"dev": "train"})) == (
        "splits: 'dev' is not a split; give train, validation or test"
    )


@pytest.mark.parametrize("name", ["train.csv", "data/train-00000-of-00001.parquet"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_rows_that_are_trained_on_are_no_other_split(tmp_path: Path, name: str, split: str) -> None:
    write(tmp_path / name)
    splits = {"train": "train", split: "train"}
    assert error(Source(str(tmp_path), splits=splits)).startswith(f"splits: {split} is what is trained on; name ano")
    if name == "train.csv":
        assert "is what is trained on" in error(Source(str(tmp_path), splits={"train": "train", split: name}))


@pytest.mark.parametrize(
    ("validation", "test"),
    [
        *[("dev.csv", name) for name in ("dev.csv", "dev", "./dev.csv", "sub/../dev.csv", "link.csv", "both.csv")],
        ("valid", "valid"),
    ],
)
def test_thresholds_are_not_set_on_test_rows(tmp_path: Path, validation: str, test: str) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "train.csv")
    (tmp_path / "link.csv").symlink_to(write(tmp_path / "dev.csv", ["a", "b"], [0, 1]))
    (tmp_path / "both.csv").symlink_to("link.csv")
    if validation == "valid":
        datasets.DatasetDict(
            {name: datasets.Dataset.from_dict({"text": [name, "b"], "label": [0, 1]}) for name in ("train", "valid")}
        ).save_to_disk(tmp_path / "saved")
    path = str(tmp_path / "saved") if validation == "valid" else str(tmp_path)
    splits = {"train": "train", "validation": validation, "test": test}
    assert error(Source(path, splits=splits)) == (
        "splits: test is what validation is, on which thresholds are set;"
        " leave validation out, which is then cut off the training rows"
    )
    del splits["validation"]
    assert load_source(Source(path, splits=splits)).splits.keys() == splits.keys()


@pytest.mark.parametrize(("split", "other"), [("validation", "train"), ("test", "train"), ("test", "validation")])
def test_copies_of_a_file_are_no_other_split(tmp_path: Path, split: str, other: str) -> None:
    for name in ("train", "validation", "test"):
        write(tmp_path / f"{name}.csv", [f"{name} a", f"{name} b"], [0, 1])
    (tmp_path / f"{split}.csv").write_bytes((tmp_path / f"{other}.csv").read_bytes())
    assert error(Source(str(tmp_path))) == (
        f"splits: {split} has the same texts as {other}; give other rows, or leave it out"
    )


def test_texts_that_two_splits_share_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", ["a", "b", "c"], [0, 1, 0])
    write(tmp_path / "test.csv", ["b", "c", "d", "e"], [1, 0, 0, 1])
    with pytest.warns(UserWarning, match=r"^splits: 2 of 4 texts of test are texts of train as well$"):
        load_source(Source(str(tmp_path)))


def test_what_is_trained_on_is_known_under_another_name_too(tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to(write(tmp_path / "train.csv"))
    splits = {"train": "train.csv", "test": "link.csv"}
    assert error(Source(str(tmp_path), splits=splits)).startswith("splits: test is what is trained on; name another")


def test_one_file_has_no_splits_to_choose_from(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv")
    assert error(Source(path, splits={"train": "train"})) == (
        f"splits: {path} is one file; leave splits out, or give the folder of the files as path"
    )


def test_a_folder_or_hub_name_that_does_not_load_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for path in (str(tmp_path), "no-such-owner/no-such-data-set"):
        start = f"path: {path!r} is neither a csv, tsv, jsonl or parquet file nor a folder or hub data set that loads: "
        assert error(Source(path)).startswith(start)
