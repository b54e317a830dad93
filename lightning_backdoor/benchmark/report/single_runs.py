"""Reading the results of a single test from its folder: one row per inference-time defense that was attached."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_backdoor.benchmark.fragments import full_class_path, is_benign, read_yaml
from lightning_backdoor.benchmark.grid_file import UNDEFENDED
from lightning_backdoor.benchmark.meanings import BENIGN, digest
from lightning_backdoor.benchmark.metrics import METRICS
from lightning_backdoor.benchmark.names import name_problem
from lightning_backdoor.benchmark.report.source import Source
from lightning_backdoor.benchmark.table import COLUMNS, NAMES, ResultRow, measured
from lightning_backdoor.commands.parsing.known_options import AUTO, FULL
from lightning_backdoor.errors import InputError, escaped
from lightning_backdoor.files.names import check_name, short_name
from lightning_backdoor.files.public_classes import public_classes
from lightning_backdoor.outputs.outcomes import read_outcomes

#: settings of the trainer on which a trained victim depends, beside the precision.
TRAINING = (
    *("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time", "limit_train_batches"),
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"),
)
#: the metrics of an inference-time defense; all others are those of the victim.
OF_DEFENSES = {f"test/{metric.name}" for metric in METRICS if metric.part in ("defended", "detection", "cost")}
#: the attack whose files are the dataset of a run.
POISON_FILES = ("lightning_backdoor.attacks.PoisonFiles", "lightning_backdoor.attacks.poison_files.PoisonFiles")


class Attached(NamedTuple):
    """A defense among the callbacks of a run.

    Attributes:
        moment: ``training``, ``repair``, ``inspection`` or ``inference``.
        method: name of its class.
        name: the name that it logs under; empty if it has none.
        settings: all that it is made of.
    """

    moment: str
    method: str
    name: str
    settings: Any

    def key(self, metric: str) -> str:
        """The name under which it logs a metric at test."""
        return f"test/{self.name}/{metric}" if self.name else f"test/{metric}"


def is_test(folder: Path) -> bool:
    """Whether a folder is what ``test`` wrote."""
    if not (folder / "metrics.json").is_file() or not (folder / "config.yaml").is_file():
        return False
    return any(name.startswith("test/") for name in _metrics(folder / "metrics.json")[0])


def read_test(folder: Path, label: str) -> Source:
    """Reads ``metrics.json``, ``config.yaml`` and ``outcomes.csv`` of a test.

    Dataset, model, attack and defense are named by the config: by the file or repository, and by class names. Several
    inference-time defenses of one class are told apart by the names that they log under: ``Onion (weak)``. A defense
    or inspection that failed while others went on has an error and no numbers.

    Args:
        folder: the folder that ``test`` wrote.
        label: a short name for it.

    Raises:
        InputError: a file cannot be read, or the config is not that of a test of this library.
    """
    config = read_yaml(folder / "config.yaml")
    try:
        model, data, trainer = (config[part] or {} for part in ("model", "data", "trainer"))
        arguments, data_arguments = (part.get("init_args") or {} for part in (model, data))
        attached = [*_attached(trainer.get("callbacks") or [])]
        files = _files(model["class_path"], arguments)
        names = {
            "dataset": _short(files[0] if files else data_arguments["source"]),
            "model": _short(arguments["model"]),
            "attack": BENIGN if is_benign(model["class_path"]) else _class_name(model),
        }
        repairs = [defense.method for defense in attached if defense.moment == "repair"]
        before = [*_before_inference(arguments, data_arguments, repairs)]
    except (AttributeError, KeyError, TypeError) as error:
        problem = f"{escaped(str(folder / 'config.yaml'))} is not the config of a test ({error!r})"
        raise InputError("RUNS", problem, "leave it out") from None
    before += [defense.method for defense in attached if defense.moment == "training"]
    training = "+".join(before)
    inspections = [defense for defense in attached if defense.moment == "inspection"]
    before += [inspection.method for inspection in inspections]
    common = [data_arguments.get("data_defense"), before, [d.settings for d in attached if d.moment != "inference"]]
    metrics, rows_hash = _metrics(folder / "metrics.json")
    source = data_arguments.get("source")
    if isinstance(source, dict) and source.get("joined_by") == "separator":
        rows_hash = None  # the texts hold a separator of the model
    precision = trainer.get("precision")
    training_settings = [FULL if precision in (None, AUTO) else precision, *map(trainer.get, TRAINING)]
    as_given = {**data_arguments, "data_defense": None, "victim": None}
    as_published = config.get("ckpt_path") is None  # without a checkpoint, the model itself is the victim
    meanings: dict[str, dict[str, str]] = {
        "dataset": {names["dataset"]: digest(as_given, rows_hash, *files)},
        "model": {names["model"]: digest(arguments["model"], training_settings, as_published)},
        "attack": {names["attack"]: digest(model["class_path"], {**arguments, "model": None, "published": None})},
        "defense": {},
    }
    rows = []
    at_test = [d for d in attached if d.moment == "inference"] or [Attached("inference", "", "", None)]
    of_method = Counter(defense.method for defense in at_test)
    for defense in at_test:
        own_name = f" ({defense.name})" if defense.name and of_method[defense.method] > 1 else ""
        names["defense"] = "+".join([*before, *filter(None, [defense.method + own_name])]) or UNDEFENDED
        _check_names(names, folder)
        meanings["defense"][names["defense"]] = digest(common, defense.settings)
        row = dict.fromkeys(COLUMNS) | names | {"seed": str(_seed(config)), "training": training, "error": ""}
        row |= {"cell": str(folder / defense.name), "victim": str(folder.parent)}
        # which every defense, or inspection, that has finished has logged
        logged = [defense.key("fpr")] if defense.method else []
        logged += [inspection.key("inspection_score") for inspection in inspections]
        if all(key in metrics for key in logged):
            row |= _measured(metrics, defense.name, folder / defense.name, inspections)
        else:
            row["error"] = "the test has no numbers of it"
        rows.append(row)
    run_label = label.rpartition("/")[0] or escaped(folder.parent.name)
    return Source(folder, label, run_label, rows, meanings, [], (folder / "config.yaml").read_text(encoding="utf-8"))


def _files(class_path: str, arguments: Mapping[str, Any]) -> list[Any]:
    """The folder, and what else names them, of files that are the dataset of a run; empty if an attack brings none."""
    if full_class_path(class_path) not in POISON_FILES:
        return []
    return [arguments["folder"], arguments.get("clean_folder"), arguments.get("files")]


def _measured(
    metrics: Mapping[str, float | None], name: str, folder: Path, inspections: Sequence[Attached]
) -> ResultRow:
    """The numbers of one defense: its own metrics, which are logged under its name, the victim's, and an inspection's.

    A row has one score of the victim, and none where it was inspected in several ways.
    """
    prefix = f"test/{name}/"
    own = {f"test/{key.removeprefix(prefix)}": value for key, value in metrics.items() if key.startswith(prefix)}
    shared = {key: value for key, value in metrics.items() if key.count("/") == 1 and not (name and key in OF_DEFENSES)}
    for metric in ("inspection_score", "inspection_p_value"):
        found = [metrics.get(inspection.key(metric)) for inspection in inspections]
        own[f"test/{metric}"] = found[0] if len(found) == 1 else None
    outcomes = read_outcomes(folder / "outcomes.csv") if (folder / "outcomes.csv").is_file() else []
    record = (folder.parent.parent if name else folder.parent) / "cleaning.json"
    return measured(shared | own, outcomes, _metrics(record)[0] if record.is_file() else {})


def _metrics(path: Path) -> tuple[dict[str, float | None], str | None]:
    """The numbers of a JSON file by name, null as None; and the hash of the data, which earlier versions did not write.

    Raises:
        InputError: the file cannot be read, or is not such a file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        numbers = {name: value for name, value in content.items() if value is None or type(value) in (int, float)}
        finite = {name: value if value is None or math.isfinite(value) else None for name, value in numbers.items()}
        return finite, content.get("data")
    except (OSError, ValueError, OverflowError, AttributeError, RecursionError) as error:
        raise InputError("RUNS", f"{escaped(str(path))} cannot be read ({error})", "leave its folder out") from None


