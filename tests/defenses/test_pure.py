"""PURE against its published code on a real backdoored MiniLM: variances, pruning, coefficients and losses."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.defenses.meft import negative_entropy
from lightning_backdoor.defenses.pruning import (
    ATTENTION,
    accuracy,
    inputs_of_heads,
    output_layers,
    prune_while_accurate,
    without_inputs,
)
from lightning_backdoor.defenses.pure import attention_penalty, layer_coefficients, pruning_order, row_variance
from lightning_backdoor.defenses.readout_attention import readout_attention
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim import TextClassifier
from tests.support.shared_files import shared_path, sst2


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(shared_path("golden/pure.json").read_text())
    return figures


@pytest.fixture(scope="module")
def batches(backdoored: TextClassifier, golden: dict[str, Any]) -> list[Batch]:
    """The 100 validation rows in batches of 32, the last one of 4."""
    first, last = golden["validation_rows"]
    rows = sst2("validation")[first : last + 1]
    return [batch_of(rows[start : start + 32], backdoored) for start in range(0, len(rows), 32)]


@pytest.fixture(scope="module")
def per_text(backdoored: TextClassifier, batches: list[Batch]) -> dict[int | None, list[Tensor]]:
    """The variances of each text, by batch and by the length to which texts are padded."""
    result: dict[int | None, list[Tensor]] = {None: [], 64: [], 128: []}
    with torch.no_grad():
        for batch in batches:
            rows = readout_attention(backdoored.network, batch["input_ids"], batch["attention_mask"]).rows
            for length, variances in result.items():
                variances.append(row_variance(rows, batch["attention_mask"], length))
    return result


def batch_of(rows: list[tuple[str, int]], victim: TextClassifier) -> Batch:
    batch = batch_of_texts([text for text, _ in rows], victim.tokenizer, victim.max_length)
    return {**batch, "label": torch.tensor([label for _, label in rows])}


def mean_of_batches(variances: list[Tensor]) -> Tensor:
    """The published mean, in which a batch of 4 texts counts as much as one of 32."""
    return torch.stack([batch.mean(dim=0) for batch in variances]).mean(dim=0)


def near(figures: object) -> Any:
    return pytest.approx(figures, rel=1e-4, abs=1e-6)


def test_variances_and_order_are_those_of_the_published_code(
    golden: dict[str, Any], per_text: dict[int | None, list[Tensor]]
) -> None:
    found = {
        "padded_128": mean_of_batches(per_text[128]),
        "padded_64": mean_of_batches(per_text[64]),
        "alone": torch.cat(per_text[None]).mean(dim=0),  # every text counts once
    }
    for name, variance in found.items():
        assert variance.flatten().tolist() == near([value for row in golden[name]["variance"] for value in row])
        if "layer_variance" in golden[name]:
            assert variance.mean(dim=1).tolist() == near(golden[name]["layer_variance"])
        if "pruning_order" in golden[name]:
            assert pruning_order(variance)[0] == [tuple(head) for head in golden[name]["pruning_order"]]


@pytest.mark.parametrize("threshold", ["0.85", "0.80"])
def test_heads_are_pruned_as_in_the_published_code(
    threshold: str,
    golden: dict[str, Any],
    backdoored: TextClassifier,
    batches: list[Batch],
    per_text: dict[int | None, list[Tensor]],
) -> None:
    network, expected = backdoored.network, golden["pruned"][f"threshold_{threshold}"]
    layers = output_layers(network, ATTENTION, "attention output")
    tried: list[list[tuple[int, int]]] = []
    published = expected["accuracy_of_every_set_tried"]

    def published_accuracy(pruned: list[tuple[int, int]]) -> float:
        tried.append(pruned)
        return float(published[len(tried) - 1])

    order, spared = pruning_order(mean_of_batches(per_text[128]))
    found = prune_while_accurate(order, spared, 10, float(threshold), published_accuracy)
    assert found.accuracies == published
    for layer, heads in expected["heads_by_layer"].items():
        assert sorted(head for of, head in found.pruned if of == int(layer)) == sorted(heads)
    with without_inputs(layers, inputs_of_heads(tried[-1], network)):  # each takes a pass over all rows
        assert accuracy(network, batches) == pytest.approx(published[-1])


def test_losses_and_gradients_are_those_of_the_published_code(
    golden: dict[str, Any], backdoored: TextClassifier, per_text: dict[int | None, list[Tensor]]
) -> None:
    expected, network = golden["losses"], backdoored.network
    rows = sst2("validation")
    batch = batch_of([rows[row] for row in expected["validation_rows"]], backdoored)
    coefficients = layer_coefficients(mean_of_batches(per_text[128]), from_zero=True)
    assert coefficients.tolist() == near(expected["k"])
    seen = readout_attention(network, batch["input_ids"], batch["attention_mask"])
    assert seen.logits.flatten().tolist() == near([value for row in expected["logits"] for value in row])
    by_layer = [attention_penalty(layer[None], torch.ones(1, 12), over_batch=True).item() for layer in seen.rows]
    assert by_layer == near(expected["per_layer_with_penalty_1_and_coefficient_1"])
    penalty = 0.15 * attention_penalty(seen.rows, coefficients[:, None].expand(-1, 12), over_batch=True)
    assert penalty.item() == near(expected["attention_loss"])
    gradients = torch.autograd.grad(penalty, list(network.parameters()), retain_graph=True, allow_unused=True)
    norm = torch.stack([part.norm() for part in gradients if part is not None]).norm()
    assert norm.item() == near(expected["attention_loss_gradient_norm_all_weights"])
    words = network.get_input_embeddings().weight
    (of_words,) = torch.autograd.grad(penalty, [words], retain_graph=True)
    assert of_words.norm().item() == near(expected["attention_loss_gradient_norm_word_embeddings"])
    entropy = negative_entropy(seen.logits) * len(seen.logits)  # the published code takes the sum
    assert entropy.item() == near(expected["entropy_loss"])
    gradients = torch.autograd.grad(entropy, list(network.parameters()), allow_unused=True)
    norm = torch.stack([part.norm() for part in gradients if part is not None]).norm()
    assert norm.item() == near(expected["entropy_loss_gradient_norm_all_weights"])


def test_the_penalty_does_not_depend_on_how_texts_are_batched() -> None:
    rows = torch.rand(2, 6, 3, 5, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    weights = torch.tensor([[1.0, 0.0, 1.0], [0.5, 0.5, 0.0]])
    parts = [attention_penalty(rows[:, start : start + 2], weights) for start in (0, 2, 4)]
    assert attention_penalty(rows, weights).item() == pytest.approx(torch.stack(parts).mean().item())
    plain = sum(
        weights[layer, head] * rows[layer, text, head].norm() / 6
        for layer in range(2)
        for text in range(6)
        for head in range(3)
    )
    assert attention_penalty(rows, weights).item() == pytest.approx(float(plain) * 32**0.5)
    same = rows[:, :1].expand(-1, 32, -1, -1)  # at the published batch size, texts alike, it is the published figure
    assert attention_penalty(same, weights).item() == pytest.approx(attention_penalty(same, weights, True).item())


def test_no_layer_goes_unpenalised_and_pruned_heads_do_not_count() -> None:
    variance = torch.tensor([[0.1, 0.3], [0.4, 0.4]])
    assert layer_coefficients(variance).tolist() == near([1.0, 0.5])
    assert layer_coefficients(variance, from_zero=True).tolist() == near([1.0, 0.0])
    assert layer_coefficients(variance, [(0, 1)]).tolist() == near([1.0, 0.25])
    assert layer_coefficients(torch.full((2, 2), 0.1), from_zero=True).tolist() == [0.0, 0.0]


def test_a_text_longer_than_the_padding_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^padded_like_paper: 4 tokens are fewer than the 5 of a text; give"):
        row_variance(torch.rand(1, 1, 1, 5), torch.ones(1, 5), 4)
