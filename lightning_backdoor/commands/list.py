"""``list``: attacks, defenses, data, models, presets and metrics, one line each."""

from __future__ import annotations

import ast
import importlib
import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_backdoor.commands.listing import KINDS, Entry, class_entries, entries
from lightning_backdoor.commands.parsing.option_parser import OptionParser
from lightning_backdoor.errors import InputError, did_you_mean, one_line, reason
from lightning_backdoor.files.module_sources import module_file
from lightning_backdoor.files.public_classes import PublicClass, classes_of, imported_class

if TYPE_CHECKING:
    from lightning_backdoor.benchmark.metrics import Column


def parser() -> OptionParser:
    """The options of ``list``."""
    options = OptionParser(
        "lightning-backdoor list",
        description="Lists what there is: name, paper (arXiv id), class path, preset and summary, one line each; for a"
        " defense also the moment at which it acts. Nothing is loaded.",
    )
    options.add_argument("kinds", nargs="*", metavar="KIND", help=f"what to list: {', '.join(KINDS)} (default: all)")
    options.add_argument(
        "--module",
        help="list the classes of a module of your own, such as shout for shout.py in the working directory; it is"
        " imported only if its source shows none",
    )
    options.add_argument("--json", action="store_true", help="print a JSON list instead")
    return options


def main(args: list[str], columns: Sequence[Column]) -> int:
    """Runs ``list``; returns the exit status.

    Args:
        args: the command's options.
        columns: the metrics that tests log.

    Raises:
        InputError: a kind is unknown, or the module does not exist, cannot be read or has nothing to list.
    """
    options = parser().parse_args(args)
    kinds = [_kind(name) for name in options.kinds] or [*KINDS]
    listed = entries(columns) if options.module is None else class_entries(module_classes(options.module))
    listed = [entry for entry in listed if entry.kind in kinds]
    if not listed:
        raise InputError("module", f"{options.module} defines none of {', '.join(kinds)}", "give another module")
    if options.json:
        sys.stdout.write(json.dumps([entry._asdict() for entry in listed], indent=1, ensure_ascii=False) + "\n")
        return 0
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    shown = [kind for kind in kinds if any(entry.kind == kind for entry in listed)]
    parts = []
    for kind in dict.fromkeys(shown):
        text = table_text([entry for entry in listed if entry.kind == kind], width)
        parts.append(text if len(options.kinds) == 1 else f"{kind}\n{textwrap.indent(text, '  ')}")
    sys.stdout.write("\n".join(parts))
    return 0


def module_classes(name: str) -> list[PublicClass]:
    """The classes of a user's module, read from its source; imported if its source shows none.

    Args:
        name: dotted name of the module, or the path of its file or folder below the working directory.

    Raises:
        InputError: there is no such module, or it cannot be read or imported.
    """
    path = Path(name)
    if (path.suffix == ".py" or "/" in name) and not path.is_absolute() and ".." not in path.parts:
        name = ".".join((path.with_suffix("") if path.suffix == ".py" else path).parts)
    if not all(part.isidentifier() for part in name.split(".")):
        raise InputError("module", f"{name!r} is not the name of a module", "give one such as shout, for shout.py")
    source = module_file(name)
    try:
        ast.parse(source.read_bytes() if source else "", source.name if source else name)
    except (SyntaxError, OSError, ValueError, RecursionError) as error:
        raise InputError("module", f"{name} cannot be read ({reason(error, 200)})", "correct it") from None
    listed = [item for item in classes_of(name) if item.kind]
    if listed:
        return listed
    above = name.rpartition(".")[0]
    if source is None and above and module_file(above.partition(".")[0]):  # which an import would run for nothing
        remedy = f"did you mean {above}?" if module_file(above) else "give a module of a package"
        raise InputError("module", f"there is no module {name!r}", remedy)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if source is None and name.startswith(error.name or " "):
            meant = did_you_mean(name, [path.stem for path in Path().glob("*.py") if path.is_file()])
            remedy = meant or "give a module of the working directory or of a package"
            raise InputError("module", f"there is no module {name!r}", remedy) from None
        raise InputError(
            "module", f"{name} cannot be imported ({reason(error, 200)})", "install what it needs"
        ) from None
    except (Exception, SystemExit) as error:  # a user's module raises whatever it raises
        raise InputError("module", f"{name} cannot be imported ({reason(error, 200)})", "correct it") from None
    classes = {key: value for key, value in vars(module).items() if isinstance(value, type) and not key.startswith("_")}
    return [imported_class(cls, name)._replace(name=key) for key, cls in classes.items() if _is_of(cls, name)]


def _is_of(cls: type, module: str) -> bool:
    """Whether a class is defined in a module or below it."""
    return cls.__module__ == module or cls.__module__.startswith(f"{module}.")


def _kind(name: str) -> str:
    """A kind as the user names it.

    Raises:
        InputError: it is unknown.
    """
    if name in KINDS:
        return name
    remedy = f"{did_you_mean(name, KINDS)} give one of {', '.join(KINDS)}".strip()
    raise InputError("list", f"{name!r} is unknown", remedy)


def table_text(listed: Sequence[Entry], width: int) -> str:
    """Entries in columns, one line each, folded between words where the line is wider than the terminal.

    Args:
        listed: entries of one kind.
        width: number of characters of the terminal.

    >>> print(table_text([Entry("attacks", "Shout", "shout.Shout", summary="Shouts.")], 80), end="")
    Shout  shout.Shout  Shouts.
    """
    rows = [
        [
            one_line(cell)
            for cell in (
                entry.name,
                ", ".join(f"arXiv:{paper}" for paper in entry.papers),
                ", ".join(entry.moments),
                entry.path,
                ", ".join(entry.presets),
                entry.summary,
            )
        ]
        for entry in listed
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    shown = [i for i, longest in enumerate(widths) if longest]
    lines = []
    for row in rows:
        line = "  ".join(row[i].ljust(widths[i]) for i in shown).rstrip()
        if len(line) > width:  # without the padding, which only wide lines have room for
            cells = "  ".join(row[i] for i in shown if row[i])
            line = textwrap.fill(
                cells, max(width, 20), subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
            )
        lines.append(line)
    return "\n".join([*lines, ""])
