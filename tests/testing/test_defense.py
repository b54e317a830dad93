"""The test kit for defenses: the library's own defenses pass, and each broken rule is told by its name."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import Batch, Victim
from lightning_backdoor.callbacks import InspectionCallback, Repair
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.data.cleaning import DataDefense, LabelledText, TrustedRows
from lightning_backdoor.defenses import (
    Defense,
    Inspection,
    ModelVerdict,
    Scores,
)
from lightning_backdoor.errors import InputError
from lightning_backdoor.testing import check_defense
from lightning_backdoor.testing.defense import generator_states
from lightning_backdoor.victim import TextClassifier
from lightning_backdoor.victim.training_defense import TrainingDefense


class Length(Defense):
    """Keeps all rules."""

    def score(self, victim: Victim, batch: Batch) -> Scores:
        return Scores(batch["attention_mask"].sum(dim=1).float())


class Constant(Defense):
    """Keeps all rules: its scores are the same for all texts, but for rounding, which depends on the batch."""

    def score(self, victim: Victim, batch: Batch) -> Scores:
        return Scores(1.0 + 1e-6 * batch["attention_mask"].float().mean(dim=1))


class Answers(Length):
    """A defense that answers flagged texts with what the test gives."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def purify(self, victim: Victim, batch: Batch, flagged: Tensor, scores: Scores) -> Any:
        return self.answer


class ReadsOfOthers(Length):
    """Keeps all rules: the answers that depend on labels are those of texts that are not flagged."""

    def purify(self, victim: Victim, batch: Batch, flagged: Tensor, scores: Scores) -> Tensor:
        return torch.where(flagged, 1, batch["label"])


class Cleaning(DataDefense):
    """Removes rows without words of trusted texts, and keeps all rules."""

    def clean(
        self, rows: Sequence[LabelledText], trusted: TrustedRows, victim: Victim | None = None
    ) -> list[str | None]:
        known = {word for row in trusted.statistics for word in row.text.split()}
        return [row.text if known & {*row.text.split()} else None for row in rows]


class MeanLogit(Inspection):
    """Keeps all rules."""

    def inspect(self, victim: Victim, clean_batches: Iterable[Batch], stream: Iterable[Batch] = ()) -> ModelVerdict:
        with torch.no_grad():
            logits = [
                victim.network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
                for batch in (*clean_batches, *stream)
            ]
        mean = torch.cat(logits).mean(dim=0)
        evidence: dict[str, float | int | str] = {"texts": len(torch.cat(logits)), "unknown": math.nan, "of": "logits"}
        return ModelVerdict(float(mean.max()), int(mean.argmax()), evidence)


class Freezing(Callback):
    """A training-time defense of a third party, which keeps all rules: trains no embeddings."""

    settings: ClassVar[Any] = {"frozen": ["embeddings"]}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, TextClassifier)
        pl_module.configure_model()
        pl_module.network.get_input_embeddings().requires_grad_(False)
        pl_module.training_defense = TrainingDefense("Freezing", self.settings)


