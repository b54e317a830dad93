"""One pass over a batch: the attention and gradients that it yields, and that the network is unchanged after it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.defenses import attention_capture
from lightning_backdoor.defenses.attention_capture import attention_and_gradient
from lightning_backdoor.models import column_sums as sums
from lightning_backdoor.models.column_sums import column_sums, uniform_causal_sums
from lightning_backdoor.victim import TextClassifier
from tests.defenses.reference import eager_network, seen
from tests.support.tiny import DECODER, DECODERS, ENCODERS, FAMILIES, SENTENCES, loaded

TEXTS = [SENTENCES[3], "fine", SENTENCES[13], "boring . boring , boring !"]


def batch_for(victim: TextClassifier, side: str = "right") -> Batch:
    victim.tokenizer.padding_side = side
    return batch_of_texts(TEXTS, victim.tokenizer, victim.max_length)


def close(expected: list[float]) -> Any:
    return pytest.approx(expected, rel=1e-4, abs=1e-5)


# not on the left: ModernBERT's first position would be padding that attends to nothing, and GPT-2 would count padding
@pytest.mark.parametrize(
    ("kind", "side"), [*product(FAMILIES, ["right"]), *product([*ENCODERS, "electra", DECODER, "llama"], ["left"])]
)
def test_attention_and_gradients_are_those_of_eager_attention_and_plain_autograd(
    kind: str, side: str, tiny_folder: Callable[[str], str]
) -> None:
    victim = loaded(tiny_folder(kind))
    batch = batch_for(victim, side)
    network = eager_network(tiny_folder(kind))
    network.config.pad_token_id = victim.tokenizer.pad_token_id
    found = attention_and_gradient(victim.network, batch["input_ids"], batch["attention_mask"], level=False)
    for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        expected = seen(network, ids, mask)
        real = mask.bool().tolist()
        assert found.logits[row].tolist() == close(expected.logits)
        for ours, theirs in ((found.attention, expected.attention), (found.gradient, expected.gradient)):
            assert [x for x, keep in zip(ours[row].tolist(), real, strict=True) if keep] == close(
                [x for x, keep in zip(theirs, real, strict=True) if keep]
            )


def test_padded_queries_add_attention_only_with_count_padding(
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


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", DECODERS)
def test_uniform_attention_of_a_decoder_gives_every_token_one(
    kind: str, side: str, tiny_folder: Callable[[str], str]
) -> None:
    victim = loaded(tiny_folder(kind))
    batch = batch_for(victim, side)
    for name, weight in victim.network.named_parameters():
        if name.endswith(("q_proj.weight", "q_proj.bias", "c_attn.weight", "c_attn.bias")):
            weight.data[..., : victim.network.config.hidden_size if "c_attn" in name else None] = 0.0  # no query
    mask = batch["attention_mask"]
    for count_padding in (False, True):
        found = attention_and_gradient(victim.network, batch["input_ids"], mask, count_padding=count_padding)
        assert found.attention[mask.bool()].tolist() == close([1.0] * int(mask.sum()))
    raw = attention_and_gradient(victim.network, batch["input_ids"], mask, level=False).attention
    assert raw[0][mask[0].bool()][0] > 3 > 1 / 3 > raw[0][mask[0].bool()][-1]


def test_uniform_causal_attention_is_shared_among_earlier_tokens_except_the_first() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
    found = uniform_causal_sums(mask, mask)
    for row, length in enumerate([4, 2, 6, 1]):
        expected = [1.0, *(sum(1 / (i - 1) for i in range(j, length + 1)) for j in range(2, length + 1))]
        assert found[row][mask[row].bool()].tolist() == close(expected)


@pytest.mark.parametrize("capture", [True, False], ids=["captured", "returned by the model"])
@pytest.mark.parametrize("kind", DECODERS)
def test_attention_of_a_decoder_is_levelled_as_in_plain_loops(
    kind: str, capture: bool, tiny_folder: Callable[[str], str]
) -> None:
    victim = loaded(tiny_folder(kind))
    batch = batch_for(victim, "left" if capture else "right")
    network = eager_network(tiny_folder(kind))
    if not capture:  # as for architectures without SDPA
        victim.network.set_attn_implementation("eager")
        victim.network._supports_sdpa = False  # private: transformers 5.23.0
    found = attention_and_gradient(victim.network, batch["input_ids"], batch["attention_mask"]).attention
    for i, mask in enumerate(batch["attention_mask"].bool()):
        layers = network(batch["input_ids"][i][mask][None], output_attentions=True).attentions
        heads = torch.stack(layers)[:, 0].flatten(0, 1).tolist()
        length = int(mask.sum())
        expected = [1.0] * length
        for j in range(1, length):
            for query in range(j, length):
                received = sum(head[query][j] / sum(head[query][1:]) for head in heads) / len(heads)
                expected[j] += received - 1 / query
        assert found[i][mask].tolist() == close(expected)


@pytest.mark.parametrize("kind", sorted({*FAMILIES} - {*DECODERS}))
def test_an_encoder_is_not_levelled(kind: str, tiny_folder: Callable[[str], str]) -> None:
    victim = loaded(tiny_folder(kind))
    batch = batch_for(victim)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert torch.equal(
        attention_and_gradient(victim.network, ids, mask).attention,
        attention_and_gradient(victim.network, ids, mask, level=False).attention,
    )


def state(network: PreTrainedModel) -> dict[str, Any]:
    return {
        "attention": network.config._attn_implementation,  # private: transformers 5.23.0
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
    next(network.base_model.children()).eval()  # a part that was in evaluation mode before
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


def test_a_network_with_eager_attention_gives_the_same_and_is_eager_again(bert: TextClassifier) -> None:
    batch = batch_for(bert)
    sdpa = attention_and_gradient(bert.network, batch["input_ids"], batch["attention_mask"])
    bert.network.set_attn_implementation("eager")
    eager = attention_and_gradient(bert.network, batch["input_ids"], batch["attention_mask"])
    assert bert.network.config._attn_implementation == "eager"  # private: transformers 5.23.0
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


class Opaque(nn.Module):
    """An attention layer whose attention cannot be captured."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return hidden_states, None


@pytest.mark.parametrize("kind", ["bert", "deberta-v2"], ids=["captured", "returned by the model"])
def test_a_layer_whose_attention_cannot_be_captured_is_an_error(kind: str, tiny_folder: Callable[[str], str]) -> None:
    victim = loaded(tiny_folder(kind))
    victim.network.base_model.encoder.layer[1].attention.self = Opaque()
    before = state(victim.network)
    batch = batch_for(victim)
    with pytest.raises(RuntimeError, match=r"1 layers was captured in .*, which has 2"):
        attention_and_gradient(victim.network, batch["input_ids"], batch["attention_mask"])
    assert state(victim.network) == before


@pytest.mark.parametrize("chunk", [1, 1 << 19], ids=["row by row", "at once"])
@pytest.mark.parametrize("mask_kind", ["none", "bool", "additive", "shared by the batch"])
def test_column_sums_are_the_sums_of_a_softmax(mask_kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "CHUNK", chunk)
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


@pytest.mark.parametrize("count_padding", [False, True])
def test_short_and_long_texts_are_captured_alike(
    count_padding: bool, bert: TextClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_for(bert)
    found = []
    for kept in (attention_capture.KEPT, 0):
        monkeypatch.setattr(attention_capture, "KEPT", kept)
        found.append(attention_and_gradient(bert.network, batch["input_ids"], batch["attention_mask"], count_padding))
    for short, long in zip(*found, strict=True):
        torch.testing.assert_close(short, long, rtol=1e-5, atol=1e-6)
