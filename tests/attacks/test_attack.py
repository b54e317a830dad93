"""What all attacks share: their arguments, and the key under which their poison is kept."""

from __future__ import annotations

import importlib
import random
from pathlib import Path
from typing import Any

import pytest

from lightning_backdoor.attacks import BackdoorAttack, BadNets, InsertSent
from lightning_backdoor.errors import InputError

OWN_ATTACK = """
from lightning_backdoor.attacks import BackdoorAttack, Poisoned


class Shout(BackdoorAttack):
    word = "{word}"

    def __init__(self, times: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.times = times

    def poison_text(self, text, rng):
        trigger = self.word * self.times
        return Poisoned(text + " " + trigger, [(len(text) + 1, len(text) + 1 + len(trigger))])
"""


@pytest.mark.parametrize("rate", [0, -0.1, 1.01, float("nan")])
def test_a_poison_rate_that_is_no_share_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match=r"^poison_rate: \S+ is out of range; give a share above 0 and up to 1$"):
        BadNets(poison_rate=rate)


def test_a_negative_target_label_is_refused() -> None:
    with pytest.raises(InputError, match=r"^target_label: -1 is out of range; class indices count from 0$"):
        BadNets(target_label=-1)


def test_an_unknown_label_policy_is_refused() -> None:
    policy: Any = "filthy"
    with pytest.raises(InputError, match=r"^label_policy: 'filthy' is unknown; give dirty, clean or mixed$"):
        BadNets(label_policy=policy)


def test_an_attack_without_a_way_to_poison_says_so() -> None:
    with pytest.raises(TypeError, match="BackdoorAttack implements neither poison_text nor poison_texts"):
        BackdoorAttack().poison_texts(["a text"], [random.Random(0)])


def test_the_key_changes_with_whatever_decides_the_poison() -> None:
    keys = [
        BadNets().poison_key(),
        BadNets(triggers=["mn"]).poison_key(),
        BadNets(insertions=2).poison_key(),
        BadNets(place="end").poison_key(),
        BadNets(target_label=0).poison_key(),
        BadNets(poison_rate=0.2).poison_key(),
        BadNets(label_policy="clean").poison_key(),
        InsertSent().poison_key(),
    ]
    assert None not in keys
    assert len(set(keys)) == len(keys)


def test_the_key_stays_where_only_the_training_changes() -> None:
    trained_otherwise = BadNets(model="bert-base-uncased", learning_rate=1e-3, labels=["no", "yes"], max_length=9)
    assert trained_otherwise.poison_key() == BadNets().poison_key()


def test_the_key_knows_the_code_that_attacks_share() -> None:
    assert "def insert_at" in str(InsertSent().poison_key())


def test_the_key_of_ones_own_attack_changes_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "own_attack_of_a_test.py"
    file.write_text(OWN_ATTACK.format(word="WOW"))
    module = importlib.import_module(file.stem)
    before = module.Shout().poison_key()
    assert module.Shout().poison_key() == before
    assert module.Shout(times=2).poison_key() != before
    file.write_text(OWN_ATTACK.format(word="OH MY"))
    module = importlib.reload(module)
    assert module.Shout().poison_text("", random.Random(0)).text == " OH MY"
    assert module.Shout().poison_key() not in (None, before)


def test_an_attack_whose_source_cannot_be_read_has_no_key() -> None:
    scope: dict[str, Any] = {"BadNets": BadNets, "__name__": "typed_into_a_shell"}
    exec("class Typed(BadNets): pass", scope)
    assert scope["Typed"]().poison_key() is None
