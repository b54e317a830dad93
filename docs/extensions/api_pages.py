"""A page of the API reference for each room of the package, with the names that it exports.

A room without exports, such as ``commands``, is the inside of the command line and has no page.
"""

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
#: modules that the reference leaves out: the presets, and the start of the command line.
LEFT_OUT = ("__main__", "cli", "configs")


def rooms() -> dict[str, ModuleType]:
    """The folders of the package that export names, and the modules in its root, by name."""
    names = [info.name for info in pkgutil.iter_modules(lightning_backdoor.__path__) if info.name not in LEFT_OUT]
    modules = {name: importlib.import_module(f"{PACKAGE}.{name}") for name in names}
    return {
        name: module
        for name, module in modules.items()
        if hasattr(module, "__all__") or not hasattr(module, "__path__")
    }


def page(room: str, module: ModuleType) -> str:
    """The page of a room."""
    exported = [name for name in getattr(module, "__all__", []) if _is_at_home(module, name)]
    members = [":members: " + ", ".join(exported), ":imported-members:"] if exported else [":members:"]
    options = "\n".join(f"   {option}" for option in members)
    return f"# {room}\n\n" + fenced(f".. automodule:: {module.__name__}\n{options}", "{eval-rst}") + "\n"


def _is_at_home(module: ModuleType, name: str) -> bool:
    """Whether a name is defined in the room that exports it, or is a constant, which does not say where."""
    defined_in = getattr(inspect.unwrap(getattr(module, name)), "__module__", None)
    elsewhere = isinstance(defined_in, str) and defined_in.startswith(f"{PACKAGE}.")
    return not elsewhere or f"{defined_in}.".startswith(f"{module.__name__}.")


def contents(found: dict[str, ModuleType]) -> str:
    """The page that lists the rooms."""
    said = "Names are below `lightning_backdoor.`, as in `lightning_backdoor.attacks.BadNets`."
    lines = [f"- [{room}]({room}.md): {first_line(module)}" for room, module in found.items()]
    toctree = fenced("\n".join([":hidden:", "", *found]), "{toctree}")
    return "\n\n".join(["# API reference", said, "\n".join(lines), toctree]) + "\n"


def first_line(module: ModuleType) -> str:
    """What a module is, in one line of Markdown."""
    return (module.__doc__ or "").strip().partition("\n")[0].replace("``", "`")


def write(app: Sphinx) -> None:
    """Writes the pages of all rooms, and their table of contents."""
    found = rooms()
    pages = {room: page(room, module) for room, module in found.items()}
    write_pages(Path(app.srcdir, "generated", "api"), {**pages, "index": contents(found)})


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects the writer to Sphinx."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
