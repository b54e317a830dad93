"""The settings of a scan, kept beside its output so that ``--resume`` and ``--join`` never mix the results of two."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_backdoor.commands.scan.facts import Facts
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.atomic import write_whole
from lightning_backdoor.files.hashing import model_sha256
from lightning_backdoor.files.names import trained_model

#: increased when the results of a scan change, so that no older output is continued.
SCAN_FORMAT = 3
#: entry of the settings that says which shard the output is.
SHARD = "shard"
#: entry of the settings of a scan whose defenses study: a hash of the sets of texts that they have seen.
DIRECTIONS = "directions"
#: entry beside the settings: what is known about the threshold of each defense.
FACTS = "thresholds"


def model_path(given: str, resolved: str) -> Path:
    """The model of a scan: a checkpoint or a Hugging Face folder, which the folder of a run has in it.

    Args:
        given: the model as the user named it, for errors.
        resolved: its path.

    Raises:
        InputError: it does not exist.
    """
    path = Path(resolved)
    if not given or not path.exists():
        problem = f"{given or repr(given)} is neither a Lightning checkpoint (.ckpt) nor a Hugging Face folder"
        remedy = "give a run's folder, a .ckpt, or a folder with config.json, weights and tokenizer"
        raise InputError("model", problem, remedy)
    return Path(trained_model(resolved))


def texts_sha256(texts: Sequence[str]) -> str:
    """A hash of some texts and their order."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def scan_settings(model: Path, calibration: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """What determines the line of a text, by the name of its option; model and calibration texts by their sha256."""
    return {
        "format": SCAN_FORMAT,  # first, since its difference explains others
        "model": model_sha256(model),
        "calibration": texts_sha256(calibration),
        **options,
    }


def settings_path(output: Path) -> Path:
    """The file that holds the settings of an output."""
    return output.with_name(f"{output.name}.scan.json")


def write_settings(output: Path, settings: Mapping[str, Any], facts: Mapping[str, Facts]) -> None:
    """Writes the settings beside the output, with what is known about the thresholds."""
    content = {**settings, FACTS: {name: known._asdict() for name, known in facts.items()}}
    write_whole(settings_path(output), json.dumps(content, indent=1) + "\n")


def read_settings(output: Path) -> dict[str, Any] | None:
    """The settings beside an output; None if there are none."""
    try:
        recorded = json.loads(settings_path(output).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return recorded if isinstance(recorded, dict) else None


def check_settings(output: Path, settings: Mapping[str, Any]) -> None:
    """Checks that the lines of an output were made with the same settings.

    Raises:
        InputError: the settings are not recorded, or another value of one of them is.
    """
    recorded = read_settings(output)
    if recorded is None:
        name = settings_path(output).name
        problem = f"{output} cannot be continued, since {name} beside it does not say how its lines were made"
        raise InputError("resume", problem, "name another output")
    check_same(settings, recorded, f"{output} was begun", "give the same, or name another output")


def check_same(settings: Mapping[str, Any], recorded: Mapping[str, Any], made: str, remedy: str) -> None:
    """Checks that recorded settings are those of a scan.

    Args:
        settings: of the scan.
        recorded: the recorded ones, which may have others in addition.
        made: what was done with the recorded ones, for the error.
        remedy: what to do instead, for the error.

    Raises:
        InputError: one of them differs.
    """
    for name, value in settings.items():
        before = recorded.get(name)
        if before != value or type(before) is not type(value):
            raise InputError(name, f"{_shown(value)} now, {_shown(before)} when {made}", remedy)


def _shown(value: object) -> str:
    return repr(value)[:80]
