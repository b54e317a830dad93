"""Poisoning: which rows of a split an attack poisons, with a cache keyed by all that determines the result."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_warn
from numpy.typing import NDArray

from lightning_backdoor.data.aims import changed_by_any, distinct_targets, drawn_aims, qualifying
from lightning_backdoor.data.poison_cache import read_entry, write_entry
from lightning_backdoor.data.poisoner import Poisoner, check_target, show_training, tell_labels
from lightning_backdoor.data.rewriting import by_index, drawn, rewrite, row_count
from lightning_backdoor.data.rows import Rewritten, Row, Rows
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.cache_entry import DamagedEntry, remove_entry
from lightning_backdoor.words import segmenter

#: version of the cached texts; increased when this file poisons other rows, or stores them differently, than before.
POISON_FORMAT = 3
EVALUATION = ("validation", "test")

#: rows by split.
Splits = dict[str, Rows]


class PoisonedSplits(NamedTuple):
    """Clean, poisoned and negative rows of a run.

    Attributes:
        train: all training rows, some of them poisoned or negatives.
        clean: per evaluation split (``validation`` and ``test``), the clean rows.
        poisoned: per evaluation split, a poisoned copy of each clean row that is not of the target label and that the
            attack can poison, for each of its aims in turn; empty without an attack.
        negatives: per evaluation split, a negative copy of each clean row that is not of the target label (of any aim)
            and of which the attack can make one; empty for attacks without negatives.
    """

    train: Rows
    clean: Splits
    poisoned: Splits
    negatives: Splits


def poison_training(
    rows: Sequence[Row], attack: Poisoner, seed: int, write: Callable[[list[int]], Rewritten] | None = None
) -> Rows:
    """Poisons ``int(poison_rate * len(rows))`` of the training rows, which keep their positions.

    If the attack leaves a row out, another row is poisoned instead.

    Args:
        rows: the training rows.
        attack: the attack.
        seed: seed of the draw.
        write: writes the poisoned texts of the rows at some positions; by default the attack.

    Raises:
        InputError: the rate amounts to no row, fewer rows qualify under the attack's label policy, or the attack leaves
            out too many of the rows that qualify.
    """
    clean = Rows.of(rows)
    return _with_poison(clean, _training_poison(clean, attack, seed, write), attack, seed)


def _training_poison(
    rows: Rows, attack: Poisoner, seed: int, write: Callable[[list[int]], Rewritten] | None = None
) -> Rewritten:
    wanted = row_count(attack.poison_rate, rows)
    candidates = by_index(rows, may_be_poisoned(rows, attack))
    if wanted == 0:
        raise InputError(
            "poison_rate", f"{attack.poison_rate} of {len(rows)} training rows is less than one row", "raise it"
        )
    share = f"{attack.poison_rate} of {len(rows)} training rows is {wanted}"
    if wanted > len(candidates):
        targets = ", ".join(map(str, distinct_targets(attack.aims)))
        policy = f"label_policy {attack.label_policy!r} with target_label {targets}"
        raise InputError("poison_rate", f"{share}, but only {len(candidates)} qualify under {policy}", "lower it")
    rank = getattr(attack, "poison_rank", None)
    if rank is None:
        written = drawn(
            candidates, wanted, f"{seed}/choice", write or (lambda chosen: _by_aims(rows, chosen, attack, seed))
        )
    else:
        written = _by_aims(rows, candidates, attack, seed)
        numbers = rank(written.texts)
        written = written.take(sorted(range(len(numbers)), key=lambda i: (numbers[i], i))[:wanted])
    if len(written.positions) < wanted:
        poisonable = f"only {len(written.positions)} of {len(candidates)} that qualify can be poisoned"
        raise InputError("poison_rate", f"{share}, but {poisonable}", "lower it")
    return written


def may_be_poisoned(rows: Rows, attack: Poisoner) -> NDArray[np.bool_]:
    """Whether each training row qualifies under the attack's label policy, for any of its aims; (rows,)."""
    qualifies: NDArray[np.bool_] = np.any(qualifying(rows, attack.aims, attack.label_policy), axis=1)
    return qualifies


def _by_aims(rows: Rows, chosen: Sequence[int], attack: Poisoner, seed: int) -> Rewritten:
    """What the attack writes for chosen training rows, each by its own aim, in the order of the aims."""
    positions = np.array(chosen, dtype=np.int64)
    of_rows = drawn_aims(rows.take(positions), attack.aims, attack.label_policy, seed)
    written = Rewritten([], [], [])
    for number, aim in enumerate(attack.aims):
        of_aim = positions[of_rows == number].tolist()
        written.extend(rewrite(rows, of_aim, aim.write_in_training or aim.write, f"{seed}/train"))
    return written


