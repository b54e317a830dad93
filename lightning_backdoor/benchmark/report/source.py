"""The results of one grid or test, as a report reads them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lightning_backdoor.benchmark.meanings import Meanings
from lightning_backdoor.benchmark.missing import MissingCell
from lightning_backdoor.benchmark.table import ResultRow


class Source(NamedTuple):
    """The results of one grid or test.

    Attributes:
        folder: its folder.
        label: a short name of the folder, different from those of other sources.
        run_label: a short name of the grid, or of the run that is tested.
        rows: its rows; ``cell`` is the absolute path of the cell's folder, and benign victims have the attack
            ``BENIGN``.
        meanings: for ``dataset``, ``model``, ``attack`` and ``defense``, what each name stands for.
        missing: cells that have no row.
        configuration: its configuration, as YAML.
    """

    folder: Path
    label: str
    run_label: str
    rows: list[ResultRow]
    meanings: Meanings
    missing: list[MissingCell]
    configuration: str
