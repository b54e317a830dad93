"""The errors of jsonargparse in one line: the option, what is wrong with its value, and what to give.

Option, class and value are read from its messages, since it gives them nowhere else. If its wording changes, the field
is "options" and the problem is the unchanged message.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
import traceback
from typing import NamedTuple

from lightning_backdoor.commands.parsing.known_options import advice
from lightning_backdoor.errors import InputError, did_you_mean, reason
from lightning_backdoor.files.class_sources import class_arguments, find_class

#: what a value of a type is called, and how it is written.
TYPES = {
    "int": ("a whole number", ""),
    "float": ("a number", ""),
    "bool": ("true or false", ""),
    "str": ("text", ""),
    "list": ("a list", "write it as [a, b]"),
    "tuple": ("a list", "write it as [a, b]"),
    "dict": ("names and values", "write it as {name: value, name: value}"),
}
#: how the value of an option is written, where more can be said than for its type.
WRITTEN = {"data.max_rows": "give rows by split, such as train=200 or {train: 200, test: 100}"}
CONTAINER = re.compile(r"\b(dict|list|tuple)\b")


class _Source(NamedTuple):
    """Where an error arose.

    Attributes:
        keys: the option.
        class_path: the class that the option belongs to.
        union: the message of the Union that refused its value.
        imported: the class path that was read last, which may be the value itself.
        cause: the error that caused it.
    """

    keys: list[str]
    class_path: str
    union: str
    imported: str
    cause: BaseException


def parse_error(error: BaseException, prog: str) -> InputError:
    """The :class:`InputError` for an error of jsonargparse.

    Args:
        error: the error.
        prog: the command, such as ``lightning-backdoor fit``.
    """
    source, problem = _source(error), reason(error, 1000)
    field = ".".join(source.keys) or "options"
    if unknown := re.search(
        r"(?:Group '([\w.]+)' does not accept o|O)ption '([\w.+-]+)'(?: is not accepted)?", problem
    ):
        return _unknown(".".join(filter(None, (field if source.keys else "", unknown[1]))), unknown[2], source, prog)
    if missing := re.search(r"arguments are required: ([\w.]+)", problem):
        name = f"{field}.{missing[1]}" if source.keys else missing[1]
        return InputError(name, "not given, and there is no default", f"give --{name}, or put it into a --config")
    if abstract := re.search(r"([\w.]+)\.(\w+) is abstract", problem):  # private: jsonargparse 4.53.0
        module, name = abstract.groups()
        methods = ", ".join(sorted(getattr(importlib.import_module(module), name).__abstractmethods__))
        return InputError(field, f"{module}.{name} does not implement {methods}", "implement it")
    if failed := _failed_import(field, source):
        return failed
    if by_name := re.fullmatch(r"Expected a dot import path string: (.*)", problem):
        remedy = f"give the path of a class, such as shout.Shout; see: {prog} --help"
        return InputError(field, f"there is no class {by_name[1][:100]}", remedy)
    if of_module := re.match(r"module '([\w.]+)' has no attribute '(\w+)'", problem):
        names = [name for name, value in vars(sys.modules.get(of_module[1], re)).items() if isinstance(value, type)]
        near = did_you_mean(of_module[2], names) if of_module[1] in sys.modules else ""
        return InputError(field, f"{problem[:300]} ({source.class_path})", near)
    if source.class_path and problem.startswith("No module named"):
        remedy = "give the path of a class in an installed package, or in a file of the working directory"
        return InputError(field, f"{problem[:300]} ({source.class_path})", remedy)
    if of_length := re.fullmatch(r"Expected a tuple with (\d+) elements?\. Got value: ?(.*)", problem):
        return _wrong_length(field, of_length[2], int(of_length[1]))
    if refused := re.fullmatch(r"Expected a (.*?)\. Got value: ?(.*)", problem):
        inner = not CONTAINER.search(refused[1]) and CONTAINER.search(source.union)  # a value in a list or mapping
        return _wrong_value(field, refused[2], refused[1] if inner else source.union or refused[1])
    where = f" ({source.class_path})" if source.class_path and source.class_path not in problem else ""
    return InputError(field, f"{problem[:500]}{where}")


def _source(error: BaseException) -> _Source:
    """Reads the chain of an error's causes: each level of nested options has its key, some of them twice."""
    keys: list[str] = []
    class_path = union = imported = ""
    cause: BaseException | None = error
    while cause is not None:
        text, error = str(cause), cause
        key = re.match(r'Parser key "([^"]+)"', text)  # private: jsonargparse 4.53.0
        if key and key[1] not in keys[-1:]:
            keys.append(key[1])
            union = ""
        if given := re.match(r"Problem with given class_path '([^']+)'", text):
            class_path, union, imported = given[1], "", given[1]
        if types := re.match(r"Does not validate against any of the Union subtypes\s+Subtypes: (.*)", text):
            union = types[1]
            if value := re.search(r"Given value: ([\w.]+\.\w+)$", text):
                imported = value[1]
        cause = cause.__cause__
    return _Source(keys, class_path, union, imported, error)


