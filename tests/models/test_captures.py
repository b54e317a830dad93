"""Captures: what is computed once, when it is not reused, how much is kept, and the states that a head reads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_backdoor.batch import batch_of_texts
from lightning_backdoor.models.captures import (
    Captures,
    plain_logits,
    readout_states,
    recorded_use,
    shared,
    sharing,
)
from lightning_backdoor.victim import TextClassifier
from tests.support.tiny import DECODERS, FAMILIES, SENTENCES, loaded

Inputs = tuple[PreTrainedModel, Tensor, Tensor]


def inputs(victim: TextClassifier, texts: list[str], side: str = "right") -> Inputs:
    victim.tokenizer.padding_side = side
    batch = batch_of_texts(texts, victim.tokenizer, victim.max_length)
    victim.tokenizer.padding_side = "right"
    return victim.network, batch["input_ids"], batch["attention_mask"]


class Pass:
    """A pass that counts how often it is computed."""

    def __init__(self) -> None:
        self.computed = 0

    def __call__(self, network: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, power: int = 1) -> Tensor:
        self.computed += 1
        logits: Tensor = network(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits**power


@pytest.fixture
def begun(bert: TextClassifier) -> Captures:
    captures = Captures()
    captures.begin(bert.network)
    return captures


@torch.no_grad()
def test_a_pass_is_computed_once_per_content_and_option_and_given_out_as_a_copy(
    bert: TextClassifier, begun: Captures
) -> None:
    run, texts = Pass(), [*SENTENCES[:3]]
    with sharing(begun):
        first = shared(run, *inputs(bert, texts), power=3)
        expected = first.clone()
        first.zero_()
        assert torch.equal(shared(run, *inputs(bert, texts), power=3), expected)
        assert run.computed == 1
        shared(run, *inputs(bert, texts), power=2)
        shared(run, *inputs(bert, texts[:2]), power=2)
        with torch.autocast("cpu", torch.bfloat16):
            shared(run, *inputs(bert, texts), power=2)
        assert run.computed == 4
    shared(run, *inputs(bert, texts), power=3)
    assert run.computed == 5


CHANGES: dict[str, Callable[[TextClassifier], object]] = {
    "weights": lambda victim: victim.network.classifier.bias.add_(1),
    "a new weight": lambda victim: setattr(victim.network.classifier, "bias", None),
    "a hook": lambda victim: victim.network.classifier.register_forward_hook(lambda *given: given[-1] + 1),
    "a module": lambda victim: setattr(victim.network, "dropout", torch.nn.Identity()),
    "training mode": lambda victim: victim.network.train(),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_nothing_is_reused_of_a_network_that_has_changed(bert: TextClassifier, begun: Captures, change: str) -> None:
    given = inputs(bert, [*SENTENCES[:3]])
    with sharing(begun):
        plain_logits(*given)
        CHANGES[change](bert)
        with recorded_use() as used:
            found = plain_logits(*given)
        assert not used.keys
        if change != "training mode":  # dropout draws anew
            plain = given[0](input_ids=given[1], attention_mask=given[2]).logits
            torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_weights_that_are_written_unseen_are_noticed_at_the_end(bert: TextClassifier, begun: Captures) -> None:
    begun.begin(bert.network, lasting=True)
    begun.end()
    assert begun.intact
    begun.begin(bert.network, lasting=True)
    bert.network.classifier.bias.data.add_(1)
    begun.end()
    assert not begun.intact


@torch.no_grad()
def test_a_pass_before_the_block_counts_with_its_seconds_and_once(bert: TextClassifier, begun: Captures) -> None:
    now = iter([10.0, 13.0, 20.0, 21.0])
    given, other = inputs(bert, [*SENTENCES[:3]]), inputs(bert, [*SENTENCES[3:5]])
    with pytest.MonkeyPatch.context() as patched, sharing(begun):
        patched.setattr("time.perf_counter", lambda: next(now))
        plain_logits(*given)
        with recorded_use() as used:
            for one in (given, other, given, other):
                plain_logits(*one)
    assert used.seconds == 3.0  # the second was computed in the block, whose own duration has it
    assert len(used.keys) == 2


@torch.no_grad()
def test_what_is_kept_stays_below_the_capacity(bert: TextClassifier) -> None:
    run, captures = Pass(), Captures(capacity=3 * 4 * 2 * 4)  # logits of three batches of four texts
    captures.begin(bert.network)
    batches = [inputs(bert, [*SENTENCES[start : start + 4]]) for start in range(0, 20, 4)]
    with sharing(captures):
        for batch in batches:
            shared(run, *batch)
            shared(run, *batch)  # the last one is there
        assert run.computed == 5
        for batch in batches:
            shared(run, *batch)
        assert 7 <= run.computed < 10
        assert shared(run, *inputs(bert, [*SENTENCES[:13]])).shape == (13, 2)  # alone larger than the capacity


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_states_are_those_of_the_plain_pass_at_the_token_that_the_head_reads(
    kind: str, tiny_folder: Callable[[str], str]
) -> None:
    victim = loaded(tiny_folder(kind))
    network, captures = victim.network, Captures()
    texts = [SENTENCES[0], "w", SENTENCES[4]]
    given = inputs(victim, texts)
    captures.begin(network)
    with sharing(captures), torch.no_grad():
        states = readout_states(*given)
        with recorded_use() as used:
            logits = plain_logits(*given)
    assert len(used.keys) == 1  # the pass that gave the states gives the logits as well
    assert states.grad_fn is None
    assert states.shape == (network.config.num_hidden_layers + 1, len(texts), network.config.hidden_size)
    with torch.no_grad():
        plain = network(input_ids=given[1], attention_mask=given[2]).logits
    torch.testing.assert_close(logits, plain, rtol=1e-5, atol=1e-6)
    # a text's states do not depend on the other texts
    alone = torch.cat([readout_states(*inputs(victim, [text])) for text in texts], dim=1)
    torch.testing.assert_close(states, alone, rtol=1e-4, atol=1e-5)
    if kind in DECODERS:
        left = readout_states(*inputs(victim, texts, side="left"))
        torch.testing.assert_close(left, states, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network.score(states[-1]), logits, rtol=1e-4, atol=1e-5)
    else:
        # moving the last state of the first token, and no other, moves the logits
        whole = network(input_ids=given[1], attention_mask=given[2], output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(states[-1], whole[:, 0], rtol=1e-5, atol=1e-6)
