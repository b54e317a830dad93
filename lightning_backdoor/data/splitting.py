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


def stratified_parts(
    labels: Sequence[int], shares: Sequence[float], seed: str, texts: Sequence[str] | None = None
) -> list[list[int]]:
    """Disjoint parts of the rows, of about the given shares, each in the rows' own order.

    Args:
        labels: class index of each row.
        shares: of the parts; what they leave to 1 is in no part.
        seed: decides the parts.
        texts: text of each row; rows of one text then stay together, where the first of them is.

    >>> [len(part) for part in stratified_parts([0, 1] * 50, [0.2, 0.1, 0.7], "a seed")]
    [20, 10, 70]
    """
    order = stratified_order(labels, seed)
    edges = [round(sum(shares[:i]) * len(order)) for i in range(len(shares) + 1)]
    part_of = [-1] * len(order)
    for part, (start, end) in enumerate(pairwise(edges)):
        for place in order[start:end]:
            part_of[place] = part
    if texts is not None:
        first: dict[str, int] = {}
        part_of = [part_of[first.setdefault(text, place)] for place, text in enumerate(texts)]
    return [[place for place, its in enumerate(part_of) if its == part] for part in range(len(shares))]
