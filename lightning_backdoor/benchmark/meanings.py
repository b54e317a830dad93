"""What the names of a grid's entries stand for, as digests: reports put results together whose names mean the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_backdoor.benchmark.fragments import BENIGN as BENIGN_CLASS
from lightning_backdoor.benchmark.fragments import Fragment, compose
from lightning_backdoor.benchmark.grid_file import GridFile
from lightning_backdoor.benchmark.identity import RESULTS_FORMAT, VICTIM_FORMAT, identity, named_beside

#: name of the attack of victims that were trained without one.
BENIGN = "none"
#: per axis, the digest of the settings behind each name; two names mean the same if their digests are equal.
Meanings = Mapping[str, Mapping[str, str]]


def meanings_with_files(grid: GridFile, output: Path | None = None) -> Meanings:
    """The meaning of each name by its settings, the files that they name, and the format numbers of the code.

    A file that an entry names together with ``base`` or ``test`` counts for the entry. What all cells have in common,
    ``base``, ``test`` and the format numbers, counts for the model.

    Args:
        grid: the grid.
        output: the grid's output folder, absolute; nothing that the grid writes to it counts.
    """
    shared = compose(grid.base, grid.test)
    result: dict[str, dict[str, str]] = {}
    for axis, settings in _settings(grid).items():
        code_format = f"{VICTIM_FORMAT}/{RESULTS_FORMAT}" if axis == "model" else ""
        result[axis] = {}
        for name, content in settings.items():
            fragments = content[0].values() if axis == "defense" else content[:1]
            files = named_beside(compose(grid.base, *fragments, grid.test), shared)
            result[axis][name] = identity(content, code_format, output, files)
    return result


def meanings_of_text(grid: GridFile) -> Meanings:
    """The meaning of each name by its settings alone, whatever the files that they name contain."""
    return {axis: {name: digest(*of) for name, of in names.items()} for axis, names in _settings(grid).items()}


def digest(*content: Any) -> str:
    """A digest of JSON values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _settings(grid: GridFile) -> Mapping[str, Mapping[str, list[Any]]]:
    """The settings behind each name: its entry, and what else it stands for."""
    named: Fragment = {"model": {"class_path": BENIGN_CLASS}}
    shared: Fragment = {"base": grid.base, "test": grid.test}
    attacks = {name: [entry] for name, entry in grid.axes["attacks"].items() if name != grid.benign}
    if grid.benign is not None:  # whose class may be left out, or given by any of its names
        attacks[BENIGN] = [compose(named, grid.axes["attacks"][grid.benign], named)]
    return {
        "dataset": {name: [entry] for name, entry in grid.axes["datasets"].items()},
        "model": {name: [entry, shared, grid.checkpoints.get(name)] for name, entry in grid.axes["models"].items()},
        "attack": attacks,
        "defense": {name: [entry] for name, entry in grid.axes["defenses"].items()},
    }
