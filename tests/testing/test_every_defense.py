"""Every defense that the package exports keeps the contract of its moments, new ones by themselves."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from lightning_backdoor.files.public_classes import PublicClass, public_classes
from lightning_backdoor.testing import check_defense
from tests.defenses.test_paraphrase_consistency import Reversed
from tests.language.conftest import language_model

__all__ = ["language_model"]

DEFENSES = {item.name: item for item in public_classes() if item.kind == "defenses"}
#: arguments, by class, without which a defense is too large for a tiny model and few rows; others take their defaults.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "DBS": {"trigger_length": 2, "rows": 4, "epochs": 3},
    "MuScleLoRA": {"reference_size": 2},
    "Onion": {"language_model": "tiny", "cache_dir": "cache"},
    "ParaphraseConsistency": {"paraphraser": Reversed()},
    "SecondOpinion": {"encoder": "tiny"},
}


@pytest.mark.parametrize("item", DEFENSES.values(), ids=DEFENSES)
def test_a_defense_keeps_the_contract(
    item: PublicClass, language_model: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = dict(ARGUMENTS.get(item.name, {}))
    for argument in {"language_model", "encoder"} & arguments.keys():
        arguments[argument] = language_model("llama")
    made = getattr(import_module(item.module), item.name)
    try:
        defense = made(**arguments)
    except TypeError as error:
        pytest.fail(f"{item.name} cannot be made by its defaults ({error}): name tiny arguments in ARGUMENTS")
    check_defense(defense)


def test_the_arguments_are_those_of_exported_defenses() -> None:
    assert ARGUMENTS.keys() <= DEFENSES.keys()


def test_defenses_of_every_moment_are_exported() -> None:
    moments = {moment for item in DEFENSES.values() for moment in item.moments}
    assert moments == {"before training", "in training", "after training", "at inference", "on the trained model"}
