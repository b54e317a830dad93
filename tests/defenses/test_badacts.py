"""BadActs: the figures of its published program, and answers by clipped states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_backdoor.batch import batch_of_texts
from lightning_backdoor.defenses import BadActs
from lightning_backdoor.defenses.activation_clipping import (
    LEARNING_RATE,
    RUNS,
    changed_states,
    clipped_logits,
    clipping_loss,
    optimised_bounds,
    published_start,
    start_around,
)
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim import TextClassifier
from tests.defenses.golden_states import GoldenStates, auroc, close, golden_file, kept
from tests.support.shared_files import sst2
from tests.support.tiny import FAMILIES, SENTENCES, loaded


@pytest.mark.parametrize("delta", [2, 3])
def test_scores_are_those_of_the_published_program(delta: int, golden_states: GoldenStates) -> None:
    golden = golden_file("badacts")
    expected, reference = golden["detection"][f"delta_{delta}"], golden_states.reference["readout"]
    defense = BadActs(delta=delta, epochs=0)
    kept(defense, defense.fit_states(reference[:, golden["fit_validation_rows"]]))
    scores = defense.score_states(golden_states.scored["readout"])
    of_others = defense.score_states(reference[:, golden["threshold_validation_rows"]])
    one_neuron = 1 / defense.mean.numel()
    for found, published in ((scores, expected["score"]), (of_others, expected["score_of_threshold_rows"])):
        close(1 - found, published, absolute=1.01 * one_neuron)
        equal = (1 - found - torch.tensor(published)).abs() < 1e-6
        assert equal.sum() >= len(equal) - 1  # one neuron of one text lies on the border
    assert auroc(scores) == pytest.approx(expected["auroc"], abs=1 / 800)


def test_bounds_are_optimised_as_by_the_published_program(backdoored: TextClassifier) -> None:
    golden, network = golden_file("badacts")["purification"], backdoored.network
    texts = [text for text, _ in sst2("validation", 200)]
    batches = []
    for rows in golden["batches_validation_rows"]:
        batch = batch_of_texts([texts[row] for row in rows], backdoored.tokenizer, backdoored.max_length)
        batches.append((batch["input_ids"], batch["attention_mask"]))
    start = published_start(network)
    up, margin = start.up.requires_grad_(), start.margin.requires_grad_()
    optimizer = torch.optim.Adam([up, margin], lr=LEARNING_RATE)
    losses, parts = [], []
    for step in range(9):
        inputs = batches[step % 3]
        with torch.no_grad():
            logits = network(input_ids=inputs[0], attention_mask=inputs[1]).logits
        loss, of_step = clipping_loss(network, inputs, logits, start, golden["c"])
        up.grad, margin.grad = torch.autograd.grad(loss, [up, margin])
        if step == 0:
            first = golden["first_step"]
            close(logits, first["logits_unclipped"])
            close(clipped_logits(network, inputs, *start.limits()), first["logits_clipped"])
            close(up.grad.norm(dim=1), first["gradient_norm_by_layer_up"])
            close(margin.grad.norm(dim=1), first["gradient_norm_by_layer_margin"])
            close(up.grad[:, :8], first["gradient_up_first_8_neurons_by_layer"])
        optimizer.step()
        losses.append(loss.detach())
        parts.append(of_step)
    close(torch.stack(losses), golden["loss"])
    close(torch.stack(parts), list(zip(golden["mse"], golden["norm_exp_margin"], strict=True)))
    after = golden["after_nine_steps"]
    for name, value in (("up", up), ("margin", margin)):
        close(value.mean(dim=1), after[f"{name}_mean_by_layer"])
        close(value[:, :8], after[f"{name}_first_8_neurons_by_layer"])
    assert all(weight.grad is None for weight in network.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_changed_after_every_layer(family: str, tiny_folder: Callable[[str], str]) -> None:
    victim = loaded(tiny_folder(family))
    batch = batch_of_texts(SENTENCES[:3], victim.tokenizer, victim.max_length)
    inputs, layers = (batch["input_ids"], batch["attention_mask"]), []

    def seen(layer: int, states: torch.Tensor) -> torch.Tensor:
        layers.append(layer)
        assert states.shape == (*batch["input_ids"].shape, victim.network.config.hidden_size)
        return states

    with torch.no_grad():
        plain = victim(batch)
        with changed_states(victim.network, seen):
            victim(batch)
        assert layers == [0, 1]
        wide = torch.full((2, victim.network.config.hidden_size), 1e4)
        torch.testing.assert_close(clipped_logits(victim.network, inputs, -wide, wide), plain)
        narrow = clipped_logits(victim.network, inputs, 0 * wide, 0 * wide)
        torch.testing.assert_close(narrow, narrow[:1].expand_as(narrow))  # nothing of a text is left
        assert (narrow - plain).abs().max() > 1e-3
        torch.testing.assert_close(victim(batch), plain)


def test_bounds_that_change_predictions_are_optimised_again_with_half_the_strength(
    bert: TextClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of_texts(SENTENCES[:2], bert.tokenizer, bert.max_length)
    inputs = [(batch["input_ids"], batch["attention_mask"])]
    strengths: list[float] = []
    module = "lightning_backdoor.defenses.activation_clipping"
    monkeypatch.setattr(f"{module}._agreement", lambda *args: 0.5)

    def loss(network: object, inputs: object, logits: object, bounds: object, strength: float) -> object:
        strengths.append(strength)
        return clipping_loss(network, inputs, logits, bounds, strength)  # type: ignore[arg-type]

    monkeypatch.setattr(f"{module}.clipping_loss", loss)
    start = start_around(bert.network, inputs)
    _, agreement = optimised_bounds(bert.network, inputs, inputs, start, epochs=16, seed=0)
    assert agreement == 0.5
    assert strengths == [strength for run in range(RUNS) for strength in [0.1 / 2**run] * 15 + [0.1 / 2**run / 1.2]]


def test_optimised_bounds_keep_predictions(bert: TextClassifier) -> None:
    batch = batch_of_texts(SENTENCES[:8], bert.tokenizer, bert.max_length)
    inputs = [(batch["input_ids"], batch["attention_mask"])]
    start = start_around(bert.network, inputs, deviations=3.0)
    bounds, agreement = optimised_bounds(bert.network, inputs, inputs, start, epochs=16, seed=0)
    assert agreement > 0.8
    lower, upper = bounds.limits()
    assert (lower < upper).all()
    assert (upper - lower).mean() < (start.limits()[1] - start.limits()[0]).mean()


@pytest.mark.parametrize("start", ["published", "statistics"])
def test_flagged_texts_are_answered_with_clipped_states_or_rejected(bert: TextClassifier, start: Any) -> None:
    batch = batch_of_texts(SENTENCES, bert.tokenizer, bert.max_length)
    flagged = torch.arange(len(SENTENCES)) % 3 == 0
    defense = BadActs(epochs=2, start=start, seed=0)
    with torch.inference_mode():  # as in a test by Lightning
        defense.learn(bert, [batch])
    answer = defense.purify(bert, batch, flagged, defense.score(bert, batch))
    assert answer is not None
    whole = clipped_logits(bert.network, (batch["input_ids"], batch["attention_mask"]), defense.lower, defense.upper)
    torch.testing.assert_close(answer[flagged], whole[flagged])
    defense = BadActs(epochs=0)
    defense.learn(bert, [batch])
    assert defense.purify(bert, batch, flagged, defense.score(bert, batch)) is None


def test_a_victim_that_predicts_clean_rows_wrongly_has_no_bounds(bert: TextClassifier) -> None:
    batch = batch_of_texts(SENTENCES, bert.tokenizer, bert.max_length)
    batch["label"] = 1 - bert(batch).argmax(dim=1)
    with pytest.raises(InputError, match=r"^reference rows: the victim predicts 0 of 21 clean rows correctly; give"):
        BadActs().learn(bert, [batch])


@pytest.mark.parametrize("options", [{"delta": 0.0}, {"epochs": -1}, {"start": "zero"}, {"fpr": 0.0}])
def test_values_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        BadActs(**options)
