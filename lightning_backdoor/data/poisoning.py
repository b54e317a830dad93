"""Poisoning: which rows of a split an attack poisons, with a cache keyed by all that determines the result."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_backdoor.batch import Spans
from lightning_backdoor.data.poison_cache import read_entry, write_entry
from lightning_backdoor.data.poisoner import PoisonedText, Poisoner, check_target, tell_labels
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.cache_entry import DamagedEntry, remove_entry
from lightning_backdoor.words import segmenter

#: version of the cached rows; increased when this file poisons other rows, or stores them differently, than before.
POISON_FORMAT = 2
EVALUATION = ("validation", "test")

Splits = dict[str, list["Row"]]


class Row(TypedDict):
    """A text with its labels and flags; see :class:`lightning_backdoor.batch.Batch` for the columns."""

    text: str
    spans: Spans
    label: int
    original_label: int
    poisoned: bool
    negative: bool
    index: int


class PoisonedSplits(NamedTuple):
    """Clean, poisoned and negative rows of a run.

    Attributes:
        train: all training rows, some of them poisoned or negatives.
        clean: per evaluation split (``validation`` and ``test``), the clean rows.
        poisoned: per evaluation split, a poisoned copy of each clean row that is not of the target label and that the
            attack can poison; empty without an attack.
        negatives: per evaluation split, a negative copy of each clean row that is not of the target label and of which
            the attack can make one; empty for attacks without negatives.
    """

    train: list[Row]
    clean: Splits
    poisoned: Splits
    negatives: Splits


def clean_row(text: str, label: int, index: int) -> Row:
    """A clean row of a source."""
    return Row(text=text, spans=[], label=label, original_label=label, poisoned=False, negative=False, index=index)


def poison_training(rows: Sequence[Row], attack: Poisoner, seed: int) -> list[Row]:
    """Poisons ``int(poison_rate * len(rows))`` of the training rows, which keep their positions.

    If the attack leaves a row out, another row is poisoned instead.

    Raises:
        InputError: the rate amounts to no row, fewer rows qualify under the attack's label policy, or the attack leaves
            out too many of the rows that qualify.
    """
    wanted = _count(attack.poison_rate, rows)
    candidates = _by_index(rows, lambda row: may_be_poisoned(row, attack))
    if wanted == 0:
        raise InputError(
            "poison_rate", f"{attack.poison_rate} of {len(rows)} training rows is less than one row", "raise it"
        )
    share = f"{attack.poison_rate} of {len(rows)} training rows is {wanted}"
    if wanted > len(candidates):
        policy = f"label_policy {attack.label_policy!r} with target_label {attack.target_label}"
        raise InputError("poison_rate", f"{share}, but only {len(candidates)} qualify under {policy}", "lower it")
    changed, done = _changed(
        rows, candidates, wanted, f"{seed}/choice", lambda rows: poisoned_copies(rows, attack, seed, "train")
    )
    if done < wanted:
        poisonable = f"only {done} of {len(candidates)} that qualify can be poisoned"
        raise InputError("poison_rate", f"{share}, but {poisonable}", "lower it")
    return changed


def may_be_poisoned(row: Row, attack: Poisoner) -> bool:
    """Whether a training row qualifies under the attack's label policy."""
    if attack.label_policy == "mixed":
        return True
    return (row["label"] == attack.target_label) is (attack.label_policy == "clean")


