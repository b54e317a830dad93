"""The layout of the package: imports go one way between rooms, never in a circle, and few modules lie loose.

A room is a folder of the package, or a module that lies in its root. All imports are read from the source, those inside
functions included, and so are the names given to ``importlib.import_module``. Imports under ``if TYPE_CHECKING`` are
left out: they are never executed and may go any way.
"""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.support.file_list import module_files

PACKAGE = "lightning_backdoor"
ROOT = Path(__file__).resolve().parents[1]
#: rooms from the top down; a room imports lower lines only, so that rooms on one line do not import each other.
ORDER = (
    ("__main__", "testing"),
    ("cli",),
    ("benchmark",),
    ("commands",),
    ("callbacks",),
    ("attacks", "defenses"),
    ("victim", "language"),
    ("models",),
    ("data",),
    ("files", "metrics", "outputs"),
    ("batch", "words"),
    ("errors",),
)
LEVELS = {room: len(ORDER) - line for line, rooms in enumerate(ORDER) for room in rooms}
LEVELS[PACKAGE] = 0  # the package's own __init__ imports nothing, and everybody may import its version
MAX_LOOSE_MODULES = 6


class Import(NamedTuple):
    """One import of a module of the package by another, with the line on which it stands."""

    importer: str
    imported: str
    line: int


