"""Reading a grid's YAML file: its content is checked, and all presets are read into its axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from lightning_backdoor.benchmark.fragments import (
    BENIGN,
    Fragment,
    at_test,
    compose,
    is_benign,
    read_yaml,
    with_class_paths,
    yaml_text,
)
from lightning_backdoor.benchmark.names import name_problem
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.presets import preset_path

AXES = ("datasets", "models", "attacks", "defenses")
KEYS = (*AXES, "seeds", "exclude", "base", "test", "wandb", "cluster")
#: when a defense can act: on training rows, in training, after training, on test inputs, on the trained model.
MOMENTS = ("data", "training", "repair", "inference", "inspection")
#: name of the control among the defenses: the benign victim, tested on the poisoned rows of an attack.
CLEAN_TRAINING = "clean training"
#: name of the entry of ``defenses`` that does nothing.
UNDEFENDED = "none"
#: largest seed that the generators of torch and NumPy both take.
LARGEST_SEED = 2**32 - 1
#: settings of every run of a grid unless the grid overrides them.
DEFAULTS: Fragment = {
    "trainer": {"devices": 1, "enable_progress_bar": False, "enable_model_summary": False},
    "data": {"class_path": "lightning_backdoor.data.BackdoorDataModule"},
    "model": {"class_path": BENIGN},
}


#: per moment whose entries are not callbacks: the callback that takes an entry, and the name of its argument.
CALLBACKS = {"inference": ("InferenceDefense", "defense"), "inspection": ("InspectionCallback", "inspection")}


def of_class_path(role: str, entry: Fragment) -> Fragment:
    """The config fragment of an entry given as a class path with arguments; ``role`` is its axis or moment."""
    if role == "datasets":
        return {"data": entry}
    if role in ("models", "attacks"):
        return {"model": entry}
    if role == "data":
        return {"data": {"init_args": {"data_defense": entry}}}
    if role in CALLBACKS:
        callback, argument = CALLBACKS[role]
        entry = {"class_path": f"lightning_backdoor.callbacks.{callback}", "init_args": {argument: entry}}
    return {"trainer": {"callbacks+": [entry]}}


class GridFile:
    """The content of a grid file; :class:`lightning_backdoor.benchmark.grid.Grid` documents its format.

    Args:
        path: path of the YAML file.

    Attributes:
        axes: per axis, the name of each entry and its fragment; for ``defenses``, a fragment per moment that is given.
        checkpoints: per model that is tested as it is, the folder of the published checkpoint.
        seeds: seeds of the runs.
        base: the fragment that all entries override.
        test: the fragment that overrides the config of every test.
        exclude: per rule, the names given for each of dataset, model, attack, defense and seed.
        wandb: settings of the W&B runs; None for no W&B runs.
        cluster: submitit's options.

    Raises:
        InputError: the file is missing or malformed; the message names the key and the value.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = read_yaml(path)
        unknown = sorted(content.keys() - set(KEYS))
        if unknown:
            raise self._error(f"{unknown[0]!r} is unknown", f"give {', '.join(KEYS)}")
        for key, value in content.items():
            self._check_text(key, value)
        self.checkpoints: dict[str, str] = {}
        self.axes = {axis: self._axis(axis, content.get(axis)) for axis in AXES}
        self.seeds = self._seeds(content.get("seeds", [0]))
        self.base = compose(DEFAULTS, self._fragment("base", content.get("base") or {}, ""))
        self.test = self._fragment("test", content.get("test") or {}, "")
        rules = content.get("exclude") or []
        self.exclude = [self._rule(rule) for rule in (rules if isinstance(rules, list) else [rules])]
        self.wandb = self._mapping("wandb", content.get("wandb"))
        self.cluster = self._mapping("cluster", content.get("cluster"))

    def as_yaml(self) -> str:
        """The grid as YAML with its presets inlined, so that it does not depend on other files of its folder."""
        as_given = {name: {"checkpoint": path} for name, path in self.checkpoints.items()}
        models = {name: {**as_given.get(name, {}), **entry} for name, entry in self.axes["models"].items()}
        content: Fragment = {
            **self.axes,
            "models": models,
            "seeds": self.seeds,
            "exclude": self.exclude,
            "base": self.base,
        }
        content |= {"test": self.test, "wandb": self.wandb, "cluster": self.cluster}
        return yaml_text(content)

    @cached_property
    def benign(self) -> str | None:
        """Name of the attack entry that does not attack; None if the grid has none."""
        models = {name: compose(self.base, entry)["model"] for name, entry in self.axes["attacks"].items()}
        return next((name for name, model in models.items() if is_benign(model["class_path"])), None)

    def defenses_of(self, dataset: str, model: str, attack: str, seed: int) -> list[str]:
        """The defenses of the cells of these names that are not excluded, the control first, if they have one.

        Of a checkpoint nothing benign is known: it has neither a control, nor cells without an attack.
        """
        if model in self.checkpoints and attack == self.benign:
            return []
        names = {"dataset": dataset, "model": model, "attack": attack, "seed": str(seed)}
        defenses = [name for name in self.axes["defenses"] if not self.excludes({**names, "defense": name})]
        controlled = defenses and not self.excludes({**names, "defense": CLEAN_TRAINING})
        if controlled and self.benign not in (None, attack) and model not in self.checkpoints:
            return [CLEAN_TRAINING, *defenses]
        return defenses

    def cell_names(self) -> Iterator[dict[str, str]]:
        """Dataset, model, attack, defense and seed of every cell, in the order of the axes."""
        axes = product(self.axes["datasets"], self.axes["models"], self.axes["attacks"], self.seeds)
        for dataset, model, attack, seed in axes:
            for defense in self.defenses_of(dataset, model, attack, seed):
                yield {"dataset": dataset, "model": model, "attack": attack, "defense": defense, "seed": str(seed)}

    def excludes(self, names: Mapping[str, str]) -> bool:
        """Whether a rule of ``exclude`` matches a cell with these names."""
        return any(all(names.get(key) in chosen for key, chosen in rule.items()) for rule in self.exclude)

    def _error(self, problem: str, remedy: str) -> InputError:
        return InputError(str(self.path), problem, remedy)

    def _check_text(self, field: str, content: Any) -> None:
        """Refuses texts with half of a surrogate pair, which JSON's escapes can write and UTF-8 cannot."""
        if (text := next(_unwritable(content), None)) is not None:
            raise self._error(f"{field} has the text {text[:80]!a}, which cannot be written", "correct it")

    def _axis(self, axis: str, entries: Any) -> dict[str, Any]:
        if not isinstance(entries, dict) or not entries:
            raise self._error(f"{axis} is {entries!r}", "give names, and under each what it stands for")
        for name in entries:
            if problem := name_problem(name):
                raise self._error(f"the name {name[:80]!a} in {axis} {problem}", "give another name")
        if axis == "defenses":
            return {name: self._defense(name, {} if entry is None else entry) for name, entry in entries.items()}
        if axis == "models":
            entries = {name: self._without_checkpoint(name, entry) for name, entry in entries.items()}
        return {name: self._fragment(f"{axis}.{name}", entry, axis) for name, entry in entries.items()}

    def _without_checkpoint(self, name: str, entry: Any) -> Any:
        """The entry of a model; of one that is a checkpoint, which is kept apart, the config that names it."""
        if not isinstance(entry, dict) or "checkpoint" not in entry:
            return entry
        path = entry["checkpoint"]
        if not isinstance(path, str) or not path or path.endswith(".ckpt"):
            problem = f"models.{name}.checkpoint is {path!r}, which is not the folder of a Hugging Face model"
            raise self._error(problem, "give the folder, with its config.json, weights and tokenizer")
        self.checkpoints[name] = path
        rest = {key: value for key, value in entry.items() if key != "checkpoint"}
        if "class_path" in rest or not isinstance(rest.get("model", {}), dict):
            raise self._error(f"models.{name} has {sorted(rest)} beside checkpoint", "give any of data, model, trainer")
        return compose(rest, {"model": {"init_args": {"model": path}}})

    def _defense(self, name: str, entry: Any) -> dict[str, Fragment]:
        field = f"defenses.{name}"
        if name == CLEAN_TRAINING:
            raise self._error(f"{field} has the name of the control", "give another name")
        if not isinstance(entry, dict) or not set(entry) <= set(MOMENTS):
            raise self._error(f"{field} is {entry!r}", f"give any of {', '.join(MOMENTS)}, and a defense under each")
        moments = {
            key: self._fragment(f"{field}.{key}", entry[key], key) for key in MOMENTS if entry.get(key) is not None
        }
        for key, moment in moments.items():
            if not moment and key != "repair":  # an empty repair is plain fine-tuning on the training rows
                raise self._error(f"{field}.{key} is empty", "give a defense, or leave it out")
            if key in CALLBACKS:
                fragment = at_test(moment)
                if fragment is None:
                    remedy = "give one under trainer.callbacks+, and any other in an entry of its own"
                    raise self._error(f"{field}.{key} does not have exactly one callback", remedy)
                moments[key] = fragment
        if bool(moments) == (name == UNDEFENDED):
            raise self._error(f"{field} is {entry!r}", f"the entry without a defense, and no other, is {UNDEFENDED}")
        if "repair" in moments and "training" in moments:
            raise self._error(f"{field} has training and repair", "a repair is trained by itself: leave one out")
        return moments

    def _fragment(self, field: str, entry: Any, role: str) -> Fragment:
        """An entry as a fragment of a config; ``role`` is its axis or moment, empty for ``base`` and ``test``."""
        entry = {} if entry is None and role == "attacks" else entry
        if isinstance(entry, str) and entry.endswith((".yaml", ".yml")):
            beside = self.path.parent / entry
            entry = read_yaml(beside if beside.exists() else preset_path(entry))
            self._check_text(field, entry)
        elif isinstance(entry, str) and role == "models":
            return {"model": {"init_args": {"model": entry}}}
        entry = with_class_paths(entry)
        if isinstance(entry, dict) and "class_path" in entry and role:
            if not _has_named_arguments(entry):
                raise self._error(f"{field} is {entry!r}", "give names and values as init_args")
            return of_class_path(role, entry)
        if not isinstance(entry, dict) or not set(entry) <= {"data", "model", "trainer"}:
            remedy = "give the path of a YAML file, a class_path with init_args, or any of data, model and trainer"
            raise self._error(f"{field} is {entry!r}", remedy)
        for part, options in entry.items():
            if not isinstance(options, dict) or not _has_named_arguments(options):
                raise self._error(f"{field}.{part} is {options!r}", "give names and values, as the commands take them")
        return entry

    def _rule(self, rule: Any) -> dict[str, list[str]]:
        known = {axis.removesuffix("s"): {*names} for axis, names in self.axes.items()}
        known["defense"].add(CLEAN_TRAINING)
        known["seed"] = {str(seed) for seed in self.seeds}
        if not isinstance(rule, dict) or not rule or not set(rule) <= set(known):
            raise self._error(f"exclude has {rule!r}", f"give {', '.join(known)} and a name or names for each")
        names = {key: [str(name) for name in (v if isinstance(v, list) else [v])] for key, v in rule.items()}
        for key, chosen in names.items():
            if unknown := ", ".join(name for name in chosen if name not in known[key]):
                remedy = f"the grid has {', '.join(sorted(known[key]))}"
                raise self._error(f"exclude names an unknown {key}: {unknown}", remedy)
        return names

    def _seeds(self, seeds: Any) -> list[int]:
        example = "give a list of different whole numbers, such as [0, 1, 2]"
        if type(seeds) is int and seeds > 0:
            several = [*range(seeds)] if seeds <= 10 else f"[0, 1, ..., {seeds - 1}]"
            problem = f"seeds is {seeds}, which may mean the seed {seeds} or {seeds} seeds"
            raise self._error(problem, f"give [{seeds}] for the seed, or {several}")
        if not isinstance(seeds, list) or not seeds:
            raise self._error(f"seeds is {seeds!r}, not a list with a seed", example)
        for seed in seeds:
            if type(seed) is not int:
                raise self._error(f"seeds has {seed!r}, which is not a whole number", example)
            if not 0 <= seed <= LARGEST_SEED:
                raise self._error(f"seeds has {seed}, which is not from 0 to {LARGEST_SEED}", "give another seed")
            if seeds.count(seed) > 1:
                raise self._error(f"seeds has the seed {seed} more than once", "give each seed once")
        return seeds

    def _mapping(self, key: str, value: Any) -> dict[str, Any] | None:
        if value is not None and not isinstance(value, dict):
            raise self._error(f"{key} is {value!r}", "give names and values, or {}")
        return value


def _has_named_arguments(entry: Mapping[str, Any]) -> bool:
    """Whether the arguments of a class are names and values, to which no list can be appended."""
    return isinstance(entry.get("init_args"), dict | None) and "init_args+" not in entry


def _unwritable(content: Any) -> Iterator[str]:
    """The texts in a file's content that contain half of a surrogate pair."""
    if isinstance(content, str):
        if any("\ud800" <= character <= "\udfff" for character in content):
            yield content
    elif isinstance(content, dict | list):
        for value in (*content.keys(), *content.values()) if isinstance(content, dict) else content:
            yield from _unwritable(value)
