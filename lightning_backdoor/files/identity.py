"""The one policy by which earlier results are recognised: cached poison, trained victims, cells of a grid.

- Code of this library counts by a format number beside it (``result_format`` of a class, or a constant whose
  name ends in ``_FORMAT``) and that is raised by hand when, and only when, the results change. Comments and moved code
  change nothing; a corrected metric or attack does.
- A user's own class counts by the source of the module that defines it.
- Files and folders that a config names count by their content (:mod:`lightning_backdoor.files.hashing`).
"""

from __future__ import annotations

import inspect
import json

LIBRARY = "lightning_backdoor."


def code_identity(cls: type, base: type) -> str | None:
    """Text that changes when the code of a class, or of a parent of it up to ``base``, gives other results.

    Args:
        cls: a class of this library or a user's own.
        base: a class of this library that ``cls`` inherits from.

    Returns:
        None where the source of a user's class cannot be read, as in an interactive shell.

    >>> from lightning_backdoor.errors import InputError
    >>> code_identity(InputError, ValueError)
    '["lightning_backdoor.errors.InputError/1"]'
    """
    parts: list[str] = []
    for part in cls.__mro__[: cls.__mro__.index(base) + 1]:
        if part.__module__.startswith(LIBRARY):
            parts.append(f"{part.__module__}.{part.__qualname__}/{vars(part).get('result_format', 1)}")
        elif issubclass(part, base) and part is not base:
            try:
                parts.append(inspect.getsource(inspect.getmodule(part) or part))
            except (OSError, TypeError):
                return None
    return json.dumps(parts)
