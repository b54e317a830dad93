"""The gate of a scan: no text keeps a repair while nothing in the set speaks of a backdoor.

The gate is decided when all texts are scored. Where it is shut, the lines are written anew: flagged texts then have the
victim's answer, and no repaired text. This costs no second pass of the model.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from lightning_backdoor.commands.scan.output import Output
from lightning_backdoor.commands.scan.settings import read_settings, settings_path
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.atomic import write_whole

#: entry beside the settings of a finished output: the defenses whose repairs were held back.
HELD_BACK = "held_back"
#: the same from the decision until the output is finished, in which time it may have repairs or not.
HOLDING_BACK = "holding_back"


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


def finish(output: Output, defenses: Sequence[str], shut: Collection[str]) -> None:
    """Completes an output that has all its lines, without the repairs by defenses whose gate is shut.

    It is recorded first that this has begun, and last that it is done: what is interrupted is done again by
    ``--resume``.

    Args:
        output: the output.
        defenses: names of the defenses of the scan.
        shut: names of those whose gate is shut.
    """
    if output.name is None or output.special:
        output.finish(defenses)
        return
    shut = sorted({*shut, *((read_settings(output.name) or {}).get(HOLDING_BACK) or ())})
    if shut:
        _record(output.name, HOLDING_BACK, shut)
        output.rewrite(lambda line: without_repair(line, defenses, shut))
    output.finish(defenses)
    if shut:
        _record(output.name, HELD_BACK, shut)


def is_holding_back(output: Output, gate: bool, resumed: bool) -> bool:
    """Whether the repairs of an output with all its lines were being held back when its scan ended.

    Args:
        output: the output.
        gate: whether the scan has a gate.
        resumed: whether the scan may continue the output.

    Raises:
        InputError: they have all been held back, since the gate could open for further texts; or they are to be kept
            now.
    """
    settings = read_settings(output.name) if output.name is not None and output.has_lines() else None
    if settings is not None and settings.get(HELD_BACK):
        problem = f"{output.name} is complete, and its gate was shut, so that it has no repairs"
        raise InputError("output", problem, "name another file")
    begun = settings is not None and bool(settings.get(HOLDING_BACK))
    if begun and resumed and not gate:
        problem = f"{output.name} is complete, its gate was shut, and its repairs were being held back"
        raise InputError("gate", problem, "add --gate, or name another output")
    return begun


def no_more(texts: Iterator[str], output: Output) -> Iterator[str]:
    """The texts that follow an output whose gate was shut, which are none.

    Raises:
        InputError: there are some, for which the gate could open.
    """
    if next(texts, None) is not None:
        problem = f"{output.name} was complete, and its gate was shut, but the input has more texts"
        raise InputError("output", problem, "name another file")
    return iter(())


def _record(output: Path, entry: str, shut: Sequence[str]) -> None:
    settings = {name: value for name, value in (read_settings(output) or {}).items() if name != HOLDING_BACK}
    write_whole(settings_path(output), json.dumps({**settings, entry: shut}, indent=1) + "\n")
