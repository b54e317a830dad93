"""One victim under eight defenses: the cells in one session, as a worker of a grid runs them, and each in its own.

Run ``python -m tests.measurements.one_pass --data sst2``. The victim, MiniLM trained under BadNets, is trained before,
and its training does not count. Both sides run the same eight cells one after the other in this process, and must give
the same rows and files; the reference begins with nothing that another cell has loaded, read or computed.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import transformers
import yaml

from lightning_backdoor.benchmark.grid import Cell, Grid
from lightning_backdoor.benchmark.running.journal import Journal
from lightning_backdoor.benchmark.running.products import Products
from lightning_backdoor.benchmark.running.worker import Worker
from lightning_backdoor.benchmark.table import TIMINGS
from tests.measurements.pairs import Comparison, alternate, load_average, parse, parser, print_table

DEFENSES = "lightning_backdoor.defenses"
ATTENTION, STRIP = f"{DEFENSES}.GradientAttention", f"{DEFENSES}.Strip"
#: the defense of each cell; three read attention and gradients, three the predictions on the same copies of the texts,
#: and two attention and gradients of a stream of clean and poisoned texts.
CELLS: dict[str, dict[str, Any]] = {
    **{f"gradient attention {fpr}": {"inference": (ATTENTION, {"fpr": fpr})} for fpr in (0.01, 0.05, 0.1)},
    **{f"STRIP {fpr}": {"inference": (STRIP, {"fpr": fpr})} for fpr in (0.01, 0.05, 0.1)},
    **{
        f"flagged share {fpr}": {
            "inspection": (
                f"{DEFENSES}.FlaggedShare",
                {"defense": {"class_path": ATTENTION, "init_args": {"fpr": fpr}}},
            )
        }
        for fpr in (0.05, 0.1)
    },
}
LAUNCH = "one pass"


def planned(folder: Path, args: argparse.Namespace) -> list[Cell]:
    """The cells of the grid."""
    source = {"path": str(args.data.resolve()), "labels": ["negative", "positive"], "text_column": "text"}
    rows = {"train": args.train_rows, "validation": args.rows, "test": args.rows}
    content = {
        "base": {
            "trainer": {"accelerator": "cpu", "max_epochs": 1, "num_sanity_val_steps": 0},
            "data": {"init_args": {"max_rows": rows}},
        },
        "datasets": {"sst2": {"data": {"init_args": {"source": source}}}},
        "models": {"victim": args.model},
        "attacks": {"BadNets": {"class_path": "lightning_backdoor.attacks.BadNets"}},
        "defenses": {
            name: {moment: {"class_path": path, "init_args": arguments} for moment, (path, arguments) in cell.items()}
            for name, cell in CELLS.items()
        },
        "seeds": [0],
    }
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return Grid(path).cells


def trained(cells: list[Cell], folder: Path) -> Path:
    """A grid's folder in which the victim is trained, and no cell is tested."""
    made, empty = folder / "made", folder / "trained"
    made.mkdir()
    Worker(made, cells[:1], LAUNCH).run()
    shutil.copytree(made, empty, ignore=shutil.ignore_patterns("cells", "journal.jsonl"))
    lines = (made / "journal.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (empty / "journal.jsonl").write_text("".join(line for line in lines if '"victim"' in line), encoding="utf-8")
    return empty


def results(folder: Path, cells: list[Cell]) -> list[Any]:
    """What the journal records of the cells, without times: their rows of the table and their files."""
    journal = Journal(folder / "journal.jsonl")
    journal.refresh()
    events = [journal.get("cell", cell.id) or {} for cell in cells]
    assert all("row" in event for event in events), events
    return [
        [{name: value for name, value in event["row"].items() if name not in TIMINGS}, event["files"]]
        for event in events
    ]


def one_pass(args: argparse.Namespace) -> Iterator[Comparison]:
    """The wall time of eight cells in one session, over that of eight cells that share nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        cells = planned(root, args)
        start, found = trained(cells, root), []

        def run(*workers: list[Cell]) -> Callable[[], float]:
            def measure() -> float:
                folder = root / "measured"
                shutil.copytree(start, folder)
                for cell in cells:  # files are hashed once per process: neither side counts it
                    Products(folder, Journal(folder / "journal.jsonl")).is_done(cell.victim)
                started = time.perf_counter()
                for of_worker in workers:
                    Worker(folder, of_worker, LAUNCH).run()
                seconds = time.perf_counter() - started
                found.append(results(folder, cells))
                shutil.rmtree(folder)
                return seconds

            return measure

        pairs = list(alternate(run(cells), run(*([cell] for cell in cells)), args.rounds))
    assert all(result == found[0] for result in found), "the two sides differ"
    title = f"{len(cells)} defenses of one victim in one grid / each cell alone, SST-2, {args.rows} rows"
    yield Comparison(title, "s", "<= 0.45", pairs)


PARTS = {"one pass": one_pass}


def main() -> None:
    options = parser("One victim under eight defenses: in one session, and each cell in its own.", rounds=2)
    options.add_argument("--rows", type=int, default=400, help="test rows, and validation rows")
    options.add_argument("--train-rows", type=int, default=1000, help="rows that the victim is trained on")
    args = parse(options)
    transformers.utils.logging.disable_progress_bar()
    load_before = load_average()
    print_table([comparison for part in PARTS.values() for comparison in part(args)], args, load_before)


if __name__ == "__main__":
    main()