def _attached(entries: Any) -> Iterator[Attached]:
    """The defenses among a trainer's callbacks."""
    callbacks = [item for item in public_classes() if item.room == "callbacks"]
    others = {item.name for item in callbacks if item.kind != "defenses"}
    repairs = {item.name for item in callbacks if "after training" in item.moments}
    for entry in entries if isinstance(entries, list) else [entries]:
        arguments = dict(entry.get("init_args") or {})
        name = arguments.pop("name", None) or ""
        check_name(name)
        class_name = _class_name(entry)
        judging = {key: value for key, value in arguments.items() if key != "texts"}  # kept texts change no number
        if "defense" in arguments:
            yield Attached("inference", _class_name(arguments["defense"]), name, judging)
        elif "inspection" in arguments:
            yield Attached("inspection", _class_name(arguments["inspection"]), name, arguments["inspection"])
        elif class_name == "GradientAttentionDefense":
            yield Attached("inference", "GradientAttention", name, judging)
        elif not str(entry["class_path"]).startswith("lightning.") and class_name not in others:
            yield Attached("repair" if class_name in repairs else "training", class_name, name, arguments)


def _before_inference(arguments: Mapping[str, Any], data: Mapping[str, Any], repairs: list[str]) -> Iterator[str]:
    """The defenses that act before and after training, as :class:`lightning_backdoor.callbacks.RunLabels` says them."""
    if data.get("data_defense"):
        yield f"{_class_name(data['data_defense'])} on training rows"
    if arguments.get("published"):
        rows = "trusted" if data.get("train_on") == "trusted" else "training"
        yield f"{'+'.join(repairs) or 'fine-tuning'} on {rows} rows"


def _class_name(entry: Mapping[str, Any]) -> str:
    return str(entry["class_path"]).rpartition(".")[2]


def _short(name: Any) -> str:
    """A short name of a data source or a model."""
    if isinstance(name, dict):
        return short_name("/".join(filter(None, (name["path"], name.get("name")))))
    return short_name(str(name))


def _seed(config: Mapping[str, Any]) -> int:
    seed = config.get("seed_everything")
    return seed if type(seed) is int else 0


def _check_names(names: Mapping[str, str], folder: Path) -> None:
    for axis in NAMES:
        if problem := name_problem(names[axis]):
            raise InputError("RUNS", f"{escaped(str(folder))} has a {axis} that {problem}", "leave it out")
