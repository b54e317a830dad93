"""A grid: the victims to train and the cells to test, as planned from its file."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import NamedTuple

from lightning_backdoor.benchmark.fragments import Fragment, compose
from lightning_backdoor.benchmark.grid_file import CLEAN_TRAINING, UNDEFENDED, GridFile
from lightning_backdoor.benchmark.identity import RESULTS_FORMAT, VICTIM_FORMAT, forget_files, identity, named_beside
from lightning_backdoor.benchmark.meanings import meanings_with_files
from lightning_backdoor.errors import InputError, did_you_mean

__all__ = ["CLEAN_TRAINING", "UNDEFENDED", "Cell", "Grid", "PlannedVictim", "all_victims", "select"]

#: value of the data module's ``victim`` in a grid file that stands for the undefended victim of the same rows.
SAME_ROWS = "undefended"


class PlannedVictim(NamedTuple):
    """A victim that is trained once and shared by all its cells, or a checkpoint that is tested as it is.

    Attributes:
        id: a hash of all that determines the victim.
        dataset: name on its axis; likewise ``model`` and ``attack``.
        training: name of the defense that the victim is trained under, that cleans its rows or that repairs it; or
            empty.
        seed: seed of all its random choices.
        config: config of ``fit``; it gives the parent by its id.
        parent: the victim that must be trained first, since training needs its checkpoint; or None.
        parent_argument: the part and the argument of the config that give the parent: ``model`` and ``published`` for
            the victim that a repair starts from, ``data`` and ``victim`` for the victim that a data defense uses.
        checkpoint: the folder of a published checkpoint, if the victim is one; it is not trained.
    """

    id: str
    dataset: str
    model: str
    attack: str
    training: str
    seed: int
    config: Fragment
    parent: PlannedVictim | None = None
    parent_argument: tuple[str, str] = ("", "")
    checkpoint: str = ""

    @property
    def label(self) -> str:
        """A one-line description of the victim."""
        under = f" under {self.training}" if self.training else ""
        return f"{self.dataset} · {self.model} · {self.attack}{under} · seed {self.seed}"

    @property
    def line(self) -> list[PlannedVictim]:
        """The victims that this one needs, in this order: the parents of its parent, its parent, itself."""
        return [*(self.parent.line if self.parent else []), self]


class Cell(NamedTuple):
    """One row of the table: a victim, tested with an attack's poison and a defense.

    Attributes:
        id: a hash of all that determines the cell, including the victim.
        attack: name of the attack whose poisoned rows the cell is tested with.
        defense: name of the defense, or ``CLEAN_TRAINING``.
        victim: the victim that is tested.
        config: config of ``test``, in addition to the config that the victim was trained with.
    """

    id: str
    attack: str
    defense: str
    victim: PlannedVictim
    config: Fragment

    @property
    def names(self) -> dict[str, str]:
        """The cell's name on each axis, as used in ``--only``, ``exclude`` and the table."""
        of_victim = {"dataset": self.victim.dataset, "model": self.victim.model}
        return {**of_victim, "attack": self.attack, "defense": self.defense, "seed": str(self.victim.seed)}

    @property
    def label(self) -> str:
        """A one-line description of the cell."""
        *names, seed = self.names.values()
        return " · ".join([*names, f"seed {seed}"])


