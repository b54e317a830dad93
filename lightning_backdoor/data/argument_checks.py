"""Checks of the data module's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_backdoor.data.cleaning import DataDefense
from lightning_backdoor.data.source import Source
from lightning_backdoor.errors import InputError


def check_arguments(
    source: object,
    batch_sizes: tuple[int, int],
    max_rows: Mapping[str, int],
    shares: tuple[float, float],
    validation_parts: tuple[float, float, float],
    train_on: str,
    data_defense: DataDefense | None,
    num_workers: int,
) -> None:
    """Checks the arguments of :class:`lightning_backdoor.data.BackdoorDataModule`.

    Raises:
        InputError: see the checks below.
    """
    check_source(source)
    check_batch_sizes(*batch_sizes)
    check_max_rows(max_rows)
    check_shares(*shares, validation_parts)
    check_train_on(train_on, data_defense is not None)
    check_workers(num_workers)


def check_source(source: object) -> None:
    """Checks that a source is given as one, and not as its path.

    Raises:
        InputError: it is neither a :class:`lightning_backdoor.data.Source` nor None.
    """
    if source is not None and not isinstance(source, Source):
        remedy = f'give Source("{source}")' if isinstance(source, str | Path) else "give a Source"
        raise InputError("source", f"{str(source)[:100]!r} is not a Source", remedy)


def check_batch_sizes(batch_size: int, eval_batch_size: int) -> None:
    """Checks that batches hold rows.

    Raises:
        InputError: a size is below 1.
    """
    for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
        if value < 1:
            raise InputError(name, f"{value} holds no row", "give at least 1")


def check_workers(num_workers: int) -> None:
    """Checks the number of worker processes per loader.

    Raises:
        InputError: it is below 0.
    """
    if num_workers < 0:
        raise InputError("num_workers", f"{num_workers} is out of range", "give 0 or more")


def check_max_rows(max_rows: Mapping[str, int]) -> None:
    """Checks the limits of the splits.

    Raises:
        InputError: a split is unknown, or its limit is below 1.
    """
    for split, limit in max_rows.items():
        if split not in ("train", "validation", "test") or limit < 1:
            raise InputError("max_rows", f"{split}={limit}", "give train, validation or test and at least 1 row")


def check_shares(validation_share: float, test_share: float, validation_parts: tuple[float, float, float]) -> None:
    """Checks the shares of rows that are cut off, and of the parts of the validation rows.

    Raises:
        InputError: a share is out of range, or the parts do not add up to 1.
    """
    for name, share in (("validation_share", validation_share), ("test_share", test_share)):
        if not 0 < share < 0.5:
            raise InputError(name, f"{share} is out of range", "give a share above 0 and below 0.5")
    positive = len(validation_parts) == 3 and all(part > 0 for part in validation_parts)
    if not positive or not abs(sum(validation_parts) - 1) <= 1e-6:
        raise InputError("validation_parts", f"{validation_parts} are not three shares above 0 that add up to 1")


def check_train_on(train_on: str, has_data_defense: bool) -> None:
    """Checks the rows to train on.

    Raises:
        InputError: the value is unknown, or trusted rows would be cleaned.
    """
    if train_on not in ("train", "trusted"):
        raise InputError("train_on", f"{train_on!r} is unknown", "give train or trusted")
    if train_on == "trusted" and has_data_defense:
        raise InputError("data_defense", "there is nothing to clean in trusted rows", "leave it out, or train_on")


def check_use(victim: str | None, defense: DataDefense | None) -> None:
    """Checks that no victim is given that nothing would use.

    Args:
        victim: path of the given victim; None if none is given.
        defense: the data defense of the run; None without one.

    Raises:
        InputError: a victim is given, and there is no defense that needs one.
    """
    if victim is not None and (defense is None or not defense.needs_victim):
        problem = f"{victim!r} has no effect, since there is no data defense that needs a victim"
        raise InputError("data.victim", problem, "give --data.data_defense, such as Cube, or leave it out")


def given_source(source: Source, attack: object) -> Source:
    """The source of the data.

    Raises:
        InputError: none is given, and the attack brings no rows.
    """
    if not source.path:
        brings = "there is no attack with" if attack is None else f"{type(attack).__name__} has no"
        raise InputError(
            "data.source.path",
            f"not given, and {brings} rows from files",
            "give --data.source.path, or put it into a --config",
        )
    return source


def check_processes(split: str, rows: int, batch_size: int, processes: int) -> None:
    """Checks that the clean rows of an evaluation are enough batches for all processes.

    Raises:
        InputError: some processes would have no batch.
    """
    if -(-rows // batch_size) < processes:
        problem = (
            f"{rows} clean {split} rows in batches of {batch_size} leave some of {processes} processes without any"
        )
        raise InputError("eval_batch_size", problem, "lower it")


def check_cut(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Checks that rows which are cut from training rows are not those that a checkpoint was trained on.

    The source is the same if it is named alike, or has the same training texts before they are cut, where the
    checkpoint records them.

    Args:
        mine: the state of the data module.
        theirs: the state that the checkpoint records; those of earlier versions have ``source`` and ``cut`` alone.

    Raises:
        InputError: the same source was cut differently.
    """
    same_texts = mine["texts"] == theirs.get("texts")
    if not same_texts and mine["source"] != theirs["source"]:
        return
    if mine["cut"] != theirs["cut"]:
        raise InputError(
            "seed",
            f"the rows are cut by seed, validation_share, test_share = {mine['cut']}, the checkpoint's rows by"
            f" {theirs['cut']}, so that it may have been trained on test rows",
            "give the same",
        )
    if same_texts and mine["kept_texts"] != theirs.get("kept_texts"):
        problem = "the checkpoint was trained on other ones of these texts, so that it may have been trained on test"
        raise InputError("source", f"{problem} rows", "give splits, labels and order of the rows as they were then")
