"""Fixtures of the tests of defenses."""

from __future__ import annotations

import pytest

from lightning_backdoor.victim import TextClassifier
from tests.defenses.golden_states import GoldenStates, read_golden_states


@pytest.fixture(scope="session")
def golden_states(backdoored: TextClassifier) -> GoldenStates:
    """Hidden states of the texts of the golden files, read once."""
    return read_golden_states(backdoored)
