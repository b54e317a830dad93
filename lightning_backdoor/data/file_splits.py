"""The splits of a run whose rows come from the files of a poison set: cut and sampled like those of a source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, TypeGuard

import numpy as np

from lightning_backdoor.data.clean_splits import CleanSplits, hash_of_rows, text_hashes
from lightning_backdoor.data.kept import Kept
from lightning_backdoor.data.poison_files import FilePoison
from lightning_backdoor.data.poisoner import Poisoner, poisoned_by
from lightning_backdoor.data.poisoning import EVALUATION, PoisonedSplits, poison_training
from lightning_backdoor.data.rows import Rewritten, Rows
from lightning_backdoor.data.splitting import stratified_order, stratified_parts
from lightning_backdoor.errors import InputError


class BringsRows(Poisoner, Protocol):
    """An attack whose rows, clean and poisoned ones, come from files."""

    @property
    def folder(self) -> str: ...
    def read_rows(self) -> FilePoison: ...


def files_folder(attack: object) -> str | None:
    """The folder of the files from which an attack brings the rows of a run; None if it brings none."""
    return attack.folder if brings_rows(attack) else None


def brings_rows(attack: object) -> TypeGuard[BringsRows]:
    """Whether an attack brings the rows of a run, by its class."""
    return callable(getattr(type(attack), "read_rows", None))


class FileSplits(NamedTuple):
    """The rows of a run: the clean ones as a source has them, and all."""

    clean: CleanSplits
    poisoned: PoisonedSplits


def rows_from_files(
    attack: Poisoner | None, kept: Kept, shares: Mapping[str, float], max_rows: Mapping[str, int], seed: int
) -> FileSplits | None:
    """:func:`file_splits`, kept as long as they stay the same; None for an attack that brings no rows."""
    if not brings_rows(attack):
        return None
    decided_by = ({**shares}, {**max_rows}, seed)
    return kept.get("files", (poisoned_by(attack), *decided_by), lambda: file_splits(attack, *decided_by))


def file_splits(attack: BringsRows, shares: Mapping[str, float], max_rows: Mapping[str, int], seed: int) -> FileSplits:
    """The rows of a run that trains and tests on files.

    Args:
        attack: the attack that brings the rows.
        shares: for ``validation`` and ``test``, the share of the training rows that is cut off if the files have no
            such split; the poisoned rows among them are then its poisoned rows.
        max_rows: per split, the maximum number of rows, drawn as a stratified sample; the poisoned rows of an
            evaluation split are those of the sampled clean rows, and those without a clean row.
        seed: seed of cuts, samples and the draw of poisoned copies.

    Raises:
        InputError: the files do not give the rows; see :func:`lightning_backdoor.data.poison_files.read_poison`.
    """
    files = attack.read_rows()
    train, copies, clean_train = files.train, files.copies, files.clean_train
    uncut = train.text
    clean, poisoned, negatives = dict(files.clean), dict(files.poisoned), dict(files.negatives)
    given = hash_of_rows({"train": train, **clean} | {f"poisoned {name}": rows for name, rows in poisoned.items()})
    missing = {name: share for name, share in shares.items() if name not in clean}
    parts = stratified_parts(
        _strata(train), [*missing.values(), 1 - sum(missing.values())], f"{seed}/splits", train.text
    )
    for name, part in zip(missing, parts, strict=False):
        clean[name], poisoned[name], negatives[name] = _cut_off(name, train.take(part), _of(copies, part), files)
    if missing:
        train, copies = train.take(parts[-1]), _of(copies, parts[-1])
        kept = {*train.index.tolist()}
        cut = {text for name in missing for text in clean[name].text}
        if files.in_order:
            cut |= {text for text, index in zip(clean_train.text, clean_train.index, strict=True) if index not in kept}
        clean_train = clean_train.where(np.array([text not in cut for text in clean_train.text], dtype=np.bool_))
    hashes = text_hashes(uncut, train.text)
    sample = _sampled(train, max_rows.get("train"), f"{seed}/sample/train")
    train, copies = train.take(sample), _of(copies, sample)
    limit = _sampled(clean_train, max_rows.get("train"), f"{seed}/sample/train")
    clean_train = clean_train.take(limit) if copies is None else train
    for name in EVALUATION:
        order = _sampled(clean[name], max_rows.get(name), f"{seed}/sample/{name}")
        left_out = np.setdiff1d(clean[name].index, clean[name].index[order])
        clean[name] = clean[name].take(order)
        for by_split in (poisoned, negatives):
            by_split[name] = by_split[name].where(~np.isin(by_split[name].index, left_out))
    rows = _trained_on(train, copies, clean_train, attack, seed)
    return FileSplits(
        CleanSplits({"train": clean_train, **clean}, files.label_names, bool(missing), hashes, given),
        PoisonedSplits(rows, clean, poisoned, negatives),
    )


def _trained_on(train: Rows, copies: Rewritten | None, clean: Rows, attack: Poisoner, seed: int) -> Rows:
    """The training rows: clean ones in the user's phase, or as the files have them, or with drawn copies."""
    if not attack.poisons_training:
        return clean
    if copies is None:
        return train
    of_row = dict(zip(copies.positions, zip(copies.texts, copies.spans, strict=True), strict=True))

    def write(chosen: list[int]) -> Rewritten:
        return Rewritten(chosen, *map(list, zip(*(of_row[position] for position in chosen), strict=True)))

    return poison_training(train, attack, seed, write)


def _cut_off(name: str, part: Rows, copies: Rewritten | None, files: FilePoison) -> tuple[Rows, Rows, Rows]:
    """Clean rows, poisoned rows and negatives of an evaluation split that is cut off the training rows."""
    if copies is not None:
        poisoned = copies.copies(part, label=files.wanted(part.label), poisoned=True)
        clean, negatives = part, part.where(part.negative)
    else:
        clean, poisoned = part.where(~(part.poisoned | part.negative)), part.where(part.poisoned)
        negatives = part.where(part.negative)
    others = poisoned.where((poisoned.original_label != poisoned.label) & (poisoned.original_label >= 0))
    if not len(clean) or not len(others):
        problem = f"there are no files of {name}, and the {len(part)} training rows cut off for it are not both clean"
        raise InputError(
            "folder", f"{problem} and poisoned ones of known labels", f"give {name}_clean and {name}_poison by files"
        )
    return clean, others, negatives


def _strata(rows: Rows) -> list[int]:
    """Class and kind of each row, to be drawn in their shares."""
    strata: list[int] = (4 * rows.label + 2 * rows.poisoned + rows.negative).tolist()
    return strata


def _sampled(rows: Rows, limit: int | None, seed: str) -> list[int]:
    if limit is None or limit >= len(rows):
        return list(range(len(rows)))
    return sorted(stratified_order(_strata(rows), seed)[:limit])


def _of(copies: Rewritten | None, positions: list[int]) -> Rewritten | None:
    """The copies of the rows at some positions, counted anew."""
    if copies is None:
        return None
    texts = [copies.texts[position] for position in positions]
    return Rewritten(list(range(len(positions))), texts, [copies.spans[position] for position in positions])
