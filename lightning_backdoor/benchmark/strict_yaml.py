"""Strict reading of YAML files: duplicate names and names that are not text are errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from lightning_backdoor.errors import InputError, reason


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a mapping from a file, with text as keys and JSON types as values; a date becomes text.

    Raises:
        InputError: the file is missing or malformed, is not a mapping, or contains a name twice or a name that is not
            text.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError:
        raise InputError("config", f"{path} cannot be read", "give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError("config", f"{path} is not YAML ({reason(error, 150)})", "correct it") from None
    if not isinstance(content, dict):
        raise InputError("config", f"{path} does not hold a mapping", "give keys and values")
    plain: dict[str, Any] = json.loads(json.dumps(content, default=str))
    return plain


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Rejects duplicate names, and names that YAML does not read as text, such as ``no``."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name = self.construct_object(key, deep=True)
            problem = "" if type(name) in (str, int) else "is not text: quote it"
            if str(name) in names:
                problem = "is given twice"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, f"the name {name} {problem}", node.start_mark)
            names.add(str(name))
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping
