"""Evaluation mode for a block."""

from __future__ import annotations

import pytest

from lightning_backdoor.models.evaluation_mode import evaluating
from lightning_backdoor.victim import TextClassifier


def test_every_module_gets_its_mode_back_also_after_an_error(bert: TextClassifier) -> None:
    bert.train()
    parts = list(bert.network.modules())
    parts[3].eval()
    before = [part.training for part in parts]
    assert any(before)
    with evaluating(bert):
        assert not any(part.training for part in parts)
    assert [part.training for part in parts] == before
    with pytest.raises(ArithmeticError), evaluating(bert):
        raise ArithmeticError
    assert [part.training for part in parts] == before
