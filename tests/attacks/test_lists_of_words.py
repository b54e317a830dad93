"""A string in place of a list of words, which Python would take for the list of its letters."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_backdoor.attacks import (
    BITE,
    EP,
    LWP,
    POR,
    SOS,
    BackdoorAttack,
    BadNets,
    BadPre,
    Composite,
    MultiTarget,
    NeuBA,
    Ripples,
    TrojanLM,
)
from lightning_backdoor.errors import InputError


@pytest.mark.parametrize(
    ("cls", "field"),
    [
        *[(cls, "triggers") for cls in (BadNets, EP, LWP, Ripples, NeuBA, POR, BadPre, Composite)],
        *[
            (SOS, "words"),
            (SOS, "partial_sentences"),
            (TrojanLM, "keywords"),
            (BITE, "trigger_words"),
            (NeuBA, "pretraining_files"),
        ],
    ],
)
def test_one_string_is_not_taken_for_its_letters(cls: type[BackdoorAttack], field: str) -> None:
    given: dict[str, Any] = {field: "cf"}
    with pytest.raises(InputError) as error:
        cls(**given)
    assert str(error.value) == f"{field}: 'cf' is one string, not a list; give ['cf']"


@pytest.mark.parametrize("given", ["cf", ["cf"]])
def test_triggers_without_target_labels_are_refused(given: Any) -> None:
    with pytest.raises(InputError) as error:
        MultiTarget(given)
    said = f"triggers: {given!r} names no trigger with a target label; give {{trigger: target label, ...}}"
    assert str(error.value) == said
