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
    with pytest.raises(InputError, match=r"^paraphraser.path: there is no file nowhere.csv; give an existing file$"):
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
