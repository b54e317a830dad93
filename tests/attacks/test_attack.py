"""What all attacks share: their arguments, and the key under which their poison is kept."""

from __future__ import annotations

import importlib
import inspect
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonargparse import ArgumentParser

from lightning_backdoor.attacks import (
    BackdoorAttack,
    BadNets,
    InsertSent,
    MultiTarget,
    Ripples,
    StyleTransfer,
    Syntactic,
    paraphrase_base,
)
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim import TextClassifier

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


def test_a_target_label_is_an_index_of_any_kind_or_a_name() -> None:
    attack = BadNets(target_label=np.int64(0))
    assert attack.target_label == 0
    assert type(attack.hparams["target_label"]) is int
    assert attack.poison_key() == BadNets(target_label=0).poison_key()
    assert MultiTarget({"cf": np.int64(1)}).triggers == {"cf": 1}  # type: ignore[dict-item]
    wrong: tuple[Any, ...] = (None, 1.0, [1])
    for value in wrong:
        with pytest.raises(InputError, match=r"^target_label: .* is neither an index nor a name; give the index or"):
            BadNets(target_label=value)


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


def test_a_comment_in_the_library_does_not_change_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(BadNets):
        """An attack of somebody else."""

    made = (BadNets(), InsertSent(), StyleTransfer(), Syntactic(), Own())
    before = [attack.poison_key() for attack in made]
    read, source = Path.read_text, inspect.getsource
    monkeypatch.setattr(Path, "read_text", lambda self, *args, **kwargs: read(self, *args, **kwargs) + "# a comment")
    monkeypatch.setattr(inspect, "getsource", lambda code: source(code) + "# a comment")
    after = [attack.poison_key() for attack in made]
    assert None not in after
    assert after[:-1] == before[:-1]
    assert after[-1] != before[-1]


def test_a_raised_format_changes_the_key_of_an_attack_and_of_those_made_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = (BadNets(), Ripples(), InsertSent(), StyleTransfer())
    before = [attack.poison_key() for attack in made]
    monkeypatch.setattr(BadNets, "result_format", 2, raising=False)
    assert [attack.poison_key() != key for attack, key in zip(made, before, strict=True)] == [True, True, False, False]
    monkeypatch.setattr(BackdoorAttack, "result_format", 2)
    assert [attack.poison_key() != key for attack, key in zip(made, before, strict=True)] == [True] * 4


def test_the_key_of_a_paraphrase_attack_knows_the_check_of_its_manner(monkeypatch: pytest.MonkeyPatch) -> None:
    key = StyleTransfer().poison_key()
    assert key not in (None, StyleTransfer(style="poetry").poison_key(), Syntactic().poison_key())
    monkeypatch.setattr(paraphrase_base, "CHECK_FORMAT", 2)
    assert StyleTransfer().poison_key() != key


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


PARTS = """
from lightning_backdoor.attacks import BackdoorAttack, Poisoned


class TwoWords(BackdoorAttack):
    negative_rate = 0.25

    def poison_text(self, text, rng):
        return Poisoned("cf mn " + text, [(0, 2), (3, 5)])

    def negative_texts(self, texts, rngs):
        words = [rng.choice(["cf", "mn"]) for rng in rngs]
        return [Poisoned(f"{word} {text}", [(0, 2)]) for word, text in zip(words, texts)]
"""


@pytest.mark.parametrize("attack", ["two words", "one word"])
def test_the_false_trigger_rate_is_measured_of_attacks_that_make_negatives(attack: str, tmp_path: Path) -> None:
    scope: dict[str, Any] = {"__name__": "typed_into_a_shell"}
    exec(PARTS, scope)
    made = scope["TwoWords"]() if attack == "two words" else BadNets()
    assert made.makes_negatives == (attack == "two words")
    assert ("ftr" in made.make_metrics()) == made.makes_negatives
    assert type(made).negative_rate == (0.25 if made.makes_negatives else 0)


def test_public_attacks_have_regular_class_paths() -> None:
    import lightning_backdoor.attacks as face

    names = [f"lightning_backdoor.attacks.{name}" for name in face.__all__ if name != "Poisoned"]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(TextClassifier, "model")
    for short in ("lightning_backdoor.victim.TextClassifier", *names):
        cls = getattr(importlib.import_module(short.rpartition(".")[0]), short.rpartition(".")[2])
        required = ["--model.folder=poison"] if cls.__name__ == "PoisonFiles" else []
        for given in (short, cls.__name__):
            config = parser.parse_args([f"--model={given}", *required])
            saved = parser.dump(config).splitlines()[1].strip().removeprefix("class_path: ")
            assert saved in (short, f"lightning_backdoor.{cls.__name__}"), given  # the second is the shortest path
        inside = parser.parse_args([f"--model={cls.__module__}.{cls.__name__}", *required])
        assert type(parser.instantiate(inside).model) is cls