class Grid(GridFile):
    """A grid: its axes by name, and the cells that they span.

    Every entry of an axis is the path of a YAML file, relative to the grid's own folder, a mapping with ``class_path``
    and ``init_args``, or a mapping with any of ``data``, ``model`` and ``trainer``, as the commands take it. A model
    may also be given by its name alone, and an attack by null for none.

    A model ``{checkpoint: FOLDER}`` is a published Hugging Face classifier, which is tested as it is, without training
    and without running code of its own; the attack only supplies the trigger. Repairs start from it. Defenses that
    clean training rows or act in training are refused. It has no cells without an attack and no control, since no
    benign victim is known.

    An entry of ``defenses`` defines a defense for one or more moments, each in one of these three forms. A class path
    is

    - under ``data``, a data defense, which cleans the training rows. With ``data: {init_args: {victim: undefended}}``
      in the same entry, it uses the undefended victim of the same dataset, model, attack and seed;
    - under ``training``, a callback for training;
    - under ``repair``, a callback for a separate training that starts from the undefended victim, or from the victim of
      the entry's ``data``. The repaired victim is tested, and not the victim it started from;
    - under ``inference``, a :class:`lightning_backdoor.defenses.defense.Defense`;
    - under ``inspection``, a :class:`lightning_backdoor.defenses.inspection.Inspection`.

    The entry without a defense is null and called ``UNDEFENDED``. Defenses with the same data, training and repair
    share a victim.

    Configs are merged in the order base, dataset, model, attack, defense; later ones override earlier ones, and
    ``test`` overrides the config of every test. ``exclude`` is a list of mappings from ``dataset``, ``model``,
    ``attack``, ``defense`` or ``seed`` to a name or names; a cell that matches every key of a mapping is left out. In
    addition to the cells that the axes span, each attack has a control, called ``CLEAN_TRAINING``, if the grid has a
    benign victim.

    Args:
        path: path of the YAML file.
        output: the folder that the grid is run in, whose files do not count for the ids of victims and cells.

    Attributes:
        cells: all cells, in the order of the axes, seeds before defenses; the cells of an attack and a seed begin with
            the control.
        meanings: what each name stands for, see :func:`lightning_backdoor.benchmark.meanings.meanings_with_files`.

    Raises:
        InputError: the file is missing or malformed, or defines no cell; the message names the key and the value.
    """

    def __init__(self, path: Path, output: Path | None = None) -> None:
        super().__init__(path)
        self.output = None if output is None else output.resolve()
        self._victims: dict[tuple[str, ...], PlannedVictim] = {}
        forget_files()
        axes = product(self.axes["datasets"], self.axes["models"], self.axes["attacks"], self.seeds)
        self.cells = [cell for names in axes for cell in self._group(*names)]
        self.meanings = meanings_with_files(self, self.output)  # now, since files may change while cells run
        if not self.cells:
            if self.checkpoints and {*self.axes["attacks"]} <= {self.benign}:
                raise self._error("attacks has none whose trigger a checkpoint is tested with", "give one")
            raise self._error("exclude leaves no cell", "exclude less")
        by_id: dict[str, Cell] = {}
        for number, cell in enumerate(self.cells):
            if cell.id in by_id and cell.defense == CLEAN_TRAINING:  # of attacks that differ in their training alone
                cell = cell._replace(id=identity([cell.id, cell.attack], RESULTS_FORMAT))
                self.cells[number] = cell
            if by_id.setdefault(cell.id, cell) is not cell:
                raise self._error(f"{by_id[cell.id].label} and {cell.label} are the same", "leave one out")

    def _group(self, dataset: str, model: str, attack: str, seed: int) -> Iterator[Cell]:
        """The cells of one dataset, model, attack and seed."""
        for name in self.defenses_of(dataset, model, attack, seed):
            if name == CLEAN_TRAINING:
                assert self.benign is not None
                poison = {"model": self.axes["attacks"][attack].get("model", {})}
                benign = self._victim((dataset, model, self.benign), seed, UNDEFENDED, {})
                yield self._cell(attack, name, benign, poison)
                continue
            moments = self.axes["defenses"][name]
            if model in self.checkpoints and (early := next((m for m in ("data", "training") if m in moments), None)):
                problem = f"defenses.{name} has {early}, which needs training, and models.{model} is a checkpoint"
                remedy = f"leave it out, by exclude: [{{model: {model}, defense: {name}}}]"
                raise self._error(problem, remedy)
            victim = self._victim((dataset, model, attack), seed, name, moments)
            at_test = [moments[moment] for moment in ("inference", "inspection") if moment in moments]
            yield self._cell(attack, name, victim, *at_test)

    def _cell(self, attack: str, defense: str, victim: PlannedVictim, *fragments: Fragment) -> Cell:
        config = compose(*fragments, self.test)
        if "callbacks" in config.get("trainer", {}):  # would replace the callbacks of the victim's training
            trained_with = victim.config["trainer"].get("callbacks") or []
            config = compose({"trainer": {"callbacks": trained_with}}, *fragments, self.test)
        files = named_beside(compose(victim.config, config), victim.config)
        id = identity([victim.id, config], RESULTS_FORMAT, self.output, files)
        return Cell(id, attack, defense, victim, config)

    def _victim(
        self, names: tuple[str, str, str], seed: int, defense: str, moments: Mapping[str, Fragment]
    ) -> PlannedVictim:
        """The victim of a dataset, model and attack under a defense; defenses with the same ``fit`` config share it."""
        data, training = moments.get("data", {}), moments.get("training", {})
        repair = moments.get("repair")
        parent, argument, fragments = None, ("", ""), [data, training]
        if repair is not None:
            alone = {"data": data} if data else {}
            cleaning = next((name for name, entry in self.axes["defenses"].items() if entry == alone), defense)
            parent, argument, fragments = self._victim(names, seed, cleaning, alone), ("model", "published"), [repair]
        elif (data.get("data", {}).get("init_args") or {}).get("victim") == SAME_ROWS:
            parent, argument = self._victim(names, seed, UNDEFENDED, {}), ("data", "victim")
        if parent is not None:
            fragments.append(init_arg(argument, parent.id))
        entries = (self.axes[axis][name] for axis, name in zip(("datasets", "models", "attacks"), names, strict=True))
        config = compose(self.base, *entries, *fragments)
        config["seed_everything"] = seed
        id, training_name = (
            identity(config, VICTIM_FORMAT, self.output),
            defense if data or training or repair is not None else "",
        )
        checkpoint = self.checkpoints.get(names[1], "") if repair is None else ""
        if checkpoint:
            id = identity({"checkpoint": checkpoint, "config": config}, RESULTS_FORMAT, self.output)
        victim = PlannedVictim(id, *names, training_name, seed, config, parent, argument, checkpoint)
        return self._victims.setdefault((id, *names), victim)


