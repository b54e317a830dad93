"""Pruning: the layers that it finds in each architecture, and the search for what to prune."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lightning_backdoor.batch import batch_of_texts
from lightning_backdoor.defenses.pruning import (
    ATTENTION,
    FEED_FORWARD,
    inputs_of_heads,
    output_layers,
    prune_while_accurate,
    without_inputs,
    zero_inputs,
)
from lightning_backdoor.errors import InputError
from tests.support.tiny import FAMILIES, SENTENCES, loaded

PARTS = [(layer, part) for layer in range(2) for part in range(4)]


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_pruned_head_counts_no_more(kind: str, tiny_folder: Callable[[str], str]) -> None:
    victim = loaded(tiny_folder(kind))
    network = victim.network
    if kind == "albert":
        with pytest.raises(InputError, match=r"^model: AlbertFor.* has no attention output for each of its 2 layers;"):
            output_layers(network, ATTENTION, "attention output")
        return
    assert len(output_layers(network, FEED_FORWARD, "feed-forward output")) == 2
    layers = output_layers(network, ATTENTION, "attention output")
    batch = batch_of_texts(SENTENCES[:3], victim.tokenizer, victim.max_length)
    outputs: list[torch.Tensor] = []
    handle = layers[1].register_forward_hook(lambda module, inputs, output: outputs.append(output))

    def logits() -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = network(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits
        return found

    whole = logits()
    with without_inputs(layers, inputs_of_heads([(1, head) for head in range(4)], network)):
        logits()
    bias = getattr(layers[1], "bias", None)
    expected = torch.zeros(32) if bias is None else bias
    torch.testing.assert_close(outputs[1], expected.expand_as(outputs[1]))  # without its heads a layer adds the bias
    marks = inputs_of_heads([(0, 1), (1, 2)], network)
    with without_inputs(layers, marks):
        pruned = logits()
    torch.testing.assert_close(logits(), whole)
    zero_inputs(layers, marks)
    torch.testing.assert_close(logits(), pruned)
    assert not torch.allclose(pruned, whole)
    handle.remove()


def test_gradients_of_pruned_weights_are_zero(tiny_folder: Callable[[str], str]) -> None:
    network = loaded(tiny_folder("bert")).network
    layers = output_layers(network, ATTENTION, "attention output")
    weights = [weight for weight in (layer.weight for layer in layers) if isinstance(weight, torch.Tensor)]
    for weight in weights:
        weight.grad = torch.ones(32, 32)
    zero_inputs(layers, inputs_of_heads([(1, 2)], network), gradients=True)
    sums = [weight.grad.sum(dim=0).tolist() for weight in weights if weight.grad is not None]
    assert sums == [[32.0] * 32, [32.0] * 16 + [0.0] * 8 + [32.0] * 8]


@pytest.mark.parametrize(
    ("restore", "expected", "accuracies"),
    [(True, 5, [0.7, 0.4, 0.5]), (False, 3, [0.7, 0.4])],
)
def test_the_last_group_comes_back_until_accuracy_holds(restore: bool, expected: int, accuracies: list[float]) -> None:
    found = prune_while_accurate(PARTS, set(), 3, 0.5, lambda pruned: round(1 - 0.1 * len(pruned), 1), restore=restore)
    assert found.pruned == PARTS[:expected]
    assert found.accuracies == accuracies


def test_accuracy_may_fall_to_the_limit() -> None:
    lowest = 0.1 - 0.04  # a little more than 0.06
    assert prune_while_accurate(PARTS[:1], set(), 1, lowest, lambda _: 3 / 50).pruned == PARTS[:1]


def test_nothing_or_everything_but_the_spared_may_be_pruned() -> None:
    assert prune_while_accurate(PARTS, set(), 3, 0.5, lambda _: 0.0).pruned == []
    assert prune_while_accurate(PARTS, {(0, 3), (1, 0)}, 2, 0.5, lambda _: 1.0).pruned == [*PARTS[:3], *PARTS[5:]]
    assert prune_while_accurate(PARTS, {*PARTS}, 2, 0.5, lambda _: 0.0) == ([], [])
