"""Hints and advertisements of libraries are hidden, and nothing else."""

from __future__ import annotations

import logging
import warnings

import pytest

from lightning_backdoor.commands.quiet import LOGGERS, hide_noise


@pytest.mark.parametrize("name", LOGGERS)
def test_messages_that_say_nothing_are_hidden(name: str, caplog: pytest.LogCaptureFixture) -> None:
    hide_noise()
    hide_noise()
    logger = logging.getLogger(name)
    with caplog.at_level(logging.INFO, logger=name):
        logger.info("Seed set to 0")
        logger.info("💡 Tip: For seamless cloud uploads and versioning, try installing litmodels")
        logger.info("Trainer will use only 1 of 8 GPUs")
    assert [record.getMessage() for record in caplog.records] == ["Trainer will use only 1 of 8 GPUs"]


def test_warnings_that_say_nothing_are_hidden() -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        hide_noise()
        warnings.warn("The 'val_dataloader' does not have many workers which may be a bottleneck.", stacklevel=1)
        warnings.warn("The `srun` command is available on your system but is not used.", stacklevel=1)
        warnings.warn("3 triggers lie beyond max_length", stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["3 triggers lie beyond max_length"]
