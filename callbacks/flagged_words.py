"""Writing and logging the words that stand out among the flagged texts of a test."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger

from lightning_backdoor.errors import escaped
from lightning_backdoor.files.atomic import write_whole
from lightning_backdoor.outputs.exact_tests import p_text
from lightning_backdoor.outputs.word_inventory import StandingOut


def write_words(trainer: Trainer, words: Sequence[StandingOut], folder: Path | None, prefix: str = "test/") -> None:
    """Writes ``words.json`` and logs the table ``words`` to W&B, in the first process.

    The file is a list, the words with the smallest p-values first: ``word``, ``log10_p``, and the numbers ``flagged``
    and ``texts`` of flagged texts and of all texts that contain the word. It is written also where the list is empty.

    Args:
        trainer: the trainer of the test.
        words: the words, those with the smallest p-values first.
        folder: the folder to write to, which is created; None writes no file.
        prefix: prefix of the key logged to W&B.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "words.json", json.dumps([_as_json(word) for word in words], indent=1) + "\n")
    _log_words(trainer, words, prefix)


def _as_json(found: StandingOut) -> dict[str, str | float]:
    log10_p = round(found.log_p / math.log(10), 6)
    return {"word": found.word, "log10_p": log10_p, "flagged": found.flagged, "texts": found.texts}


def _log_words(trainer: Trainer, found: Sequence[StandingOut], prefix: str) -> None:
    loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    if not loggers:
        return
    import wandb

    cells = [[escaped(word), p_text(log_p), flagged, texts] for word, log_p, flagged, texts in found]
    for logger in loggers:
        table = wandb.Table(columns=["word", "p_value", "flagged", "texts"], data=cells)
        logger.experiment.log({f"{prefix}words": table})
