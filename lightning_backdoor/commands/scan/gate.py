"""The gate of a scan: no text keeps a repair while nothing in the set speaks of a backdoor.

The gate is decided when all texts are scored. Where it is shut, the lines are written anew: flagged texts then have the
victim's answer, and no repaired text. This costs no second pass of the model.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from lightning_backdoor.commands.scan.output import Output
from lightning_backdoor.commands.scan.settings import read_settings, settings_path
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.atomic import write_whole

#: entry beside the settings: the defenses whose repairs were held back.
HELD_BACK = "held_back"


def without_repair(line: str, defenses: Sequence[str], shut: Collection[str]) -> str:
    """A line of the output in which a flagged text has the victim's answer under the defenses whose gate is shut.

    Args:
        line: the line, with its end.
        defenses: names of the defenses of the scan.
        shut: names of those whose gate is shut.

    >>> line = '{"text": "a", "prediction": "good", "flagged": true, "purified_text": "b", "purified_prediction": null}'
    >>> json.loads(without_repair(line, ["Strip"], ["Strip"]))["purified_prediction"]
    'good'
    """
    content = json.loads(line)
    for name in shut:
        result = content if len(defenses) == 1 else content[name]
        if result["flagged"]:
            result |= {"purified_text": None, "purified_prediction": content["prediction"]}
    return json.dumps(content, ensure_ascii=False) + "\n"


def hold_back(output: Output, defenses: Sequence[str], shut: Collection[str]) -> None:
    """Takes the repairs by defenses whose gate is shut out of an output that has all its lines.

    Args:
        output: the output, a file, before it is finished.
        defenses: names of the defenses of the scan.
        shut: names of those whose gate is shut; where there are none, nothing is done.
    """
    if shut and output.name is not None:
        settings = {**(read_settings(output.name) or {}), HELD_BACK: sorted(shut)}
        write_whole(settings_path(output.name), json.dumps(settings, indent=1) + "\n")  # first: a kill must not hide it
        output.rewrite(lambda line: without_repair(line, defenses, shut))


def check_not_held_back(output: Path | None) -> None:
    """Checks that an output is not one whose repairs are lost, since the gate could open for further texts.

    Raises:
        InputError: it is.
    """
    settings = None if output is None or not output.exists() else read_settings(output)
    if settings is not None and settings.get(HELD_BACK):
        problem = f"{output} is complete, and its gate was shut, so that it has no repairs"
        raise InputError("output", problem, "name another file")
