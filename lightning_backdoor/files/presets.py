"""Preset configs that come with the package, found from any working directory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from lightning_backdoor.files.names import expanded

PACKAGE = Path(__file__).parents[1]
#: the folders that may hold ``configs/``: the installed package, and in a clone the parent folder of the package.
ROOTS = (PACKAGE, PACKAGE.parent)


def preset_path(name: str | Path) -> Path:
    """The path of a config: ``name`` itself, or the preset of that name if the working directory has no such file.

    Args:
        name: a path; only a relative one that begins with ``configs/`` can name a preset. ``~`` is replaced.

    Returns:
        The path of the preset, or ``name`` as a path if there is no such preset.

    >>> preset_path("configs/data/movie_reviews.yaml").is_file()
    True
    >>> str(preset_path("nowhere.yaml"))
    'nowhere.yaml'
    """
    path = Path(expanded(name))
    if path.parts[:1] != ("configs",) or ".." in path.parts or path.exists():
        return path
    return next((root / path for root in ROOTS if (root / path).is_file()), path)


def preset_names() -> list[str]:
    """The names of all presets, by folder and name.

    >>> "configs/attack/badnets.yaml" in preset_names()
    True
    """
    root = next(root for root in ROOTS if (root / "configs").is_dir())
    return sorted(path.relative_to(root).as_posix() for path in root.glob("configs/*/*.yaml"))


class Preset(NamedTuple):
    """A preset config.

    Attributes:
        path: the path that names it, such as ``configs/attack/badnets.yaml``.
        summary: what its first comment says.
        class_paths: the class paths in it.
        source: the path of its data, for a preset of data; else empty.
    """

    path: str
    summary: str
    class_paths: tuple[str, ...]
    source: str

    @property
    def folder(self) -> str:
        """The folder below ``configs/``, such as ``attack``."""
        return self.path.split("/")[1]

    @property
    def name(self) -> str:
        """The name of the file without its ending, such as ``badnets``."""
        return Path(self.path).stem


def presets() -> list[Preset]:
    """All presets, by path; one that the working directory replaces is read from there.

    >>> preset = next(preset for preset in presets() if preset.name == "badnets")
    >>> preset.path, preset.class_paths
    ('configs/attack/badnets.yaml', ('lightning_backdoor.attacks.BadNets',))
    """
    return [_preset(Path(name)) for name in preset_names()]


def _preset(path: Path) -> Preset:
    text = preset_path(path).read_text(encoding="utf-8")
    class_paths = tuple(dict.fromkeys(re.findall(r"class_path: *([\w.]+)", text)))
    source = re.search(r"^ +path: *(\S+)$", text, re.MULTILINE) if path.parts[1] == "data" else None
    return Preset(path.as_posix(), _summary(text), class_paths, source[1] if source else "")


def _summary(text: str) -> str:
    """The first sentence, up to a semicolon, of the comment at the beginning of a config.

    >>> _summary("# Reviews of films (Lee et al. 2010), from\\n# a package. They are short.\\ndata:")
    'Reviews of films (Lee et al. 2010), from a package.'
    >>> _summary("# a small grid, for two cores:\\n# lightning-backdoor benchmark --config configs/benchmark/demo.yaml")
    'a small grid, for two cores'
    """
    said = ""
    for line in text.splitlines():
        line = line.removeprefix("#") if line.startswith("#") else ""
        begins_anew = line[1:2].isupper() or line[1:2] in (" ", "")
        if said and (begins_anew or said[-1] in ".:"):
            break
        said = f"{said} {line.strip()}".strip()
    return re.split(r"(?<=\.) (?=[A-Z])|; ", said)[0].rstrip(":")
