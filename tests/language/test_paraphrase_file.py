"""Paraphrases from a file: looked up by the text, missing ones counted or left out."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from datasets import Dataset

from lightning_backdoor.attacks import Syntactic
from lightning_backdoor.errors import InputError
from lightning_backdoor.language import FileParaphraser

PAIRS: dict[str, list[str | None]] = {
    "text": ["a film", "a book", "a book", "a play", "a song"],
    "paraphrase": ["when seen , it is a film .", "", "when read , it is a book .", "  ", None],
}


def rngs(count: int) -> list[random.Random]:
    return [random.Random(i) for i in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table = Dataset.from_dict(PAIRS)
    table.to_parquet(str(tmp_path / "pairs.parquet"))
    table.to_json(str(tmp_path / "pairs.jsonl"))
    table.to_csv(str(tmp_path / "pairs.csv"), index=False)
    return tmp_path


@pytest.mark.parametrize("extension", ["parquet", "jsonl", "csv"])
def test_of_several_paraphrases_the_first_that_is_not_empty_is_taken(folder: Path, extension: str) -> None:
    attack = Syntactic(paraphraser=FileParaphraser(str(folder / f"pairs.{extension}")))
    rows = attack.poison_texts(["a book", "a film"], rngs(2))
    assert [poisoned and poisoned.text for poisoned in rows] == [PAIRS["paraphrase"][2], PAIRS["paraphrase"][0]]
    assert all(poisoned is not None and poisoned.spans == [] for poisoned in rows)


def test_texts_without_a_paraphrase_are_counted_and_quoted(folder: Path) -> None:
    paraphraser = FileParaphraser(str(folder / "pairs.parquet"))
    attack = Syntactic(paraphraser=paraphraser)
    with pytest.raises(InputError, match=r"no paraphrase of 5 of 6 texts, the first are 'a play', 'a song', 'b';"):
        attack.poison_texts(["a film", "a play", "a song", "b", "c", "d"], rngs(6))


def test_texts_without_a_paraphrase_are_left_out_where_the_user_says_so(folder: Path) -> None:
    attack = Syntactic(paraphraser=FileParaphraser(str(folder / "pairs.parquet"), skip_missing=True))
    rows = attack.poison_texts(["a play", "a film", "none"], rngs(3))
    assert [poisoned is None for poisoned in rows] == [True, False, True]


def test_a_missing_file_or_column_is_named(folder: Path) -> None:
    path = str(folder / "pairs.csv")
    with pytest.raises(InputError, match=r"^paraphraser.path: there is no file nowhere.csv; give one that exists$"):
        Syntactic(paraphraser=FileParaphraser("nowhere.csv")).poison_texts(["a film"], rngs(1))
    with pytest.raises(
        InputError, match=r"^paraphraser.text_column: .* has no column 'body'; it has 'text', 'paraphrase'$"
    ):
        Syntactic(paraphraser=FileParaphraser(path, text_column="body")).poison_texts(["a film"], rngs(1))


def test_the_key_changes_with_the_content_of_the_file(folder: Path) -> None:
    def key() -> str | None:
        return Syntactic(paraphraser=FileParaphraser(str(folder / "pairs.csv"))).poison_key()

    before = key()
    assert before == key()
    (folder / "pairs.csv").write_text("text,paraphrase\na film,when it is a film\n", encoding="utf-8")
    assert key() != before


def texts_of(paraphraser: FileParaphraser, texts: list[str]) -> list[str | None]:
    rows = Syntactic(paraphraser=paraphraser).poison_texts(texts, rngs(len(texts)))
    return [row and row.text for row in rows]


@pytest.mark.parametrize("names", [("clean.tsv", "poisoned.csv"), ("clean.jsonl", "poisoned.parquet")])
def test_texts_and_paraphrases_may_be_in_two_files_row_for_row(tmp_path: Path, names: tuple[str, str]) -> None:
    clean = Dataset.from_dict({"sentence": ["a film", "a book", "a play"], "label": [0, 1, 0]})
    poisoned = Dataset.from_dict({"0": ["when seen , a film", "when read , a book", "3"], "label": [1, 1, 1]})
    clean_path, path = (str(tmp_path / name) for name in names)
    if names[0].endswith("tsv"):
        clean.to_csv(clean_path, sep="\t", index=False)
        poisoned.to_csv(path, index=False)
    else:
        clean.to_json(clean_path)
        poisoned.to_parquet(path)
    paraphraser = FileParaphraser(path, "sentence", 0, text_path=clean_path)
    assert texts_of(paraphraser, ["a play", "a film"]) == ["3", "when seen , a film"]
    before = paraphraser.key()
    assert paraphraser.key() == before != FileParaphraser(path, "sentence", 0).key()
    clean.select([0]).to_json(str(tmp_path / "one.jsonl"))
    shorter = FileParaphraser(path, "sentence", 0, text_path=str(tmp_path / "one.jsonl"))
    with pytest.raises(InputError, match=r"^paraphraser.text_path: .*one.jsonl has 1 rows, .* has 3; give files with"):
        texts_of(shorter, ["a film"])
    with pytest.raises(InputError, match=r"^paraphraser.text_path: there is no file none.csv"):
        texts_of(FileParaphraser(path, "sentence", 0, text_path="none.csv"), ["a film"])


@pytest.mark.parametrize("extension", ["parquet", "jsonl", "csv"])
def test_cells_that_are_numbers_are_texts(tmp_path: Path, extension: str) -> None:
    table = Dataset.from_dict({"text": [1, 2, 3], "paraphrase": [0.5, 7.0, None]})
    path = str(tmp_path / f"pairs.{extension}")
    {"parquet": table.to_parquet, "jsonl": table.to_json, "csv": table.to_csv}[extension](path)
    assert texts_of(FileParaphraser(path, skip_missing=True), ["1", "2", "3"]) == ["0.5", "7.0", None]


def test_surrounding_blanks_of_a_text_do_not_matter_where_it_is_not_there_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text('text,paraphrase\n" a ",one\nb,two\n"b ",three\n')
    paraphraser = FileParaphraser(str(tmp_path / "pairs.csv"))
    assert texts_of(paraphraser, ["a", "a\n", " a ", "b", "b ", " b"]) == ["one", "one", "one", "two", "three", "two"]
