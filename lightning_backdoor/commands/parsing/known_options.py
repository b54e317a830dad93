"""The options of ``fit`` and its like, known from source files: names are corrected or refused before torch is there.

What cannot be known so, such as the arguments of a class whose base class is not found, is left to the parser.
"""

from __future__ import annotations

from functools import cache

from lightning_backdoor.commands.parsing.spelling import known_spelling
from lightning_backdoor.errors import InputError, did_you_mean
from lightning_backdoor.files.class_sources import (
    Argument,
    ClassArguments,
    ClassSource,
    class_arguments,
    find_class,
    method_arguments,
)

TRAINER = "lightning.pytorch.Trainer"
#: the precision by default, which the trainer itself does not take, and the two that it stands for.
AUTO, MIXED, FULL = "auto", "bf16-mixed", "32-true"
#: the values of ``trainer.precision``, and short forms of some of them.
PRECISIONS = (
    *(AUTO, MIXED, FULL, "16-mixed", "bf16-true", "16-true", "64-true"),
    *("transformer-engine", "transformer-engine-float16", "bf16", "16", "32", "64"),
)
PRECISION_SUMMARY = "precision of training: auto is bf16-mixed where the device has bfloat16, else 32-true"
#: arguments of the trainer's methods that are objects and so cannot be options.
OBJECTS = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"}
#: options of the commands that are not arguments of the trainer's method of the same name: type and description.
OWN_OPTIONS = {
    "config": ("FILE", "a YAML file with options, or a preset such as configs/attack/badnets.yaml; repeatable"),
    "model": ("CLASS", "the attack, or TextClassifier for a benign victim"),
    "data": ("CLASS", "the data, usually BackdoorDataModule"),
    "run_dir": ("FOLDER", "the run's folder (default: a new one in runs/)"),
    "seed_everything": ("int", "seed of every random choice (default: 0); --seed is the same"),
    "keep_last": ("bool", "whether fit keeps last.ckpt, to train longer later (default: false)"),
    "trainer": ("FILE", "a YAML file with options of Lightning's Trainer"),
}
#: other names of options.
ALIASES = {"seed": "seed_everything"}
#: names under which other programs have an option, and the option that does it here.
MEANT = {
    "attack": "model",
    "victim": "model",
    "dataset": "data",
    "datasets": "data",
    "defense": "trainer.callbacks+",
    "defence": "trainer.callbacks+",
    "epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "gpus": "trainer.devices",
    "lr": "model.learning_rate",
    "optimizer": "model.learning_rate",
    "lr_scheduler": "model.warmup",
    "output": "run_dir",
    "output_dir": "run_dir",
    "out": "run_dir",
    "checkpoint": "ckpt_path",
    "resume": "ckpt_path",
}
#: per option without a dot that takes a class: the base class, and an example.
BASES = {"model": ("LightningModule", "BadNets"), "data": ("LightningDataModule", "BackdoorDataModule")}
#: keys of a class in a config.
CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")


@cache
def root_options(command: str) -> dict[str, Argument]:
    """The options of a command that have no dot in their name."""
    own = {name: Argument(name, metavar, "None", summary, "") for name, (metavar, summary) in OWN_OPTIONS.items()}
    trainer = find_class(TRAINER)
    of_method = method_arguments(trainer, command) if trainer else {}
    return own | {name: argument for name, argument in of_method.items() if name not in OBJECTS}


@cache
def trainer_options() -> ClassArguments:
    """The options below ``--trainer``."""
    trainer = find_class(TRAINER)
    if trainer is None:
        return ClassArguments({}, False)
    known = class_arguments(trainer)
    precision = known.by_name["precision"]._replace(default=AUTO, summary=PRECISION_SUMMARY)
    return known._replace(by_name={**known.by_name, "precision": precision})


class KnownOptions:
    """The options of one call of a command. Which are known depends on the classes that have been given before.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        prog: the command in messages.
        extra: further options without a dot.

    Attributes:
        chosen: per option, the class given for it; None where its source is not read.
        file: the config that is read, for messages; empty while the command line is read.
    """

    def __init__(self, command: str, prog: str, extra: tuple[str, ...] = ()) -> None:
        self.prog = prog
        self.root = root_options(command) | {name: Argument(name, "", "None", "", "") for name in extra}
        self.chosen: dict[str, ClassSource | None] = {}
        self.file = ""

    def settle(self, given: str) -> tuple[str, Argument | None]:
        """The name of an option as the parser knows it, and its argument; None where the argument is not known.

        Raises:
            InputError: there is no such option.
        """
        shown: list[str] = []
        key = ""
        level: ClassArguments | None = ClassArguments(self.root, True)
        argument: Argument | None = None
        for part in given.split("."):
            plain = part.removesuffix("+")
            known = known_spelling(part, (*CLASS_KEYS, "help")) if key else None
            if known is not None:
                if known != "init_args":
                    level = None
                    argument = argument if known == "class_path" else None
            elif level is None:
                argument = None
            else:
                known = known_spelling(plain, [*level.by_name, *(() if key else ALIASES)])
                if known is None and level.complete:
                    raise self._unknown(given, plain, key, level)
                known = ALIASES.get(known, known) if known and not key else known
                argument = level.by_name[known] if known else None
                key = f"{key}.{known}".lstrip(".")
                level = self._below(key, argument, given) if argument else None
            shown.append(f"{known}{part[len(plain) :]}" if known else part)
        return ".".join(shown), argument

    def choose(self, key: str, source: ClassSource | None) -> None:
        """Records the class of an option; what was given for its arguments before no longer counts."""
        self.chosen = {other: c for other, c in self.chosen.items() if not other.startswith(f"{key}.")}
        self.chosen[key] = source

    def field(self, name: str) -> str:
        """The name of an option in messages, with the config in which it is given."""
        return f"{self.file}: {name}" if self.file else name

    def _below(self, key: str, argument: Argument, given: str) -> ClassArguments | None:
        """The options below an option; None where they are not known."""
        if key == "trainer":
            return trainer_options()
        if key in self.chosen:
            source = self.chosen[key]
            return None if source is None else class_arguments(source)
        if key in BASES and given.removeprefix(f"{key}.") not in (key, "class_path", "class-path", "help"):
            remedy = f"give it first, as in --{key} {BASES[key][1]}, or by --config"
            raise InputError(self.field(given), f"no {key} is given before it", remedy)
        return class_arguments(argument.classes[0]) if is_group(argument) else None

    def _unknown(self, given: str, part: str, key: str, level: ClassArguments) -> InputError:
        """The error for a name that no option has."""
        if key:
            source = self.chosen.get(key)
            who = "Lightning's Trainer" if key == "trainer" else source.name if source else key
            see = f"{self.prog} --{key}.help {source.name}" if source else f"{self.prog} --help=all"
            names = [*level.by_name, *_fields(level), *(CLASS_KEYS if source else ())]
            inside = next(
                (name for name in names if "." in name and known_spelling(part, [name.partition(".")[2]])), ""
            )
            near = f"did you mean {inside}?" if inside else did_you_mean(part, names)
            return InputError(self.field(given), f"{who} has no {part}", advice(near, see))
        dashes = "" if self.file else "--"
        longer = next((f"{other}.{known}" for other, known in self._elsewhere(part)), "")
        longer = longer or MEANT.get(part.lower().replace("-", "_"), "")
        near = f"did you mean {longer}?" if longer else did_you_mean(part, [*level.by_name, *ALIASES])
        remedy = advice(near.replace("mean ", f"mean {dashes}"), f"{self.prog} --help")
        return InputError(self.field(f"{dashes}{given}"), "there is no such option", remedy)

    def _elsewhere(self, part: str) -> list[tuple[str, str]]:
        """The options below which a name is one, and its spelling there."""
        levels = {"trainer": trainer_options().by_name}
        levels |= {key: class_arguments(source).by_name for key, source in self.chosen.items() if source is not None}
        return [(key, known) for key, names in levels.items() if (known := known_spelling(part, names))]


def _fields(level: ClassArguments) -> list[str]:
    """The fields of those arguments of a class that are dataclasses, after the argument's name."""
    groups = [(argument.name, argument.classes[0]) for argument in level.by_name.values() if is_group(argument)]
    return [f"{name}.{field}" for name, source in groups for field in class_arguments(source).by_name]


def advice(near: str, see: str) -> str:
    """What an error says to do: the question whether another name is meant, if there is one, and a command to run.

    >>> advice("", "lightning-backdoor fit --help")
    'see: lightning-backdoor fit --help'
    """
    return " ".join(filter(None, (near, f"see: {see}")))


def is_group(argument: Argument) -> bool:
    """Whether an argument takes one dataclass, whose fields are then options without a class being given."""
    classes = argument.classes
    return len(classes) == 1 and classes[0].is_dataclass


def key_of(name: str) -> str:
    """The name of an option without ``init_args``, which need not be given, and without the sign that appends.

    >>> key_of("trainer.callbacks+"), key_of("model.init_args.poison_rate")
    ('trainer.callbacks', 'model.poison_rate')
    """
    return ".".join(part.removesuffix("+") for part in name.split(".") if part != "init_args")
