"""A grid in one YAML file: its axes, and the victims and cells that they span."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lightning_backdoor.benchmark.identity import forget_files, identity
from lightning_backdoor.benchmark.strict_yaml import read_yaml
from lightning_backdoor.errors import InputError

Fragment = dict[str, Any]

AXES = ("datasets", "models", "attacks", "defenses")
KEYS = (*AXES, "seeds", "exclude", "base", "test", "wandb", "cluster")
#: the class path of victims that are not attacked.
BENIGN = "lightning_backdoor.victim.TextClassifier"
#: what a control is called among the defenses: the benign victim, on the rows that an attack poisoned.
CLEAN_TRAINING = "clean training"
#: what no defense is called among the defenses.
UNDEFENDED = "none"
#: what every run of a grid has unless the grid says otherwise.
DEFAULTS: Fragment = {
    "trainer": {"devices": 1, "enable_progress_bar": False, "enable_model_summary": False},
    "data": {"class_path": "lightning_backdoor.data.BackdoorDataModule"},
    "model": {"class_path": BENIGN},
}


class Victim(NamedTuple):
    """What is trained once and shared by all its cells.

    Attributes:
        id: a hash of all that determines it.
        dataset: name on its axis; so are ``model``, ``attack`` and ``training``, the defense it is trained under.
        config: of ``fit``.
    """

    id: str
    dataset: str
    model: str
    attack: str
    training: str
    seed: int
    config: Fragment


class Cell(NamedTuple):
    """One row of the table: a victim under an inference-time defense.

    Attributes:
        id: a hash of all that determines it, its victim included.
        attack: name on its axis of the attack whose poison it is tested with.
        defense: name on its axis, or ``CLEAN_TRAINING``.
        victim: that is tested.
        config: what ``test`` is given beside the config that the victim was trained with.
    """

    id: str
    attack: str
    defense: str
    victim: Victim
    config: Fragment

    @property
    def names(self) -> dict[str, str]:
        """Where the cell is in the grid, as ``--only`` and ``exclude`` name it and the table shows it."""
        of_victim = {"dataset": self.victim.dataset, "model": self.victim.model}
        return {**of_victim, "attack": self.attack, "defense": self.defense, "seed": str(self.victim.seed)}


class Grid:
    """A grid as read: its axes by name, and the cells they span.

    Every entry of an axis is the path of a YAML file from the grid's own folder, a mapping with ``class_path`` and
    ``init_args``, or a mapping with any of ``data``, ``model`` and ``trainer``, as the commands take it. A model may
    also be a name alone, and an attack null, which is none. An entry of ``defenses`` names what is attached in
    ``training``, in ``inference``, or in both; a class path is that of a callback in training, and of a
    :class:`lightning_backdoor.defenses.defense.Defense` at inference. Null, no defense, is called ``UNDEFENDED``.

    ``base`` is below all entries, ``test`` above the config of every test; later ones win: base, dataset, model,
    attack, defense. ``exclude`` lists mappings from ``dataset``, ``model``, ``attack``, ``defense`` or ``seed`` to a
    name or names; a cell that fits all of a mapping is left out. Beside the cells that the axes span, each attack has a
    control, called ``CLEAN_TRAINING``, where the grid also has a benign victim.

    Args:
        path: of the YAML file.

    Raises:
        InputError: it is missing or malformed, or leaves no cell; names the key and the value.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = read_yaml(path)
        unknown = sorted(content.keys() - set(KEYS))
        if unknown:
            raise InputError(str(path), f"{unknown[0]!r} is unknown", f"give {', '.join(KEYS)}")
        self.axes = {axis: self._axis(axis, content.get(axis)) for axis in AXES}
        self.seeds = _seeds(path, content.get("seeds", [0]))
        self.base = merged(DEFAULTS, self._fragment("base", content.get("base") or {}, ""))
        self.test = self._fragment("test", content.get("test") or {}, "")
        self.exclude = self._excludes(content.get("exclude") or [])
        self.wandb = _mapping(path, "wandb", content.get("wandb"))
        self.cluster = _mapping(path, "cluster", content.get("cluster"))
        if not self.cells:
            raise InputError(str(path), "exclude leaves no cell", "exclude less")

    def as_yaml(self) -> str:
        """The grid with all files that it names written in: it stands for itself, wherever it lies."""
        content: dict[str, Any] = {**self.axes, "seeds": self.seeds, "exclude": [_lists(rule) for rule in self.exclude]}
        content |= {"base": self.base, "test": self.test, "wandb": self.wandb, "cluster": self.cluster}
        return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120))

    @property
    def benign(self) -> str | None:
        """The name of the attack that is none; None where the grid has none."""
        classes = {name: merged(self.base, entry)["model"] for name, entry in self.axes["attacks"].items()}
        return next((name for name, model in classes.items() if model["class_path"] == BENIGN), None)

    def _axis(self, axis: str, entries: Any) -> dict[str, Any]:
        if not isinstance(entries, dict) or not entries:
            raise InputError(str(self.path), f"{axis} is {entries!r}", "give names, and under each what it stands for")
        if axis != "defenses":
            return {str(name): self._fragment(f"{axis}.{name}", entry, axis) for name, entry in entries.items()}
        return {str(name): self._defense(str(name), entry) for name, entry in entries.items()}

    def _defense(self, name: str, entry: Any) -> dict[str, Fragment]:
        kinds = ("training", "inference")
        entry = {} if entry is None else entry
        if name == CLEAN_TRAINING:
            raise InputError(str(self.path), f"defenses.{name} is what the control is called", "give another name")
        if not isinstance(entry, dict) or not set(entry) <= set(kinds):
            raise InputError(
                str(self.path), f"defenses.{name} is {entry!r}", "give training or inference, and what under it"
            )
        found = {kind: self._fragment(f"defenses.{name}.{kind}", entry.get(kind) or {}, kind) for kind in kinds}
        if any(found.values()) == (name == UNDEFENDED):
            raise InputError(
                str(self.path), f"defenses.{name} is {entry!r}", f"what does nothing, and only that, is {UNDEFENDED}"
            )
        return found

    def _fragment(self, name: str, entry: Any, kind: str) -> Fragment:
        entry = {} if entry is None and kind == "attacks" else entry
        if kind == "models" and isinstance(entry, str) and not _is_yaml(entry):
            return {"model": {"init_args": {"model": entry}}}
        if isinstance(entry, str) and _is_yaml(entry):
            entry = read_yaml(self.path.parent / entry)
        if isinstance(entry, dict) and "class_path" in entry:
            slots: dict[str, Fragment] = {
                "datasets": {"data": entry},
                "models": {"model": entry},
                "attacks": {"model": entry},
                "training": {"trainer": {"callbacks+": [entry]}},
                "inference": {"trainer": {"callbacks+": [_inference(entry)]}},
            }
            if kind in slots:
                return slots[kind]
        if not isinstance(entry, dict) or not set(entry) <= {"data", "model", "trainer"}:
            raise InputError(
                str(self.path),
                f"{name} is {entry!r}",
                "give the path of a YAML file, a class_path with init_args, or any of data, model and trainer",
            )
        return entry

    def _excludes(self, excludes: Any) -> list[dict[str, set[str]]]:
        known = {axis.removesuffix("s"): {*names} for axis, names in self.axes.items()}
        known["defense"].add(CLEAN_TRAINING)
        known["seed"] = {str(seed) for seed in self.seeds}
        result = []
        for rule in excludes if isinstance(excludes, list) else [excludes]:
            if not isinstance(rule, dict) or not rule or not set(rule) <= set(known):
                raise InputError(
                    str(self.path), f"exclude has {rule!r}", f"give {', '.join(known)} and a name or names each"
                )
            names = {
                key: {str(v) for v in (value if isinstance(value, list) else [value])} for key, value in rule.items()
            }
            for key, given in names.items():
                if given - known[key]:
                    unknown = ", ".join(sorted(given - known[key]))
                    raise InputError(
                        str(self.path),
                        f"exclude names no {key}: {unknown}",
                        f"the grid has {', '.join(sorted(known[key]))}",
                    )
            result.append(names)
        return result

    @cached_property
    def cells(self) -> list[Cell]:
        """All cells, in the order of the axes, seeds before defenses; each attack begins with its control."""
        forget_files()
        victims: dict[tuple[str, ...], Victim] = {}

        def victim(dataset: str, model: str, attack: str, defense: str, seed: int) -> Victim:
            training = self.axes["defenses"][defense]["training"] if defense else {}
            key = (dataset, model, attack, json.dumps(training, sort_keys=True), str(seed))
            if key not in victims:
                entries = (("datasets", dataset), ("models", model), ("attacks", attack))
                config = merged(self.base, *(self.axes[axis][name] for axis, name in entries), training)
                config["seed_everything"] = seed
                trained_under = defense if training else ""
                victims[key] = Victim(identity(config), dataset, model, attack, trained_under, seed, config)
            return victims[key]

        result: list[Cell] = []
        benign = self.benign
        names = product(self.axes["datasets"], self.axes["models"], self.axes["attacks"])
        for (dataset, model, attack), seed in product(names, self.seeds):
            places = {"dataset": dataset, "model": model, "attack": attack, "seed": str(seed)}
            defenses = [name for name in self.axes["defenses"] if not self._excluded({**places, "defense": name})]
            control = {**places, "defense": CLEAN_TRAINING}
            if benign not in (None, attack) and defenses and not self._excluded(control):
                trained = victim(dataset, model, benign or "", "", seed)
                poison = {"model": self.axes["attacks"][attack].get("model", {})}
                result.append(_cell(attack, CLEAN_TRAINING, trained, _at_test(trained, poison, self.test)))
            for defense in defenses:
                inference = _unnamed(self.axes["defenses"][defense]["inference"])
                trained = victim(dataset, model, attack, defense, seed)
                result.append(_cell(attack, defense, trained, _at_test(trained, inference, self.test)))
        self._make_sure_all_differ(result)
        return result

    def _make_sure_all_differ(self, cells: Iterable[Cell]) -> None:
        seen: dict[str, Cell] = {}
        for cell in cells:
            other = seen.setdefault(cell.id, cell)
            if other is not cell:
                names = (" · ".join(same.names.values()) for same in (other, cell))
                raise InputError(str(self.path), f"{' and '.join(names)} are the same", "leave one out")

    def _excluded(self, places: Mapping[str, str]) -> bool:
        return any(all(places.get(key) in names for key, names in rule.items()) for rule in self.exclude)


