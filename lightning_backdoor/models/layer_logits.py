"""Logits of every layer: what a sequence classifier's own head makes of the states after each layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_backdoor.errors import InputError
from lightning_backdoor.models.evaluation_mode import evaluating


def layers_of(network: PreTrainedModel) -> nn.ModuleList:
    """The layers of a network, or the one that it uses again and again, as in ALBERT.

    Raises:
        InputError: the network has no list of layers.
    """
    for module in network.base_model.modules():
        if isinstance(module, nn.ModuleList):
            return module
    raise InputError("model", f"{type(network).__name__} has no list of layers", "give a transformer of transformers")


@contextmanager
def layer_outputs(network: PreTrainedModel) -> Iterator[list[Any]]:
    """Within the block, keeps what each layer returns, with gradients, in the order of the layers and passes."""
    outputs: list[Any] = []
    handles = [
        layer.register_forward_hook(lambda module, args, output: outputs.append(output)) for layer in layers_of(network)
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def layer_logits(network: PreTrainedModel, outputs: Sequence[Any], input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The logits that the network would give if it ended after a layer, for each of several layers.

    The network is run once for each layer, with no layer computed: all return what this one returned. What follows the
    layers (a final norm, the readout, a pooler, the head) is thus the network's own, whatever its architecture.

    Args:
        network: any sequence classifier of transformers.
        outputs: what the layers returned for this batch, see :func:`layer_outputs`.
        input_ids: (batch, length), int64.
        attention_mask: (batch, length), int64, 1 for tokens and 0 for padding.

    Returns:
        (outputs, batch, classes), float32, with the gradients of the outputs and of what follows the layers.

    Example::

        with layer_outputs(network) as outputs:
            logits = network(input_ids, attention_mask).logits
        layer_logits(network, outputs, input_ids, attention_mask)[-1]  # the same
    """
    logits = []
    for output in tuple(outputs):  # which may be those of a block that has not ended
        with _layers_return(network, output):
            logits.append(network(input_ids=input_ids, attention_mask=attention_mask).logits.float())
    return torch.stack(logits)


@contextmanager
def _layers_return(network: PreTrainedModel, output: Any) -> Iterator[None]:
    """Within the block, every layer returns the same output, without computing anything."""
    layers = layers_of(network)
    for layer in layers:
        layer.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@torch.no_grad()
def check_layer_logits(network: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> None:
    """Checks on a batch that the head can be read after each layer: after the last, its logits are the network's.

    Raises:
        InputError: they are not, as in networks whose last layers are not a plain sequence.
    """
    with evaluating(network):
        with layer_outputs(network) as outputs:
            expected = network(input_ids=input_ids, attention_mask=attention_mask).logits.float()
        found = layer_logits(network, outputs[-1:], input_ids, attention_mask)[0]
    layers = network.config.get_text_config().num_hidden_layers
    if len(outputs) != layers or not torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
        problem = f"the head of {type(network).__name__} cannot be read after each of its {layers} layers"
        raise InputError("model", problem, "give an encoder or a decoder with one list of layers")