def modules(root: Path) -> dict[str, Path]:
    """All modules of the package by dotted name; a folder's name stands for its ``__init__``.

    ``callbacks`` lies beside the package and is installed inside it.
    """
    files = {}
    for folder, name in ((root / PACKAGE, PACKAGE), (root / "callbacks", f"{PACKAGE}.callbacks")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if name == PACKAGE and parts[0] == "callbacks":  # where the folder is linked into a checkout
                continue
            files[".".join([name, *parts]).removesuffix(".__init__")] = path
    return files


def room(module: str) -> str:
    """The room of a module: the first name after the package's."""
    return module.split(".")[1] if "." in module else module


def imports(files: Mapping[str, Path]) -> list[Import]:
    """All imports of modules of the package by others, in the order of the files."""
    result = []
    for importer, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
        for name, line in _named(tree, package):
            imported = _module_of(name, files)
            if imported not in (None, PACKAGE, importer):
                result.append(Import(importer, str(imported), line))
    return result


def _named(tree: ast.AST, package: str) -> Iterator[tuple[str, int]]:
    """Dotted names that a module imports, with their lines; of ``from x import y`` it is ``x.y``."""
    for node in _executed(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((f"{source}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module"):
            constants = [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            yield from ((name, node.lineno) for name in constants)


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all below it, but for the bodies of ``if TYPE_CHECKING``."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for otherwise in child.orelse:
                yield from _executed(otherwise)
        else:
            yield from _executed(child)


def _module_of(name: str, files: Mapping[str, Path]) -> str | None:
    """The module that a dotted name is, or is defined in; None outside of the package."""
    if name.partition(".")[0] != PACKAGE:
        return None
    while name not in files and "." in name:
        name = name.rpartition(".")[0]
    return name


def against_the_order(all_imports: list[Import]) -> list[str]:
    """One line per import that goes up, or sideways to another room of the same line."""
    result = []
    for importer, imported, line in all_imports:
        if room(importer) != room(imported) and LEVELS[room(importer)] <= LEVELS[room(imported)]:
            way = "sideways" if LEVELS[room(importer)] == LEVELS[room(imported)] else "upwards"
            result.append(f"{importer}, line {line}, imports {way}: {imported}")
    return result


def circle(all_imports: list[Import]) -> list[str]:
    """Modules of one circle, the first repeated at the end; empty where there is none.

    A package's ``__init__`` counts where the package is named, not where only a module inside of it is.
    """
    graph: dict[str, list[str]] = {}
    for importer, imported, _ in all_imports:
        graph.setdefault(importer, []).append(imported)
    finished: set[str] = set()

    def search(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in finished:
            for imported in graph.get(module, []):
                if closed := search(imported, [*path, module]):
                    return closed
            finished.add(module)
        return []

    return next((closed for module in graph if (closed := search(module, []))), [])


def loose_modules(root: Path) -> list[str]:
    """Modules in the package's root."""
    return sorted(path.stem for path in (root / PACKAGE).glob("*.py") if path.name != "__init__.py")


def copy_of_the_package(folder: Path) -> Path:
    """A copy of all modules, for tests that change one."""
    for path in modules(ROOT).values():
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return folder


def append(path: Path, code: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + code, encoding="utf-8")


def test_every_room_has_a_place_in_the_order() -> None:
    assert {room(module) for module in modules(ROOT)} <= set(LEVELS)


def test_imports_go_down() -> None:
    wrong = against_the_order(imports(modules(ROOT)))
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_through_others() -> None:
    closed = circle(imports(modules(ROOT)))
    assert not closed, " imports ".join(closed)


def test_few_modules_lie_loose() -> None:
    assert len(loose_modules(ROOT)) <= MAX_LOOSE_MODULES


def test_the_architecture_page_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed, folder = set(), ""
    for line in text.partition("<!-- files -->")[2].splitlines():
        if line.startswith("**`"):
            folder = line.split("`")[1]
            listed.add(f"{folder}__init__.py")
        elif line.startswith("- `"):
            listed.add(folder + line.split("`")[1])
    present = {path.as_posix() for path in module_files()}
    assert listed == present, "run: python -m tests.support.file_list --write docs/architecture.md"


def test_the_architecture_page_has_the_order() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert "\n".join(" | ".join(line) for line in ORDER) in text


def test_an_upward_import_is_told_by_both_modules(tmp_path: Path) -> None:
    root = copy_of_the_package(tmp_path)
    before = against_the_order(imports(modules(root)))
    append(
        root / PACKAGE / "files" / "hashing.py",
        "\ndef deferred():\n    from lightning_backdoor.victim import TextClassifier\n",
    )
    (added,) = set(against_the_order(imports(modules(root)))) - set(before)
    assert added.startswith("lightning_backdoor.files.hashing, line ")
    assert added.endswith("imports upwards: lightning_backdoor.victim")


def test_all_ways_to_import_are_read(tmp_path: Path) -> None:
    root = copy_of_the_package(tmp_path)
    before = against_the_order(imports(modules(root)))
    ways = {
        "__init__.py": "from lightning_backdoor.errors import InputError\n",
        "metrics/overhead.py": "import lightning_backdoor.outputs.outcomes\n",
        "defenses/strip.py": 'import importlib\nimportlib.import_module("lightning_backdoor.attacks")\n',
        "data/splitting.py": "from .. import cli\n",
        "attacks/badnets.py": "from ..callbacks.run_labels import RunLabels\n",
    }
    for name, code in ways.items():
        append(root / PACKAGE / name, code)
    append(
        root / "callbacks" / "run_labels.py", "try:\n    from lightning_backdoor import commands\nfinally:\n    pass\n"
    )
    append(
        root / PACKAGE / "language" / "stop_words.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import lightning_backdoor.cli\n",
    )
    added = set(against_the_order(imports(modules(root)))) - set(before)
    assert {(line.split(", ")[0], line.split(": ")[1]) for line in added} == {
        ("lightning_backdoor.metrics.overhead", "lightning_backdoor.outputs.outcomes"),
        ("lightning_backdoor.defenses.strip", "lightning_backdoor.attacks"),
        ("lightning_backdoor.data.splitting", "lightning_backdoor.cli"),
        ("lightning_backdoor.attacks.badnets", "lightning_backdoor.callbacks.run_labels"),
        ("lightning_backdoor.callbacks.run_labels", "lightning_backdoor.commands"),
        ("lightning_backdoor", "lightning_backdoor.errors"),
    }


def test_a_circle_within_a_room_is_told(tmp_path: Path) -> None:
    root = copy_of_the_package(tmp_path)
    append(root / PACKAGE / "attacks" / "attack.py", "from lightning_backdoor.attacks.badnets import BadNets\n")
    closed = circle([i for i in imports(modules(root)) if room(i.importer) == room(i.imported) == "attacks"])
    assert {"lightning_backdoor.attacks.attack", "lightning_backdoor.attacks.badnets"} <= set(closed)
    assert closed[0] == closed[-1]


def test_a_module_too_many_is_counted(tmp_path: Path) -> None:
    root = copy_of_the_package(tmp_path)
    before = loose_modules(root)
    (root / PACKAGE / "helpers.py").touch()
    assert loose_modules(root) == sorted([*before, "helpers"])
