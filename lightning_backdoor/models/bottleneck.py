"""Bottleneck adapters (arXiv 1902.00751): small trained layers after the sub-layers of a frozen network."""

from __future__ import annotations

import re
from collections import Counter

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from lightning_backdoor.errors import InputError

#: the name of a layer, in the name of one of its parts.
LAYER = re.compile(r"(.*\.\d+)\.")
#: ends of the names of the layers that an adapter follows: the output projections of attention and of feed-forward.
OUTPUTS = (
    "output.dense",  # BERT, RoBERTa, ELECTRA, DeBERTa: of attention and of feed-forward
    "attention.out_lin",  # DistilBERT
    "ffn.lin2",
    "attention.dense",  # ALBERT, GPT-NeoX
    "ffn_output",
    "mlp.dense_4h_to_h",
    "self_attn.dense",  # Phi
    "attn.Wo",  # ModernBERT
    "mlp.Wo",
    "self_attn.o_proj",  # Llama, Qwen, Mistral, Gemma
    "mlp.down_proj",
    "attn.c_proj",  # GPT-2
    "mlp.c_proj",
    "self_attn.out_proj",  # OPT
    "fc2",  # OPT, Phi
)


class BottleneckAdapter(nn.Module):
    """A frozen layer with an adapter after it: ``y = h + Wᵤ gelu(W_d h + b_d) + bᵤ`` with ``h = layer(x)``.

    At first ``Wᵤ`` and ``W_d`` are drawn from N(0, 0.01²) and the biases are 0, so that ``y`` is close to ``h``.

    Args:
        layer: the layer.
        size: number of its outputs.
        bottleneck: number of the adapter's hidden units.

    >>> import torch
    >>> adapted = BottleneckAdapter(nn.Linear(4, 6), size=6, bottleneck=2)
    >>> adapted(torch.randn(3, 4)).shape
    torch.Size([3, 6])
    """

    def __init__(self, layer: nn.Module, size: int, bottleneck: int) -> None:
        super().__init__()
        self.layer = layer
        weight = next(layer.parameters())
        self.down = nn.Linear(size, bottleneck, dtype=weight.dtype, device=weight.device)
        self.activation = ACT2FN["gelu_new"]
        self.up = nn.Linear(bottleneck, size, dtype=weight.dtype, device=weight.device)
        for part in (self.down, self.up):
            nn.init.normal_(part.weight, std=0.01)
            nn.init.zeros_(part.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The output of the adapted layer, (..., in) to (..., out)."""
        h: Tensor = self.layer(x)
        y: Tensor = h + self.up(self.activation(self.down(h)))
        return y


def insert_adapters(network: PreTrainedModel, bottleneck: int) -> None:
    """Puts an adapter after each attention and each feed-forward, in place, and freezes all other weights.

    The adapter follows the projection back to the hidden size and precedes the residual connection.

    Args:
        network: a classifier.
        bottleneck: number of hidden units of an adapter.

    Raises:
        InputError: the output projections of the architecture are not known, or not two per layer.
    """
    base = network.base_model
    found = [(name, layer) for name, layer in base.named_modules() if _is_output(name)]
    per_layer = Counter(match[1] for name, _ in found if (match := LAYER.match(name)))
    if set(per_layer.values()) != {2}:
        architecture = network.config.model_type
        raise InputError("method", f"where adapters go in {architecture!r} is not known", "give lora")
    network.requires_grad_(False)
    for name, layer in found:
        size = network.config.hidden_size  # to which every output projection leads
        base.set_submodule(name, BottleneckAdapter(layer, size, bottleneck).train(network.training))


def _is_output(name: str) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in OUTPUTS)
