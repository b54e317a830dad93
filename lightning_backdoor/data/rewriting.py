"""Writing texts in place of those of drawn rows: a generator per row, and other rows for those that are left out."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_backdoor.data.aims import Writer
from lightning_backdoor.data.rows import Rewritten, Rows

#: texts that an attack is given at once: the generator of each row takes 2.5 kB.
TEXTS_AT_ONCE = 20_000


def row_count(rate: float, rows: Rows) -> int:
    """Number of rows that are a share of all of them."""
    return int(rate * len(rows) + 1e-9)  # 0.29 * 100 is 28.999…


def by_index(rows: Rows, qualifies: NDArray[np.bool_]) -> list[int]:
    """Positions of the rows that qualify, sorted by index, so that the order of the rows does not matter."""
    positions = np.flatnonzero(qualifies)
    ordered: list[int] = positions[np.argsort(rows.index[positions], kind="stable")].tolist()
    return ordered


def drawn(candidates: list[int], wanted: int, draw: str, write: Callable[[list[int]], Rewritten]) -> Rewritten:
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


def rewrite(rows: Rows, positions: Sequence[int], write: Writer, draw: str, kind: str = "") -> Rewritten:
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
