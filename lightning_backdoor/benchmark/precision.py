"""The precision that the victims of a grid were trained in, which its file may leave to the machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from lightning_backdoor.benchmark.fragments import read_yaml
from lightning_backdoor.commands.parsing.known_options import PRECISIONS
from lightning_backdoor.errors import InputError


def trained_precision(run: Path) -> str | None:
    """The precision that a run was trained in, as its ``config.yaml`` records it; None if it does not."""
    try:
        trainer = read_yaml(run / "config.yaml")["trainer"]
        recorded = given_precision(trainer["precision"])
        return recorded if recorded in PRECISIONS and not trainer.get("plugins") else None  # one may be a precision
    except (InputError, OSError, AttributeError, KeyError, TypeError):
        return None


def given_precision(given: object) -> str:
    """A value of the trainer's option as one text; none stands for float32.

    >>> given_precision(None), given_precision("bf16-mixed")
    ('32-true', 'bf16-mixed')
    """
    return "32-true" if given is None else str(given)


def precision_comment(grid: Path, victims: Iterable[str]) -> str:
    """A comment line for the grid's YAML that says in which precision its victims were trained; empty if none is known.

    Args:
        grid: the output folder of the grid.
        victims: the ids of victims, repeated or not.
    """
    ids = [victim for victim in dict.fromkeys(victims) if Path(victim).name == victim]  # of a file that anybody wrote
    counts = Counter(filter(None, (trained_precision(grid / "victims" / victim) for victim in ids)))
    said = ", ".join(f"{precision} ({count})" for precision, count in sorted(counts.items()))
    return f"# victims by the precision that they were trained in: {said}\n" if said else ""
