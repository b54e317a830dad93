"""Putting the results of several grids and tests together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_backdoor.benchmark.grid_file import CLEAN_TRAINING, UNDEFENDED
from lightning_backdoor.benchmark.meanings import BENIGN, digest
from lightning_backdoor.benchmark.missing import MissingCell
from lightning_backdoor.benchmark.report.source import Source
from lightning_backdoor.benchmark.table import NAMES, NUMBERS, TIMINGS, ResultRow, key_of

#: names that are never followed by a label, since the rules of validity look for them.
RESERVED = (("attack", BENIGN), ("defense", UNDEFENDED))


def merge(sources: Sequence[Source], warn: Callable[[str], None]) -> tuple[list[ResultRow], list[MissingCell]]:
    """The rows and the missing cells of all sources, with names that mean the same everywhere.

    - A name that stands for different settings in different sources is followed by the label of the grid or run, so
      that what differs is never averaged: ``onion (demo)``, ``onion (large)``. Where tests of one run differ, their
      own labels follow instead: ``Onion (first/test)``, ``Onion (first/test-2)``.
    - Benign victims keep the name of their attack. Where they differ in one dataset and model, the label follows the
      model in all rows of the source, whose attacks are judged by them: ``minilm (demo)``.
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
    of_benign = _labels_of_benign(labelled)

    def apart(source: Source, names: dict[str, Any]) -> dict[str, Any]:
        label = of_benign.get(_place_of_benign(source, names))
        return {**names, "model": f"{names['model']} ({label})"} if label else names

    kept, left_out = _without_repeats([(source, apart(source, row)) for source, row in labelled])
    for label, count in Counter(left_out).items():
        warn(f"{label}: {count} {'row' if count == 1 else 'rows'} left out, which another folder has too")
    rows_of_names = Counter(key_of(row) for _, row in kept)
    clashing = {(source.label, row["model"]) for source, row in kept if rows_of_names[key_of(row)] > 1}
    for source, row in kept:
        if (source.label, row["model"]) in clashing:
            row["model"] += f" ({source.label})"
    rows = [row for _, row in kept]
    done = {key_of(row) for row in rows}
    missing = [
        cell._replace(names=apart(source, named(source, cell.names))) for source in sources for cell in source.missing
    ]
    return rows, [cell for cell in missing if key_of(cell.names) not in done]


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
        labels |= {(name, meaning): label for meaning, label in _told_apart(of_name).items()}
    return labels


def _told_apart(sources: Mapping[str, Source]) -> dict[str, str]:
    """A label per meaning, from the first source with it; empty if there is only one meaning."""
    if len(sources) == 1:
        return {}
    runs_differ = len({source.run_label for source in sources.values()}) == len(sources)
    return {meaning: source.run_label if runs_differ else source.label for meaning, source in sources.items()}


def _labels_of_benign(labelled: Sequence[tuple[Source, ResultRow]]) -> dict[tuple[str, str, str | None], str]:
    """A label per dataset, model and meaning of their benign victims, where these have several meanings.

    Grids and tests are not compared: they give no model the same meaning, so that its name has their labels already.
    """
    first: dict[tuple[str, str], dict[str, Source]] = {}
    for source, row in labelled:
        dataset, model, meaning = _place_of_benign(source, row)
        if meaning is not None and (row["attack"] == BENIGN or row["defense"] == CLEAN_TRAINING):
            first.setdefault((dataset, model), {}).setdefault(meaning, source)
    return {(*place, meaning): label for place, of in first.items() for meaning, label in _told_apart(of).items()}


def _place_of_benign(source: Source, names: Mapping[str, Any]) -> tuple[str, str, str | None]:
    return names["dataset"], names["model"], source.meanings["attack"].get(BENIGN)


def _without_repeats(
    labelled: Sequence[tuple[Source, ResultRow]],
) -> tuple[list[tuple[Source, ResultRow]], list[str]]:
    """The rows without those of a cell that an earlier source has, and the labels of the sources of the others."""
    kept: dict[tuple[str, ...], tuple[Source, ResultRow]] = {}
    left_out = []
    for source, row in labelled:
        key = (*key_of(row), _cell_id(row))
        if key in kept and (row["error"] or not kept[key][1]["error"]):
            left_out.append(source.label)
            continue
        if key in kept:
            left_out.append(kept[key][0].label)
        kept[key] = source, row
    return [*kept.values()], left_out


def _cell_id(row: ResultRow) -> str:
    """What two copies of a cell have in common: the id of a grid's cell, the numbers of a test."""
    folder = Path(row["cell"])
    if folder.parent.name == "cells":
        return folder.name
    return digest([row[name] for name in NUMBERS if name not in TIMINGS])