def add_negatives(rows: Sequence[Row], attack: Poisoner, seed: int) -> list[Row]:
    """Turns ``int(negative_rate * len(rows))`` of the training rows, none of them poisoned, into negatives.

    They are drawn by a separate random generator, so that an attack poisons the same rows with and without negatives.

    Raises:
        InputError: ``negative_rate`` is out of range, or the attack can make too few.
    """
    if not 0 <= attack.negative_rate < 1:
        raise InputError("negative_rate", f"{attack.negative_rate} is out of range", "give a share from 0 to below 1")
    wanted = _count(attack.negative_rate, rows)
    if wanted == 0:
        return list(rows)
    candidates = _by_index(rows, lambda row: not row["poisoned"])
    changed, done = _changed(
        rows,
        candidates,
        min(wanted, len(candidates)),
        f"{seed}/negatives",
        lambda rows: _negate(rows, attack, seed, "train"),
    )
    if done < wanted:
        raise InputError(
            "negative_rate",
            f"{attack.negative_rate} of {len(rows)} training rows is {wanted}, but only {done} can be made negatives",
            "lower it",
        )
    return changed


def _count(rate: float, rows: Sequence[Row]) -> int:
    return int(rate * len(rows) + 1e-9)  # 0.29 * 100 is 28.999…


def _by_index(rows: Sequence[Row], qualifies: Callable[[Row], bool]) -> list[int]:
    """Positions of the rows that qualify, sorted by index, so that the order of the rows does not matter."""
    return sorted((i for i, row in enumerate(rows) if qualifies(row)), key=lambda i: rows[i]["index"])


def _changed(
    rows: Sequence[Row], candidates: list[int], wanted: int, draw: str, change: Callable[[list[Row]], list[Row | None]]
) -> tuple[list[Row], int]:
    """The rows with up to ``wanted`` candidates changed, and the number changed; rows left out are replaced."""
    rng = random.Random(draw)
    chosen = rng.sample(candidates, wanted)
    taken = set(chosen)
    others = [position for position in candidates if position not in taken]
    others = rng.sample(others, len(others))
    changed, done = list(rows), 0
    while done < wanted and chosen:
        for position, row in zip(chosen, change([rows[position] for position in chosen]), strict=True):
            if row is not None:
                changed[position] = row
                done += 1
        chosen, others = others[: wanted - done], others[wanted - done :]
    return changed, done


def poison_evaluation(rows: Sequence[Row], attack: Poisoner, seed: int, split: str) -> list[Row]:
    """A poisoned copy of every row that does not have the target label, except for texts that the attack leaves out.

    Raises:
        InputError: the attack leaves out all texts.
    """
    copies = poisoned_copies(_others(rows, attack), attack, seed, split)
    poisoned = [row for row in copies if row is not None]
    if copies and not poisoned:
        raise InputError(
            "model", f"the attack can poison none of {len(copies)} {split} rows, so that no ASR can be measured"
        )
    return poisoned


def negative_evaluation(rows: Sequence[Row], attack: Poisoner, seed: int, split: str) -> list[Row]:
    """A negative copy (with a part of the trigger) of every row without the target label, if the attack makes one."""
    return [row for row in _negate(_others(rows, attack), attack, seed, split) if row is not None]


def _others(rows: Sequence[Row], attack: Poisoner) -> list[Row]:
    return [row for row in rows if row["label"] != attack.target_label]


def poisoned_copies(rows: Sequence[Row], attack: Poisoner, seed: int, split: str) -> list[Row | None]:
    """A poisoned copy of each row, with the target label; None for a row that the attack leaves out.

    The copy depends on the seed, the split and the row's index alone.
    """
    # a generator per row: the poison does not depend on order, workers or processes
    rngs = [random.Random(f"{seed}/{split}/{row['index']}") for row in rows]
    texts = attack.poison_texts([row["text"] for row in rows], rngs)
    changed = [_rewritten(row, text) for row, text in zip(rows, texts, strict=True)]
    return [row and Row(**{**row, "label": attack.target_label, "poisoned": True}) for row in changed]


def _negate(rows: Sequence[Row], attack: Poisoner, seed: int, split: str) -> list[Row | None]:
    rngs = [random.Random(f"{seed}/{split}/{row['index']}/negative") for row in rows]
    texts = attack.negative_texts([row["text"] for row in rows], rngs)
    if texts is None:
        return [None] * len(rows)
    changed = [_rewritten(row, text) for row, text in zip(rows, texts, strict=True)]
    return [row and Row(**{**row, "negative": True}) for row in changed]


