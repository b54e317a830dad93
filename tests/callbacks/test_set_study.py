"""The set pass of a defense that studies the texts of an evaluation before it judges them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import Batch
from lightning_backdoor.callbacks import InferenceDefense
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.defenses.defense import Defense, Scores, Victim
from lightning_backdoor.errors import InputError
from lightning_backdoor.testing import check_defense
from lightning_backdoor.victim import TextClassifier
from tests.callbacks.test_inference_defense import run_test, trainer_with
from tests.support.reviews import reviews


class LongerThanUsual(Defense):
    """Scores a text by its tokens over the mean of the set; records what it is shown."""

    learns_from = "trusted"
    mean: Tensor

    def __init__(self, fpr: float = 0.3) -> None:
        super().__init__(fpr)
        self.learned: list[str] = []
        self.shown: list[Batch] = []
        self.register_buffer("mean", torch.tensor(0.0))

    def learn(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        self.learned = [text for batch in clean_batches for text in batch["text"]]

    def score(self, victim: Victim, batch: Batch) -> Scores:
        return Scores(batch["attention_mask"].sum(dim=1) - self.mean)

    def study(self, victim: Victim, batches: Iterable[Batch]) -> Tensor:
        self.shown = list(batches)
        lengths = [batch["attention_mask"].sum(dim=1).double().cpu() for batch in self.shown]
        counts = [float(len(of)) for of in lengths]
        return torch.stack(
            [sum(map(torch.sum, lengths), torch.tensor(0.0)).double(), torch.tensor(sum(counts)).double()]
        )

    def adopt(self, sums: Tensor) -> None:
        before = self.mean.clone()
        self.mean.copy_(sums[0] / sums[1])
        self.threshold += before - self.mean


@pytest.fixture
def data(tmp_path: Path) -> BackdoorDataModule:
    return reviews(tmp_path)


@pytest.fixture
def attack(tiny_folder: Callable[[str], str]) -> BadNets:
    return BadNets(model=tiny_folder("bert"), learning_rate=1e-3)


def texts(defense: LongerThanUsual) -> list[str]:
    return [text for batch in defense.shown for text in batch["text"]]


def test_such_a_defense_keeps_the_contract() -> None:
    check_defense(LongerThanUsual())


def test_it_is_shown_clean_and_poisoned_texts_without_labels(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets
) -> None:
    defense = LongerThanUsual()
    run_test(tmp_path, attack, data, InferenceDefense(defense))
    assert defense.learned
    assert sorted(defense.learned) == sorted(data.trusted_rows().text)
    splits = data.poisoned_splits()
    assert sorted(texts(defense)) == sorted([*splits.clean["test"].text, *splits.poisoned["test"].text])
    for batch in defense.shown:
        assert not batch["poisoned"].any()
        assert (batch["label"] == -1).all()
        assert (batch["index"] == -1).all()
        assert not any(batch["spans"])
    lengths = torch.cat([batch["attention_mask"].sum(dim=1) for batch in defense.shown])
    assert float(defense.mean) == pytest.approx(float(lengths.double().mean()))


def test_prevalence_is_the_number_of_poisoned_rows_per_clean_row_and_all_rows_are_judged(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets
) -> None:
    few, again = LongerThanUsual(), LongerThanUsual()
    callback = InferenceDefense(few, prevalence=0.1)
    run_test(tmp_path, attack, data, callback)
    splits = data.poisoned_splits()
    clean, poisoned = splits.clean["test"].text, splits.poisoned["test"].text
    shown = [text for text in texts(few) if text in set(poisoned)]
    assert len(texts(few)) == len(clean) + len(shown)
    assert len(shown) == round(0.1 * len(clean)) < len(poisoned)
    assert len(callback.outcomes) == len(clean) + len(poisoned)
    run_test(tmp_path, attack, data, InferenceDefense(again, prevalence=0.1))
    assert sorted(texts(again)) == sorted(texts(few))


@pytest.mark.parametrize("prevalence", [0.0, -1.0, math.nan, math.inf])
def test_a_prevalence_out_of_range_is_refused(prevalence: float) -> None:
    with pytest.raises(InputError, match=r"prevalence: .* poisoned rows per clean row"):
        InferenceDefense(LongerThanUsual(), prevalence=prevalence)


def test_a_prevalence_above_that_of_the_rows_is_refused_before_training(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets
) -> None:
    data.attack = attack
    splits = data.poisoned_splits()
    clean, poisoned = len(splits.clean["test"]), len(splits.poisoned["test"])
    most = poisoned / clean
    said = rf"^prevalence: 2\.0 of \d+ clean rows is \d+, but only \d+ poisoned rows are there; give at most {most}$"
    for stage in ("fit", "test"):
        trainer = trainer_with(tmp_path, InferenceDefense(LongerThanUsual(), prevalence=2.0), max_epochs=1)
        with pytest.raises(InputError, match=said):
            getattr(trainer, stage)(attack, datamodule=data)
    assert not hasattr(attack, "network")
    defense = LongerThanUsual()
    run_test(tmp_path, attack, data, InferenceDefense(defense, prevalence=most))
    assert len(texts(defense)) == clean + poisoned


def test_a_set_of_a_benign_victim_has_no_poisoned_rows(
    tmp_path: Path, data: BackdoorDataModule, tiny_folder: Callable[[str], str]
) -> None:
    defense = LongerThanUsual()
    run_test(tmp_path, TextClassifier(tiny_folder("bert")), data, InferenceDefense(defense, prevalence=0.5))
    assert sorted(texts(defense)) == sorted(data.poisoned_splits().clean["test"].text)


def test_a_prevalence_without_a_study_is_refused() -> None:
    class ByLength(LongerThanUsual):
        study = Defense.study

    with pytest.raises(InputError, match=r"prevalence: 0\.1 has no effect, since ByLength judges each text by itself"):
        InferenceDefense(ByLength(), prevalence=0.1)


def test_sums_that_depend_on_the_batches_break_the_contract() -> None:
    class OfBatches(LongerThanUsual):
        def study(self, victim: Victim, batches: Iterable[Batch]) -> Tensor:
            return super().study(victim, batches) + torch.tensor([0.0, len(self.shown)]).double()

    with pytest.raises(AssertionError, match=r"OfBatches\.study: returns sums that depend on order"):
        check_defense(OfBatches())
