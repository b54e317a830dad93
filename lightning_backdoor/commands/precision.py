"""The precision of a run: ``auto`` is settled for the machine, or by the checkpoint from which training goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.plugins import Precision

from lightning_backdoor.commands.parsing.known_options import AUTO, FULL, MIXED
from lightning_backdoor.models.precision import has_bfloat16
from lightning_backdoor.victim.checkpoints import read_checkpoint


class RunPrecision(NamedTuple):
    """The precision of a run.

    Attributes:
        value: as Lightning's Trainer takes it.
        reason: why it is this one, or what it costs; empty if there is nothing to say.
    """

    value: Any
    reason: str = ""


def fit_precision(options: Any, checkpoint: Path | None) -> RunPrecision:
    """The precision that ``fit`` trains in.

    A training that goes on from a checkpoint keeps the precision that it began with: float32 where the checkpoint does
    not record it, since it is then of a version that trained in float32 by default.

    Args:
        options: the trainer's options, with classes created.
        checkpoint: the checkpoint from which training goes on; None for a training from its beginning.
    """
    asked = options.precision
    if asked in ("bf16", MIXED):
        slow = _has_bfloat16(options) is False
        return RunPrecision(asked, "slower than 32-true here: this device has no bfloat16" if slow else "")
    if asked != AUTO:
        return RunPrecision(asked)
    plugins = options.plugins if isinstance(options.plugins, list) else [options.plugins]
    if any(isinstance(plugin, Precision) for plugin in plugins):
        return RunPrecision(None)  # the plugin's
    if checkpoint is not None:
        return RunPrecision(read_checkpoint(checkpoint).get("precision", FULL), "as this training began")
    known = _has_bfloat16(options)
    if known is None:
        return RunPrecision(FULL, "auto: not known whether this device has bfloat16")
    return RunPrecision(MIXED if known else FULL, f"auto: this device has {'' if known else 'no '}bfloat16")


def evaluated_precision(asked: Any) -> Any:
    """The precision in which ``validate``, ``test`` and ``predict`` run: mixed precision concerns training alone.

    >>> [evaluated_precision(asked) for asked in ("bf16-mixed", "bf16-true", "auto", None)]
    ['32-true', 'bf16-true', None, None]
    """
    if asked == AUTO:
        return None  # float32, or that of a plugin
    return FULL if str(asked) in (MIXED, "bf16", "16-mixed", "16") else asked


def precision_text(trained: str, reason: str) -> str:
    """The line that ``fit`` says of its precision."""
    said = f"precision: {trained}" + (f" ({reason})" if reason else "")
    return f"{said}; evaluation in float32\n" if trained.endswith("-mixed") else f"{said}\n"


def _has_bfloat16(options: Any) -> bool | None:
    """Whether the trainer's device computes in bfloat16 in hardware; None if that is not known."""
    forks = "fork" in str(options.strategy) or "notebook" in str(options.strategy)
    if forks or not isinstance(options.accelerator, str):  # a process that has asked a GPU cannot be forked
        return None
    return has_bfloat16(options.accelerator)
