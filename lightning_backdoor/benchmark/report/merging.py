"""Putting the results of several grids and tests together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_backdoor.benchmark.grid_file import UNDEFENDED
from lightning_backdoor.benchmark.missing import MissingCell
from lightning_backdoor.benchmark.report.source import BENIGN, Source, digest
from lightning_backdoor.benchmark.table import NAMES, NUMBERS, TIMINGS, ResultRow

#: names that mean the same everywhere.
RESERVED = (("attack", BENIGN), ("defense", UNDEFENDED))


def merge(sources: Sequence[Source], warn: Callable[[str], None]) -> tuple[list[ResultRow], list[MissingCell]]:
    """The rows and the missing cells of all sources, with names that mean the same everywhere.

    - A name that stands for different settings in different sources is followed by the label of the grid or run, so
      that what differs is never averaged: ``onion (demo)``, ``onion (large)``. Where tests of one run differ, their
      own labels follow instead: ``Onion (first/test)``, ``Onion (first/test-2)``.
    - Of a cell or test that several sources have, the first is kept that did not fail.
    - Other rows with the same names and seed are told apart by the label at their model.

    Args:
        sources: the sources.
        warn: function that is called with a line for each source whose rows are left out.
    """
    labels = {axis: _labels(sources, axis) for axis in NAMES}

    def named(source: Source, names: Mapping[str, Any]) -> dict[str, Any]:
        result = {**names}
        for axis in NAMES:
            meaning = source.meanings[axis].get(names[axis])
            if label := labels[axis].get((names[axis], meaning)):
                result[axis] = f"{names[axis]} ({label})"
        return result

    labelled = [(source, named(source, row)) for source in sources for row in source.rows]
    kept, left_out = _without_repeats(labelled)
    for label, count in Counter(left_out).items():
        warn(f"{label}: {count} {'row' if count == 1 else 'rows'} left out, which another folder has too")
    rows_of_names = Counter(_key(row) for _, row in kept)
    clashing = {(source.label, row["model"]) for source, row in kept if rows_of_names[_key(row)] > 1}
    for source, row in kept:
        if (source.label, row["model"]) in clashing:
            row["model"] += f" ({source.label})"
    rows = [row for _, row in kept]
    done = {_key(row) for row in rows}
    missing = [cell._replace(names=named(source, cell.names)) for source in sources for cell in source.missing]
    return rows, [cell for cell in missing if _key(cell.names) not in done]


def _labels(sources: Sequence[Source], axis: str) -> dict[tuple[str, str | None], str]:
    """A label per name and meaning, for the names of an axis that have several: that of the first source with it."""
    first: dict[str, dict[str, Source]] = {}
    for source in sources:
        used = {row[axis] for row in source.rows}
        for name, meaning in source.meanings[axis].items():
            if name in used and (axis, name) not in RESERVED:
                first.setdefault(name, {}).setdefault(meaning, source)
    labels: dict[tuple[str, str | None], str] = {}
    for name, of_name in first.items():
        if len(of_name) > 1:
            runs_differ = len({source.run_label for source in of_name.values()}) == len(of_name)
            for meaning, source in of_name.items():
                labels[name, meaning] = source.run_label if runs_differ else source.label
    return labels


def _without_repeats(
    labelled: Sequence[tuple[Source, ResultRow]],
) -> tuple[list[tuple[Source, ResultRow]], list[str]]:
    """The rows without those of a cell that an earlier source has, and the labels of the sources of the others."""
    kept: dict[tuple[str, ...], tuple[Source, ResultRow]] = {}
    left_out = []
    for source, row in labelled:
        key = (*_key(row), _cell_id(row))
        if key in kept and (row["error"] or not kept[key][1]["error"]):
            left_out.append(source.label)
            continue
        if key in kept:
            left_out.append(kept[key][0].label)
        kept[key] = source, row
    return [*kept.values()], left_out


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(row[name] for name in (*NAMES, "seed"))


def _cell_id(row: ResultRow) -> str:
    """What two copies of a cell have in common: the id of a grid's cell, the numbers of a test."""
    folder = Path(row["cell"])
    if folder.parent.name == "cells":
        return folder.name
    return digest([row[name] for name in NUMBERS if name not in TIMINGS])