def _rewritten(row: Row, written: PoisonedText | None) -> Row | None:
    if written is None:
        return None
    spans = [(int(start), int(end)) for start, end in written.spans]
    return Row(**{**row, "text": written.text, "spans": spans})


def poison_splits(splits: Splits, attack: Poisoner | None, seed: int, labels: Sequence[str]) -> PoisonedSplits:
    """Poisons ``train``, ``validation`` and ``test``; without an attack all rows stay clean.

    Raises:
        InputError: the target label is not one of ``labels``; see also :func:`poison_training` and
            :func:`add_negatives`.
    """
    clean = {name: splits[name] for name in EVALUATION}
    if attack is None:
        return PoisonedSplits(splits["train"], clean, {name: [] for name in clean}, {name: [] for name in clean})
    check_target(attack, labels)
    poisoned = {name: poison_evaluation(rows, attack, seed, name) for name, rows in clean.items()}
    negatives = {name: negative_evaluation(rows, attack, seed, name) for name, rows in clean.items()}
    train = splits["train"]
    if attack.poisons_training:
        train = add_negatives(poison_training(train, attack, seed), attack, seed)
    return PoisonedSplits(train, clean, poisoned, negatives)


def poison_splits_cached(
    splits: Splits, attack: Poisoner | None, seed: int, labels: Sequence[str], cache: Path
) -> PoisonedSplits:
    """:func:`poison_splits`, cached on disk under a hash of everything that determines the result.

    A folder appears in the cache only when it is complete, so that processes can share the cache and a killed process
    leaves no partial folder. An entry that is not what was written is made anew, with a warning.

    Raises:
        InputError: the cache cannot be read or written; see also :func:`poison_splits`.
    """
    tell_labels(attack, labels)  # before the key is computed, which holds the index
    key = attack.poison_key() if attack is not None else None
    if attack is None or key is None:
        return poison_splits(splits, attack, seed, labels)
    decided_by = [POISON_FORMAT, key, attack.poisons_training, attack.negative_rate, seed, list(labels), splits]
    # where words are inserted into texts of scripts without spaces depends on the segmenter
    decided_by += dict.fromkeys(filter(None, (segmenter(row["text"]) for rows in splits.values() for row in rows)))
    content = json.dumps(decided_by, sort_keys=True).encode()
    folder = cache / "poisoned" / hashlib.sha256(content).hexdigest()
    entry = _usable_entry(folder)
    if entry is None:
        made = poison_splits(splits, attack, seed, labels)
        negatives = {f"{name}_negatives": made.negatives[name] for name in EVALUATION}
        try:
            write_entry(folder, {"train": made.train, **made.poisoned, **negatives})
        except OSError as error:
            raise InputError("cache_dir", f"{cache} cannot be written ({error})", "name another folder") from error
        entry = _usable_entry(folder)  # written by the first of several processes, which may be another one
        if entry is None:
            return made
    return PoisonedSplits(
        entry["train"],
        {name: splits[name] for name in EVALUATION},
        {name: entry[name] for name in EVALUATION},
        {name: entry[f"{name}_negatives"] for name in EVALUATION},
    )


def _usable_entry(folder: Path) -> Splits | None:
    """The rows of a cache entry; None if there is none, or if it was damaged and has been removed."""
    names = ("train", *EVALUATION, *(f"{name}_negatives" for name in EVALUATION))
    try:
        return read_entry(folder, names)
    except DamagedEntry as damage:
        rank_zero_warn(f"the cached poison in {folder} is damaged and is made anew: {damage}")
    except OSError as error:
        raise InputError("cache_dir", f"{folder} cannot be read ({error})", "name another folder") from error
    try:
        remove_entry(folder)
    except OSError as error:
        raise InputError("cache_dir", f"{folder} cannot be replaced ({error})", "name another folder") from error
    return None
