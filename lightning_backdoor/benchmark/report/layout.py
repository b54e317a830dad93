"""Where points and labels are drawn, so that they do not cover each other; all lengths are pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

#: height of a label, and mean width of a character.
LINE_HEIGHT, CHARACTER_WIDTH = 15.0, 6.0
ROUNDS, ATTEMPTS = 200, 8
#: into how many parts the line from a point to its label is cut, to see what it crosses.
LEADER_PARTS = 15


class LabelPosition(NamedTuple):
    """Where the middle of a label's near side is, relative to its point.

    Attributes:
        x: pixels to the right.
        y: pixels downwards.
        side: 1 if the label is on the right of that position, -1 on the left, 0 if it is centred.
        far: whether a line should lead to the label.
    """

    x: float
    y: float
    side: int
    far: bool


def _around(distance: float) -> Iterator[LabelPosition]:
    """Positions at a distance: right, left, above, below, then between."""
    yield from (LabelPosition(side * distance, 0.0, side, distance > NEAR) for side in (1, -1))
    yield from (LabelPosition(0.0, side * (distance + 3), 0, distance > NEAR) for side in (-1, 1))
    for angle in (0.5, 0.9, 1.25):
        x, y = distance * math.cos(angle), (distance + 3) * math.sin(angle)
        yield from (LabelPosition(side * x, up * y, side, distance > NEAR) for up in (-1, 1) for side in (1, -1))


#: labels further from their points have a line; the distances that are tried; how far a label may be, as a share of
#: the figure's width.
NEAR, DISTANCES, REACH = 12.0, (9, 12, 17, 24, 32, 42, 54, 68, 84, 100, 120), 0.15
#: where a label may be, the nearest positions first.
CANDIDATES = [position for distance in DISTANCES for position in _around(distance)]


def moved_apart(points: Points, distance: float, size: tuple[float, float]) -> Points:
    """Points at least ``distance`` from each other, if there is room; the others stay.

    Args:
        points: (points, 2), x and y.
        distance: the smallest distance.
        size: width and height that the points stay in.

    >>> moved_apart(np.array([[50.0, 50.0], [50.0, 50.0], [90.0, 90.0]]), 10, (100, 100)).round(1).tolist()
    [[45.0, 50.0], [55.0, 50.0], [90.0, 90.0]]
    """
    moved = points.astype(float).copy()
    if len(moved) < 2:
        return moved
    angles = np.arange(len(moved)) * 2.4  # points at the same position are pushed in different directions
    for _ in range(ROUNDS):
        between = moved[:, None] - moved[None]
        lengths = np.hypot(between[..., 0], between[..., 1])
        missing = np.clip(distance - lengths, 0, None)
        np.fill_diagonal(missing, 0)
        if missing.max() < 0.01:
            break
        same = lengths < 1e-6
        direction = np.where(same[..., None], 0, between / np.where(same, 1, lengths)[..., None])
        for i, j in zip(*np.nonzero(same & (missing > 0)), strict=True):
            away = angles[min(i, j)]
            sign = -1 if i < j else 1
            direction[i, j] = sign * np.cos(away), sign * np.sin(away)
        step = (direction * missing[..., None] / 2).sum(axis=1)
        moved = np.clip(moved + step, 0, size)
    return moved


def label_positions(
    points: Points, texts: Sequence[str], radius: float, size: tuple[float, float]
) -> list[LabelPosition | None]:
    """For each point, where its label is; None for a label that would cover something everywhere.

    Labels are placed one after another, each as near to its point as there is room. If some have no room, all are
    placed again, these first; the attempt that places the most labels, and then the nearest, is taken.

    Args:
        points: (points, 2), x and y.
        texts: the labels.
        radius: radius of a point's mark.
        size: width and height that the labels stay in.
    """
    order = [*range(len(points))]
    tried = []
    for _ in range(ATTEMPTS):
        tried.append(_placed(points, texts, radius, size, order))
        left_out = [i for i in order if tried[-1][i] is None]
        order = [*left_out, *(i for i in order if i not in left_out)]
        if not left_out:
            break
    far = 10 * DISTANCES[-1]
    return min(tried, key=lambda positions: sum(far if p is None else math.hypot(p.x, p.y) for p in positions))


def _placed(
    points: Points, texts: Sequence[str], radius: float, size: tuple[float, float], order: Sequence[int]
) -> list[LabelPosition | None]:
    marks = _boxes(points, np.full(2, radius))
    labels, leaders = np.empty((0, 4)), np.empty((0, 4))
    result: list[LabelPosition | None] = [None] * len(points)
    near = [position for position in CANDIDATES if math.hypot(position.x, position.y) < REACH * size[0]]
    ends = np.array([position[:2] for position in near])
    sides = np.array([(position.side, 0) for position in near])
    for i in order:
        half = np.array([len(texts[i]) * CHARACTER_WIDTH / 2, LINE_HEIGHT / 2])
        box = _boxes(points[i] + ends + sides * half, half)
        leader = _boxes(points[i] + np.linspace(0, ends, LEADER_PARTS, axis=1)[:, 1:], np.ones(2))
        free = (box[:, :2] >= 0).all(axis=1) & (box[:, 2:] <= size).all(axis=1)
        free &= ~_cover(box, np.concatenate([marks, labels, leaders])) & ~_cover(leader, labels).any(axis=1)
        if free.any():
            first = int(free.argmax())
            result[i] = near[first]
            labels, leaders = np.concatenate([labels, box[[first]]]), np.concatenate([leaders, leader[first]])
    return result


def _boxes(centres: Points, half: Points) -> Points:
    """Left, top, right and bottom of boxes of the same size; (..., 4)."""
    return np.concatenate([centres - half, centres + half], axis=-1)


def _cover(boxes: Points, others: Points) -> NDArray[np.bool_]:
    """Whether each of some boxes, (..., 4), overlaps any of other boxes, (others, 4); (...,)."""
    box = boxes[..., None, :]
    return np.asarray(((box[..., :2] < others[:, 2:]) & (box[..., 2:] > others[:, :2])).all(axis=-1).any(axis=-1))