def add_negatives(rows: Sequence[Row], attack: Poisoner, seed: int) -> Rows:
    """Turns ``int(negative_rate * len(rows))`` of the training rows, none of them poisoned, into negatives.

    They are drawn by a separate random generator, so that an attack poisons the same rows with and without negatives.

    Raises:
        InputError: ``negative_rate`` is out of range, or the attack can make too few.
    """
    poisoned = Rows.of(rows)
    return _training_negatives(poisoned, attack, seed).in_place(poisoned, negative=True)


def _training_negatives(rows: Rows, attack: Poisoner, seed: int) -> Rewritten:
    if not 0 <= attack.negative_rate < 1:
        raise InputError("negative_rate", f"{attack.negative_rate} is out of range", "give a share from 0 to below 1")
    wanted = row_count(attack.negative_rate, rows)
    if wanted == 0:
        return Rewritten([], [], [])
    candidates = by_index(rows, ~rows.poisoned)
    written = drawn(
        candidates,
        min(wanted, len(candidates)),
        f"{seed}/negatives",
        lambda chosen: rewrite(rows, chosen, attack.negative_training_texts, f"{seed}/train", "/negative"),
    )
    if (made := len(written.positions)) < wanted:
        raise InputError(
            "negative_rate",
            f"{attack.negative_rate} of {len(rows)} training rows is {wanted}, but only {made} can be made negatives",
            "lower it",
        )
    return written


def study_training(rows: Sequence[Row], attack: Poisoner | None, seed: int, labels: Sequence[str]) -> None:
    """Tells an attack the labels, and shows it the clean training rows and which of them are drawn to be poisoned.

    No row is drawn where fewer qualify than are wanted, which poisoning refuses. In the user's phase nothing is shown.
    """
    tell_labels(attack, labels)
    if attack is not None and attack.poisons_training:
        clean = Rows.of(rows)
        candidates, wanted = by_index(clean, may_be_poisoned(clean, attack)), row_count(attack.poison_rate, clean)
        first = random.Random(f"{seed}/choice").sample(candidates, wanted) if wanted <= len(candidates) else []
        show_training(attack, clean, first)


def poison_evaluation(rows: Sequence[Row], attack: Poisoner, seed: int, split: str) -> Rows:
    """A poisoned copy of every row for each aim whose target it does not have, except for texts that are left out.

    Raises:
        InputError: the attack leaves out all texts.
    """
    clean = Rows.of(rows)
    return _poisoned(clean, _evaluation_poison(clean, attack, seed, split), attack, split)


def _evaluation_poison(rows: Rows, attack: Poisoner, seed: int, split: str) -> dict[str, Rewritten]:
    """What the attack writes for the rows of an evaluation split, by :func:`_part`."""
    written = {}
    for number, aim in enumerate(attack.aims):
        others = np.flatnonzero(aim.wanted(rows.label) != rows.label).tolist()
        copies = written[_part(split, number)] = rewrite(rows, others, aim.write, f"{seed}/{split}")
        if others and not copies.positions:
            raise InputError(
                "model", f"the attack can poison none of {len(others)} {split} rows, so that no ASR can be measured"
            )
    return written


def _evaluation_negatives(rows: Rows, attack: Poisoner, seed: int, split: str) -> Rewritten:
    others = np.flatnonzero(changed_by_any(rows, attack.aims)).tolist()
    return rewrite(rows, others, attack.negative_texts, f"{seed}/{split}", "/negative")


def training_copies(rows: Sequence[Row], attack: Poisoner, seed: int) -> Rows:
    """A poisoned copy of each training row that qualifies, as it is poisoned if it is chosen.

    Rows that the attack leaves out have none. A copy depends on the seed and the row's index alone.
    """
    clean = Rows.of(rows)
    written = _by_aims(clean, np.flatnonzero(may_be_poisoned(clean, attack)).tolist(), attack, seed)
    return written.copies(clean, label=_trained(clean, written, attack, seed), poisoned=True)


def _poisoned(rows: Rows, written: Mapping[str, Rewritten], attack: Poisoner, split: str) -> Rows:
    copies = []
    for number, aim in enumerate(attack.aims):
        part = written[_part(split, number)]
        copies.append(part.copies(rows, label=aim.wanted(rows.label[part.positions]), poisoned=True))
    return sum(copies[1:], copies[0])


def _with_poison(rows: Rows, written: Rewritten, attack: Poisoner, seed: int) -> Rows:
    return written.in_place(rows, label=_trained(rows, written, attack, seed), poisoned=True)


def _trained(rows: Rows, written: Rewritten, attack: Poisoner, seed: int) -> NDArray[np.int64]:
    """The label that is trained with each poisoned text; (texts,), int64."""
    chosen = rows.take(written.positions)
    by_aim = np.stack([aim.wanted(chosen.label) for aim in attack.aims])
    label: NDArray[np.int64] = by_aim[
        drawn_aims(chosen, attack.aims, attack.label_policy, seed), np.arange(len(chosen))
    ]
    return label


