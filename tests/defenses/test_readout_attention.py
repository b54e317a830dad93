"""The attention of the readout token against the whole attention matrices of transformers, for every architecture."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lightning_backdoor.batch import batch_of_texts
from lightning_backdoor.defenses.readout_attention import readout_attention
from lightning_backdoor.models.readout import readout_positions
from tests.support.tiny import FAMILIES, SENTENCES, loaded


@pytest.mark.parametrize("kind", FAMILIES)
def test_rows_and_gradients_are_those_of_whole_matrices(kind: str, tiny_folder: Callable[[str], str]) -> None:
    victim = loaded(tiny_folder(kind))
    network = victim.network
    for texts in (SENTENCES[:4], SENTENCES[3:4]):  # with padding, and without
        batch = batch_of_texts(texts, victim.tokenizer, victim.max_length)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        before = network.config._attn_implementation
        seen = readout_attention(network, ids, mask)
        assert network.config._attn_implementation == before
        if before != "eager":
            network.set_attn_implementation("eager")
        whole = network(input_ids=ids, attention_mask=mask, output_attentions=True)
        if before != "eager":
            network.set_attn_implementation(before)
        positions = readout_positions(network, ids, mask)
        texts_at = torch.arange(len(ids))
        rows = torch.stack([layer[texts_at, :, positions] for layer in whole.attentions]) * mask[:, None]
        torch.testing.assert_close(seen.rows, rows, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(seen.logits, whole.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(seen.rows.sum(dim=-1), torch.ones(rows.shape[:-1]))
        words = network.get_input_embeddings().weight
        found, expected = (torch.autograd.grad(part.square().sum(), [words])[0] for part in (seen.rows, rows))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_dropout_is_that_of_a_plain_pass(tiny_folder: Callable[[str], str]) -> None:
    victim = loaded(tiny_folder("bert")).train()
    batch = batch_of_texts(SENTENCES[:4], victim.tokenizer, victim.max_length)
    logits = []
    for run in (victim.network, readout_attention):
        torch.manual_seed(0)
        if run is readout_attention:
            logits.append(readout_attention(victim.network, batch["input_ids"], batch["attention_mask"]).logits)
        else:
            ids, mask = batch["input_ids"], batch["attention_mask"]
            logits.append(victim.network(input_ids=ids, attention_mask=mask).logits)
    torch.testing.assert_close(*logits)
