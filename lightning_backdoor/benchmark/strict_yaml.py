"""YAML files of plain values, read strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from lightning_backdoor.errors import InputError, reason


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a file; its keys are texts, its values what JSON knows.

    Raises:
        InputError: the file is missing or malformed, or holds no mapping, a name twice, or a name that is no text.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError:
        raise InputError("config", f"{path} is no file that can be read", "give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError("config", f"{path} is no YAML ({reason(error, 150)})", "correct it") from None
    if not isinstance(content, dict):
        raise InputError("config", f"{path} holds no mapping", "give keys and values")
    plain: dict[str, Any] = json.loads(json.dumps(content, default=str))  # a date is its text
    return plain


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses what YAML would take in silence: names twice, and names that are no texts, such as ``no``."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        texts = [str(name) for name in names]
        for name, text in zip(names, texts, strict=True):
            wrong = (
                "is there twice"
                if texts.count(text) > 1
                else ""
                if type(name) in (str, int)
                else "is no text: quote it"
            )
            if wrong:
                raise yaml.constructor.ConstructorError(None, None, f"the name {text} {wrong}", node.start_mark)
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made
