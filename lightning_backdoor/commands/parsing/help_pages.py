"""The help of ``fit`` and its like: our own options first, then the Trainer's; read from sources, so it is quick."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from contextlib import suppress

from lightning_backdoor.commands.parsing.early_checks import settled
from lightning_backdoor.commands.parsing.known_options import (
    KnownOptions,
    is_group,
    key_of,
    root_options,
    trainer_options,
)
from lightning_backdoor.commands.parsing.known_values import HOW_TO_GIVE, KnownValues
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.class_sources import Argument, ClassSource, class_arguments, find_class
from lightning_backdoor.files.public_classes import public_classes

#: the first line of each command's help.
DESCRIPTIONS = {
    "fit": "Trains a victim (an attack, or a plain TextClassifier) and exports the best checkpoint.",
    "validate": "Evaluates a checkpoint on the validation rows.",
    "test": "Evaluates a checkpoint on the test rows, undefended and under the attached defenses.",
    "predict": "Writes a checkpoint's predictions on the test rows.",
}
#: an example of each command.
EXAMPLES = {
    "fit": "--config configs/data/movie_reviews.yaml --config configs/attack/badnets.yaml --run_dir runs/first",
    "validate": "--config runs/first/config.yaml --ckpt_path runs/first/checkpoints/best.ckpt",
    "test": "--config runs/first/config.yaml --ckpt_path runs/first/checkpoints/best.ckpt",
    "predict": "--config runs/first/config.yaml --ckpt_path runs/first/checkpoints/best.ckpt",
}
#: options of the Trainer that are listed without ``--help=all``.
OFTEN_USED = (
    *("max_epochs", "accelerator", "devices", "strategy", "precision", "logger", "callbacks"),
    *("gradient_clip_val", "accumulate_grad_batches", "limit_train_batches", "enable_progress_bar"),
)
#: defaults that differ from Lightning's.
DEFAULTS = {"max_epochs": "3", "weights_only": "True", "verbose": "False", "return_predictions": "False"}
#: descriptions that differ from Lightning's.
SUMMARIES = {
    "ckpt_path": "the checkpoint to continue from, or to evaluate: a path, best or last",
    "weights_only": "checkpoints are never loaded in a way that could run code",
}
#: classes that are the base of others, or attached by the commands themselves.
NOT_LISTED = {"BackdoorAttack", "Defense", "DataDefense", "Inspection", "Repair"}
NOT_LISTED |= {"CleaningWriter", "OutcomeWriter", "PredictionWriter", "RunLabels"}
LARGEST_WIDTH = 120
#: number of classes up to which each has a line of its own.
MOST_DESCRIBED = 8


class HelpPage:
    """The help of one command.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        prog: the command in the page.
        everything: whether all options are listed, with their whole descriptions.
        width: number of columns; by default that of the terminal, at most 120.
    """

    def __init__(self, command: str, prog: str = "", everything: bool = False, width: int = 0) -> None:
        self.command = command
        self.prog = prog or f"lightning-backdoor {command}"
        self.everything = everything
        self.width = width or min(shutil.get_terminal_size((100, 24)).columns, LARGEST_WIDTH)

    def text(self, model: ClassSource | None = None) -> str:
        """The whole page; ``model`` is the class whose options are listed, any attack's by default."""
        name = model.name if model else "CLASS"
        lines = [
            *self._wrapped(f"usage: {self.prog} [--config FILE ...] [--model {name}] [--data CLASS] [options]"),
            "",
            *textwrap.wrap(DESCRIPTIONS[self.command], self.width),
            *self._example(),
            *self.section("Options", "", root_options(self.command)),
            *self.classes(model),
            *self.trainer(),
            "",
            *self._footer(),
        ]
        return "\n".join(lines) + "\n"

    def classes(self, model: ClassSource | None = None) -> list[str]:
        """The attacks and defenses, and the options of model and data."""
        attack = _source("lightning_backdoor.attacks.BackdoorAttack")
        victim = _source("lightning_backdoor.victim.TextClassifier")
        data = _source("lightning_backdoor.data.BackdoorDataModule")
        attacks = f"Attacks (--model NAME; options of one: {self.prog} --model NAME --help)"
        lines = self._classes(attacks, "BackdoorAttack")
        if model:
            lines += self.section(f"Options of {model.name}", "model.", class_arguments(model).by_name)
        else:
            of_victim, of_attack = class_arguments(victim).by_name, class_arguments(attack).by_name
            own = {name: argument for name, argument in of_attack.items() if name not in of_victim}
            lines += self.section("Options of every attack", "model.", own)
            lines += self.section("Options of every victim, TextClassifier included", "model.", of_victim)
        lines += self.section("Options of BackdoorDataModule", "data.", class_arguments(data).by_name)
        how = HOW_TO_GIVE["Defense"].format("NAME")
        lines += self._classes(f"Defenses at inference ({how})", "Defense")
        lines += self._classes("Callbacks (--trainer.callbacks+=NAME)", "Callback")
        return lines

    def trainer(self) -> list[str]:
        """The options of Lightning's Trainer."""
        options = trainer_options().by_name
        chosen = options if self.everything else {name: options[name] for name in OFTEN_USED if name in options}
        title = "Options of Lightning's Trainer" + ("" if self.everything else f", {len(chosen)} of {len(options)}")
        return self.section(title, "trainer.", chosen)

    def of_class(self, option: str, source: ClassSource) -> str:
        """The help of one class: what it is, and all its options."""
        lines = [*textwrap.wrap(plain(source.summary), self.width)]
        self.everything = True
        lines += self.section(f"Options of {source.name}", f"{option}.", class_arguments(source).by_name)
        return "\n".join(lines) + "\n"

    def section(self, title: str, prefix: str, arguments: Mapping[str, Argument]) -> list[str]:
        """A title, and a line per option; those of a dataclass are listed in its place."""
        rows = []
        for name, argument in option_names(prefix, arguments).items():
            rows.append((("-c, " if name == "--config" else "") + name, *_described(argument)))
        return ["", *self._wrapped(f"{title}:"), *self._rows(rows)] if rows else []

    def _classes(self, title: str, base: str) -> list[str]:
        rows = []
        for item in public_classes():
            source = find_class(item.class_path)
            if source is None or item.name in NOT_LISTED or base not in source.ancestors():
                continue
            rows.append((item.name, item.summary, ""))
        if len(rows) <= MOST_DESCRIBED or self.everything:
            return ["", *self._wrapped(f"{title}:"), *self._rows(rows)]
        names = textwrap.wrap(", ".join(name for name, _, _ in rows), self.width - 2)
        return [
            "",
            *self._wrapped(f"{title}; lightning-backdoor list describes them:"),
            *(f"  {line}" for line in names),
        ]

    def _rows(self, rows: Iterable[tuple[str, str, str]]) -> list[str]:
        """Lines of a name, its description and its default, in two columns; one line each unless all is to be said."""
        rows = list(rows)
        column = min(max(len(name) for name, _, _ in rows) + 4, self.width // 2)
        lines = []
        for name, summary, default in rows:
            room = self.width - column - len(default)
            said = plain(summary)
            if self.everything:
                wrapped = textwrap.wrap(said + default, self.width - column) or [""]
            else:
                wrapped = [textwrap.shorten(said.partition(". ")[0], max(room, 20), placeholder=" ...") + default]
            begun = f"  {name}".ljust(column)
            if len(begun) > column:
                lines.append(begun)
                begun = " " * column
            lines += [(begun if i == 0 else " " * column) + line for i, line in enumerate(wrapped)]
        return [line.rstrip() for line in lines]

    def _example(self) -> list[str]:
        first, *others = f"{self.prog} {EXAMPLES[self.command]}".split(" --")
        return ["", f"  {first} --{others[0]} \\", "      " + " ".join(f"--{other}" for other in others[1:])]

    def _footer(self) -> list[str]:
        more = (
            f"{self.prog} --help=all lists all options with their whole descriptions; lightning-backdoor list has all"
        )
        more += " classes and presets. Options may be written with - or _; --print_config prints the config."
        return self._wrapped(more)

    def _wrapped(self, text: str) -> list[str]:
        return textwrap.wrap(text, self.width, subsequent_indent="  ", break_on_hyphens=False)


def option_names(prefix: str, arguments: Mapping[str, Argument]) -> dict[str, Argument]:
    """The options of a class by name, with the fields of a dataclass in its place.

    Args:
        prefix: what is before each name, such as ``data.``.
        arguments: the arguments of the class.
    """
    names: dict[str, Argument] = {}
    for name, argument in arguments.items():
        if is_group(argument):
            fields = class_arguments(argument.classes[0]).by_name
            names |= {f"--{prefix}{name}.{field}": of for field, of in fields.items()}
        elif f"{prefix}{name}" != "data.seed":  # the run's
            names[f"--{prefix}{name}"] = argument
    return names


def help_asked(command: str, args: list[str], prog: str = "", own: str = "") -> str:
    """The help that is asked for among the options of a command; empty if none is.

    A class whose source cannot be read is left to the parser, which imports it.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        args: the options.
        prog: the command in the page, if it differs from ``lightning-backdoor COMMAND``.
        own: the help of a command with further options, which replaces those of the Trainer.

    Raises:
        InputError: the option or the class whose help is asked for does not exist.
    """
    prog = prog or f"lightning-backdoor {command}"
    options = KnownOptions(command, prog)
    page = HelpPage(command, prog, "--help=all" in args)
    for i, arg in enumerate(args):
        name, _, given = arg.removeprefix("--").partition("=")
        if arg.startswith("--") and name.endswith(".help"):
            with suppress(InputError):
                settled(command, args[:i], prog, options=options)
            options.chosen.setdefault("data", _source("lightning_backdoor.data.BackdoorDataModule"))
            name, argument = options.settle(name.removesuffix(".help"))
            given = given or "".join(args[i + 1 : i + 2])
            if not given or given.startswith("-"):
                raise InputError(f"--{name}.help", "no class is given", f"give one, as in --{name}.help NAME")
            if argument is None:
                return ""
            KnownValues(options).settle(name, argument, given)
            source = options.chosen.get(key_of(name))
            return page.of_class(key_of(name), source) if source else ""
    if not {"-h", "--help", "--help=all"} & {*args}:
        return ""
    with suppress(InputError):
        settled(command, args, prog, options=options)
    model = options.chosen.get("model")
    return own + "\n".join(page.classes(model)) + "\n" if own else page.text(model)


def plain(text: str) -> str:
    """A docstring's text without its markup.

    >>> plain("a :class:`~lightning_backdoor.data.Source` of ``rows``")
    'a Source of rows'
    """
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text)
    return text.replace("``", "").replace("`", "")


def _described(argument: Argument) -> tuple[str, str]:
    """The description of an argument, and its default in brackets; empty where there is none worth saying."""
    default = DEFAULTS.get(argument.name, argument.default or "").strip("'")
    plain_value = default not in ("", "None") and "default" not in argument.summary and "(" not in default[1:]
    said = f" [{default}]" if plain_value and len(default) < 25 else ""
    return SUMMARIES.get(argument.name, argument.summary), said


def _source(class_path: str) -> ClassSource:
    source = find_class(class_path)
    assert source is not None
    return source