class Drawing(Freezing):
    """Keeps all rules: draws from the global generators, which a run seeds."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with torch.no_grad():
            next(pl_module.parameters()).add_(random.random() + np.random.rand() + torch.rand(()))


class Shrinking(Repair):
    """A repair of a third party, which keeps all rules: makes all embeddings smaller."""

    def decide(self, data: BackdoorDataModule) -> dict[str, Any]:
        return {"factor": 0.9}

    def change(self, decided: dict[str, Any]) -> None:
        with torch.no_grad():
            self.victim.network.get_input_embeddings().weight.mul_(decided["factor"])


@pytest.mark.parametrize(
    "defense",
    [
        Length(),
        Constant(),
        Answers([None, *["a film"] * 19]),
        Answers(torch.zeros(20, 2)),
        Answers(torch.full((20,), -1)),
        ReadsOfOthers(),
        Cleaning(),
        MeanLogit(),
        InspectionCallback(MeanLogit()),
        Freezing(),
        Drawing(),
        Shrinking(),
    ],
    ids=[
        "own",
        "constant",
        "texts",
        "logits",
        "predictions",
        "of flagged texts",
        "of rows",
        "of a model",
        "in a callback",
        "in training",
        "by random numbers",
        "a repair",
    ],
)
def test_defenses_that_keep_the_contract_pass(defense: Any) -> None:
    check_defense(defense)


@pytest.mark.parametrize("defense", [Drawing(), Answers(torch.zeros(1))], ids=["passes", "fails"])
def test_the_callers_random_numbers_go_on(defense: Any) -> None:
    before = generator_states(torch.device("cpu"))
    with suppress(AssertionError):
        check_defense(defense)
    assert generator_states(torch.device("cpu")) == before


def test_an_object_of_no_kind_is_refused() -> None:
    with pytest.raises(InputError, match="BadNets is not a Defense, a DataDefense, an Inspection or a Callback"):
        check_defense(BadNets())  # type: ignore[arg-type]


def lengths(batch: Batch) -> Tensor:
    return batch["attention_mask"].sum(dim=1).float()


class ScoresBy(Length):
    """A defense whose score is a function of the test's."""

    def __init__(self, function: Callable[[Any, Victim, Batch], Any]) -> None:
        super().__init__()
        self.function = function

    def __deepcopy__(self, memo: Any) -> ScoresBy:
        return ScoresBy(self.function)

    def score(self, victim: Victim, batch: Batch) -> Scores:
        result = self.function(self, victim, batch)
        return Scores(result) if isinstance(result, Tensor) else result


def trained_part(victim: Victim) -> nn.Parameter:
    part: nn.Parameter = next(iter(victim.network.parameters()))
    return part


def nudged(victim: Victim, batch: Batch) -> Tensor:
    with torch.no_grad():
        trained_part(victim).add_(1.0)
    return lengths(batch)


def frozen(victim: Victim, batch: Batch) -> Tensor:
    victim.network.requires_grad_(False)
    return lengths(batch)


def in_training(victim: Victim, batch: Batch) -> Tensor:
    victim.network.train()
    return lengths(batch)


def with_gradients(victim: Victim, batch: Batch) -> Tensor:
    victim.network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.sum().backward()
    return lengths(batch)


def after(draw: Callable[[], Any], batch: Batch) -> Tensor:
    draw()
    return lengths(batch)


def moving_the_threshold(defense: Defense, batch: Batch) -> Tensor:
    if not defense.threshold.isnan():
        defense.threshold.add_(1.0)
    return lengths(batch)


def by_gradient(victim: Victim, batch: Batch) -> Tensor:
    embeddings = victim.network.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    logits = victim.network(inputs_embeds=embeddings, attention_mask=batch["attention_mask"]).logits
    gradient = torch.autograd.grad(logits.sum(), embeddings)[0]
    return torch.zeros(len(gradient))


