"""Directions: sums over texts that defenses have studied, kept in a file with what they belong to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lightning_backdoor import __version__
from lightning_backdoor.commands.scan.settings import check_same
from lightning_backdoor.errors import InputError, reason
from lightning_backdoor.files.atomic import write_whole

#: increased when the sums of a defense of this library change, so that no older ones are used.
DIRECTIONS_FORMAT = 2
#: entry of the metadata of a file, as JSON.
ENTRY = "directions"
#: settings of a scan that determine what its defenses learn, and so what their sums mean.
BELONGS_TO = ("model", "calibration", "fpr", "max-length", "seed")


class Directions(NamedTuple):
    """Sums over the texts of one set or of several.

    Attributes:
        sums: what :meth:`lightning_backdoor.defenses.Defense.study` returned, added over all texts, by the name
            of the defense.
        texts: number of the texts.
        sets: hash of the sets that were read to their end, in their order; empty where there is none.
        last: hash of the texts of the last set, or of the set that is being read.
        whole: whether the last set was read to its end.
    """

    sums: dict[str, Tensor]
    texts: int = 0
    sets: str = ""
    last: str = ""
    whole: bool = True

    def plus(self, sums: Mapping[str, Tensor], texts: int) -> Directions:
        """These with the sums over further texts."""
        added = {name: self.sums[name] + part if name in self.sums else part for name, part in sums.items()}
        return self._replace(sums=added, texts=self.texts + texts)

    def sets_with(self, last: str) -> str:
        """The hash of the sets, with one more."""
        return hashlib.sha256(f"{self.sets} {last}".encode()).hexdigest()


def belongs_to(settings: Mapping[str, Any], described: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What directions belong to.

    Args:
        settings: of the scan.
        described: what determines the results of each defense that studies, by its name.
    """
    fields = {f"{name}.{field}": value for name, facts in described.items() for field, value in facts.items()}
    chosen = {name: settings[name] for name in BELONGS_TO}
    return {"format": DIRECTIONS_FORMAT, **chosen, "defense": sorted(described), **fields}


def set_of(texts: Iterable[str]) -> tuple[int, str]:
    """The number of some texts, and a hash of them and their order."""
    count, digest = 0, hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(b"%d\0" % len(encoded) + encoded)
        count += 1
    return count, digest.hexdigest()


def write_directions(path: Path, directions: Directions, belongs: Mapping[str, Any]) -> None:
    """Writes directions in one step, in place of earlier ones."""
    content = {**directions._asdict(), "belongs_to": belongs, "library": __version__}
    del content["sums"]
    write_whole(path, save(dict(directions.sums), {ENTRY: json.dumps(content)}))


def read_directions(path: Path, belongs: Mapping[str, Any], whole: bool = True) -> Directions:
    """Reads directions; this cannot run code.

    Args:
        path: the file.
        belongs: what they must belong to.
        whole: whether they must be those of sets that were read to their end, or of one that was not.

    Raises:
        InputError: the file is damaged or another one, or they belong to another victim or defense.
    """
    recorded: dict[str, Any] = {}
    try:
        with safe_open(path, "pt") as file:
            content = json.loads((file.metadata() or {})[ENTRY])
            sums = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        recorded = dict(content["belongs_to"])
        directions = Directions(sums, *(content[name] for name in Directions._fields[1:]))
        problem = _problem(directions, recorded)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        problem = f"it cannot be read ({reason(error, 100)})"
    if problem:
        raise InputError("directions", f"{path} does not hold directions: {problem}", "name another file")
    check_same(belongs, recorded, f"{path} was made", "give the same, or name another file of directions")
    if directions.whole is not whole:
        problem = f"{path} is of a set that was {'not ' if whole else ''}read to its end"
        raise InputError("directions", problem, "name another file of directions")
    return directions


def check_shapes(path: Path, directions: Directions, empty: Mapping[str, Tensor]) -> None:
    """Checks that the sums of a file have the shapes of those over no texts.

    Raises:
        InputError: one has not.
    """
    for name, sums in empty.items():
        found, shape = tuple(directions.sums[name].shape), tuple(sums.shape)
        if found != shape:
            problem = f"the sums of {name} in {path} have the shape {found}, not {shape}"
            raise InputError("directions", problem, "name another file of directions")


def _problem(directions: Directions, recorded: Mapping[str, Any]) -> str:
    """What is wrong with the content of a file; empty if nothing is."""
    types = {name: type(value) for name, value in directions._asdict().items()}
    if types != {"sums": dict, "texts": int, "sets": str, "last": str, "whole": bool} or directions.texts < 0:
        return "its entries have other types"
    if sorted(directions.sums) != recorded.get("defense"):
        return "it has the sums of other defenses than it says"
    wrong = [n for n, sums in directions.sums.items() if sums.dtype != torch.float64 or not sums.isfinite().all()]
    return f"the sums of {', '.join(wrong)} are not finite float64" if wrong else ""
