"""What one pass over a batch sees, and what it leaves behind: nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.defenses import attention
from lightning_backdoor.defenses.attention import attention_and_gradient, column_sums
from lightning_backdoor.victim import TextClassifier
from tests.defenses.reference import eager_network, seen
from tests.tiny import DECODER, ENCODERS, SENTENCES, loaded

TEXTS = [SENTENCES[3], "fine", SENTENCES[13], "boring . boring , boring !"]


def batch_for(victim: TextClassifier, side: str = "right") -> Batch:
    victim.tokenizer.padding_side = side
    return batch_of_texts(TEXTS, victim.tokenizer, victim.max_length)


def close(expected: list[float]) -> Any:
    return pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", [*ENCODERS, DECODER])
def test_a_pass_sees_what_eager_attention_and_plain_autograd_show(
    kind: str, side: str, tiny_folder: Callable[[str], str]
) -> None:
    victim = loaded(tiny_folder(kind))
    batch = batch_for(victim, side)
    network = eager_network(tiny_folder(kind))
    found = attention_and_gradient(victim.network, batch["input_ids"], batch["attention_mask"])
    for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        expected = seen(network, ids, mask)
        real = mask.bool().tolist()
        assert found.logits[row].tolist() == close(expected.logits)
        for ours, theirs in ((found.attention, expected.attention), (found.gradient, expected.gradient)):
            assert [x for x, keep in zip(ours[row].tolist(), real, strict=True) if keep] == close(
                [x for x, keep in zip(theirs, real, strict=True) if keep]
            )


def test_padded_rows_add_attention_only_where_they_are_asked_to(
    kind: str, victim: TextClassifier, tiny_folder: Callable[[str], str]
) -> None:
    batch = batch_for(victim)
    ids, mask = batch["input_ids"][1], batch["attention_mask"][1]
    with_padding = attention_and_gradient(victim.network, ids[None], mask[None], count_padding=True).attention[0]
    without = attention_and_gradient(victim.network, ids[None], mask[None]).attention[0]
    assert without.sum().item() == pytest.approx(mask.sum().item(), rel=1e-4)
    expected = seen(eager_network(tiny_folder(kind)), ids, mask, count_padding=True).attention
    real = int(mask.sum())
    assert with_padding[:real].tolist() == close(expected[:real])
    if kind != "deberta-v2":  # which masks padded query rows itself
        assert with_padding[:real].sum() > without[:real].sum() + 1


def state(network: PreTrainedModel) -> dict[str, Any]:
    return {
        "attention": network.config._attn_implementation,
        "requires_grad": {name: p.requires_grad for name, p in network.named_parameters()},
        "training": {name: module.training for name, module in network.named_modules()},
        "gradients": [name for name, p in network.named_parameters() if p.grad is not None],
        "hooks": len(network.get_input_embeddings()._forward_hooks),
    }


class Broken(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        raise ArithmeticError("the head is broken")


@pytest.mark.parametrize("breaks", [False, True], ids=["as it should", "when the forward raises"])
def test_a_pass_leaves_the_network_as_it_was(victim: TextClassifier, breaks: bool) -> None:
    network = victim.network
    network.train()
    next(network.base_model.children()).eval()  # a part that somebody put to rest
    for parameter in list(network.parameters())[::3]:
        parameter.requires_grad_(False)
    if breaks:
        network.classifier = Broken()
    before = state(network)
    batch = batch_for(victim)
    with pytest.raises(ArithmeticError) if breaks else nullcontext():
        attention_and_gradient(network, batch["input_ids"], batch["attention_mask"])
    assert state(network) == before
    assert before["gradients"] == []


def test_a_network_set_to_eager_attention_is_eager_again_and_seen_alike(bert: TextClassifier) -> None:
    batch = batch_for(bert)
    sdpa = attention_and_gradient(bert.network, batch["input_ids"], batch["attention_mask"])
    bert.network.set_attn_implementation("eager")
    eager = attention_and_gradient(bert.network, batch["input_ids"], batch["attention_mask"])
    assert bert.network.config._attn_implementation == "eager"
    assert torch.equal(sdpa.attention, eager.attention)


def test_dropout_is_off_during_the_pass(victim: TextClassifier) -> None:
    batch = batch_for(victim)
    calm = attention_and_gradient(victim.network, batch["input_ids"], batch["attention_mask"])
    victim.network.train()
    trained = attention_and_gradient(victim.network, batch["input_ids"], batch["attention_mask"])
    assert all(torch.equal(a, b) for a, b in zip(calm, trained, strict=True))


def test_inference_mode_changes_nothing(victim: TextClassifier) -> None:
    batch = batch_for(victim)
    outside = attention_and_gradient(victim.network, batch["input_ids"], batch["attention_mask"])
    with torch.inference_mode():
        batch = batch_for(victim)  # its tensors are inference tensors now
        assert batch["input_ids"].is_inference()
        inside = attention_and_gradient(victim.network, batch["input_ids"], batch["attention_mask"])
        assert torch.is_inference_mode_enabled()
    assert all(torch.equal(a, b) for a, b in zip(outside, inside, strict=True))
    assert not inside.attention.requires_grad


class Silent(nn.Module):
    """An attention of its own make, that nobody can look into."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return hidden_states, None


@pytest.mark.parametrize("kind", ["bert", "deberta-v2"], ids=["captured", "shown by the model"])
def test_a_layer_that_cannot_be_looked_into_is_an_error(kind: str, tiny_folder: Callable[[str], str]) -> None:
    victim = loaded(tiny_folder(kind))
    victim.network.base_model.encoder.layer[1].attention.self = Silent()
    before = state(victim.network)
    batch = batch_for(victim)
    with pytest.raises(RuntimeError, match=r"1 layers was captured in .*, which has 2"):
        attention_and_gradient(victim.network, batch["input_ids"], batch["attention_mask"])
    assert state(victim.network) == before


@pytest.mark.parametrize("chunk", [1, 1 << 19], ids=["row by row", "at once"])
@pytest.mark.parametrize("mask_kind", ["none", "bool", "additive", "shared by the batch"])
def test_column_sums_are_the_sums_of_a_softmax(mask_kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CHUNK", chunk)
    draw = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 3, 2, 5, 4, generator=draw)
    weight = torch.randint(0, 2, (3, 5), generator=draw).float()
    allowed = torch.rand(3, 1, 5, 5, generator=draw) < 0.6
    allowed[1, 0, 2] = False  # a query row that may look nowhere adds nothing
    if mask_kind == "shared by the batch":
        allowed = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    additive = torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)
    mask = {"none": None, "additive": additive}.get(mask_kind, allowed)
    found = column_sums(query, key, mask, 0.5, weight)
    expected = [[0.0] * 5 for _ in range(3)]
    for b in range(3):
        for h in range(2):
            for i in range(5):
                exponents = [(query[b, h, i] @ key[b, h, j] * 0.5).exp().item() for j in range(5)]
                if mask is not None:
                    row = allowed.expand(3, 1, 5, 5)[b, 0, i].tolist()
                    exponents = [e if may else 0.0 for e, may in zip(exponents, row, strict=True)]
                for j in range(5):
                    expected[b][j] += weight[b, i].item() * exponents[j] / (sum(exponents) or 1.0) / 2
    assert found.tolist() == [close(row) for row in expected]
