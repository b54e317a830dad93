"""Pairs of text and paraphrase as batches."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from lightning_backdoor.data.pairs import IGNORED, Pair, PairsDataModule, TokenisedPairs
from lightning_backdoor.errors import InputError


def write(path: Path, pairs: list[tuple[str, str]]) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "paraphrase"), *pairs])
    return str(path)


def test_pairs_of_one_text_are_in_one_part_and_those_without_a_paraphrase_in_none(tmp_path: Path) -> None:
    pairs = [(f"text {i % 30}", f"when {i}") for i in range(90)] + [("text 3", " "), ("alone", "")]
    parts = PairsDataModule(write(tmp_path / "pairs.csv", pairs), validation_share=0.2).pairs()
    assert sorted(parts["train"] + parts["validation"]) == sorted(pairs[:90])
    texts = {name: {text for text, _ in part} for name, part in parts.items()}
    assert len(texts["validation"]) == 6
    assert not texts["train"] & texts["validation"]


def test_the_validation_share_is_exact(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.csv", [(f"text {i}", f"when {i}") for i in range(100)])
    assert len(PairsDataModule(path, validation_share=0.29).pairs()["validation"]) == 29


def test_the_draw_depends_on_the_seed_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.csv", [(f"text {i}", f"when {i}") for i in range(50)])

    def texts(seed: int) -> list[tuple[str, str]]:
        parts = PairsDataModule(path, max_pairs=20, seed=seed).pairs()
        return parts["train"] + parts["validation"]

    assert len(texts(0)) == 20
    assert texts(0) == texts(0) != texts(1)


def test_a_batch_is_padded_and_what_is_padded_is_not_learned() -> None:
    rows = TokenisedPairs(
        [Pair(input_ids=[5, 6, 7], labels=[IGNORED, 6, 7]), Pair(input_ids=[8], labels=[8])],
    )
    batch = rows[[1, 0]]
    assert batch["input_ids"].tolist() == [[8, 0, 0], [5, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [[8, IGNORED, IGNORED], [IGNORED, 6, 7]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"^batch_size: 0 holds no pair"),
        ({"max_pairs": 1}, r"^max_pairs: 1 leave nothing to train on"),
        ({"validation_share": 0.5}, r"^validation_share: 0.5 is out of range"),
        ({"num_workers": -1}, r"^num_workers: -1 is out of range; give 0 or more$"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PairsDataModule("pairs.csv", **options)  # type: ignore[arg-type]


def test_a_file_that_is_missing_or_lacks_a_column_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.csv", [("a film", "when it is a film"), ("a book", "when it is a book")])
    with pytest.raises(InputError, match=r"^path: there is no file nowhere.csv"):
        PairsDataModule("nowhere.csv").pairs()
    with pytest.raises(InputError, match=r"^paraphrase_column: .* has no column 'style'; it has 'text', 'paraphrase'"):
        PairsDataModule(path, paraphrase_column="style").pairs()


def test_pairs_may_be_numbers_in_columns_named_by_numbers(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"0": 1, "1": 2.5}\n{"0": "b", "1": true}\n{"0": null, "1": "c"}\n')
    parts = PairsDataModule(str(tmp_path / "pairs.jsonl"), text_column=0, paraphrase_column=1).pairs()
    assert sorted(parts["train"] + parts["validation"]) == [("1", "2.5"), ("b", "True")]
