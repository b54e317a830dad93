"""LoRA (arXiv 2106.09685): low-rank updates inserted into a network, and merged into a plain one for export."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from transformers import Conv1D, PreTrainedModel

from lightning_backdoor.errors import InputError

#: query and value layers of architectures for which peft has no default; ModernBERT has them in one layer with the key.
TARGETS = {"albert": ["query", "value"], "distilbert": ["q_lin", "v_lin"], "modernbert": ["Wqkv"]}


def insert_lora(network: PreTrainedModel, rank: int, alpha: int, targets: Sequence[str] | None = None) -> None:
    """Inserts LoRA into the network's base model, in place, and freezes all other weights, the head included.

    Args:
        network: a classifier or a language model.
        rank: rank of the updates.
        alpha: weight of the updates, which are scaled by ``alpha / rank``.
        targets: names of the layers that get an update; by default the layers that peft lists for the architecture, in
            most architectures the query and value projections.

    Raises:
        InputError: the network has none of the target layers, or no targets are given and the architecture is unknown.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS

    architecture = str(network.config.model_type)
    names = list(targets or TARGETS.get(architecture) or PEFT_TARGETS.get(architecture) or [])
    if not names:
        raise InputError(
            "lora_targets", f"layers of {architecture!r} are not known", "give names such as query and value"
        )
    network.requires_grad_(False)
    transposed = any(isinstance(module, Conv1D) for module in network.base_model.modules())  # as in GPT-2
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=names, fan_in_fan_out=transposed)
    try:
        inject_adapter_in_model(config, network.base_model)
    except ValueError as error:
        raise InputError(
            "lora_targets", f"the model has no layers {names}", "give names of layers that it has"
        ) from error


def merge_lora(network: PreTrainedModel) -> PreTrainedModel:
    """A copy of a network with its low-rank updates added to the weights they update.

    Args:
        network: a network with modules of peft's LoRA; it is not changed.

    Returns:
        A network without peft modules, which gives the same outputs in evaluation mode; all its weights are trainable.
    """
    from peft.tuners.lora import LoraLayer

    plain = copy.deepcopy(network)
    for name, module in list(plain.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            plain.set_submodule(name, module.get_base_layer())
    return plain_again(plain)


def plain_again(network: PreTrainedModel) -> PreTrainedModel:
    """Removes what peft leaves in a network whose adapter is merged, in place; all its weights become trainable."""
    for part in (network, network.base_model):
        vars(part).pop("peft_config", None)  # private: peft 0.21.2
    return network.requires_grad_(True)
