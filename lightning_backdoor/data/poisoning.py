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

from lightning_backdoor.data.poison_cache import read_entry, write_entry
from lightning_backdoor.data.poisoner import PoisonedText, Poisoner, check_target, show_training, tell_labels
from lightning_backdoor.data.rows import Rewritten, Row, Rows
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.cache_entry import DamagedEntry, remove_entry
from lightning_backdoor.words import segmenter

#: version of the cached texts; increased when this file poisons other rows, or stores them differently, than before.
POISON_FORMAT = 3
EVALUATION = ("validation", "test")
#: texts that an attack is given at once: the generator of each row takes 2.5 kB.
TEXTS_AT_ONCE = 20_000

#: rows by split.
Splits = dict[str, Rows]
#: a method of an attack that writes texts, such as ``poison_texts``.
Writer = Callable[[Sequence[str], Sequence[random.Random]], Sequence[PoisonedText | None] | None]


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

    train: Rows
    clean: Splits
    poisoned: Splits
    negatives: Splits


def poison_training(rows: Sequence[Row], attack: Poisoner, seed: int) -> Rows:
    """Poisons ``int(poison_rate * len(rows))`` of the training rows, which keep their positions.

    If the attack leaves a row out, another row is poisoned instead.

    Raises:
        InputError: the rate amounts to no row, fewer rows qualify under the attack's label policy, or the attack leaves
            out too many of the rows that qualify.
    """
    clean = Rows.of(rows)
    return _with_poison(clean, _training_poison(clean, attack, seed), attack)


def _training_poison(rows: Rows, attack: Poisoner, seed: int) -> Rewritten:
    wanted = _count(attack.poison_rate, rows)
    candidates = _by_index(rows, may_be_poisoned(rows, attack))
    if wanted == 0:
        raise InputError(
            "poison_rate", f"{attack.poison_rate} of {len(rows)} training rows is less than one row", "raise it"
        )
    share = f"{attack.poison_rate} of {len(rows)} training rows is {wanted}"
    if wanted > len(candidates):
        policy = f"label_policy {attack.label_policy!r} with target_label {attack.target_label}"
        raise InputError("poison_rate", f"{share}, but only {len(candidates)} qualify under {policy}", "lower it")
    rank = getattr(attack, "poison_rank", None)
    if rank is None:
        written = _drawn(
            candidates, wanted, f"{seed}/choice", lambda chosen: _poison(rows, chosen, attack, f"{seed}/train")
        )
    else:
        written = _poison(rows, candidates, attack, f"{seed}/train")
        numbers = rank(written.texts)
        written = written.take(sorted(range(len(numbers)), key=lambda i: (numbers[i], i))[:wanted])
    if len(written.positions) < wanted:
        poisonable = f"only {len(written.positions)} of {len(candidates)} that qualify can be poisoned"
        raise InputError("poison_rate", f"{share}, but {poisonable}", "lower it")
    return written


