"""Rows by column: they read like a list of rows, are the rows of earlier versions, and no row is made unasked."""

from __future__ import annotations

import hashlib
import json
import pickle
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest

from lightning_backdoor.attacks import BackdoorAttack, BadNets, InsertSent
from lightning_backdoor.cli import main
from lightning_backdoor.data import BackdoorDataModule, Source
from lightning_backdoor.data import rows as rows_module
from lightning_backdoor.data.poisoning import poison_splits
from lightning_backdoor.data.rows import Row, Rows
from tests.data.examples import TwoWords, rows, splits
from tests.data.test_source import write

LABELS = ["negative", "positive"]


def test_rows_read_like_a_list() -> None:
    given = [{**row, "spans": [(0, 2)]} if row["index"] % 3 else row for row in rows(20)]
    made = Rows.of(given)  # type: ignore[arg-type]
    assert made == given
    assert given == made
    assert made != given[:-1]
    assert [made[i] for i in (0, -1)] == [given[0], given[-1]]
    assert made[3:9:2] == given[3:9:2]
    assert made[::-1] == given[::-1]
    assert [*made] == given
    assert made + given[:2] == given + made[:2] == given + given[:2]  # type: ignore[operator]
    assert pickle.loads(pickle.dumps(made)) == made == Rows.of(made)
    assert (repr(made[:1]), len(made), given[4] in made) == (repr(given[:1]), 20, True)
    assert json.dumps(made[1]) == json.dumps(given[1])
    with pytest.raises(IndexError):
        made[20]


def test_a_row_that_was_read_is_the_readers_own() -> None:
    made = Rows.of(rows(3))
    made[0]["text"] = "another"
    made[0]["spans"].append((0, 1))
    assert made == rows(3)


def digest(*parts: Sequence[Row]) -> str:
    """A short hash of rows as earlier versions held them."""
    return hashlib.sha256(json.dumps([list(part) for part in parts]).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (BadNets(triggers=["cf", "mn"], insertions=2), "4c00dd7d547098ac"),
        (BadNets(label_policy="clean", poison_rate=0.2), "d86434815e510a44"),
        (BadNets(label_policy="mixed", target_label=0), "f15dbd2d54312ff4"),
        (InsertSent(), "c38eb37dd7d33800"),
        (TwoWords(poison_rate=0.3), "42313d2a6e9334a8"),
    ],
    ids=str,
)
def test_the_poison_of_a_seed_is_that_of_version_0_1_0(attack: BackdoorAttack, expected: str) -> None:
    made = poison_splits(splits(), attack, 7, LABELS)
    parts = [part[name] for part in (made.clean, made.poisoned, made.negatives) for name in ("validation", "test")]
    assert digest(made.train, *parts) == expected


def test_the_cuts_of_a_seed_are_those_of_version_0_1_0(tmp_path: Path) -> None:
    texts = [f"text {i % 280}" for i in range(300)]
    source = Source(write(tmp_path / "rows.csv", texts, [i % 7 % 3 for i in range(300)]))
    data = BackdoorDataModule(source, seed=5, max_rows={"train": 90})
    assert digest(*data.clean_splits().values(), *data.clean_validation()) == "bea1bd64d00923b4"


def test_poison_makes_no_row(inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*columns: object) -> Row:
        raise AssertionError("a row is made")

    monkeypatch.setattr(rows_module, "_row", refuse)
    monkeypatch.setenv("LIGHTNING_BACKDOOR_CACHE", str(tmp_path / "cache"))
    for output in ("one", "from the cache"):
        assert main(["poison", "-c", "data.yaml", "--output", str(tmp_path / output), "--stealth_rows=0"]) == 0


def test_poisoned_rows_take_few_bytes() -> None:
    """A dictionary per row would take 700 bytes or more."""
    count = 20_000
    texts, labels = [f"text {i}" for i in range(count)], [i % 2 for i in range(count)]
    parts = {"train": slice(0, 14_000), "validation": slice(14_000, 16_000), "test": slice(16_000, count)}
    attack = BadNets()
    tracemalloc.start()
    try:
        clean = {name: Rows.clean(texts[part], labels[part]) for name, part in parts.items()}
        made = poison_splits(clean, attack, 0, LABELS)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken / (count + sum(map(len, made.poisoned.values()))) < 200
