"""The values of options: classes by name, lists and mappings as people write them; wrong ones are refused early."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lightning_backdoor.commands.parsing.known_options import (
    BASES,
    CLASS_KEYS,
    PRECISIONS,
    KnownOptions,
    advice,
    is_group,
    key_of,
)
from lightning_backdoor.commands.parsing.spelling import known_spelling
from lightning_backdoor.errors import InputError, did_you_mean
from lightning_backdoor.files.class_sources import Argument, class_arguments, find_class
from lightning_backdoor.files.module_sources import OWN_PACKAGE, exported_names
from lightning_backdoor.files.public_classes import public_classes

#: how a class is given, by the name of one of its base classes.
HOW_TO_GIVE = {
    "Callback": "--trainer.callbacks+={}",
    "Defense": "--trainer.callbacks+=InferenceDefense --trainer.callbacks.defense {}",
    "DataDefense": "--data.data_defense {}",
    "Inspection": "--trainer.callbacks+=InspectionCallback --trainer.callbacks.inspection {}",
    "LightningDataModule": "--data {}",
    "LightningModule": "--model {}",
}
#: per base class, what ``list`` lists the classes under.
KINDS = {"LightningModule": "attacks", "LightningDataModule": "data"}
KINDS |= dict.fromkeys(("Callback", "Defense", "DataDefense", "Inspection"), "defenses")
#: text that YAML reads as no value or as a number.
NOT_TEXT = re.compile(r".*\d.*|null|~|[-+]?\.?inf|\.?nan|", re.IGNORECASE | re.DOTALL)
PAIRS = re.compile(r"\s*[\w-]+=[^=,]+(,\s*[\w-]+=[^=,]+)*")
LIST = re.compile(r"(?:[Ll]ist|[Tt]uple|Sequence)\[(str|int|float)(?:, (?:\1|\.\.\.))*\]")

DICT = re.compile(r"[Dd]ict\[str, (str|int|float)\]")


class KnownValues:
    """The values of the options of one call of a command.

    Args:
        options: the options.
    """

    def __init__(self, options: KnownOptions) -> None:
        self.options = options
        self._strangers = False  # whether a class of another package is given, whose module may define more

    def config(self, content: dict[Any, Any], prefix: str = "") -> dict[Any, Any]:
        """The content of a config, or of a part of one, with names and values as the parser takes them.

        Args:
            content: names and values.
            prefix: the option that the part belongs to; empty for a whole config.

        Raises:
            InputError: a name is unknown, or a value is not one of its option.
        """
        result = {}
        for given, value in content.items():
            if not isinstance(given, str):
                raise InputError(self.options.field(prefix or "config"), f"{given!r} is not a name", "quote it")
            name, argument = self.options.settle(f"{prefix}.{given}" if prefix else given)
            result[name.removeprefix(f"{prefix}.")] = value if argument is None else self.settle(name, argument, value)
        return result

    def settle(self, name: str, argument: Argument, value: Any) -> Any:
        """A value as the parser takes it: a class by its path, a text as the list or mapping that it stands for.

        Raises:
            InputError: the value is not one of the option.
        """
        key = key_of(name)
        if key == "data.seed" and not self.options.file:
            raise InputError(key, "the data take the run's seed", "give --seed")
        if key == "config":
            for option in BASES:  # the other file may give them
                self.options.chosen.setdefault(option, None)
        if name.endswith(".class_path"):
            key = key.removesuffix(".class_path")
            base = base_class(key, argument)
            return self._class_path(key, argument, base, value) if base and isinstance(value, str) else value
        if key == "trainer" or is_group(argument):
            if isinstance(value, str):
                self._check_group(key, argument, value)
            return self.config(value, name) if isinstance(value, dict) else value
        if base := base_class(key, argument):
            return self._class(name, argument, base, value)
        return self._plain(key, argument, value) if isinstance(value, str) else value

    def _class(self, name: str, argument: Argument, base: str, value: Any) -> Any:
        """The value of an option that takes a class, or a list of classes."""
        key = key_of(name)
        if isinstance(value, list):
            return [self._class(name, argument, base, entry) for entry in value]
        if isinstance(value, str):
            if not re.fullmatch(r"[^\W\d][\w.]*", value) or value.endswith((".yaml", ".yml", ".json")):
                self._check_file_of_class(key, value)
                self.options.choose(key, None)  # a file or YAML text, which the parser reads
                return value
            return value if value in ("null", "true", "false") else self._class_path(key, argument, base, value)
        if not isinstance(value, dict):
            return value
        if not any(known_spelling(str(part), ["class_path"]) for part in value):
            return self.config(value, name) if key in self.options.chosen else value
        value = {known_spelling(str(part), CLASS_KEYS) or part: content for part, content in value.items()}
        for part in value:
            if part not in (*CLASS_KEYS, "__path__"):
                near = did_you_mean(str(part), CLASS_KEYS) or "write it under init_args"
                raise InputError(self.options.field(f"{name}.{part}"), "stands beside class_path", near)
        result = dict(value)
        if isinstance(value["class_path"], str):
            result["class_path"] = self._class_path(key, argument, base, value["class_path"])
        if isinstance(value.get("init_args"), dict):
            result["init_args"] = self.config(value["init_args"], f"{name}.init_args")
        return result

    def _check_file_of_class(self, key: str, value: str) -> None:
        """Refuses a preset or a Python file that is given where a class is."""
        field, problem = self.options.field(key), f"{value[:100]} is not a class"
        if value.startswith("configs/") and not Path(value).is_file():
            raise InputError(field, problem, f"did you mean --config {value[:100]}?")
        if source := re.fullmatch(r"([\w/.]+)\.py(?::(\w+))?", value):
            raise InputError(field, problem, f"give {source[1].replace('/', '.')}.{source[2] or 'CLASS'}")

    def _class_path(self, key: str, argument: Argument, base: str, given: str) -> str:
        """The path of a class that is given by its path or its name."""
        path = given
        if "." not in given:
            packages = [source.module.rpartition(".")[0] for source in argument.classes if source.name == base]
            ours = (item.class_path for item in public_classes() if known_spelling(given, [item.name]))
            path = next(ours, f"{packages[0]}.{given}" if packages else given)
        source = find_class(path)
        if source is None:
            if path.startswith(f"{OWN_PACKAGE}.") or ("." not in given and not self._strangers):
                raise self._no_class(key, argument, base, given)
            self._strangers = True
        elif source.module.partition(".")[0] not in (OWN_PACKAGE, "lightning"):
            self._strangers = True
        elif base not in source.ancestors() and not any("Protocol" in of.ancestors() for of in argument.classes):
            how = next((how for other, how in HOW_TO_GIVE.items() if other in source.ancestors()), "")
            remedy = f"give it as {how.format(source.name)}" if how else ""
            raise InputError(self.options.field(key), f"{given} is not a {base}", remedy)
        self.options.choose(key, source)
        return given if source is None else path

    def _check_group(self, key: str, argument: Argument, text: str) -> None:
        """Refuses a text for an option of names and values, unless it is null, YAML, or a file with them."""
        if (
            text == "null"
            or ("None" in argument.type and not is_group(argument))
            or re.search(r":(\s|$)|^\s*[{[]", text)
            or Path(text).suffix in (".yaml", ".yml", ".json")
        ):
            return
        first = next(iter(class_arguments(argument.classes[0]).by_name), "") if argument.classes else ""
        near = f"did you mean --{key}.{first} {text[:100]}?" if first else "give a YAML file"
        raise InputError(
            self.options.field(key), f"{text[:100]!r} is neither names and values nor a file of them", near
        )

    def _plain(self, key: str, argument: Argument, text: str) -> Any:
        """The value of an option that takes no class, given as text."""
        optional = re.fullmatch(r"Optional\[(.*)\]", argument.type)
        kinds = [kind for kind in (optional[1] if optional else argument.type).split(" | ") if kind != "None"]
        kind = kinds[0]
        if len(kinds) == 1 and kind in ("int", "float") and not NOT_TEXT.fullmatch(text.strip()):
            number = "a whole number" if kind == "int" else "a number"
            raise InputError(self.options.field(key), f"{text[:100]!r} is not {number}", "give one")
        if key == "trainer.precision" and text not in (*PRECISIONS, "null"):
            near = advice(did_you_mean(text, PRECISIONS), f"{self.options.prog} --help=all")
            raise InputError(self.options.field(key), f"{text[:100]!r} is not one of its values", near)
        if "str" in kinds:
            return text
        if (
            (of := next(filter(None, map(LIST.fullmatch, kinds)), None))
            and re.match(r"\s*[^\s\[{'\"~]", text)
            and text != "null"
            and not re.fullmatch(r"\s*\(.*\)\s*", text)  # a list in Python's words, which the parser refuses
        ):
            parts = [part.strip() for part in text.split(",")]
            return parts if of[1] == "str" else [_number(part) for part in parts]
        if (of := DICT.fullmatch(kind)) and PAIRS.fullmatch(text):
            pairs = [[part.strip() for part in pair.split("=")] for pair in text.split(",")]
            return {name: value if of[1] == "str" else _number(value) for name, value in pairs}
        return text

    def _no_class(self, key: str, argument: Argument, base: str, given: str) -> InputError:
        """The error for a class that does not exist."""
        names = [item.name for item in public_classes() if base in _ancestors(item.class_path)]
        for source in argument.classes:
            names += exported_names(source.module.rpartition(".")[0])
        near = did_you_mean(given.rpartition(".")[2], names)
        see = f"lightning-backdoor list {KINDS[base]}" if base in KINDS else f"{self.options.prog} --help=all"
        return InputError(self.options.field(key), f"there is no class {given[:100]}", advice(near, see))


def base_class(key: str, argument: Argument) -> str:
    """The name of the base class of what an option takes; empty if it takes anything else."""
    if key in BASES:
        return BASES[key][0]
    names = [source.name for source in argument.classes]
    return names[0] if len(names) == 1 and not re.search(r"\b(str|dict|Mapping|Callable)\b", argument.type) else ""


def _ancestors(class_path: str) -> set[str]:
    source = find_class(class_path)
    return source.ancestors() if source else set()


def _number(text: str) -> int | float | str:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