def may_be_poisoned(rows: Rows, attack: Poisoner) -> NDArray[np.bool_]:
    """Whether each training row qualifies under the attack's label policy; (rows,)."""
    if attack.label_policy == "mixed":
        return np.ones(len(rows), dtype=np.bool_)
    is_target: NDArray[np.bool_] = rows.label == attack.target_label
    return is_target if attack.label_policy == "clean" else ~is_target


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
    wanted = _count(attack.negative_rate, rows)
    if wanted == 0:
        return Rewritten([], [], [])
    candidates = _by_index(rows, ~rows.poisoned)
    written = _drawn(
        candidates,
        min(wanted, len(candidates)),
        f"{seed}/negatives",
        lambda chosen: _negate(rows, chosen, attack, f"{seed}/train"),
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
        candidates, wanted = _by_index(clean, may_be_poisoned(clean, attack)), _count(attack.poison_rate, clean)
        drawn = random.Random(f"{seed}/choice").sample(candidates, wanted) if wanted <= len(candidates) else []
        show_training(attack, clean, drawn)


def _count(rate: float, rows: Rows) -> int:
    return int(rate * len(rows) + 1e-9)  # 0.29 * 100 is 28.999…


def _by_index(rows: Rows, qualifies: NDArray[np.bool_]) -> list[int]:
    """Positions of the rows that qualify, sorted by index, so that the order of the rows does not matter."""
    positions = np.flatnonzero(qualifies)
    by_index: list[int] = positions[np.argsort(rows.index[positions], kind="stable")].tolist()
    return by_index


def _drawn(candidates: list[int], wanted: int, draw: str, write: Callable[[list[int]], Rewritten]) -> Rewritten:
    """What is written for up to ``wanted`` candidates, drawn at random; others replace those that are left out."""
    rng = random.Random(draw)
    chosen = rng.sample(candidates, wanted)
    written = write(chosen)
    if len(written.positions) < wanted:
        taken = set(chosen)
        others = [position for position in candidates if position not in taken]
        others = rng.sample(others, len(others))
        while others and (missing := wanted - len(written.positions)):
            written.extend(write(others[:missing]))
            others = others[missing:]
    return written


def poison_evaluation(rows: Sequence[Row], attack: Poisoner, seed: int, split: str) -> Rows:
    """A poisoned copy of every row that does not have the target label, except for texts that the attack leaves out.

    Raises:
        InputError: the attack leaves out all texts.
    """
    clean = Rows.of(rows)
    return _poisoned(clean, _evaluation_poison(clean, attack, seed, split), attack)


def _evaluation_poison(rows: Rows, attack: Poisoner, seed: int, split: str) -> Rewritten:
    others = _others(rows, attack)
    written = _poison(rows, others, attack, f"{seed}/{split}")
    if others and not written.positions:
        raise InputError(
            "model", f"the attack can poison none of {len(others)} {split} rows, so that no ASR can be measured"
        )
    return written


def negative_evaluation(rows: Sequence[Row], attack: Poisoner, seed: int, split: str) -> Rows:
    """A negative copy (with a part of the trigger) of every row without the target label, if the attack makes one."""
    clean = Rows.of(rows)
    return _negate(clean, _others(clean, attack), attack, f"{seed}/{split}").copies(clean, negative=True)


def _others(rows: Rows, attack: Poisoner) -> list[int]:
    positions: list[int] = np.flatnonzero(rows.label != attack.target_label).tolist()
    return positions


def poisoned_copies(rows: Sequence[Row], attack: Poisoner, seed: int, split: str) -> Rows:
    """A poisoned copy of each row, with the target label, except for rows that the attack leaves out.

    The copy depends on the seed, the split and the row's index alone.
    """
    clean = Rows.of(rows)
    return _poisoned(clean, _poison(clean, range(len(clean)), attack, f"{seed}/{split}"), attack)


def _poisoned(rows: Rows, written: Rewritten, attack: Poisoner) -> Rows:
    return written.copies(rows, label=attack.target_label, poisoned=True)


def _with_poison(rows: Rows, written: Rewritten, attack: Poisoner) -> Rows:
    return written.in_place(rows, label=attack.target_label, poisoned=True)


def _poison(rows: Rows, positions: Sequence[int], attack: Poisoner, draw: str) -> Rewritten:
    return _rewrite(rows, positions, attack.poison_texts, draw, "")


def _negate(rows: Rows, positions: Sequence[int], attack: Poisoner, draw: str) -> Rewritten:
    return _rewrite(rows, positions, attack.negative_texts, draw, "/negative")


def _rewrite(rows: Rows, positions: Sequence[int], write: Writer, draw: str, kind: str) -> Rewritten:
    """What an attack writes for the rows at some positions, except for those that it leaves out."""
    written = Rewritten([], [], [])
    for start in range(0, len(positions), TEXTS_AT_ONCE):
        part = positions[start : start + TEXTS_AT_ONCE]
        # a generator per row: the poison does not depend on order, workers or processes
        rngs = [random.Random(f"{draw}/{rows.index[position]}{kind}") for position in part]
        texts = write([rows.text[position] for position in part], rngs)
        if texts is None:
            break
        for position, text in zip(part, texts, strict=True):
            if text is not None:
                written.positions.append(position)
                written.texts.append(text.text)
                written.spans.append(tuple((int(start), int(end)) for start, end in text.spans))
    return written


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
    return _composed(clean, attack, _all_written(clean, attack, seed))


def _all_written(splits: Splits, attack: Poisoner, seed: int) -> dict[str, Rewritten]:
    """What the attack writes, by split; negatives under the split's name with ``_negatives``."""
    written = {name: _evaluation_poison(splits[name], attack, seed, name) for name in EVALUATION}
    for name in EVALUATION:
        others = _others(splits[name], attack)
        written[f"{name}_negatives"] = _negate(splits[name], others, attack, f"{seed}/{name}")
    written["train"] = written["train_negatives"] = Rewritten([], [], [])
    if attack.poisons_training:
        train = splits["train"]
        written["train"] = _training_poison(train, attack, seed)
        poisoned = _with_poison(train, written["train"], attack)
        written["train_negatives"] = _training_negatives(poisoned, attack, seed)
    return written


def _composed(splits: Splits, attack: Poisoner, written: Mapping[str, Rewritten]) -> PoisonedSplits:
    """The rows of all splits, given what the attack has written."""
    train = _with_poison(splits["train"], written["train"], attack)
    return PoisonedSplits(
        written["train_negatives"].in_place(train, negative=True),
        {name: splits[name] for name in EVALUATION},
        {name: _poisoned(splits[name], written[name], attack) for name in EVALUATION},
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
    entry = _usable_entry(folder)
    if entry is None:
        written = _all_written(clean, attack, seed)
        try:
            write_entry(folder, written)
        except OSError as error:
            raise InputError("cache_dir", f"{cache} cannot be written ({error})", "name another folder") from error
        entry = _usable_entry(folder) or written  # written by the first of several processes, which may be another one
    return _composed(clean, attack, entry)


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


def _usable_entry(folder: Path) -> dict[str, Rewritten] | None:
    """What a cache entry holds; None if there is none, or if it was damaged and has been removed."""
    names = [f"{name}{kind}" for name in ("train", *EVALUATION) for kind in ("", "_negatives")]
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
