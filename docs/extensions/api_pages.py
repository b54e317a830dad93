"""A page of the API reference for each room of the package: what it exports, and the modules inside it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

from sphinx.application import Sphinx
from written_pages import fenced, write_pages

import lightning_backdoor

PACKAGE = lightning_backdoor.__name__
#: not part of the reference: presets, and the module that runs the command line on import.
LEFT_OUT = ("__main__", "cli", "configs")
#: rooms whose modules only the command line uses: what they export is shown, and not their inside.
COMMAND_LINE = ("benchmark", "commands")


def page(name: str) -> str:
    """The page of a room.

    Args:
        name: dotted name of a folder of the package, or of a module that lies in its root.
    """
    module = importlib.import_module(name)
    room = name.removeprefix(f"{PACKAGE}.")
    public = getattr(module, "__all__", [])
    exported = [item for item in public if _is_at_home(module, item)]
    parts = [f"# {room}"]
    options = [":members: " + ", ".join(exported), ":imported-members:"] if exported else [":members:"]
    parts.append(_automodule(name, *options))
    inside = [info.name for info in pkgutil.walk_packages(getattr(module, "__path__", []), f"{name}.")]
    if inside and room not in COMMAND_LINE:
        parts += ["## Modules", "For those who change the library; configs and programs use the names above."]
        hidden = [f":exclude-members: {', '.join(public)}"] if public else []
        for part in sorted(inside):
            parts += [f"### {part.removeprefix(f'{name}.')}", _automodule(part, ":members:", *hidden)]
    return "\n\n".join(parts) + "\n"


def _is_at_home(module: ModuleType, name: str) -> bool:
    """Whether a name is defined in the room that exports it, or is a constant, which does not say."""
    defined_in = getattr(inspect.unwrap(getattr(module, name)), "__module__", None)
    home = f"{module.__name__}."
    return not isinstance(defined_in, str) or not defined_in.startswith(PACKAGE) or f"{defined_in}.".startswith(home)


def _automodule(name: str, *options: str) -> str:
    return fenced("\n".join([f".. automodule:: {name}", *(f"   {option}" for option in options)]), "{eval-rst}")


def write(app: Sphinx) -> None:
    """Writes the pages of all rooms, and their table of contents."""
    rooms = [info.name for info in pkgutil.iter_modules(lightning_backdoor.__path__) if info.name not in LEFT_OUT]
    rooms = [room for room in rooms if room not in COMMAND_LINE or _exports(room)]
    pages = {room: page(f"{PACKAGE}.{room}") for room in rooms}
    said = "Names are below `lightning_backdoor.`, as in `lightning_backdoor.attacks.BadNets`."
    rows = "\n".join(f"- [{room}]({room}.md): {_first_line(room)}" for room in rooms)
    toctree = fenced("\n".join([":hidden:", "", *rooms]), "{toctree}")
    pages["index"] = "\n\n".join(["# API reference", said, rows, toctree]) + "\n"
    write_pages(Path(app.srcdir, "generated", "api"), pages)


def _exports(room: str) -> bool:
    return hasattr(importlib.import_module(f"{PACKAGE}.{room}"), "__all__")


def _first_line(room: str) -> str:
    doc = importlib.import_module(f"{PACKAGE}.{room}").__doc__ or ""
    return doc.strip().partition("\n")[0].replace("``", "`")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects the writer to Sphinx."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
