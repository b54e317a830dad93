"""A page for each attack and each defense, written from its docstrings, its papers and its presets.

The public classes are read from the package, so that a new method has a page as soon as its room exports it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from sphinx.application import Sphinx
from written_pages import fenced, write_pages

from lightning_backdoor.files.presets import Preset, preset_path, presets
from lightning_backdoor.files.public_classes import PublicClass, public_classes

#: the key of a grid's entry for a defense, by the moment at which it acts.
KEYS = {
    "before training": "data",
    "in training": "training",
    "after training": "repair",
    "at inference": "inference",
    "on the trained model": "inspection",
}
#: width of a line of a command, in characters.
WIDTH = 90
RUN = "--config runs/first/config.yaml --ckpt_path runs/first/checkpoints/best.ckpt"
DATA = "--config configs/data/movie_reviews.yaml"
POISONED = f"{DATA} --config configs/attack/badnets.yaml"


class Method(NamedTuple):
    """An attack or a defense.

    Attributes:
        title: its name.
        classes: its classes; a defense may have an algorithm and a callback, a repair may be a preset alone.
        presets: the presets that use one of the classes.
    """

    title: str
    classes: tuple[PublicClass, ...]
    presets: tuple[Preset, ...]

    @property
    def page(self) -> str:
        """Name of its page, without ending."""
        return self.title.lower()

    @property
    def papers(self) -> list[str]:
        """arXiv ids of its papers."""
        return list(dict.fromkeys(paper for item in self.classes for paper in item.papers))

    @property
    def summary(self) -> str:
        """What it is, in a line."""
        said = self.classes[0].summary if self.classes else self.presets[0].summary
        return said[:1].upper() + said[1:]

    @property
    def moments(self) -> list[str]:
        """The moments at which a defense acts."""
        named = [*(moment for item in self.classes for moment in item.moments), *map(moment_of, self.presets)]
        return [moment for moment in KEYS if moment in named]


def attacks() -> list[Method]:
    """The public attacks."""
    return [_method([item], presets()) for item in public_classes() if item.kind == "attacks"]


def defenses() -> list[Method]:
    """The public defenses; a callback is on the page of the algorithm that it runs, which has the same papers."""
    classes = [item for item in public_classes() if item.kind == "defenses"]
    found: list[list[PublicClass]] = []
    for item in sorted(classes, key=lambda item: item.room == "callbacks"):
        same = [group for group in found if item.papers and item.room == "callbacks" and group[0].papers == item.papers]
        if same:
            same[0].append(item)
        else:
            found.append([item])
    of_defenses = [preset for preset in presets() if preset.folder == "defense"]
    methods = [_method(group, of_defenses) for group in found]
    used = {preset.path for method in methods for preset in method.presets}
    alone = [preset for preset in of_defenses if preset.path not in used]
    methods += [Method(preset.name.replace("_", "-").capitalize(), (), (preset,)) for preset in alone]
    return sorted(methods, key=lambda method: [*KEYS].index(method.moments[0]))


def moment_of(preset: Preset) -> str:
    """The moment at which the defense of a preset acts, from its place in the config."""
    if preset.folder != "defense":
        return ""
    config: dict[str, Any] = yaml.safe_load(preset_path(preset.path).read_text(encoding="utf-8"))
    if "data_defense" in config.get("data", {}).get("init_args", {}):
        return "before training"
    callbacks = config.get("trainer", {}).get("callbacks+", [])
    if not callbacks:
        return "after training"
    names = {callback["class_path"].rpartition(".")[2] for callback in callbacks}
    moments = {item.name: item.moments for item in public_classes() if item.room == "callbacks"}
    given = callbacks[0].get("init_args", {})
    if "inspection" in given:
        return "on the trained model"
    return "at inference" if "defense" in given else next(moments[name][0] for name in names)


def _method(classes: list[PublicClass], candidates: Iterable[Preset]) -> Method:
    names = {item.name for item in classes}
    using = [
        preset
        for preset in candidates
        if preset.folder in ("attack", "defense") and names & {path.rpartition(".")[2] for path in preset.class_paths}
    ]
    return Method(classes[0].name, tuple(classes), tuple(using))


def page(method: Method, run: str) -> str:
    """The page of a method.

    Args:
        method: the method.
        run: Markdown that says how to run it.
    """
    parts = [f"# {method.title}", method.summary]
    if method.moments:
        parts.append(f"When it acts: {', '.join(method.moments)}.")
    if method.papers:
        parts.append(f"Paper: {', '.join(map(paper_link, method.papers))}.")
    for item in method.classes:
        # the docstrings stand here again; names are indexed by the page of their room
        parts += [f"## `{item.class_path}`", _directive(f".. autoclass:: {item.class_path}", ":no-index:")]
    for module in dict.fromkeys(_module(item) for item in method.classes):
        if "\n" in (sys.modules[module].__doc__ or "").strip():
            parts += ["## Method", _directive(f".. automodule:: {module}", ":no-index:")]
    parts += ["## How to run it", run]
    for preset in method.presets:
        text = preset_path(preset.path).read_text(encoding="utf-8")
        parts += [f"## `{preset.path}`", fenced(text, "yaml")]
    return "\n\n".join(parts) + "\n"


def attack_run(method: Method) -> str:
    """How an attack is run."""
    given = [f"--config {preset.path}" for preset in method.presets] or [f"--model {method.classes[0].class_path}"]
    folder = f"--run_dir runs/{method.page}"
    commands = [f"lightning-backdoor fit {DATA} {options} {folder}" for options in given]
    commands.append(
        f"lightning-backdoor test --config runs/{method.page}/config.yaml"
        f" --ckpt_path runs/{method.page}/checkpoints/best.ckpt"
    )
    entry = method.presets[0].path if method.presets else f"{{class_path: {method.classes[0].class_path}}}"
    grid = fenced(f"attacks:\n  {method.title}: {entry}", "yaml")
    return f"{_commands(commands)}\n\nIn a grid:\n\n{grid}"


def defense_run(method: Method) -> str:
    """How a defense is run: one block for each preset, or one for each moment where it has none."""
    blocks = []
    for moment, options in [(moment_of(preset), f"--config {preset.path}") for preset in method.presets] or [
        (moment, "") for moment in method.moments
    ]:
        path = method.classes[0].class_path if method.classes else ""
        entry = options.removeprefix("--config ") or f"{{class_path: {path}}}"
        command = _defense_command(moment, options, path)
        grid = fenced(f"defenses:\n  {method.title}: {{{KEYS[moment]}: {entry}}}", "yaml")
        blocks.append(f"{moment[0].upper()}{moment[1:]}:\n\n{command}\n\nIn a grid:\n\n{grid}")
    return "\n\n".join(blocks)


def _defense_command(moment: str, options: str, path: str) -> str:
    if moment == "before training":
        given = options or f"--data.data_defense {path}"
        return _commands([f"lightning-backdoor fit {POISONED} {given} --run_dir runs/cleaned"])
    if moment == "in training":
        given = options or f"--trainer.callbacks+={path}"
        return _commands([f"lightning-backdoor fit {POISONED} {given} --run_dir runs/hardened"])
    first = f"lightning-backdoor fit {POISONED} --run_dir runs/first"
    if moment == "after training":
        published = "--model.published runs/first/checkpoints/best.ckpt --run_dir runs/repaired"
        return _commands([first, f"lightning-backdoor fit {POISONED} {options} {published}"])
    callback, argument = (
        ("InspectionCallback", "inspection")
        if KEYS[moment] == "inspection"
        else (
            "InferenceDefense",
            "defense",
        )
    )
    attach = f"--trainer.callbacks+=lightning_backdoor.callbacks.{callback} --trainer.callbacks.{argument}={path}"
    return _commands([first, f"lightning-backdoor test {RUN} {options or attach}"])


def _commands(commands: Iterable[str]) -> str:
    """Commands in a block; a long one is broken before its options."""
    return fenced("\n".join(" \\\n".join(_lines(command)) for command in commands))


def _lines(command: str) -> Iterator[str]:
    line = ""
    for part in re.split(r" (?=--)", command):
        if line and len(line) + len(part) > WIDTH:
            yield line
            line = "   "
        line = f"{line} {part}" if line else part
    yield line


def _directive(line: str, *options: str) -> str:
    return fenced("\n".join([line, *(f"   {option}" for option in options)]), "{eval-rst}")


def _module(item: PublicClass) -> str:
    """Dotted name of the module that defines a class."""
    room = sys.modules.get(item.module) or __import__(item.module, fromlist=[item.name])
    return str(getattr(room, item.name).__module__)


def contents(title: str, said: str, methods: list[Method]) -> str:
    """The page that lists the methods of one group."""
    moments = any(method.moments for method in methods)
    heading = ["", "What it does", *(["When it acts"] if moments else []), "Paper"]
    rows = []
    for method in methods:
        cells = [f"[{method.title}]({method.page}.md)", method.summary.rstrip(".")]
        cells += [", ".join(method.moments)] if moments else []
        rows.append([*cells, ", ".join(map(paper_link, method.papers))])
    lines = [f"| {' | '.join(cells)} |" for cells in (heading, ["---"] * len(heading), *rows)]
    toctree = fenced("\n".join([":hidden:", "", *(method.page for method in methods)]), "{toctree}")
    return "\n\n".join([f"# {title}", said, "\n".join(lines), toctree]) + "\n"


def paper_link(paper: str) -> str:
    """A link to a paper on arXiv."""
    return f"[arXiv {paper}](https://arxiv.org/abs/{paper})"


def write(app: Sphinx) -> None:
    """Writes all pages below ``generated/``."""
    generated = Path(app.srcdir, "generated")
    pages = {method.page: page(method, attack_run(method)) for method in attacks()}
    pages["index"] = contents("Attacks", "An attack is a LightningModule that trains on poisoned rows.", attacks())
    write_pages(generated / "attacks", pages)
    pages = {method.page: page(method, defense_run(method)) for method in defenses()}
    said = "Thresholds come from clean validation rows alone, whenever the defense acts."
    pages["index"] = contents("Defenses", said, defenses())
    write_pages(generated / "defenses", pages)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects the writer to Sphinx."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
