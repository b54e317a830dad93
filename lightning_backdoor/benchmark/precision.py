"""The precision that the victims of a grid were trained in, which its file may leave to the machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from lightning_backdoor.benchmark.fragments import read_yaml
from lightning_backdoor.errors import InputError, escaped


def trained_precision(run: Path) -> str | None:
    """The precision that a run was trained in, as its ``config.yaml`` records it; None if that cannot be read."""
    try:
        return given_precision((read_yaml(run / "config.yaml")["trainer"] or {}).get("precision"))
    except (InputError, OSError, AttributeError, KeyError, TypeError):
        return None


def given_precision(given: object) -> str:
    """A value of the trainer's option as one text; none stands for float32.

    >>> given_precision(None), given_precision("bf16-mixed")
    ('32-true', 'bf16-mixed')
    """
    return "32-true" if given is None else str(given)


def precision_comment(grid: Path, victims: Iterable[str]) -> str:
    """A comment line for the grid's YAML that says in which precision its victims were trained.

    Args:
        grid: the output folder of the grid.
        victims: the ids of victims, repeated or not; those whose precision is not known do not count.
    """
    known = [trained_precision(grid / "victims" / victim) for victim in dict.fromkeys(victims)]
    counts = Counter(escaped(precision) for precision in known if precision is not None)
    if not counts:
        return ""
    said = ", ".join(f"{precision} ({count})" for precision, count in sorted(counts.items()))
    return f"# victims by the precision that they were trained in: {said}; all were tested in float32\n"
