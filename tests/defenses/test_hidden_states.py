"""Defenses that read hidden states: what their scores depend on, what they share, and too few reference rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.callbacks import InferenceDefense
from lightning_backdoor.defenses import LCF, BadActs, Dan, Dup
from lightning_backdoor.defenses.hidden_states import Reference, StateDefense, read_reference, token_states
from lightning_backdoor.errors import InputError
from lightning_backdoor.testing import check_defense
from lightning_backdoor.victim import TextClassifier
from tests.support.reviews import reviews
from tests.support.tiny import DECODER, SENTENCES, loaded

MADE: dict[str, Callable[[], StateDefense]] = {
    "DAN": lambda: Dan(seed=0),
    "DAN, mean over tokens": lambda: Dan(token="mean", layers="max", seed=0),
    "BadActs": lambda: BadActs(epochs=1, seed=0),
    "LCF": LCF,
    "LCF, last token": lambda: LCF(token="last"),
    "DUP": lambda: Dup(seed=0),
}
WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()})


@pytest.fixture(params=MADE)
def make(request: pytest.FixtureRequest) -> Callable[[], StateDefense]:
    return MADE[request.param]


def texts(count: int) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(2, 12))) for _ in range(count)]


def batches(victim: TextClassifier, rows: Sequence[str], size: int) -> list[Batch]:
    """Batches of rows, whose labels depend on the texts."""
    found = []
    for start in range(0, len(rows), size):
        batch = batch_of_texts(rows[start : start + size], victim.tokenizer, victim.max_length)
        batch["label"] = torch.tensor([len(text) % 2 for text in batch["text"]])
        found.append(batch)
    return found


def learned(make: Callable[[], StateDefense], victim: TextClassifier, found: list[Batch]) -> StateDefense:
    defense = make()
    defense.learn(victim, found)
    return defense


def scores(defense: StateDefense, victim: TextClassifier, rows: Sequence[str]) -> torch.Tensor:
    return defense.score(victim, batch_of_texts(rows, victim.tokenizer, victim.max_length)).text


@pytest.mark.parametrize("kind", ["bert", DECODER])
def test_scores_depend_on_the_texts_alone(
    kind: str, make: Callable[[], StateDefense], tiny_folder: Callable[[str], str]
) -> None:
    victim, reference = loaded(tiny_folder(kind)), texts(24)
    defense = learned(make, victim, batches(victim, reference, 8))
    together = scores(defense, victim, SENTENCES)
    assert together.std() > 1e-3
    alone = torch.cat([scores(defense, victim, [text]) for text in SENTENCES])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-3)
    # reference rows in another order and in other batches
    other = learned(make, victim, batches(victim, random.Random(1).sample(reference, 24), 5))
    torch.testing.assert_close(scores(other, victim, SENTENCES), together, atol=1e-4, rtol=1e-3)
    restored = make()
    restored.load_state_dict(defense.state_dict())
    assert torch.equal(scores(restored, victim, SENTENCES), together)


@pytest.mark.parametrize("make", [MADE["DAN, mean over tokens"], MADE["LCF, last token"]])
def test_other_tokens_keep_the_contract_too(make: Callable[[], StateDefense]) -> None:
    check_defense(make())


@pytest.mark.parametrize("kind", ["bert", DECODER])
def test_states_are_those_of_the_token(kind: str, tiny_folder: Callable[[str], str]) -> None:
    victim = loaded(tiny_folder(kind))
    batch = batch_of_texts(SENTENCES[:5], victim.tokenizer, victim.max_length)
    inputs = batch["input_ids"], batch["attention_mask"]
    found = {token: token_states(victim.network, *inputs, token) for token in ("readout", "last", "mean")}
    for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
        alone = {"input_ids": batch["input_ids"][row : row + 1, :length]}
        with torch.no_grad():
            layers = victim.network(**alone, output_hidden_states=True).hidden_states
        for layer, states in enumerate(layers):
            of_text = {"last": states[0, -1], "mean": states[0].mean(dim=0)}
            of_text["readout"] = states[0, 0] if kind == "bert" else of_text["last"]
            for token, expected in of_text.items():
                torch.testing.assert_close(found[token][layer, row], expected, atol=1e-5, rtol=1e-4)


def test_rows_without_a_label_count_as_the_class_that_the_victim_predicts(bert: TextClassifier) -> None:
    unlabelled = batch_of_texts(SENTENCES, bert.tokenizer, bert.max_length)
    predicted = bert(unlabelled).argmax(dim=1)
    reference = read_reference(bert, [unlabelled])
    of_text = dict(zip(SENTENCES, predicted.tolist(), strict=True))
    assert reference.labels.tolist() == [of_text[text] for text in reference.texts]


def test_a_text_is_in_one_part_alone_whatever_the_order_of_the_rows(bert: TextClassifier) -> None:
    rows = [*texts(20), *texts(4)]
    parts = [read_reference(bert, batches(bert, order, 7)).split(0.2, seed=0) for order in (rows, rows[::-1])]
    assert [part.texts for part in parts[0]] == [part.texts for part in parts[1]]
    fitted, held_out = parts[0]
    assert not set(fitted.texts) & set(held_out.texts)
    assert len(held_out.texts) in (4, 5, 6)
    assert set(held_out.labels.tolist()) == {0, 1}


@pytest.mark.parametrize(
    "labels", [[0] * 20 + [1], [1] + [0] * 20, [0, 1, 1, 0, 0], [0] * 5 + [1, 2], [2, 0, 0, 0, 1, 1]]
)
@pytest.mark.parametrize("held_out", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("make", [Dan, Dup])
def test_rows_that_are_enough_before_training_are_enough_to_learn(
    make: type[Dan] | type[Dup], held_out: float, labels: list[int], bert: TextClassifier
) -> None:
    classes = max(labels) + 1
    states = torch.randn(4, len(labels), 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reference = Reference([f"text {row:02}" for row in range(len(labels))], torch.tensor(labels), states)
    for seed in range(20):
        defense = make(held_out=held_out, seed=seed)
        defense.check_reference(labels, classes)
        assert all(value.isfinite().all() for value in defense.fit(bert, reference).values())
        first, second = reference.split(held_out, seed)
        assert set(first.labels.tolist()) == set(range(classes))
        assert len(first.texts) > classes
        assert len(second.texts) > 1
        assert sorted(first.texts + second.texts) == reference.texts


def test_a_class_that_comes_to_the_fit_brings_all_rows_of_its_texts() -> None:
    of_texts = [*(f"text {row:02}" for row in range(20)), "text 20", "text 20"]
    reference = Reference(of_texts, torch.tensor([0] * 20 + [1, 0]), torch.zeros(1, 22, 1))
    for seed in range(20):
        first, second = reference.split(0.5, seed)
        assert first.texts[-2:] == ["text 20", "text 20"]
        assert not set(first.texts) & set(second.texts)
        assert len(second.texts) >= 10


def test_repeated_texts_that_leave_nothing_to_hold_out_are_refused() -> None:
    reference = Reference([f"text {row % 3}" for row in range(30)], torch.arange(30) % 3 % 2, torch.zeros(1, 30, 1))
    with pytest.raises(InputError, match=r"^reference rows: 30 rows of 3 texts cannot be divided .* clean validation"):
        reference.split(0.2, seed=0)


@pytest.mark.parametrize("defense", [Dan, LCF])
def test_tokens_of_other_defenses_are_refused(defense: type[Dan] | type[LCF]) -> None:
    other = "last" if defense is Dan else "mean"
    with pytest.raises(InputError, match=rf"^token: '{other}' is not a token of {defense.__name__}; give one of"):
        defense(token=other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ([0, 0, 0, 0, 0], "none of 5 clean rows has label 1"),
        ([0, 1, 0, 1], "4 clean rows are fewer than the 5 that 2 classes need"),
    ],
)
@pytest.mark.parametrize("make", [Dan, Dup])
def test_too_few_rows_for_a_covariance_are_refused(make: type[StateDefense], labels: list[int], problem: str) -> None:
    with pytest.raises(InputError, match=rf"^reference rows: {problem}; give more clean validation rows$"):
        make().check_reference(labels, classes=2)  # type: ignore[call-arg]


@pytest.mark.parametrize("make", [BadActs, LCF])
def test_rows_no_more_than_classes_are_refused(make: type[StateDefense]) -> None:
    with pytest.raises(InputError, match=r"^reference rows: 2 clean rows are fewer than the 3 that 2 classes need"):
        make().check_reference([0, 0], classes=2)  # type: ignore[call-arg]


def test_too_few_rows_are_told_before_training(tmp_path: Path, tiny_folder: Callable[[str], str]) -> None:
    data = reviews(tmp_path, validation_parts=(0.49, 0.05, 0.46))
    trainer = Trainer(accelerator="cpu", logger=False, max_epochs=1, callbacks=[InferenceDefense(Dan())])
    attack = BadNets(model=tiny_folder("bert"))
    with pytest.raises(InputError, match=r"^reference rows"):
        trainer.fit(attack, datamodule=data)
    assert not hasattr(attack, "network")


def test_without_statistics_it_says_so(make: Callable[[], StateDefense], bert: TextClassifier) -> None:
    with pytest.raises(RuntimeError, match="call learn"):
        scores(make(), bert, SENTENCES)
    with pytest.raises(InputError, match=r"^reference rows: there are none"):
        make().learn(bert, [])


def test_defenses_share_one_forward_pass_of_each_batch(tmp_path: Path, tiny_folder: Callable[[str], str]) -> None:
    attack, data = BadNets(model=tiny_folder("bert")), reviews(tmp_path, validation_parts=(0.2, 0.6, 0.2))
    attack.hparams["labels"] = ["negative", "positive"]
    attack.configure_model()
    passes: list[Any] = []
    attack.network.register_forward_pre_hook(lambda *args: passes.append(args))
    defenses = {"dan": Dan(), "badacts": BadActs(epochs=0), "lcf": LCF(), "dup": Dup()}
    callbacks = [InferenceDefense(defense, name) for name, defense in defenses.items()]
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", callbacks=callbacks, **options)  # type: ignore[arg-type]
    trainer.test(attack, datamodule=data, verbose=False)
    loaders = [*data.test_dataloader(), data.reference_dataloader(), data.threshold_dataloader()]
    assert len(passes) == sum(map(len, loaders))
    assert all(0 <= trainer.callback_metrics[f"test/{name}/auroc"] <= 1 for name in defenses)
