"""Hides what libraries print that says nothing to users of this one: hints, advertisements, and bars of short steps."""

from __future__ import annotations

import logging
import warnings

#: warnings that are meant for authors of training loops, as regular expressions.
WARNINGS = (
    ".*does not have many workers.*",
    ".*LeafSpec.*",
    ".*overridden `on_after_batch_transfer`.*",
    ".*`srun` command is available.*",
    ".*is smaller than the logging interval.*",
    ".*[Cc]heckpoint directory .* exists and is not empty.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*was called before the ``update`` method.*",
)
#: beginnings of messages of Lightning.
MESSAGES = (
    "💡",
    "Seed set to",
    "Loading `train_dataloader` to estimate",
    "GPU available",
    "TPU available",
    "Using bfloat16 Automatic",  # fit says it in its own words
    "Using 16bit Automatic",
    "`Trainer(limit_",
    "`Trainer.fit` stopped",
    "\nDetected KeyboardInterrupt",
    "Detected KeyboardInterrupt",
)
#: the loggers of these messages.
LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
)


def hide_noise() -> None:
    """Hides the noise from now on; may be called repeatedly, and before the libraries are imported."""
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_says_something)


def hide_bars_of_transformers() -> None:
    """Hides the bars that transformers shows while it reads and writes weights; downloads keep theirs."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def _says_something(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(MESSAGES)
