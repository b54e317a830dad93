"""The list of files in ``docs/architecture.md``: each module of the package with the first line of its docstring.

Run ``python -m tests.support.file_list --write docs/architecture.md`` when modules come, go or change their first line.
"""

from __future__ import annotations

import argparse
import ast
from itertools import groupby
from pathlib import Path

from tests.support.marked import replace_marked

ROOT = Path(__file__).resolve().parents[2]


def module_files(root: Path = ROOT) -> list[Path]:
    """All modules: first the modules of the root, then folder by folder; each folder begins with ``__init__``."""
    package = [path for path in (root / "lightning_backdoor").rglob("*.py") if path.parent.name != "callbacks"]
    files = [path.relative_to(root) for path in (*package, *(root / "callbacks").glob("*.py"))]
    return sorted(files, key=lambda path: (len(path.parts) > 2 or path.parts[0] == "callbacks", path.parent, path.name))


def first_line(path: Path) -> str:
    """What a module is, in one sentence without its full stop."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].removesuffix(".").replace("``", "`")


def listing(root: Path = ROOT) -> str:
    """The list as Markdown."""
    lines = []
    for folder, files in groupby(module_files(root), key=lambda path: path.parent):
        lines.append(f"\n**`{folder.as_posix()}/`**: {first_line(root / folder / '__init__.py')}\n")
        lines += [f"- `{path.name}`: {first_line(root / path)}" for path in files if path.name != "__init__.py"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="The list of modules in docs/architecture.md.")
    parser.add_argument("--write", type=Path, help="file whose marked part is replaced by the list")
    args = parser.parse_args()
    if args.write:
        replace_marked(args.write, {"files": listing()})
    else:
        print(listing())


if __name__ == "__main__":
    main()