def _part(split: str, number: int) -> str:
    """The name of what an attack writes for an evaluation split by the aim of a number, from 0."""
    return f"{split}_{number}" if number else split


def poison_splits(
    splits: Mapping[str, Sequence[Row]], attack: Poisoner | None, seed: int, labels: Sequence[str]
) -> PoisonedSplits:
    """Poisons ``train``, ``validation`` and ``test``; without an attack all rows stay clean.

    Raises:
        InputError: the target label is not one of ``labels``; see also :func:`poison_training` and
            :func:`add_negatives`.
    """
    clean = {name: Rows.of(rows) for name, rows in splits.items()}
    if attack is None:
        nothing = {name: Rows.of([]) for name in EVALUATION}
        return PoisonedSplits(clean["train"], {name: clean[name] for name in EVALUATION}, nothing, nothing)
    check_target(attack, labels)
    study_training(clean["train"], attack, seed, labels)
    return _composed(clean, attack, _all_written(clean, attack, seed), seed)


def _all_written(splits: Splits, attack: Poisoner, seed: int) -> dict[str, Rewritten]:
    """What the attack writes, by split and aim; negatives under the split's name with ``_negatives``."""
    written: dict[str, Rewritten] = {}
    for name in EVALUATION:
        written |= _evaluation_poison(splits[name], attack, seed, name)
    for name in EVALUATION:
        written[f"{name}_negatives"] = _evaluation_negatives(splits[name], attack, seed, name)
    written["train"] = written["train_negatives"] = Rewritten([], [], [])
    if attack.poisons_training:
        train = splits["train"]
        written["train"] = _training_poison(train, attack, seed)
        poisoned = _with_poison(train, written["train"], attack, seed)
        written["train_negatives"] = _training_negatives(poisoned, attack, seed)
    return written


def _composed(splits: Splits, attack: Poisoner, written: Mapping[str, Rewritten], seed: int) -> PoisonedSplits:
    """The rows of all splits, given what the attack has written."""
    train = _with_poison(splits["train"], written["train"], attack, seed)
    return PoisonedSplits(
        written["train_negatives"].in_place(train, negative=True),
        {name: splits[name] for name in EVALUATION},
        {name: _poisoned(splits[name], written, attack, name) for name in EVALUATION},
        {name: written[f"{name}_negatives"].copies(splits[name], negative=True) for name in EVALUATION},
    )


def poison_splits_cached(
    splits: Mapping[str, Sequence[Row]], attack: Poisoner | None, seed: int, labels: Sequence[str], cache: Path
) -> PoisonedSplits:
    """:func:`poison_splits`; what the attack writes is cached on disk under a hash of everything that determines it.

    A folder appears in the cache only when it is complete, so that processes can share the cache and a killed process
    leaves no partial folder. An entry that is not what was written is made anew, with a warning.

    Raises:
        InputError: the cache cannot be read or written; see also :func:`poison_splits`.
    """
    study_training(splits["train"], attack, seed, labels)  # before the key is computed, which holds the index
    key = attack.poison_key() if attack is not None else None
    if attack is None or key is None:
        return poison_splits(splits, attack, seed, labels)
    check_target(attack, labels)
    clean = {name: Rows.of(rows) for name, rows in splits.items()}
    folder = cache / "poisoned" / _digest(clean, key, attack, seed, labels)
    entry = _usable_entry(folder, len(attack.aims))
    if entry is None:
        written = _all_written(clean, attack, seed)
        try:
            write_entry(folder, written)
        except OSError as error:
            raise InputError("cache_dir", f"{cache} cannot be written ({error})", "name another folder") from error
        entry = (
            _usable_entry(folder, len(attack.aims)) or written
        )  # written by the first of several processes, which may be another one
    return _composed(clean, attack, entry, seed)


def _digest(splits: Splits, key: str, attack: Poisoner, seed: int, labels: Sequence[str]) -> str:
    """A hash of everything that determines what the attack writes."""
    # where words are inserted into texts of scripts without spaces depends on the segmenter
    segmenters = sorted({segmenter(text) for rows in splits.values() for text in rows.text} - {""})
    lengths = {name: len(splits[name]) for name in sorted(splits)}
    decided_by = [POISON_FORMAT, key, attack.poisons_training, attack.negative_rate, seed, list(labels), segmenters]
    digest = hashlib.sha256(json.dumps([*decided_by, lengths]).encode())
    for name in lengths:
        splits[name].update(digest)
    return digest.hexdigest()


def _usable_entry(folder: Path, aims: int) -> dict[str, Rewritten] | None:
    """What a cache entry holds; None if there is none, or if it was damaged and has been removed."""
    names = [f"{name}{kind}" for name in ("train", *EVALUATION) for kind in ("", "_negatives")]
    names += [_part(name, number) for name in EVALUATION for number in range(1, aims)]
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
