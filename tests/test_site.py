"""The documentation site: it builds without warnings, its links lead somewhere, and its code is right."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from lightning_backdoor.benchmark import command as benchmark
from lightning_backdoor.benchmark import report_command as report
from lightning_backdoor.cli import COMMANDS, main
from lightning_backdoor.commands import list as listing
from lightning_backdoor.commands import poison
from lightning_backdoor.commands.parsing.run_parser import parse, run_parser
from lightning_backdoor.commands.scan import options as scan
from lightning_backdoor.files.presets import preset_path
from lightning_backdoor.files.public_classes import public_classes
from tests.support.documents import PAGES, ROOT, Block, blocks, commands, one_block, python_file

#: the parsers of commands that have options of their own.
PARSERS: dict[str, Callable[[], Any]] = {
    "benchmark": benchmark.parser,
    "list": listing.parser,
    "report": report.parser,
    "scan": scan.parser,
}
#: a run whose config the documents name.
RUN = ["--config", "configs/data/movie_reviews.yaml", "--config", "configs/attack/badnets.yaml"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` builds it; warnings are errors."""
    folder = tmp_path_factory.mktemp("site")
    (options,) = re.findall(r"-m sphinx (.*) docs docs/_build\n", (ROOT / "Makefile").read_text(encoding="utf-8"))
    command = [sys.executable, "-m", "sphinx", *options.split(), "-d", str(folder / "doctrees"), "docs"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    built = subprocess.run([*command, str(folder / "html")], cwd=ROOT, env=env, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder / "html"


class Links(HTMLParser):
    """The links of a page, the ids that they may lead to, and what the page loads by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif "src" in values or (tag == "link" and "href" in values):
            self.loaded.append(values.get("src") or values["href"])


def test_every_method_and_every_page_is_in_the_site(site: Path) -> None:
    attacks = {path.stem for path in (site / "generated" / "attacks").glob("*.html")}
    assert attacks == {"index", *(item.name.lower() for item in public_classes() if item.kind == "attacks")}
    shown = "".join(path.read_text(encoding="utf-8") for path in (site / "generated" / "defenses").glob("*.html"))
    assert all(f"{item.class_path}<" in shown for item in public_classes() if item.kind == "defenses")
    assert all((site / f"{path.stem}.html").is_file() for path in PAGES if path.parent.name == "docs")


def test_links_lead_to_pages_and_headings_of_the_site_and_nothing_is_loaded_from_a_network(site: Path) -> None:
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    dead, loaded = [], []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or link in ("", "#"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists() or (parts.fragment and unquote(parts.fragment) not in pages[target].ids):
                dead.append(f"{path.relative_to(site)}: {link}")
        loaded += [name for name in page.loaded if urlsplit(name).netloc]
    assert not dead
    assert not loaded


def test_what_the_documents_import_exists() -> None:
    for block in blocks("python"):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lightning_backdoor"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, name.name) for name in node.names), block
            elif isinstance(node, ast.Import):
                assert all(importlib.import_module(name.name) for name in node.names), block


def test_configs_in_the_documents_name_classes_and_presets_that_exist() -> None:
    for block in blocks("yaml"):
        for text in strings(yaml.safe_load(block.text)):
            check_name(text, block)


def strings(content: object) -> Iterator[str]:
    """All strings in a config."""
    if isinstance(content, dict):
        content = [*content, *content.values()]
    if isinstance(content, list):
        for item in content:
            yield from strings(item)
    elif isinstance(content, str):
        yield content


def check_name(text: str, block: Block) -> None:
    """Checks that a class of this library, or a preset, exists."""
    if re.fullmatch(r"lightning_backdoor(\.\w+)+", text):
        module, _, name = text.rpartition(".")
        assert hasattr(importlib.import_module(module), name), block
    elif text.startswith("configs/"):
        assert preset_path(text).is_file(), block


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the documents have the reader write."""
    for name in ("shout.py", "length.py"):
        (tmp_path / name).write_text(python_file(name), encoding="utf-8")
    for name in ("grid.yaml", "reviews.yaml"):
        (tmp_path / name).write_text(one_block("yaml", f"# {name}\n"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_commands_of_the_documents_are_understood(own_folder: Path, site: Path) -> None:
    parsers = {name: run_parser(name) for name in ("fit", "test")}
    for command, *options in commands(*(ROOT / "docs" / "generated").rglob("*.md")):
        assert command in COMMANDS
        if command == "poison":
            command, options = "fit", poison.parser().parse_known_args(options)[1]
        if command in PARSERS:
            PARSERS[command]().parse_args(options)
        else:
            parse(parsers[command], list(without_runs(options)))


def without_runs(options: list[str]) -> Iterator[str]:
    """The options with presets in place of the configs of runs, which do not exist."""
    pairs = zip(options, [*options[1:], ""], strict=True)
    for option, following in pairs:
        if option == "--config" and following.startswith("runs/"):
            next(pairs)
            yield from RUN
        else:
            yield option


def test_the_grid_of_the_documents_can_be_planned(own_folder: Path) -> None:
    assert main(["benchmark", "--config", "grid.yaml", "--output", "grid", "--dry-run"]) == 0
