"""Preset configs that come with the package, found from any working directory."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
#: the folders that may hold ``configs/``: the installed package, and in a clone the parent folder of the package.
ROOTS = (PACKAGE, PACKAGE.parent)


def preset_path(name: str | Path) -> Path:
    """The path of a config: ``name`` itself, or the preset of that name if the working directory has no such file.

    Args:
        name: a path; only a relative one that begins with ``configs/`` can name a preset.

    Returns:
        The path of the preset, or ``name`` as a path if there is no such preset.

    >>> preset_path("configs/data/movie_reviews.yaml").is_file()
    True
    >>> str(preset_path("nowhere.yaml"))
    'nowhere.yaml'
    """
    path = Path(name)
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
