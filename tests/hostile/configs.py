"""Hostile configs: YAML files and options of ``fit`` and ``poison``, and names and grids of ``benchmark``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.hostile.hostile_input import Files, HostileInput, Inputs

NAMES = ("../../x", "/x", "\0", "\x1b[31mred", "a\nb", "\ud800", "a" * 5000, "", " ", ".", "..", "[red]x", "a/b")


def configs(files: Files, marker: Path) -> Inputs:
    """Config files and options that ``poison`` parses with the options of ``fit``."""
    for name, text in _yaml(marker):
        path = files.file(text, ".yaml")
        right = (0, 2) if name == "merge of itself" else (2,)
        yield HostileInput(f"config: {name}", ["poison", "-c", "hostile.yaml", "-c", path, *_output(files)], right)
        yield HostileInput(f"grid: {name}", _plan(files, path))
    for option, values in _options().items():
        for value in values:
            args = ["poison", "-c", "hostile.yaml", f"--{option}={value}", *_output(files)]
            unused = option in ("seed_everything", "model.model", "model.max_length")  # by poison
            yield HostileInput(f"--{option}={value!r}"[:60], args, (0, 2) if unused else (2,))
    for command in ("", "\x1b[31m", "../fit", "fit\0", "FIT", "\ud800"):
        yield HostileInput(f"command {command!r}", [command])
    for output in ("/dev/null", "/dev/null/x", "\0", "a" * 5000, "/proc/x", "hostile.yaml", "hostile.yaml/x", ""):
        args = ["poison", "-c", "hostile.yaml", "--output", output, "--stealth_rows", "0"]
        yield HostileInput(f"output {output[:20]!r}", args)


def grids(files: Files, model: Path) -> Inputs:
    """Grid files whose names or entries are hostile; ``benchmark`` only plans them."""
    entry: Any
    for axis in ("datasets", "models", "attacks", "defenses"):
        for name in NAMES:
            content = _grid(model)
            content[axis] = {**content[axis], name: next(iter(content[axis].values()))}
            if axis == "defenses":
                content[axis][name] = {"inference": {"class_path": "lightning_backdoor.defenses.strip.Strip"}}
            path = files.file(yaml.safe_dump(content), ".yaml")
            yield HostileInput(f"{axis} named {name[:20]!r}", _plan(files, path), (0, 2))
        for entry in (
            3,
            [],
            "nowhere.yaml",
            "/dev/zero",
            {"class_path": 3},
            {"data": 3},
            {"class_path": "x", "init_args": []},
        ):
            content = _grid(model)
            content[axis] = {"x": entry}
            path = files.file(yaml.safe_dump(content), ".yaml")
            yield HostileInput(f"{axis}: {json.dumps(entry)}", _plan(files, path), (0, 2))
    for value in (".", "..", "/", "/dev/zero", "~", "a" * 5000, "\0", "/proc"):
        content = _grid(model)
        content["attacks"]["bad"]["init_args"]["triggers"] = [value]
        yield HostileInput(f"trigger {value[:20]!r}", _plan(files, files.file(yaml.safe_dump(content), ".yaml")), (0,))
    for name, journal in _journals():
        folder = files.tree({"journal.jsonl": journal})
        path = files.file(yaml.safe_dump(_grid(model)), ".yaml")
        yield HostileInput(f"journal: {name}", ["benchmark", "--config", path, "--output", folder, "--dry-run"], (0, 2))


def _output(files: Files) -> list[str]:
    return ["--output", str(files.path()), "--stealth_rows", "0"]


def _plan(files: Files, path: str) -> list[str]:
    return ["benchmark", "--config", path, "--output", str(files.path()), "--dry-run"]


def _grid(model: Path) -> dict[str, Any]:
    return {
        "datasets": {"d": {"data": {"init_args": {"source": {"path": "data.csv"}}}}},
        "models": {"m": str(model)},
        "attacks": {"bad": {"class_path": "lightning_backdoor.attacks.BadNets", "init_args": {"triggers": ["cf"]}}},
        "defenses": {"none": None},
    }


def _yaml(marker: Path) -> Iterator[tuple[str, bytes | str]]:
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
    bomb += "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
    yield "aliases of aliases", bomb
    yield "aliases in mappings", bomb.replace("[x,x,x,x,x,x,x,x,x,x]", "{x: 1}")
    yield "a list of itself", "model: &a [*a]\n"
    yield "a mapping of itself", "model: &a {b: *a}\n"
    yield "merge of itself", "model: &a\n  <<: *a\n"
    yield "brackets", "[" * 10_000
    yield "closed brackets", "model: " + "[" * 5000 + "]" * 5000
    yield "indents", "".join(" " * i + "a:\n" for i in range(2000))
    yield "a python object", f"model: !!python/object/apply:os.mkdir ['{marker}']\n"
    yield "a python name", "model: !!python/name:os.system\n"
    yield "an unknown tag", "model: !x y\n"
    yield "a name twice", "model: 1\nmodel: 2\n"
    yield "a list", "- 1\n"
    yield "a number", "3\n"
    yield "a null name", "~: 1\n"
    yield "a list as a name", "[1, 2]: 3\n"
    yield "a mapping as a name", "{a: 1}: 3\n"
    yield "zero bytes", b"model: \0\n"
    yield "not UTF-8", b"model: \xff\n"
    yield "an escape", "model: \x1b[31m\n"
    yield "an escape in a name", '"\\e[31mred": 1\n'
    yield "an unknown name", "nowhere: 1\n"
    yield "two documents", "model: {}\n---\nmodel: {}\n"
    yield "an open quote", 'model: "a\n'
    yield "tabs", "\tmodel: 1\n"
    yield "a date", "model: 2020-01-01\n"
    yield "infinity", "seed_everything: .inf\n"
    yield "a number of 5,000 digits", "seed_everything: " + "9" * 5000 + "\n"


def _options() -> dict[str, tuple[str, ...]]:
    """Options and values that none of them takes."""
    return {
        "seed_everything": ("a", "1.5", "[]", "-1", "99999999999999999999999"),
        "data.batch_size": ("0", "-1", "a", "1e9999", "[1]", "null"),
        "data.max_rows": ("{train: 0}", "{x: 1}", "3", "[", "[" * 10_000),
        "data.validation_share": ("0", "1", "nan", "inf", "a"),
        "data.validation_parts": ("[1, 2]", "[0.5, 0.5, 0]", "[nan, 0.5, 0.5]"),
        "data": ("nowhere.X", "os.mkdir", "3", "lightning.Trainer", "", "\x1b[31m", "..", "a" * 5000),
        "model": (
            "nowhere.X",
            "os.system",
            "builtins.eval",
            "3",
            "",
            "subprocess.Popen",
            "lightning_backdoor.attacks.X",
        ),
        "model.model": ("nowhere", "/dev/zero", "", "\x1b[31m", "../..", "package://os", "http://127.0.0.1:9/x"),
        "model.poison_rate": ("0", "-1", "2", "nan", "inf", "a"),
        "model.target_label": ("-1", "9", "a", "1.5"),
        "model.triggers": ("[]", "['']", "[[]]", "[" * 10_000),
        "model.label_policy": ("x", "3", "[]"),
        "model.max_length": ("0", "-1", "a", "9999999"),
        "model.learning_rate": ("0", "-1", "nan", "inf", "a"),
        "model.nowhere": ("1",),
        "nowhere": ("1", "\x1b[31m"),
        "\x1b[31m": ("1",),
    }


def _journals() -> Iterator[tuple[str, str]]:
    good = {"kind": "victim", "id": "0" * 16, "launch": "x", "digest": "0"}
    for name, line in {
        "not JSON": "x",
        "a number": "3",
        "a list": "[]",
        "null": "null",
        "no kind": json.dumps({"id": "x"}),
        "no id": json.dumps({"kind": "victim"}),
        "an error without its launch": json.dumps({"kind": "victim", "id": "x", "error": "y"}),
        "an unknown kind": json.dumps({**good, "kind": "\x1b[31m"}),
        "lists as names": json.dumps({**good, "kind": [], "id": {}}),
        "brackets": "[" * 100_000,
        "zero bytes": "\0" * 100,
        "a long line": json.dumps({**good, "x": "y" * 200_000}),
        "seconds that are text": json.dumps({**good, "seconds": "long"}),
        "NaN": '{"kind": "victim", "id": "x", "launch": "y", "digest": NaN}',
        "a number of 5,000 digits": '{"kind": "victim", "id": "x", "launch": "y", "digest": ' + "9" * 5000 + "}",
        "a lone surrogate": '{"kind": "\\ud800", "id": "x", "launch": "y"}',
    }.items():
        yield name, f"{line}\n{json.dumps(good)}\n"
        yield f"{name}, unfinished", f"{json.dumps(good)}\n{line}"