def _failed_import(field: str, source: _Source) -> InputError | None:
    """The error for a class whose module is found and cannot be imported; None if that is not what happened."""
    frames = traceback.walk_tb(source.cause.__traceback__)
    in_module = isinstance(source.cause, SyntaxError) or any(frame.f_code.co_name == "<module>" for frame, _ in frames)
    if not source.imported or not in_module:
        return None
    remedy = "install what it needs" if isinstance(source.cause, ModuleNotFoundError) else "correct it"
    return InputError(field, f"{source.imported} cannot be imported ({reason(source.cause)})", remedy)


def _wrong_length(field: str, value: str, needed: int) -> InputError:
    """The error for a list that is too long or too short."""
    try:
        count = len(ast.literal_eval(value))
        given = f"{count} value{'' if count == 1 else 's'}"
    except (SyntaxError, TypeError, ValueError):
        given = "another number of values"
    names = ", ".join("abcdefghijklmnopqrstuvwxyz"[:needed])
    return InputError(field, f"{value[:100]} has {given}, and {needed} are needed", f"write it as [{names}]")


def _unknown(field: str, name: str, source: _Source, prog: str) -> InputError:
    """The error for an argument that a class does not have."""
    definition = find_class(source.class_path) if source.class_path else None
    known = class_arguments(definition).by_name if definition else {}
    if name in known:
        problem = f"{source.class_path} takes no {name}, since its __init__ gives **kwargs to another function"
        return InputError(f"{field}.{name}", problem, "call super().__init__(**kwargs) in it")
    who = source.class_path.rpartition(".")[2] or prog
    see = f"{prog} --{field}.help {source.class_path}" if source.class_path else f"{prog} --help"
    return InputError(
        ".".join(filter(None, (field, name))), f"{who} has no {name}", advice(did_you_mean(name, known), see)
    )


def _wrong_value(field: str, value: str, expected: str) -> InputError:
    """The error for a value of another type than the option's.

    Args:
        field: the option.
        value: the value.
        expected: the types in the wording of Python, one or a list.
    """
    literals = [text.strip("'\"") for part in re.findall(r"Literal\[([^\]]*)\]", expected) for text in part.split(", ")]
    plain = re.sub(r"(typing\.)?Literal\[[^\]]*\]", "", expected)
    names = dict.fromkeys(name for name in re.findall(r"\w+", plain) if name in TYPES)
    container = CONTAINER.search(plain)
    if container and not literals:
        what, remedy = TYPES[container[1]]
        return InputError(field, f"{value[:100]!r} is not {what}", WRITTEN.get(field, remedy))
    kinds = [TYPES[name][0] for name in names]
    if literals:
        near = did_you_mean(value, literals)
        choice = f"give one of {', '.join(dict.fromkeys(literals))}" + "".join(f", or {kind}" for kind in kinds)
        return InputError(field, f"{value[:100]!r} is not one of its values", f"{near} {choice}".strip())
    if kinds == ["text"] and re.fullmatch(r"True|False|[-+.\de]+", value):
        remedy = "quote it, since YAML reads yes, no, true, false and numbers as other values"
        return InputError(field, f"{value[:100]!r} is not text", remedy)
    if kinds:
        return InputError(field, f"{value[:100]!r} is not {' or '.join(kinds)}", "give one")
    return InputError(field, f"{value[:100]!r} is not of its type, {expected[:200]}")
