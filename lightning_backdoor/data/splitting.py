"""Stratified splits and samples that depend only on the labels and the seed."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise


def stratified_order(labels: Sequence[int], seed: str) -> list[int]:
    """Row numbers in a random order in which every stretch has about the overall shares of the classes.

    Cutting this order at any position gives stratified, disjoint parts.

    Args:
        labels: class index of each row.
        seed: seed of the order.

    >>> order = stratified_order([0, 1] * 50, "a seed")
    >>> sum(order[i] % 2 for i in range(10)), sorted(order) == list(range(100))
    (5, True)
    """
    by_label: defaultdict[int, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        by_label[label].append(row)
    rng = random.Random(seed)
    spread: list[tuple[float, int, int]] = []
    for label in sorted(by_label):
        rows = by_label[label]
        rng.shuffle(rows)
        spread += [((i + 0.5) / len(rows), label, row) for i, row in enumerate(rows)]
    return [row for _, _, row in sorted(spread)]


def stratified_parts(
    labels: Sequence[int], shares: Sequence[float], seed: str, texts: Sequence[str] | None = None
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
    part_of = [-1] * len(order)
    for part, (start, end) in enumerate(pairwise(edges)):
        for row in order[start:end]:
            part_of[row] = part
    if texts is not None:
        first: dict[str, int] = {}
        part_of = [part_of[first.setdefault(text, row)] for row, text in enumerate(texts)]
    return [[row for row, part_of_row in enumerate(part_of) if part_of_row == part] for part in range(len(shares))]