def tokens(batch: Batch, padding: float) -> Tensor:
    scores = torch.zeros(batch["input_ids"].shape)
    scores[batch["attention_mask"] == 0] = padding
    return scores


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda d, v, b: lengths(b)[:, None], r"score: text is \(4, 1\) torch\.float32, not \(4,\)"),
        (lambda d, v, b: lengths(b).double(), r"score: text is \(4,\) torch\.float64, not \(4,\) torch\.float32"),
        (lambda d, v, b: lengths(b) * math.nan, r"score: text scores are not finite"),
        (lambda d, v, b: lengths(b) - lengths(b).mean(), r"score: depends on the other texts of the batch"),
        (lambda d, v, b: torch.arange(len(b["text"])).float(), r"score: depends on the other texts of the batch"),
        (lambda d, v, b: lengths(b) + b["poisoned"], r"score: reads labels, flags, spans or indices"),
        (lambda d, v, b: lengths(b) + b["original_label"], r"score: reads labels, flags, spans or indices"),
        (lambda d, v, b: b["label"] * 1e-6, r"score: reads labels, flags, spans or indices"),
        (lambda d, v, b: nudged(v, b), r"score: changes the victim's parameters"),
        (lambda d, v, b: frozen(v, b), r"score: leaves requires_grad changed"),
        (lambda d, v, b: in_training(v, b), r"score: leaves the victim in another mode"),
        (lambda d, v, b: with_gradients(v, b), r"score: leaves gradients on the victim's parameters"),
        (lambda d, v, b: after(random.random, b), r"score: draws from a global random generator"),
        (lambda d, v, b: after(np.random.rand, b), r"score: draws from a global random generator"),
        (lambda d, v, b: after(lambda: torch.rand(1), b), r"score: draws from a global random generator"),
        (lambda d, v, b: moving_the_threshold(d, b), r"score: changes the threshold"),
        (lambda d, v, b: by_gradient(v, b), r"score: fails in torch\.inference_mode"),
        (lambda d, v, b: Scores(lengths(b), tokens(b, 0.0)), r"score: tokens gives padding a score"),
        (
            lambda d, v, b: Scores(lengths(b), tokens(b, -math.inf).where(b["input_ids"] != 2, math.nan)),
            r"score: tokens has NaN; a token without a score is -inf",
        ),
        (
            lambda d, v, b: Scores(lengths(b), tokens(b, -math.inf)[:, 1:]),
            r"score: tokens is \(4, \d+\) torch\.float32",
        ),
        (lambda d, v, b: Scores(lengths(b), top=lengths(b).long() + 40), r"score: top has positions outside"),
        (lambda d, v, b: Scores(lengths(b), logits=torch.zeros(4, 3)), r"score: logits is \(4, 3\) torch\.float32"),
        (lambda d, v, b: lengths(b).tolist(), r"score: answers list, not Scores"),
    ],
)
def test_a_broken_score_is_told_by_its_rule(function: Callable[[Any, Victim, Batch], Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_defense(ScoresBy(function))


def test_draws_on_a_device_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter([torch.tensor([1, 2]), torch.tensor([1, 3])])
    module = SimpleNamespace(get_rng_state=lambda device: next(states))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    device = torch.device("cuda")
    assert generator_states(device) != generator_states(device)


class NoThreshold(Length):
    def calibrate(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        self.threshold.fill_(1.0)


class RemembersTexts(Length):
    """Takes its threshold from all texts that it has scored, not from clean ones alone."""

    def __init__(self) -> None:
        super().__init__()
        self.scored = 0

    def score(self, victim: Victim, batch: Batch) -> Scores:
        self.scored += len(batch["text"])
        return super().score(victim, batch)

    def calibrate(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        super().calibrate(victim, clean_batches)
        self.threshold.fill_(float(self.scored))


class ForgetsWhatItLearned(Length):
    offset = 0.0

    def learn(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        self.offset = float(sum(len(batch["text"]) for batch in clean_batches))

    def score(self, victim: Victim, batch: Batch) -> Scores:
        return Scores(super().score(victim, batch).text + self.offset)


class ForgetsItsThreshold(Length):
    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return None


class LearnsByGradients(Length):
    def learn(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        with torch.enable_grad():
            learned = torch.zeros(1)
            torch.autograd.grad(learned.requires_grad_() * 2, learned)


class CalibratesByGradients(LearnsByGradients):
    def learn(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        pass

    def calibrate(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        super().learn(victim, ())
        super().calibrate(victim, clean_batches)


class AnswersByGradients(LearnsByGradients):
    def learn(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        pass

    def purify(self, victim: Victim, batch: Batch, flagged: Tensor, scores: Scores) -> None:
        super().learn(victim, ())


class TooFewTexts(Length):
    def purify(self, victim: Victim, batch: Batch, flagged: Tensor, scores: Scores) -> list[str | None]:
        return [*batch["text"][1:]]


class ReadsTheFlags(Length):
    """Rejects the poisoned texts, and answers others by their labels."""

    def purify(self, victim: Victim, batch: Batch, flagged: Tensor, scores: Scores) -> Tensor:
        return torch.where(batch["poisoned"], -1, batch["original_label"])


class ExplainsByNaN(Length):
    """Its tokens have NaN in the place of -inf, except for padding."""

    def explain(self, victim: Victim, batch: Batch) -> Scores:
        return Scores(lengths(batch), tokens(batch, -math.inf).where(batch["attention_mask"] == 0, math.nan))


class KeepsTheLabels(Length):
    """Reads the labels when it scores, and answers with them."""

    def score(self, victim: Victim, batch: Batch) -> Scores:
        self.labels = batch["label"]
        return super().score(victim, batch)

    def purify(self, victim: Victim, batch: Batch, flagged: Tensor, scores: Scores) -> list[str | None]:
        return [None if label else "a film" for label in self.labels.tolist()]


class ReadsTheSpans(Length):
    """Has logits of its own where it sees a span, and rejects where it sees none."""

    def purify(self, victim: Victim, batch: Batch, flagged: Tensor, scores: Scores) -> Tensor | None:
        return torch.zeros(len(flagged), 2) if any(batch["spans"]) else None


class CalibratesToNothing(Length):
    """Leaves the thresholds where they were."""

    def calibrate(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        pass


@pytest.mark.parametrize(
    ("defense", "message"),
    [
        (NoThreshold(), r"NoThreshold\.calibrate: leaves budget_thresholds at \[nan, nan, nan\]"),
        (CalibratesToNothing(), r"CalibratesToNothing\.calibrate: leaves the threshold at nan"),
        (RemembersTexts(), r"RemembersTexts\.calibrate: depends on texts scored before"),
        (ForgetsWhatItLearned(), r"ForgetsWhatItLearned\.state_dict: does not keep what was learned"),
        (ForgetsItsThreshold(), r"ForgetsItsThreshold\.state_dict: does not keep the threshold"),
        (Answers([1] * 20), r"Answers\.purify: answers 1, not a text or None"),
        (Answers(torch.zeros(20, dtype=torch.int32)), r"Answers\.purify: predictions are \(20,\) torch\.int32"),
        (LearnsByGradients(), r"LearnsByGradients\.learn: fails in torch\.inference_mode"),
        (CalibratesByGradients(), r"CalibratesByGradients\.calibrate: fails in torch\.inference_mode"),
        (AnswersByGradients(), r"AnswersByGradients\.purify: fails in torch\.inference_mode"),
        (TooFewTexts(), r"TooFewTexts\.purify: answers 20 rows with 19 texts"),
        (Answers(torch.zeros(20, 3)), r"Answers\.purify: logits are \(20, 3\)"),
        (Answers(torch.full((20,), 2)), r"Answers\.purify: predictions are neither labels nor -1"),
        (Answers(torch.zeros(19, dtype=torch.long)), r"Answers\.purify: predictions are \(19,\)"),
        (Answers(torch.full((20, 2), math.nan)), r"Answers\.purify: logits of flagged texts are not finite"),
        (Answers("texts"), r"Answers\.purify: answers str"),
        (ReadsTheFlags(), r"ReadsTheFlags\.purify: reads labels, flags, spans or indices"),
        (ExplainsByNaN(), r"ExplainsByNaN\.explain: tokens has NaN; a token without a score is -inf"),
        (KeepsTheLabels(), r"KeepsTheLabels\.purify: reads labels, flags, spans or indices"),
        (ReadsTheSpans(), r"ReadsTheSpans\.purify: reads labels, flags, spans or indices"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Defense) else "",
)
def test_a_broken_defense_is_told_by_its_rule(defense: Defense, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_defense(defense)


class CleanedBy(Cleaning):
    """A data defense whose answer is a function of the test's."""

    def __init__(self, function: Callable[[Sequence[LabelledText]], Any]) -> None:
        self.function = function

    def clean(self, rows: Sequence[LabelledText], trusted: TrustedRows, victim: Victim | None = None) -> Any:
        return self.function(rows)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda rows: [row.text for row in rows][1:],
            r"CleanedBy\.clean returns 11 texts for 12 rows; return a text or",
        ),
        (lambda rows: [row.label for row in rows], r"CleanedBy\.clean returns a int for a row; return a text or None"),
        (
            lambda rows: np.array([row.text for row in rows], dtype=object),
            r"CleanedBy\.clean returns a ndarray; return",
        ),
        (lambda rows: None, r"CleanedBy\.clean returns a NoneType; return a list of texts"),
        (
            lambda rows: [str(id(object())) + str(random.Random().random()) for _ in rows],
            r"CleanedBy\.clean: answers the",
        ),
    ],
)
def test_a_broken_data_defense_is_told_by_its_rule(function: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_defense(CleanedBy(function))


TENSOR: Any = torch.tensor(1.0)
COUNT = itertools.count()


class InspectedBy(Inspection):
    """An inspection whose verdict is a function of the test's."""

    def __init__(self, function: Callable[[list[Batch]], Any]) -> None:
        self.function = function

    def inspect(self, victim: Victim, clean_batches: Iterable[Batch], stream: Iterable[Batch] = ()) -> ModelVerdict:
        result: ModelVerdict = self.function([*clean_batches, *stream])
        return result


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda b: 0.5, r"InspectedBy\.inspect: answers float, not ModelVerdict"),
        (lambda b: ModelVerdict(math.inf, None, {}), r"InspectedBy\.inspect: score is inf"),
        (lambda b: ModelVerdict(TENSOR, None, {}), r"InspectedBy\.inspect: score is tensor"),
        (lambda b: ModelVerdict(True, None, {}), r"InspectedBy\.inspect: score is True"),
        (lambda b: ModelVerdict(0.0, TENSOR, {}), r"InspectedBy\.inspect: suspected_label tensor"),
        (lambda b: ModelVerdict(0.0, True, {}), r"InspectedBy\.inspect: suspected_label True"),
        (lambda b: ModelVerdict(0.0, int(b[-1]["label"][0]), {}), r"InspectedBy\.inspect: reads labels"),
        (lambda b: ModelVerdict(0.0, 0, {"a": int(b[-1]["label"][0])}), r"InspectedBy\.inspect: reads labels"),
        (lambda b: ModelVerdict(0.0, 0, {str(b[-1]["label"][0]): 1}), r"InspectedBy\.inspect: reads labels"),
        (lambda b: ModelVerdict(0.0, next(COUNT) % 2, {}), r"InspectedBy\.inspect: .* differently when asked again"),
        (lambda b: ModelVerdict(0.0, 0, {"a": next(COUNT)}), r"InspectedBy\.inspect: .* differently when asked again"),
        (
            lambda b: ModelVerdict(0.0, 0, {} if len(b) > 5 else {"a": TENSOR}),
            r"InspectedBy\.inspect: evidence a is ten",
        ),
        (lambda b: ModelVerdict(0.0, 2, {}), r"InspectedBy\.inspect: suspected_label 2"),
        (lambda b: ModelVerdict(0.0, 1, {"a": TENSOR}), r"InspectedBy\.inspect: evidence a is tensor"),
        (lambda b: ModelVerdict(float(b[-1]["poisoned"].sum()), None, {}), r"InspectedBy\.inspect: reads labels"),
    ],
)
def test_a_broken_inspection_is_told_by_its_rule(function: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_defense(InspectedBy(function))


class WithoutRecord(Freezing):
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pass


class ObjectsAsSettings(Freezing):
    settings: ClassVar[Any] = {"frozen": {"embeddings"}}


class Diverging(Freezing):
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with torch.no_grad():
            next(pl_module.parameters()).fill_(math.nan)


class Unseeded(Freezing):
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with torch.no_grad():
            next(pl_module.parameters()).add_(random.Random().random())


class MergesWrongly(Freezing):
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        assert isinstance(pl_module, TextClassifier)
        pl_module.training_defense = TrainingDefense("Freezing", {}, self.merge)

    @staticmethod
    def merge(network: PreTrainedModel) -> PreTrainedModel:
        plain = copy.deepcopy(network)
        with torch.no_grad():
            plain.get_input_embeddings().weight.zero_()
        return plain


class LeavesARecord(Shrinking):
    def change(self, decided: dict[str, Any]) -> None:
        self.victim.training_defense = TrainingDefense("LeavesARecord", {})


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (WithoutRecord(), r"WithoutRecord: fit: sets no training_defense on the victim; .* subclass of Repair"),
        (ObjectsAsSettings(), r"ObjectsAsSettings: fit: settings are not plain values"),
        (Diverging(), r"Diverging: fit: leaves weights that are not finite"),
        (Unseeded(), r"Unseeded: fit: trains other weights when run again with the same seed"),
        (MergesWrongly(), r"MergesWrongly: fit: exports a model that gives other logits than the checkpoint"),
        (LeavesARecord(), r"LeavesARecord: fit: sets training_defense, so that the victim does not load"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Callback) else "",
)
def test_a_broken_callback_is_told_by_its_rule(callback: Callback, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_defense(callback)
