"""Stratified splits and samples, decided by the seed alone."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise


def stratified_order(labels: Sequence[int], seed: str) -> list[int]:
    """A random order of the rows in which every stretch holds the classes in about their overall shares.

    Cutting it anywhere gives stratified, disjoint parts.

    >>> order = stratified_order([0, 1] * 50, "a seed")
    >>> sum(order[i] % 2 for i in range(10)), sorted(order) == list(range(100))
    (5, True)
    """
    by_label: defaultdict[int, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        by_label[label].append(place)
    rng = random.Random(seed)
    spread: list[tuple[float, int, int]] = []
    for label in sorted(by_label):
        places = by_label[label]
        rng.shuffle(places)
        spread += [((i + 0.5) / len(places), label, place) for i, place in enumerate(places)]
    return [place for _, _, place in sorted(spread)]


def stratified_parts(labels: Sequence[int], shares: Sequence[float], seed: str) -> list[list[int]]:
    """Disjoint parts of the rows, of the given shares, each in the rows' own order.

    Args:
        labels: class index of each row.
        shares: of the parts; what they leave to 1 is in no part.
        seed: decides the parts.

    >>> [len(part) for part in stratified_parts([0, 1] * 50, [0.2, 0.1, 0.7], "a seed")]
    [20, 10, 70]
    """
    order = stratified_order(labels, seed)
    edges = [0]
    for i in range(len(shares)):
        edges.append(round(sum(shares[: i + 1]) * len(order)))
    return [sorted(order[start:end]) for start, end in pairwise(edges)]
