"""Config fragments, in the form of a ``--config`` file, and how several are merged into one config."""

from __future__ import annotations

from typing import Any

Fragment = dict[str, Any]


def compose(*fragments: Fragment) -> Fragment:
    """Merges fragments, later ones overriding earlier ones, as the command line does with ``--config`` files.

    Mappings are merged, ``NAME+`` appends to the list ``NAME``, and anything else is replaced. A class that replaces
    another one takes none of its arguments, except for ``model`` and ``data`` of the config itself: an attack keeps the
    arguments of the model entry, and a dataset those of the base. (The command line imports the classes, and keeps the
    arguments that the new class also has.)

    >>> compose({"trainer": {"callbacks": ["A"], "devices": 1}}, {"trainer": {"callbacks+": ["B"], "devices": 2}})
    {'trainer': {'callbacks': ['A', 'B'], 'devices': 2}}
    """
    result: Fragment = {}
    for fragment in fragments:
        for key, value in fragment.items():
            name = key.removesuffix("+")
            below = result.get(name)
            if key != name:
                result[name] = [*(below or []), *(value if isinstance(value, list) else [value])]
            elif isinstance(value, dict):
                below = below if isinstance(below, dict) else {}
                replaced = "class_path" in value and value["class_path"] != below.get("class_path")
                result[name] = compose({} if replaced and name not in ("model", "data") else below, value)
            else:
                result[name] = value
    return result
