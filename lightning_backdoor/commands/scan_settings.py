"""The settings of a scan, kept beside its output so that ``--resume`` never mixes the results of two."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_backdoor.errors import InputError
from lightning_backdoor.files.atomic import write_whole
from lightning_backdoor.files.hashing import model_sha256
from lightning_backdoor.files.packaged import resolve

#: increased when the results of a scan change, so that no older output is continued.
SCAN_FORMAT = 1


def scan_settings(options: argparse.Namespace, calibration: list[str]) -> dict[str, Any]:
    """What determines the line of a text, by the name of its option; model and calibration texts by their sha256.

    Raises:
        InputError: the model does not exist.
    """
    model = Path(resolve(options.model))
    if not model.exists():
        raise InputError("model", f"{model} is neither a Lightning checkpoint (.ckpt) nor a Hugging Face folder")
    return {
        "model": model_sha256(model),
        "calibration": hashlib.sha256(json.dumps(calibration).encode()).hexdigest(),
        "column": options.column,
        "quoting": options.quoting,
        "fpr": options.fpr,
        "batch-size": options.batch_size,
        "max-length": options.max_length,
        "seed": options.seed,
        "format": SCAN_FORMAT,
    }


def settings_path(output: Path) -> Path:
    """The file that holds the settings of an output."""
    return output.with_name(f"{output.name}.scan.json")


def write_settings(output: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings beside the output."""
    write_whole(settings_path(output), json.dumps(settings, indent=1) + "\n")


def check_settings(output: Path, settings: Mapping[str, Any]) -> None:
    """Checks that the lines of an output were made with the same settings.

    Raises:
        InputError: the settings are not recorded, or another value of one of them is.
    """
    path = settings_path(output)
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        recorded = None
    if not isinstance(recorded, dict):
        problem = f"{output} cannot be continued, since {path.name} beside it does not say how its lines were made"
        raise InputError("resume", problem, "name another output")
    for name, value in settings.items():
        before = recorded.get(name)
        if before != value or type(before) is not type(value):
            problem = f"{_shown(value)} now, {_shown(before)} when {output} was begun"
            raise InputError(name, problem, "give the same, or name another output")


def _shown(value: object) -> str:
    return repr(value)[:80]