def merged(*fragments: Fragment) -> Fragment:
    """Configs laid over each other: mappings are merged, ``NAME+`` appends to the list ``NAME``, all else is replaced.

    A class takes over no arguments of another that it replaces, but for ``model`` and ``data`` of the config itself:
    attacks are given the model's, and data sets the base's.

    >>> merged({"trainer": {"callbacks": ["A"], "devices": 1}}, {"trainer": {"callbacks+": ["B"], "devices": 2}})
    {'trainer': {'callbacks': ['A', 'B'], 'devices': 2}}
    """
    result: Fragment = {}
    for fragment in fragments:
        for key, value in fragment.items():
            name = key.removesuffix("+")
            if key != name:
                result[name] = [*(result.get(name) or []), *(value if isinstance(value, list) else [value])]
            elif isinstance(value, dict):
                below = result.get(name)
                below = below if isinstance(below, dict) else {}
                other = "class_path" in value and value["class_path"] != below.get("class_path")
                result[name] = merged({} if other and name not in ("model", "data") else below, value)
            else:
                result[name] = value
    return result


def select(cells: Iterable[Cell], only: Iterable[str]) -> list[Cell]:
    """The cells that fit all of some conditions ``key=NAME`` or ``key=NAME,NAME``.

    Raises:
        InputError: a condition is malformed or fits no cell.
    """
    chosen = list(cells)
    for condition in only:
        key, _, value = condition.partition("=")
        if key not in ("dataset", "model", "attack", "defense", "seed") or not value:
            raise InputError(
                "only", f"{condition!r} is no condition", "give dataset, model, attack, defense or seed =NAME"
            )
        known = dict.fromkeys(cell.names[key] for cell in chosen)
        names = [value] if value in known else value.split(",")  # a name may have a comma in it
        for name in names:
            if name not in known:
                raise InputError("only", f"{condition!r} fits no cell by {name!r}", f"there is {', '.join(known)}")
        chosen = [cell for cell in chosen if cell.names[key] in names]
    return chosen


