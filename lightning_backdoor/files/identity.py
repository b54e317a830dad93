"""Which earlier results may be reused: cached poisoned rows, trained victims, cells of a grid.

A result is reused if everything that determines it is identical:

- A class of this library is identified by a format number next to its code: the class attribute ``result_format``, or a
  constant whose name ends in ``_FORMAT``. The number is increased by hand if, and only if, the results change: for a
  corrected metric or attack, but not for a changed comment or moved code.
- A user's own class is identified by the source of the module that defines it.
- Files and folders named in a config are identified by their content (:mod:`lightning_backdoor.files.hashing`).
"""

from __future__ import annotations

import inspect
import json

LIBRARY = "lightning_backdoor."


def code_identity(cls: type, base: type) -> str | None:
    """A string that changes when the code of a class, or of its parents up to ``base``, may give other results.

    Args:
        cls: a class of this library or a user's own.
        base: a class of this library that ``cls`` inherits from.

    Returns:
        The identity, or None if the source of a user's class cannot be read, as in an interactive shell.

    >>> from lightning_backdoor.errors import InputError
    >>> code_identity(InputError, ValueError)
    '["lightning_backdoor.errors.InputError/1"]'
    """
    identities: list[str] = []
    for parent in cls.__mro__[: cls.__mro__.index(base) + 1]:
        if parent.__module__.startswith(LIBRARY):
            result_format = vars(parent).get("result_format", 1)
            identities.append(f"{parent.__module__}.{parent.__qualname__}/{result_format}")
        elif parent is not base:
            try:
                identities.append(inspect.getsource(inspect.getmodule(parent) or parent))
            except (OSError, TypeError):
                return None
    return json.dumps(identities)
