"""The option ``--defense``: which defenses a scan uses, and their arguments, as the command line writes them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lightning_backdoor.errors import InputError, did_you_mean
from lightning_backdoor.files.bounded_yaml import out_of_bounds, read_bounded
from lightning_backdoor.files.names import expanded
from lightning_backdoor.files.presets import preset_path
from lightning_backdoor.files.public_classes import PublicClass, class_named, public_classes

OPTION = "--defense"
#: ``NAME=CLASS(argument=value)``, of which only CLASS is necessary.
WRITTEN = re.compile(r"(?:(?P<name>[^=()]+)=)?(?P<target>[^()]+)(?P<call>\(.*\))?", re.DOTALL)
#: the defense of a scan that names none.
DEFAULT = "GradientAttention"
#: fields of a line of the output that no defense may be named like.
RESERVED = ("text", "prediction", "logits", "flagged")


class DefenseOption(NamedTuple):
    """A defense that the command line asks for.

    Attributes:
        name: the name that the results of the defense get.
        target: path of the class, or ``FILE.py:CLASS``.
        arguments: arguments of the class by name, as text that is read as YAML.
    """

    name: str
    target: str
    arguments: dict[str, str]


def defense_options(args: Iterable[str]) -> tuple[list[DefenseOption], list[str]]:
    """Reads the defenses among the options of a scan.

    ``--defense Onion --defense.bar 0``, ``--defense 'Onion(bar=0)'`` and ``--defense configs/defense/onion.yaml`` are
    understood. An argument belongs to the last defense before it.

    Returns:
        The defenses, ``DEFAULT`` where none is named, and the other options.

    Raises:
        InputError: a defense is unknown or written in another way, or two have the same name.

    >>> chosen, others = defense_options(["--fpr", "0.1", "--defense", "onion", "--defense.bar=0"])
    >>> chosen[0].name, chosen[0].target, chosen[0].arguments, others
    ('Onion', 'lightning_backdoor.defenses.Onion', {'bar': '0'}, ['--fpr', '0.1'])
    """
    options: list[DefenseOption] = []
    others: list[str] = []
    waiting = iter(args)
    own: dict[str, str] = {}  # arguments given without naming a defense: those of the default
    for arg in waiting:
        option, equals, value = arg.partition("=")
        option = re.sub("^--defence", OPTION, option)  # the British spelling
        if option != OPTION and not option.startswith(f"{OPTION}."):
            others.append(arg)
            continue
        if not equals:
            following = next(waiting, None)
            if following is None:
                raise InputError(option.lstrip("-"), "expected one argument", "see lightning-backdoor scan --help")
            value = following
        if option == OPTION:
            options.append(_option(value))
        else:
            argument = option.removeprefix(f"{OPTION}.").removeprefix("init_args.").replace("-", "_")
            (options[-1].arguments if options else own)[argument] = value
    if own and options:
        raise InputError(f"defense.{next(iter(own))}", "stands before the defense", "give --defense NAME before it")
    chosen = options or [_option(DEFAULT)._replace(arguments=own)]
    _check_names([option.name for option in chosen])
    return chosen, others


def _option(written: str) -> DefenseOption:
    """One defense, as it is written after ``--defense``."""
    match = WRITTEN.fullmatch(written.strip())
    if match is None:
        raise _wrong(written)
    target, arguments = match["target"].strip(), _arguments(match["call"] or "", written)
    if target.lower().endswith((".yaml", ".yml")):
        target, of_preset = _preset(target)
        arguments = {**of_preset, **arguments}
    path = _class_path(target)
    name = re.split(r"[.:/]", path.removesuffix(".py"))[-1]
    return DefenseOption((match["name"] or name).strip(), path, arguments)


def _arguments(call: str, written: str) -> dict[str, str]:
    """The arguments in the brackets after a class, each as JSON, which is YAML."""
    try:
        parsed = ast.parse(f"f{call or '()'}", mode="eval").body
        if isinstance(parsed, ast.Call) and not parsed.args and all(keyword.arg for keyword in parsed.keywords):
            return {str(keyword.arg): json.dumps(ast.literal_eval(keyword.value)) for keyword in parsed.keywords}
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        pass
    raise _wrong(written)


def _wrong(written: str) -> InputError:
    return InputError("defense", f"{written[:100]!r} is not a defense", "write it as in --defense 'Strip(copies=5)'")


def _scores(made: PublicClass) -> bool:
    return made.room == "defenses" and "at inference" in made.moments


def _class_path(target: str) -> str:
    """The path of a class, which is given as a path or, for a class of this library, by its name in any spelling."""
    if ".py" in target or "." in target:
        return target
    known = [made for made in public_classes() if _scores(made)]
    # the callback that runs GradientAttention is named GradientAttentionDefense
    public = class_named(re.sub("[-_ ]?defen[cs]e$", "", target, flags=re.IGNORECASE), known)
    if public is not None:
        return public.class_path
    names = sorted(made.name for made in known)
    other = class_named(target, [made for made in public_classes() if made.kind == "defenses"])
    problem = f"{target[:100]!r} {'is unknown' if other is None else 'does not score texts'}"
    remedy = f"give one of {', '.join(names)}, or the class path or FILE.py:CLASS of your own"
    raise InputError("defense", problem, f"{did_you_mean(target, names)} {remedy}".strip())


def _preset(name: str) -> tuple[str, dict[str, str]]:
    """The class and the arguments of the one inference-time defense in a preset or in an entry of a grid."""
    path = preset_path(name)
    problem = f"{name} is not the preset of one inference-time defense"
    refused = InputError("defense", problem, "give a class, as in --defense Onion")
    try:
        content = yaml.safe_load(read_bounded(path, "defense"))
    except yaml.YAMLError:
        raise refused from None
    trainer = content.get("trainer") if isinstance(content, dict) else None
    callbacks = [*_entries(trainer, "callbacks+"), *_entries(trainer, "callbacks")]
    entries = callbacks or _entries(content, "inference") or [content]
    if len(entries) != 1 or not isinstance(entries[0], dict) or not isinstance(entries[0].get("class_path"), str):
        raise refused
    class_path, arguments = entries[0]["class_path"], dict(entries[0].get("init_args") or {})
    if class_path.endswith(".GradientAttentionDefense"):
        arguments = {key: value for key, value in arguments.items() if key not in ("name", "texts")}
        return DEFAULT, _texts(arguments)
    if isinstance(arguments.get("defense"), dict):  # of the callback that runs it
        class_path, arguments = arguments["defense"].get("class_path"), arguments["defense"].get("init_args") or {}
    if callbacks and entries[0]["class_path"] == class_path:
        raise refused
    return str(class_path), _texts(arguments)


def _entries(content: object, key: str) -> list[Any]:
    value = content.get(key) if isinstance(content, dict) else None
    return value if isinstance(value, list) else [] if value is None else [value]


def _texts(arguments: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): json.dumps(value) for key, value in arguments.items()}


def _check_names(names: list[str]) -> None:
    for name in names:
        if name in RESERVED:
            raise InputError("defense", f"a defense cannot be named {name!r}", "name it: --defense NAME=CLASS")
        if names.count(name) > 1:
            remedy = f"name them: --defense one={name} --defense two={name}"
            raise InputError("defense", f"{names.count(name)} defenses are named {name}", remedy)


def check_values(options: Iterable[DefenseOption]) -> None:
    """Checks that the arguments are within the bounds of :mod:`lightning_backdoor.files.bounded_yaml`.

    Raises:
        InputError: one is not.
    """
    for option in options:
        for argument, value in option.arguments.items():
            problem = out_of_bounds(value)
            if problem:
                raise InputError(f"defense.{argument}", f"{value[:40]!r} {problem}", "give a shorter value")


def defense_file(target: str) -> tuple[Path, str | None] | None:
    """File and class of a target that names a file; None for a class path.

    >>> defense_file("mine/length.py:Length")[1], defense_file("length.Length")
    ('Length', None)
    """
    match = re.fullmatch(r"(.+\.py)(?::(\w+))?", target)
    return (Path(expanded(match[1])), match[2]) if match else None
