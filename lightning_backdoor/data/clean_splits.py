"""The clean rows of a source: missing splits are cut, rows sampled, validation rows divided into parts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_backdoor.data.poisoning import Splits
from lightning_backdoor.data.rows import Row, Rows
from lightning_backdoor.data.source import Loaded, Source, load_source
from lightning_backdoor.data.splitting import stratified_order, stratified_parts
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.columns import listed


class CleanSplits(NamedTuple):
    """The clean rows of a run.

    Attributes:
        splits: rows of ``train``, ``validation`` and ``test``.
        label_names: names of the classes in the order of their indices.
        is_cut: whether validation or test rows were cut from the training rows.
        text_hashes: hashes of texts in any order: ``texts``, the training texts before validation and test rows were
            cut from them, and ``kept_texts``, those that were kept for training.
        given: hash of all rows as they are given, before they are cut or sampled.
    """

    splits: Splits
    label_names: list[str]
    is_cut: bool
    text_hashes: dict[str, str]
    given: str


class ValidationParts(NamedTuple):
    """Disjoint parts of the clean validation rows.

    Attributes:
        selection: rows on which validation evaluates and checkpoints are selected.
        reference: rows from which a defense may take statistics or reference texts, and on which it is found which
            label each trigger of an attack on the encoder hits.
        threshold: rows on which a defense's threshold is calibrated.
    """

    selection: Rows
    reference: Rows
    threshold: Rows

    def without_others(self, rows: Rows) -> Rows:
        """Poisoned validation rows or negatives, without those whose clean row is in another part than selection."""
        return rows.where(~np.isin(rows.index, np.concatenate([self.reference.index, self.threshold.index])))


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
        low, high = source.rating_cut or (0.0, 0.0)
        between = f"whose {source.label_column} is between {low:g} and {high:g}"
        rank_zero_info(f"{loaded.left_out} rows {between} were left out")
    splits = {name: Rows.clean(*split) for name, split in loaded.splits.items()}
    uncut, given = splits["train"].text, hash_of_rows(splits)
    missing = {name: share for name, share in shares.items() if name not in splits}
    parts = _parts(splits["train"], [*missing.values(), 1 - sum(missing.values())], f"{seed}/splits")
    splits |= zip([*missing, "train"], parts, strict=True)
    _check_cut(loaded, [name for name in missing if not splits[name]])
    sampled = {
        name: _sample(splits[name], max_rows.get(name), f"{seed}/sample/{name}")
        for name in ("train", "validation", "test")
    }
    _check_training_classes(loaded, splits["train"], sampled["train"])
    return CleanSplits(sampled, loaded.label_names, bool(missing), text_hashes(uncut, splits["train"].text), given)


def text_hashes(texts: Sequence[str], kept: Sequence[str]) -> dict[str, str]:
    """See :class:`CleanSplits`.

    >>> one, other = text_hashes(["a", "b"], ["b", "a"]), text_hashes(["ab"], ["ab"])
    >>> one["texts"] == one["kept_texts"] != other["texts"]
    True
    """
    return {"texts": _hash(texts), "kept_texts": _hash(kept)}


def hash_of_rows(splits: Mapping[str, Rows]) -> str:
    """Hash of the texts and labels of splits by their names, in any order of the rows.

    >>> one, other = (hash_of_rows({"test": Rows.clean([text], [label])}) for text, label in (("a", 0), ("a", 1)))
    >>> one == hash_of_rows({"test": Rows.clean(["a"], [0])}) != other
    True
    """
    rows = {
        name: [f"{label} {text}" for text, label in zip(of.text, of.label, strict=True)] for name, of in splits.items()
    }
    return _hash([f"{name} {_hash(texts)}" for name, texts in rows.items()])


def split_validation(rows: Sequence[Row], shares: Sequence[float], seed: int) -> ValidationParts:
    """Splits the clean validation rows into three disjoint, stratified parts.

    Raises:
        InputError: there are too few rows to fill every part.
    """
    parts = _parts(Rows.of(rows), shares, f"{seed}/validation")
    if not all(parts):
        raise InputError("validation_parts", f"{len(rows)} validation rows do not fill three parts", "use more rows")
    return ValidationParts(*parts)


def _hash(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in sorted(texts):
        encoded = text.encode(errors="surrogatepass")
        digest.update(b"%d:%b" % (len(encoded), encoded))
    return digest.hexdigest()


def _check_training_classes(loaded: Loaded, cut: Rows, sampled: Rows) -> None:
    labels = set(sampled.label.tolist())
    if len(labels) > 1:
        return
    names = listed([repr(loaded.label_names[label]) for label in labels])
    if len(set(cut.label.tolist())) > 1:
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


def _sample(rows: Rows, limit: int | None, seed: str) -> Rows:
    if limit is None or limit >= len(rows):
        return rows
    return rows.take(sorted(stratified_order(rows.label, seed)[:limit]))


def _parts(rows: Rows, shares: Sequence[float], seed: str) -> list[Rows]:
    """Stratified parts, all rows of one text in the same part."""
    return [rows.take(part) for part in stratified_parts(rows.label, shares, seed, rows.text)]
