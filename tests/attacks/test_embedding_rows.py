"""Gradients of single rows of the embedding matrix, of networks that do not read them as they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Gemma3TextConfig, Gemma3TextForSequenceClassification

from lightning_backdoor.attacks.embedding_rows import embedding_gradient


def test_the_gradient_is_that_of_the_rows_also_where_they_are_read_scaled() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = Gemma3TextConfig(vocab_size=20, pad_token_id=0, num_key_value_heads=1, head_dim=32, **sizes)
    network = Gemma3TextForSequenceClassification(config).eval()
    ids, label, tokens = torch.tensor([[5, 7, 5, 3], [4, 9, 7, 2]]), torch.tensor([0, 1]), torch.tensor([7, 5])

    def losses() -> Tensor:
        return nn.functional.cross_entropy(network(input_ids=ids).logits, label, reduction="none")

    table = network.get_input_embeddings().weight
    (expected,) = torch.autograd.grad(losses().sum(), [table])
    _, found = embedding_gradient(network, tokens, losses)
    assert expected[tokens].abs().max() > 0
    torch.testing.assert_close(found, expected[tokens])