def all_victims(cells: Iterable[Cell]) -> dict[str, PlannedVictim]:
    """The victims to train for some cells, and their parents, by id, each after its parent; without checkpoints."""
    return {victim.id: victim for cell in cells for victim in cell.victim.line if not victim.checkpoint}


def select(cells: Iterable[Cell], only: Iterable[str]) -> list[Cell]:
    """The cells that meet all conditions, each of the form ``key=NAME`` or ``key=NAME,NAME``.

    Raises:
        InputError: a condition is malformed or no cell meets it.
    """
    chosen = list(cells)
    for condition in only:
        key, _, value = condition.partition("=")
        if key not in ("dataset", "model", "attack", "defense", "seed") or not value:
            remedy = "give KEY=NAME, where KEY is dataset, model, attack, defense or seed"
            raise InputError("only", f"{condition!r} is not a condition", remedy)
        known = dict.fromkeys(cell.names[key] for cell in chosen)
        names = _names(value, known)
        for name in names:
            if name not in known:
                remedy = did_you_mean(name, known) or f"there is {', '.join(known)}"
                raise InputError("only", f"{condition!r} fits no cell by {name!r}", remedy)
        chosen = [cell for cell in chosen if cell.names[key] in names]
    return chosen


def _names(value: str, known: Container[str]) -> list[str]:
    """Names that are separated by commas, of which a known one may itself have commas.

    >>> _names("a, b,c,d", {"a, b", "a", "c"})
    ['a, b', 'c', 'd']
    """
    parts, names = value.split(","), []
    while parts:
        joined = [",".join(parts[:count]) for count in range(len(parts), 0, -1)]
        names.append(next((name for name in joined if name in known), parts[0]))
        del parts[: names[-1].count(",") + 1]
    return names


def init_arg(argument: tuple[str, str], value: str) -> Fragment:
    """A fragment that sets an argument, given as part and name, such as ``("model", "published")``."""
    part, name = argument
    return {part: {"init_args": {name: value}}}
