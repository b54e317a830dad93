"""Stratified splits and samples that depend only on the labels and the seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


def stratified_order(labels: Sequence[int] | NDArray[np.int64], seed: str) -> list[int]:
    """Row numbers in a random order in which every stretch has about the overall shares of the classes.

    Cutting this order at any position gives stratified, disjoint parts.

    Args:
        labels: class index of each row.
        seed: seed of the order.

    >>> order = stratified_order([0, 1] * 50, "a seed")
    >>> sum(order[i] % 2 for i in range(10)), sorted(order) == list(range(100))
    (5, True)
    """
    classes = np.asarray(labels, dtype=np.int64)
    by_label = np.argsort(classes, kind="stable")
    rng = random.Random(seed)
    rows: list[int] = []
    spread = []
    for group in np.split(by_label, np.flatnonzero(np.diff(classes[by_label])) + 1):
        of_label = group.tolist()
        rng.shuffle(of_label)
        rows += of_label
        spread.append((np.arange(len(group)) + 0.5) / len(group))
    order: list[int] = np.array(rows, dtype=np.int64)[np.argsort(np.concatenate(spread), kind="stable")].tolist()
    return order


def mixed(count: int, seed: str) -> list[int]:
    """Row numbers in a random order; rows of equal length keep it in batches."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def stratified_parts(
    labels: Sequence[int] | NDArray[np.int64], shares: Sequence[float], seed: str, texts: Sequence[str] | None = None
) -> list[list[int]]:
    """Disjoint parts of the rows, as ascending row numbers, of about the given shares.

    Args:
        labels: class index of each row.
        shares: share of each part; if they add up to less than 1, some rows are not in any part.
        seed: seed of the parts.
        texts: text of each row; if given, all rows with the same text are in the same part, the part of the first of
            them.

    >>> [len(part) for part in stratified_parts([0, 1] * 50, [0.2, 0.1, 0.7], "a seed")]
    [20, 10, 70]
    """
    order = stratified_order(labels, seed)
    edges = [round(sum(shares[:i]) * len(order)) for i in range(len(shares) + 1)]
    part_of = np.full(len(order), -1)
    for part, (start, end) in enumerate(pairwise(edges)):
        part_of[order[start:end]] = part
    if texts is not None:
        first: dict[str, int] = {}
        part_of = part_of[[first.setdefault(text, row) for row, text in enumerate(texts)]]
    return [np.flatnonzero(part_of == part).tolist() for part in range(len(shares))]