def _at_test(victim: Victim, *fragments: Fragment) -> Fragment:
    """What a test is given beside the victim's own config, whose callbacks it would replace rather than add to."""
    config = merged(*fragments)
    if "callbacks" in config.get("trainer", {}):
        config = merged({"trainer": {"callbacks": victim.config["trainer"].get("callbacks") or []}}, *fragments)
    return config


def _cell(attack: str, defense: str, victim: Victim, config: Fragment) -> Cell:
    return Cell(identity([victim.id, config]), attack, defense, victim, config)


def _lists(rule: dict[str, set[str]]) -> dict[str, list[str]]:
    return {key: sorted(names) for key, names in rule.items()}


def _inference(entry: Fragment) -> Fragment:
    return {"class_path": "lightning_backdoor.callbacks.InferenceDefense", "init_args": {"defense": entry}}


def _unnamed(fragment: Fragment) -> Fragment:
    """A fragment whose one callback logs under no name of its own: a cell has but one defense."""
    callbacks = fragment.get("trainer", {}).get("callbacks+")
    if not isinstance(callbacks, list) or len(callbacks) != 1:
        return fragment
    arguments = {name: value for name, value in callbacks[0].get("init_args", {}).items() if name != "name"}
    return {**fragment, "trainer": {**fragment["trainer"], "callbacks+": [{**callbacks[0], "init_args": arguments}]}}


def _is_yaml(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _seeds(path: Path, seeds: Any) -> list[int]:
    given = seeds if isinstance(seeds, list) else [seeds]
    if not given or not all(type(seed) is int and seed >= 0 for seed in given) or len(set(given)) < len(given):
        raise InputError(str(path), f"seeds is {seeds!r}", "give different whole numbers from 0")
    return given


def _mapping(path: Path, key: str, value: Any) -> dict[str, Any] | None:
    if value is not None and not isinstance(value, dict):
        raise InputError(str(path), f"{key} is {value!r}", "give names and values, or {}")
    return value
