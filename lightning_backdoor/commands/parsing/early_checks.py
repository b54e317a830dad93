"""Reads the options of ``fit`` and its like before their parser does: corrects spellings, refuses what is unknown.

This takes a fraction of a second, since neither torch nor the classes are imported.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lightning_backdoor.commands.parsing.known_options import ALIASES, BASES, OWN_OPTIONS, KnownOptions, advice
from lightning_backdoor.commands.parsing.known_values import KnownValues
from lightning_backdoor.commands.parsing.spelling import known_spelling
from lightning_backdoor.errors import InputError, did_you_mean, reason
from lightning_backdoor.files.bounded_yaml import out_of_bounds, read_bounded
from lightning_backdoor.files.names import expanded, is_file
from lightning_backdoor.files.presets import preset_names, preset_path

#: keys of which a grid has some and the config of a run none.
GRID_KEYS = {"datasets", "models", "attacks", "defenses"}
#: keys of a W&B sweep.
SWEEP_KEYS = {"method", "parameters"}
#: options that take no value.
FLAGS = ("help", "print_config", "print_shtab", "print_completion")


class Settled(NamedTuple):
    """The options of a command as its parser takes them.

    Attributes:
        args: the options.
        files: the corrected content of configs, by the text of the file; without those that needed no correction.
    """

    args: list[str]
    files: dict[str, Any]


def load_plain(text: str) -> Any:
    """Reads YAML, to look at it; its numbers may differ from those that the parser reads.

    Raises:
        YAMLError: the text is not YAML.
    """
    try:
        return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        raise
    except Exception as error:  # whatever Python raises for dates and numbers that are none
        raise yaml.YAMLError(f"a value is malformed: {error}") from None


class _OneLine(yaml.SafeDumper):  # type: ignore[misc]
    """Writes each text in quotes, as readers differ in what they take for a number, and each alias as a copy."""

    yaml_representers = yaml.SafeDumper.yaml_representers | {
        str: lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
    }

    def ignore_aliases(self, data: object) -> bool:
        return True


def one_line_yaml(value: dict[Any, Any] | list[Any]) -> str:
    """A mapping or list as YAML on one line, in which all that YAML has (dates, sets, infinity) is read back.

    >>> one_line_yaml({"path": "no", "rate": float("inf")})
    '{"path": "no", "rate": .inf}'
    """
    text: str = yaml.dump(
        value, Dumper=_OneLine, default_flow_style=True, allow_unicode=True, sort_keys=False, width=sys.maxsize
    )
    return text.rstrip("\n")


def settled(
    command: str,
    args: list[str],
    prog: str = "",
    extra: tuple[str, ...] = (),
    load: Callable[[str], Any] = load_plain,
    options: KnownOptions | None = None,
) -> Settled:
    """The options of a command with corrected spellings, and with classes by their paths.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        args: the options, as on the command line.
        prog: the command in messages, if it differs from ``lightning-backdoor COMMAND``.
        extra: further options without a dot.
        load: reads YAML.
        options: the options, for a caller that asks them afterwards which classes were given.

    Raises:
        InputError: an option, a class or a file does not exist, or a value is not one of its option.
    """
    options = options or KnownOptions(command, prog or f"lightning-backdoor {command}", extra)
    return _Reader(options, load).read(args)


class _Reader:
    def __init__(self, options: KnownOptions, load: Callable[[str], Any]) -> None:
        self.options = options
        self.values = KnownValues(options)
        self.load = load
        self.files: dict[str, Any] = {}

    def read(self, args: list[str]) -> Settled:
        result: list[str] = []
        left = list(args)
        while left:
            given = re.sub(r"^-c(?==|$)", "--config", left.pop(0))
            if given.startswith("-c") and known_spelling(given[1:].partition("=")[0], self.options.root) is None:
                given = f"--config={given[2:]}"
            name, equals, value = given.removeprefix("--").partition("=")
            if given == "-h" or name in FLAGS or name.endswith(".help"):
                result.append(given)
                if name.endswith(".help") and left and not left[0].startswith("-"):
                    result.append(left.pop(0))
                continue
            if not re.match(r"--[^\W\d]", given):
                raise self._stray(given)
            name, argument = self.options.settle(name)
            if not equals:
                if not left or (re.match(r"-[^\d.]", left[0]) and " " not in left[0]):
                    example = "true" if argument is not None and "bool" in argument.type else "VALUE"
                    raise InputError(f"--{name}", "no value is given", f"give one, as in --{name} {example}")
                value = left.pop(0)
            if name == "config":
                value = self._config(value)
            elif argument is not None and argument.type == "str" and "+" not in name and self._is_no_text(value):
                if name.partition(".")[0] in BASES:  # in a config it may be quoted, on the command line it may not
                    content: Any = value
                    for part in reversed(name.split(".")):
                        content = {part: content}
                    name, value = "config", one_line_yaml(content)
            elif argument is not None:
                value = self._text(name, argument, value)
            result.append(f"--{name}={value}")
        names = {given.removeprefix("--").partition("=")[0] for given in result}
        if not any(name in ("-h", *FLAGS) or name.endswith(".help") for name in names):
            for option, (_, example) in BASES.items():
                if option not in self.options.chosen:
                    remedy = f"give --{option} CLASS, such as {example}, or a --config that does"
                    raise InputError(option, "not given, and there is no default", remedy)
        return Settled(result, self.files)

    def _text(self, name: str, argument: Any, text: str) -> str:
        """The value of an option, given as text on the command line."""
        value: Any = text
        if text.lstrip()[:1] in ("[", "{") and not out_of_bounds(text):
            try:
                value = self.load(text)
            except yaml.YAMLError:
                return text  # the parser's to refuse, or to take as text
        result = self.values.settle(name, argument, value)
        return text if result == value else result if isinstance(result, str) else one_line_yaml(result)

    def _is_no_text(self, text: str) -> bool:
        """Whether YAML reads a text as something that is neither text nor a number, such as ``Note: good``."""
        try:
            return not out_of_bounds(text) and isinstance(self.load(text), dict | list | None)
        except yaml.YAMLError:
            return False

    def _config(self, given: str) -> str:
        """Reads a config file, or a config given as YAML text."""
        if not given.strip():
            raise InputError("config", "no value is given", "give a YAML file")
        given = expanded(given)
        path = preset_path(given)
        if not is_file(path):
            if self._is_mapping(given):
                content = self._content(given, "--config")
                return given if content is None else one_line_yaml(content)
            if "://" in given:
                return given
            raise missing_config(given)
        text = read_bounded(path)
        content = self._content(text, str(path))
        if content is not None:
            self.files[text] = content
        return given

    def _is_mapping(self, given: str) -> bool:
        """Whether a config is given as YAML text instead of a file."""
        if given.lstrip().startswith("{"):
            return not out_of_bounds(given)
        try:
            return ": " in given and not out_of_bounds(given) and isinstance(self.load(given), dict)
        except yaml.YAMLError:
            return False

    def _content(self, text: str, file: str) -> Any:
        """The corrected content of a config; None if it needs no correction."""
        try:
            content = self.load(text)
        except yaml.YAMLError as error:
            raise InputError("config", f"{file} is not YAML ({reason(error, 150)})", "correct it") from None
        if not isinstance(content, dict):
            problem = "is empty" if content is None else "has no names with values"
            raise InputError("config", f"{file} {problem}", "write options as in {trainer: {max_epochs: 3}}")
        if GRID_KEYS & content.keys():
            command = f"lightning-backdoor benchmark --config {file} --output FOLDER"
            raise InputError("config", f"{file} is a grid, not the config of one run", f"run: {command}")
        if content.keys() >= SWEEP_KEYS:
            raise InputError("config", f"{file} is a W&B sweep", f"run: wandb sweep {file}")
        self.options.file = file
        corrected = self.values.config(content)
        self.options.file = ""
        return None if corrected == content else corrected

    def _stray(self, given: str) -> InputError:
        """The error for an argument that is neither an option nor the value of one."""
        near = did_you_mean(given.lstrip("-").partition("=")[0], [*self.options.root, *ALIASES]).replace(
            "mean ", "mean --"
        )
        if given.endswith((".yaml", ".yml")):
            near = f"did you mean --config {given[:100]}?"
        remedy = advice(near, f"{self.options.prog} --help")
        return InputError("options", f"{given[:100]!r} is neither an option nor the value of one", remedy)


def check_grid(given: str) -> None:
    """Checks that a file given as a grid exists and is not the config of a run.

    Raises:
        InputError: it does not exist, or configures a run or a sweep.
    """
    path = preset_path(given)
    if not is_file(path):
        raise missing_config(given)
    try:
        content = load_plain(read_bounded(path))
    except yaml.YAMLError:
        return  # the grid's own reader says what is wrong
    if not isinstance(content, dict) or GRID_KEYS & content.keys():
        return
    if content.keys() & {*OWN_OPTIONS} or content.keys() >= SWEEP_KEYS:
        kind = "a W&B sweep" if content.keys() >= SWEEP_KEYS else "the config of one run"
        remedy = f"run: wandb sweep {given}" if "sweep" in kind else f"run: lightning-backdoor fit --config {given}"
        raise InputError("config", f"{given} is {kind}, not a grid", remedy)


def missing_config(given: str) -> InputError:
    """The error for a config that does not exist, with the preset or the file of the nearest name."""
    path = Path(given)
    if path.is_dir():
        return InputError("config", f"{given[:200]} is a folder", "give a YAML file")
    by_stem = {Path(name).stem: name for name in reversed(preset_names())}
    near = did_you_mean(given, preset_names())
    if not near and (same := did_you_mean(path.stem, by_stem)):
        near = f"did you mean {by_stem[same.removeprefix('did you mean ').removesuffix('?')]}?"
    if path.parent.is_dir() and not near.removesuffix("?").endswith(path.name):
        beside = did_you_mean(path.name, [file.name for file in sorted(path.parent.glob("*.y*ml"))[:1000]])
        near = beside.replace("mean ", f"mean {path.parent}/" if path.parent.parts else "mean ") or near
    return InputError("config", f"there is no file {given[:200]}", advice(near, "lightning-backdoor list presets"))
