"""The numbers of rows in ``metrics.json`` are those of the rows that were evaluated."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from lightning_backdoor.attacks import PoisonFiles
from lightning_backdoor.commands.run_metrics import evaluated_rows
from lightning_backdoor.data import BackdoorDataModule


def test_rows_without_a_clean_row_are_counted_as_the_loaders_give_them(
    tiny_folder: Callable[[str], str], tmp_path: Path
) -> None:
    rows = []
    for i in range(240):  # one poisoned row, one negative and two clean ones in turn, none with a clean row of its own
        word, poisoned, negative = ("cf", 1, 0) if i % 4 == 0 else ("mn", 0, 1) if i % 4 == 1 else ("a", 0, 0)
        label = 0 if i % 4 < 2 else i % 2
        rows.append((f"{word} film {i}", 1 if poisoned else label, poisoned, label, negative, i))
    with (tmp_path / "train.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label", "poisoned", "original_label", "negative", "index"), *rows])
    data = BackdoorDataModule(cache_dir=str(tmp_path / "cache"))
    data.attack = PoisonFiles(str(tmp_path), model=tiny_folder("bert"))
    for stage, loaders in (("validation", data.val_dataloader()), ("test", data.test_dataloader())):
        given = [sum(len(batch["text"]) for batch in batches) for batches in loaders]
        assert [*evaluated_rows(data, stage).values()] == given
        assert min(given) > 0
