"""Resuming the training of a victim that was interrupted, also after its folder was moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_backdoor.errors import InputError


def is_resumable(checkpoint: Path) -> bool:
    """Whether training can resume from a run's last checkpoint: it is complete, and the best one so far exists.

    Lightning stores absolute paths in a checkpoint and would lose track of the best one after the folder was moved;
    the paths of a moved folder are therefore replaced in the file.
    """
    if not checkpoint.is_file():
        return False
    from lightning_backdoor.victim.checkpoints import read_checkpoint

    try:
        content = read_checkpoint(checkpoint)
    except InputError:  # an incomplete file
        return False
    folder = checkpoint.parent
    for state in content.get("callbacks", {}).values():
        best = Path(state.get("best_model_path") or "") if isinstance(state, dict) else Path()
        if best.name != "best.ckpt":
            continue
        if not (folder / best.name).is_file():
            return False
        if best.is_absolute() and best.parent != folder:
            content["callbacks"] = _moved(content["callbacks"], str(best.parent), str(folder))
            _write(content, checkpoint)
            return True
    return True


def _moved(value: Any, before: str, now: str) -> Any:
    """The states of callbacks with the paths in one folder replaced by paths in another one."""
    if isinstance(value, str):
        inside = value == before or value.startswith(f"{before}/")
        return now + value.removeprefix(before) if inside else value
    if isinstance(value, dict):
        return {_moved(key, before, now): _moved(item, before, now) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, before, now) for item in value]
    return value


def _write(content: Any, checkpoint: Path) -> None:
    import torch

    partial = checkpoint.with_name(f".{checkpoint.name}.partial")
    torch.save(content, partial)
    partial.replace(checkpoint)
