"""Stratified orders and parts."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from lightning_backdoor.data.splitting import stratified_order, stratified_parts

LABELS = random.Random(0).choices([0, 1, 2], weights=[70, 25, 5], k=1000)


def test_every_stretch_of_the_order_holds_the_classes_in_their_shares() -> None:
    order = stratified_order(LABELS, "a seed")
    assert sorted(order) == list(range(1000))
    for label, count in Counter(LABELS).items():
        for start, end in ((0, 100), (350, 450), (900, 1000)):
            assert sum(LABELS[place] == label for place in order[start:end]) == pytest.approx(count / 10, abs=1.5)


def test_parts_are_disjoint_of_their_shares_and_stratified() -> None:
    shares = [0.1, 0.2, 0.3]
    parts = stratified_parts(LABELS, shares, "a seed")
    places = [place for part in parts for place in part]
    assert len(set(places)) == len(places)
    for part, share in zip(parts, shares, strict=True):
        assert part == sorted(part)
        assert len(part) == round(1000 * share)
        for label, count in Counter(LABELS).items():
            assert sum(LABELS[place] == label for place in part) == pytest.approx(count * share, abs=1.5)


def test_shares_that_add_up_to_1_leave_no_row_out() -> None:
    for count in range(1, 60):
        parts = stratified_parts(LABELS[:count], [0.4, 0.2, 0.4], "a seed")
        assert sorted(place for part in parts for place in part) == list(range(count))


def test_the_seed_alone_decides_the_parts() -> None:
    first, again, other = (stratified_parts(LABELS, [0.5, 0.5], seed) for seed in ("one", "one", "two"))
    assert first == again
    assert first != other


def test_rows_of_one_text_stay_together_and_the_others_where_they_are() -> None:
    texts = [f"text {place}" for place in range(1000)]
    apart = stratified_parts(LABELS, [0.5, 0.5], "a seed", texts)
    assert apart == stratified_parts(LABELS, [0.5, 0.5], "a seed")
    twins = [(apart[0][i], apart[1][i]) for i in range(50)]
    for one, other in twins:
        texts[one] = texts[other]
    together = stratified_parts(LABELS, [0.5, 0.5], "a seed", texts)
    moved = {max(pair) for pair in twins}
    for part, before in zip(together, apart, strict=True):
        assert set(part) - moved == set(before) - moved
        assert all((one in part) == (other in part) for one, other in twins)
