"""Prefix tuning: what a prefix does is compared with real tokens before a text, and with the model class of peft."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model

from lightning_backdoor.batch import batch_of_texts
from lightning_backdoor.defenses.attention_capture import attention_and_gradient
from lightning_backdoor.defenses.readout_attention import readout_attention
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.prefix import insert_prefix
from tests.support.tiny import SENTENCES, loaded


@torch.no_grad()
def test_the_keys_and_values_of_tokens_as_a_prefix_are_these_tokens_before_the_text(
    tiny_folder: Callable[[str], str],
) -> None:
    network = loaded(tiny_folder("gpt2")).network
    base: Any = network.base_model
    before, text = torch.tensor([[5, 9, 7]]), torch.tensor([[4, 8, 15, 16]])
    expected = base(torch.cat([before, text], dim=1)).last_hidden_state[:, 3:]
    cache = base(before, use_cache=True).past_key_values
    insert_prefix(network, length=3, hidden=None)
    pairs = torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers])
    base.prefix.encoder.embedding.weight.copy_(pairs.permute(3, 0, 1, 2, 4).flatten(1))
    torch.testing.assert_close(base(text, position_ids=torch.arange(3, 7)[None]).last_hidden_state, expected)


@torch.no_grad()
@pytest.mark.parametrize("hidden", [None, 6])
def test_an_encoder_computes_what_pefts_model_does_apart_from_positions(
    tiny_folder: Callable[[str], str], hidden: int | None
) -> None:
    victim, other = loaded(tiny_folder("bert")), loaded(tiny_folder("bert"))
    batch = batch_of_texts(SENTENCES[:3], victim.tokenizer, victim.max_length)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    config = PrefixTuningConfig(
        task_type="SEQ_CLS",
        num_virtual_tokens=3,
        prefix_projection=hidden is not None,
        encoder_hidden_size=hidden or 0,
    )
    reference = get_peft_model(other.network, config).eval()
    insert_prefix(victim.network, length=3, hidden=hidden)
    base: Any = victim.network.base_model
    base.prefix.encoder.load_state_dict(reference.prompt_encoder["default"].state_dict())
    positions = torch.arange(3, 3 + ids.shape[1])[None]
    logits = victim.network(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(logits, reference(input_ids=ids, attention_mask=mask).logits)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bert", "roberta", "qwen2", "gpt2"])
def test_logits_do_not_depend_on_the_batch_and_positions_stay(tiny_folder: Callable[[str], str], kind: str) -> None:
    victim = loaded(tiny_folder(kind))
    positions: list[Any] = []
    at: Any = victim.network.base_model
    insert_prefix(victim.network, length=2, hidden=None)
    at.register_forward_pre_hook(lambda module, args, given: positions.append(given["position_ids"]), with_kwargs=True)
    together = victim(batch_of_texts(SENTENCES[:3], victim.tokenizer, victim.max_length))
    alone = [victim(batch_of_texts([text], victim.tokenizer, victim.max_length)) for text in SENTENCES[:3]]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert positions[-1][0, 0] == (2 if kind == "roberta" else 0)  # RoBERTa's first position, after its padding's


def test_what_a_prefix_does_not_fit_is_one_line(tiny_folder: Callable[[str], str]) -> None:
    with pytest.raises(InputError, match=r"^method: 'distilbert' takes no keys and values before a text; give lora"):
        insert_prefix(loaded(tiny_folder("distilbert")).network, length=2, hidden=None)
    victim = loaded(tiny_folder("bert"))
    insert_prefix(victim.network, length=2, hidden=None)
    batch = batch_of_texts(SENTENCES[:2], victim.tokenizer, victim.max_length)
    for reads_attention in (attention_and_gradient, readout_attention):
        with pytest.raises(InputError, match=r"^victim: its attention has keys beside those of the text"):
            reads_attention(victim.network, batch["input_ids"], batch["attention_mask"])
