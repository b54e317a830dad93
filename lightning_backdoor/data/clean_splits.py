"""The clean rows of a source: missing splits are cut, rows sampled, validation rows divided into parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_backdoor.data.poisoning import Row, Splits, clean_row
from lightning_backdoor.data.source import LabelledTexts, Loaded, Source, load_source
from lightning_backdoor.data.splitting import stratified_order, stratified_parts
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.columns import listed


class CleanSplits(NamedTuple):
    """The clean rows of a run.

    Attributes:
        splits: rows of ``train``, ``validation`` and ``test``.
        label_names: names of the classes in the order of their indices.
        is_cut: whether validation or test rows were cut from the training rows.
    """

    splits: Splits
    label_names: list[str]
    is_cut: bool


class ValidationParts(NamedTuple):
    """Disjoint parts of the clean validation rows.

    Attributes:
        selection: rows on which validation evaluates and checkpoints are selected.
        reference: rows from which a defense may take statistics or reference texts.
        threshold: rows on which a defense's threshold is calibrated.
    """

    selection: list[Row]
    reference: list[Row]
    threshold: list[Row]


def read_clean_splits(
    source: Source, shares: Mapping[str, float], max_rows: Mapping[str, int], seed: int
) -> CleanSplits:
    """Reads the clean rows of a source and cuts and samples the splits.

    Args:
        source: the source of texts and labels.
        shares: for ``validation`` and ``test``, the share of the training rows that is cut off if the source has no
            such split.
        max_rows: per split, the maximum number of rows, drawn as a stratified sample.
        seed: seed of cuts and samples.

    Raises:
        InputError: see :func:`lightning_backdoor.data.source.load_source`; or cutting and sampling leave a split
            without rows, or fewer than two classes to train on.
    """
    loaded = load_source(source)
    if loaded.left_out:
        rank_zero_info(f"{loaded.left_out} rows between {source.rating_cut} were left out")
    splits = {name: _rows(split) for name, split in loaded.splits.items()}
    missing = {name: share for name, share in shares.items() if name not in splits}
    parts = _parts(splits["train"], [*missing.values(), 1 - sum(missing.values())], f"{seed}/splits")
    splits |= zip([*missing, "train"], parts, strict=True)
    _check_cut(loaded, [name for name in missing if not splits[name]])
    sampled = {
        name: _sample(splits[name], max_rows.get(name), f"{seed}/sample/{name}")
        for name in ("train", "validation", "test")
    }
    _check_training_classes(loaded, splits["train"], sampled["train"])
    return CleanSplits(sampled, loaded.label_names, bool(missing))


def split_validation(rows: list[Row], shares: Sequence[float], seed: int) -> ValidationParts:
    """Splits the clean validation rows into three disjoint, stratified parts.

    Raises:
        InputError: there are too few rows to fill every part.
    """
    parts = _parts(rows, shares, f"{seed}/validation")
    if not all(parts):
        raise InputError("validation_parts", f"{len(rows)} validation rows do not fill three parts", "use more rows")
    return ValidationParts(*parts)


def _check_training_classes(loaded: Loaded, cut: list[Row], sampled: list[Row]) -> None:
    if len({row["label"] for row in sampled}) > 1:
        return
    names = listed(sorted({repr(loaded.label_names[row["label"]]) for row in sampled}))
    if len({row["label"] for row in cut}) > 1:
        raise InputError("max_rows", f"train={len(sampled)} leaves training rows of {names} alone", "give more")
    raise InputError(
        "source",
        f"without the rows cut off for validation and test, {len(cut)} training rows are left, of"
        f" {names or 'no class'} alone: {_duplicates(loaded.splits['train'].texts)}",
        "remove duplicates, or give validation and test rows by splits",
    )


def _check_cut(loaded: Loaded, empty: list[str]) -> None:
    """Checks that validation and test rows were cut from the training rows, given the splits that got none."""
    texts = loaded.splits["train"].texts
    if not empty:
        return
    problem = f"{len(texts)} rows leave none to cut off for {listed(empty)}"
    if len(set(texts)) == len(texts):
        raise InputError("source", problem, "give more rows, a larger share, or other rows by splits")
    raise InputError(
        "source", f"{problem}: {_duplicates(texts)}", "remove duplicates, or give validation and test rows by splits"
    )


def _duplicates(texts: Sequence[str]) -> str:
    ((text, count),) = Counter(texts).most_common(1)
    repeated = len(texts) - len(set(texts))
    return (
        f"rows of one text stay together, and {repeated} of {len(texts)} rows repeat a text,"
        f" {text[:40]!r} {count} times"
    )


def _rows(split: LabelledTexts) -> list[Row]:
    return [clean_row(text, label, i) for i, (text, label) in enumerate(zip(split.texts, split.labels, strict=True))]


def _sample(rows: list[Row], limit: int | None, seed: str) -> list[Row]:
    order = stratified_order([row["label"] for row in rows], seed)
    return [rows[i] for i in sorted(order[:limit])]


def _parts(rows: list[Row], shares: Sequence[float], seed: str) -> list[list[Row]]:
    """Stratified parts, all rows of one text in the same part."""
    parts = stratified_parts([row["label"] for row in rows], shares, seed, [row["text"] for row in rows])
    return [[rows[i] for i in part] for part in parts]
