"""The test kit for attacks: the library's own attacks pass, and each broken rule is told by its name."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from lightning_backdoor.attacks import (
    LWS,
    BackdoorAttack,
    BadNets,
    InsertSent,
    MultiTarget,
    Poisoned,
    Ripples,
    Syntactic,
)
from lightning_backdoor.batch import Batch
from lightning_backdoor.data.aims import Aim
from lightning_backdoor.data.rows import Rows
from lightning_backdoor.errors import InputError
from lightning_backdoor.language import FileParaphraser
from lightning_backdoor.language.synonyms import SynonymFile
from lightning_backdoor.testing import check_attack, labelled_texts
from tests.support.documents import one_block, python_file


class Suffix(BackdoorAttack):
    """Keeps all rules."""

    def poison_text(self, text: str, rng: random.Random) -> Poisoned:
        return Poisoned(f"{text} wow", [(len(text) + 1, len(text) + 4)])


class Ends(Suffix):
    """Its trigger has two parts, of which negatives carry one; keeps all rules."""

    negative_rate = 0.1

    def poison_text(self, text: str, rng: random.Random) -> Poisoned:
        return Poisoned(f"so {text} wow", [(0, 2), (len(text) + 4, len(text) + 7)])

    def negative_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        return [
            Poisoned(f"so {text}", [(0, 2)]) if rng.random() < 0.5 else None
            for text, rng in zip(texts, rngs, strict=True)
        ]


class OwnWriter(Suffix):
    """Poisons by what its aim writes, of which ``poison_text`` says nothing."""

    @property
    def aims(self) -> tuple[Aim, ...]:
        return (Aim(self._write, 1),)

    def _write(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        return [Poisoned(f"{text} {random.random()}", [(0, 99999)]) for text in texts]


class OwnTrainingWriter(OwnWriter):
    @property
    def aims(self) -> tuple[Aim, ...]:
        return (Aim(self.poison_texts, 1, self._write),)


class AimThatWritesNothing(OwnWriter):
    def _write(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        return [Poisoned(text, []) for text in texts]


class WritesOnceStudied(OwnWriter):
    """Its words depend on the training rows; keeps all rules."""

    word = ""

    def study_rows(self, rows: Rows, chosen: Sequence[int]) -> None:
        self.word = min(rows.text).split()[0]

    def _write(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        return [Poisoned(f"{self.word} {text}", [(0, len(self.word))]) for text in texts]


class RandomTraining(Suffix):
    def poison_training_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        return [Poisoned(f"{text} {random.random()}", []) for text in texts]


class WithoutFtr(Ends):
    def make_metrics(self) -> nn.ModuleDict:
        return nn.ModuleDict({name: metric for name, metric in super().make_metrics().items() if name != "ftr"})


@pytest.mark.parametrize(
    ("attack", "max_epochs"),
    [
        (lambda: BadNets(triggers=["cf", "mn"], insertions=2, poison_rate=0.02), 1),
        (lambda: BadNets(label_policy="clean", lora_rank=4, freeze=["encoder.layer.5"]), 1),
        (lambda: InsertSent(label_policy="mixed", target_label=3, max_length=200), 1),
        (lambda: Ripples(attack_epochs=1), 2),
        (lambda: Suffix(labels=["no", "yes"]), 1),
        (Ends, 1),
        (WritesOnceStudied, 1),
        (MultiTarget, 1),
    ],
    ids=["BadNets", "clean label", "InsertSent four labels", "Ripples", "own", "negatives", "own aim", "two aims"],
)
def test_attacks_that_keep_the_contract_pass(attack: Callable[[], BackdoorAttack], max_epochs: int) -> None:
    check_attack(attack(), max_epochs=max_epochs)


def test_the_classes_of_the_readme_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("shout", "length"):
        (tmp_path / f"{name}.py").write_text(python_file(f"{name}.py"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    block = one_block("python", "from lightning_backdoor.testing import check_attack, check_defense\n")
    (tmp_path / "contracts_of_the_readme.py").write_text(block, encoding="utf-8")
    importlib.import_module("contracts_of_the_readme").test_contracts()
    for name in ("shout", "length", "contracts_of_the_readme"):  # other tests have files of these names
        del sys.modules[name]


def test_lws_passes(tmp_path: Path) -> None:
    lines = [{"word": "film", "substitutes": ["story", "music"]}, {"word": "the", "substitutes": ["a"]}]
    (tmp_path / "words.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    check_attack(LWS(SynonymFile(str(tmp_path / "words.jsonl")), warmup_epochs=1), max_epochs=2)


def test_an_attack_that_knows_some_texts_is_given_them(tmp_path: Path) -> None:
    rows = labelled_texts(120)
    pairs = [{"text": row.text, "paraphrase": f"when it comes to it, {row.text}."} for row in rows]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    check_attack(Syntactic(paraphraser=FileParaphraser(str(tmp_path / "pairs.jsonl"))), rows=rows)


def test_rows_may_have_more_labels_than_the_target_implies() -> None:
    check_attack(BadNets(), rows=labelled_texts(120, 4))


def test_an_attack_is_left_as_it_was() -> None:
    attack = BadNets()
    hparams = dict(attack.hparams)
    check_attack(attack)
    assert dict(attack.hparams) == hparams
    assert not hasattr(attack, "network")


def test_an_attack_with_a_network_is_refused() -> None:
    attack = BadNets()
    attack.network = nn.Linear(1, 1)
    with pytest.raises(InputError, match="attack: has a network"):
        check_attack(attack)


class GlobalRandom(Suffix):
    def poison_text(self, text: str, rng: random.Random) -> Poisoned:
        return Poisoned(f"{text} {random.random()}", [])


class ByPosition(Suffix):
    def poison_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        return [Poisoned(f"{text} {position}", []) for position, text in enumerate(texts)]


class TwoAimsOfOneTarget(Suffix):
    @property
    def aims(self) -> list[Aim]:
        return [Aim(self.poison_texts, 1), Aim(self.poison_texts, 1)]


class OneTargetOnceStudied(Suffix):
    """Has another aim when it has seen the training rows, and the target of both is the same."""

    studied = False

    def study_rows(self, rows: Rows, chosen: Sequence[int]) -> None:
        self.studied = True

    @property
    def aims(self) -> list[Aim]:
        return [Aim(self.poison_texts, 1)] * (1 + self.studied)


class ByBatch(Suffix):
    def poison_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        return [Poisoned(f"{text} {len(texts)}", []) for text in texts]


class PlainTuple(Suffix):
    def poison_text(self, text: str, rng: random.Random) -> Any:
        return f"{text} wow", []


class SpanOutside(Suffix):
    def poison_text(self, text: str, rng: random.Random) -> Poisoned:
        return Poisoned(f"{text} wow", [(len(text), len(text) + 5)])


class SpanWithoutTrigger(Suffix):
    def poison_text(self, text: str, rng: random.Random) -> Poisoned:
        return Poisoned(text, [(0, 1)])


class DoesNothing(Suffix):
    def poison_text(self, text: str, rng: random.Random) -> Poisoned:
        return Poisoned(text, [])


class NeedsWords(Suffix):
    def poison_text(self, text: str, rng: random.Random) -> Poisoned:
        return Poisoned(f"{text.split()[0]} {text}", [])


class LosesRows(Suffix):
    def poison_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        return [Poisoned(f"{text} wow", []) for text in texts if text]


class LeavesAllOut(Suffix):
    def poison_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        return [None for _ in texts]


class NewKeyEachTime(Suffix):
    keys = itertools.count()

    def poison_key(self) -> str | None:
        return str(next(self.keys))


class NegativesWithoutTexts(Suffix):
    negative_rate = 0.1


class WholeTriggerInNegatives(Suffix):
    def negative_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        return [self.poison_text(text, rng) for text, rng in zip(texts, rngs, strict=True)]


class RandomNegatives(Suffix):
    def negative_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        return [Poisoned(f"{text} {random.random()}", []) for text in texts]


class WithoutMetrics(Suffix):
    def make_metrics(self) -> nn.ModuleDict:
        return nn.ModuleDict({"cacc": super().make_metrics()["cacc"]})


class Exploding(Suffix):
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * math.nan


class KeepsAnObject(Suffix):
    def __init__(self, helper: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Helper:
    """What no checkpoint may hold."""


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (GlobalRandom(), r"GlobalRandom\.poison_texts: poisons the same texts differently when asked again; every ran"),
        (ByPosition(), r"ByPosition\.poison_texts: depends on the order of the texts"),
        (ByBatch(), r"ByBatch\.poison_texts: depends on the other texts of the batch"),
        (PlainTuple(), r"PlainTuple\.poison_texts: answers '.*' with \('.* wow', \[\]\), not with Poisoned or None"),
        (SpanOutside(), r"SpanOutside\.poison_texts: span \(\d+, \d+\) does not lie inside of '.* wow', which has \d+"),
        (SpanWithoutTrigger(), r"SpanWithoutTrigger\.poison_texts: '.*' is unchanged, yet has spans"),
        (DoesNothing(), r"DoesNothing\.poison_texts: changes no text"),
        (NeedsWords(), r"NeedsWords\.poison_texts: fails on .*list index out of range"),
        (LosesRows(), r"LosesRows\.poison_texts: answers 25 texts with 24 results"),
        (LeavesAllOut(), r"LeavesAllOut\.poison_texts: leaves out every text"),
        (NewKeyEachTime(), r"NewKeyEachTime\.poison_key: changes"),
        (Suffix(target_label=2, labels=["no", "yes"]), r"Suffix: target_label 2 is not one of 2 labels"),
        (TwoAimsOfOneTarget(), r"TwoAimsOfOneTarget\.aims: two aims have one target, \[1, 1\] for rows of label 0"),
        (OneTargetOnceStudied(), r"OneTargetOnceStudied\.aims: two aims have one target, \[1, 1\] for rows of label 0"),
        (OwnWriter(), r"OwnWriter\.aims\[0\]\.write: span \(0, 99999\) does not lie inside"),
        (OwnTrainingWriter(), r"OwnTrainingWriter\.aims\[0\]\.write_in_training: span \(0, 99999\) does not lie"),
        (AimThatWritesNothing(), r"AimThatWritesNothing\.aims\[0\]\.write: changes no text"),
        (NegativesWithoutTexts(), r"NegativesWithoutTexts: negative_rate is 0\.1, but negative_texts has none"),
        (WholeTriggerInNegatives(), r"WholeTriggerInNegatives\.negative_texts: '.* wow' carries the whole trigger"),
        (RandomNegatives(), r"RandomNegatives\.negative_texts: poisons the same texts differently"),
        (RandomTraining(), r"RandomTraining\.poison_training_texts: poisons the same texts differently"),
        (WithoutMetrics(), r"WithoutMetrics: fit: does not log val/asr"),
        (WithoutFtr(), r"WithoutFtr: fit: does not log val/ftr"),
        (Exploding(), r"Exploding: fit: leaves parameters that are not finite"),
        (
            KeepsAnObject(helper=Helper()),
            r"KeepsAnObject: checkpoint holds objects \(helper\), so that it does not load safely",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BackdoorAttack) else "",
)
def test_a_broken_attack_is_told_by_its_rule(attack: BackdoorAttack, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_attack(attack)
