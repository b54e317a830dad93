"""Poisoning a split: a pure function of rows, attack and seed, and its cache by content."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypedDict

from lightning_backdoor.batch import Spans
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.atomic import whole_folder

Splits = dict[str, list["Row"]]


class Row(TypedDict):
    """One text and what is known of it; see :class:`lightning_backdoor.batch.Batch` for the columns."""

    text: str
    spans: Spans
    label: int
    original_label: int
    poisoned: bool
    negative: bool
    index: int


class PoisonedText(Protocol):
    """What an attack returns for a text."""

    @property
    def text(self) -> str: ...
    @property
    def spans(self) -> Spans: ...


class Poisoner(Protocol):
    """What poisoning needs of an attack."""

    target_label: int
    poison_rate: float
    label_policy: str

    def poison_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> Sequence[PoisonedText | None]: ...
    def poison_key(self) -> str | None: ...


class PoisonedSplits(NamedTuple):
    """Everything a run needs.

    Attributes:
        train: all training rows, some of them poisoned.
        clean: the clean evaluation rows by split, ``validation`` and ``test``.
        poisoned: a poisoned copy of each of those rows that is not of the target label and that the attack can poison;
            empty without an attack.
    """

    train: list[Row]
    clean: Splits
    poisoned: Splits


def clean_row(text: str, label: int, index: int) -> Row:
    """A row as the source has it."""
    return Row(text=text, spans=[], label=label, original_label=label, poisoned=False, negative=False, index=index)


def poison_training(rows: Sequence[Row], attack: Poisoner, seed: int) -> list[Row]:
    """The training rows with ``int(poison_rate * len(rows))`` of them poisoned, in their old places.

    For a row that the attack leaves out another is drawn.

    Raises:
        InputError: the rate amounts to no row, fewer rows qualify under the attack's label policy, or the attack leaves
            out too many of those that do.
    """
    wanted = int(attack.poison_rate * len(rows) + 1e-9)  # 0.29 * 100 is 28.999…
    target = attack.target_label
    qualifies: Callable[[Row], bool] = {
        "dirty": lambda row: row["label"] != target,
        "clean": lambda row: row["label"] == target,
        "mixed": lambda row: True,
    }[attack.label_policy]
    candidates = [place for place, row in enumerate(rows) if qualifies(row)]
    candidates.sort(key=lambda place: rows[place]["index"])  # the same choice whatever the order of the rows
    if wanted == 0:
        raise InputError("poison_rate", f"{attack.poison_rate} of {len(rows)} training rows is no row", "raise it")
    share = f"{attack.poison_rate} of {len(rows)} training rows is {wanted}"
    if wanted > len(candidates):
        policy = f"label_policy {attack.label_policy!r} with target_label {target}"
        raise InputError("poison_rate", f"{share}, but only {len(candidates)} qualify under {policy}", "lower it")
    rng = random.Random(f"{seed}/choice")
    chosen = rng.sample(candidates, wanted)
    taken = set(chosen)
    others = [place for place in candidates if place not in taken]
    others = rng.sample(others, len(others))
    poisoned = list(rows)
    done = 0
    while done < wanted and chosen:
        made = _poison([rows[place] for place in chosen], attack, seed, "train")
        for place, row in zip(chosen, made, strict=True):
            if row is not None:
                poisoned[place] = row
                done += 1
        chosen, others = others[: wanted - done], others[wanted - done :]
    if done < wanted:
        poisonable = f"only {done} of {len(candidates)} that qualify can be poisoned"
        raise InputError("poison_rate", f"{share}, but {poisonable}", "lower it")
    return poisoned


def poison_evaluation(rows: Sequence[Row], attack: Poisoner, seed: int, split: str) -> list[Row]:
    """A poisoned copy of every row that is not of the target label, those apart that the attack leaves out.

    Raises:
        InputError: it leaves out all.
    """
    made = _poison([row for row in rows if row["label"] != attack.target_label], attack, seed, split)
    poisoned = [row for row in made if row is not None]
    if made and not poisoned:
        raise InputError(
            "model", f"the attack can poison none of {len(made)} {split} rows, so that no ASR can be measured"
        )
    return poisoned


def _poison(rows: Sequence[Row], attack: Poisoner, seed: int, split: str) -> list[Row | None]:
    # a generator a row: the same poison whatever the order, the workers or the processes
    rngs = [random.Random(f"{seed}/{split}/{row['index']}") for row in rows]
    poisoned = attack.poison_texts([row["text"] for row in rows], rngs)
    return [
        None
        if result is None
        else Row(
            text=result.text,
            spans=[(int(start), int(end)) for start, end in result.spans],
            label=attack.target_label,
            original_label=row["original_label"],
            poisoned=True,
            negative=False,
            index=row["index"],
        )
        for row, result in zip(rows, poisoned, strict=True)
    ]


def poison_splits(splits: Splits, attack: Poisoner | None, seed: int, labels: Sequence[str]) -> PoisonedSplits:
    """Poisons ``train``, ``validation`` and ``test``; without an attack everything stays clean.

    Raises:
        InputError: the target label is not one of ``labels``, or see :func:`poison_training`.
    """
    clean = {name: splits[name] for name in ("validation", "test")}
    if attack is None:
        return PoisonedSplits(splits["train"], clean, {name: [] for name in clean})
    if attack.target_label >= len(labels):
        known = ", ".join(f"{i} ({name})" for i, name in enumerate(labels))
        raise InputError("target_label", f"{attack.target_label} is out of range", f"the labels are {known}")
    poisoned = {name: poison_evaluation(rows, attack, seed, name) for name, rows in clean.items()}
    return PoisonedSplits(poison_training(splits["train"], attack, seed), clean, poisoned)


def poison_splits_cached(
    splits: Splits, attack: Poisoner | None, seed: int, labels: Sequence[str], cache: Path
) -> PoisonedSplits:
    """:func:`poison_splits`, kept on disk under a hash of all that determines it.

    A folder appears in the cache only when it is complete, so that processes may share it and a kill leaves no half.

    Raises:
        InputError: the cache cannot be written, or see :func:`poison_splits`.
    """
    key = attack.poison_key() if attack is not None else None
    if attack is None or key is None:
        return poison_splits(splits, attack, seed, labels)
    this_code = Path(__file__).read_text(encoding="utf-8")
    content = json.dumps([this_code, key, seed, list(labels), splits], sort_keys=True).encode()
    folder = cache / "poisoned" / hashlib.sha256(content).hexdigest()
    if not folder.exists():
        result = poison_splits(splits, attack, seed, labels)
        try:
            _write({"train": result.train, **result.poisoned}, folder)
        except OSError as error:
            raise InputError("cache_dir", f"{cache} cannot be written ({error})", "name another folder") from error
    poisoned = {name: _read(folder / f"{name}.jsonl") for name in ("validation", "test")}
    return PoisonedSplits(_read(folder / "train.jsonl"), {name: splits[name] for name in poisoned}, poisoned)


def _write(splits: Splits, folder: Path) -> None:
    """One file a split; the folder appears whole or not at all."""
    with whole_folder(folder) as partial:
        for name, rows in splits.items():
            with (partial / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)


def _read(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as file:
        rows: list[Row] = [json.loads(line) for line in file]
    for row in rows:
        row["spans"] = [(start, end) for start, end in row["spans"]]
    return rows
