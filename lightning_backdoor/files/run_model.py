"""The model that a run has trained, in the run's folder."""

from __future__ import annotations

from pathlib import Path

from lightning_backdoor.errors import InputError


def model_path(given: str, resolved: str) -> Path:
    """A checkpoint or a Hugging Face folder itself; of the folder of a run its exported model, or its best checkpoint.

    Args:
        given: the model as the user named it, for errors.
        resolved: its path.

    Raises:
        InputError: it does not exist, or the run has no model yet.
    """
    path = Path(resolved)
    if not path.exists():
        raise InputError("model", f"{given} is neither a Lightning checkpoint (.ckpt) nor a Hugging Face folder")
    if not path.is_dir() or (path / "config.json").exists():
        return path
    of_run = next((inner for inner in (path / "model", path / "checkpoints" / "best.ckpt") if inner.exists()), None)
    if of_run is None and (path / "config.yaml").exists():
        raise InputError("model", f"the run in {given} has no model yet", "wait for it, or continue it")
    return of_run or path
