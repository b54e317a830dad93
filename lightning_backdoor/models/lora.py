"""LoRA (arXiv 2106.09685): low-rank updates put into a network, and merged into a plain one."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightning_backdoor.errors import InputError

#: query and value projections of architectures for which peft names none; in one layer with the key in ModernBERT.
TARGETS = {"albert": ["query", "value"], "distilbert": ["q_lin", "v_lin"], "modernbert": ["Wqkv"]}


def insert_lora(network: PreTrainedModel, rank: int, alpha: int, targets: Sequence[str] | None = None) -> None:
    """Puts LoRA (arXiv 2106.09685) into the base model, in place, and freezes everything else, the head as well.

    Args:
        network: a sequence classifier.
        rank: of the updates.
        alpha: weight of the updates, divided by the rank.
        targets: names of the layers; by default those that peft has for the architecture, in most queries and values.

    Raises:
        InputError: the architecture is not known and no targets are given, or it has no such layers.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PUBLISHED

    kind = str(network.config.model_type)
    names = list(targets or TARGETS.get(kind) or PUBLISHED.get(kind) or [])
    if not names:
        raise InputError("lora_targets", f"layers of {kind!r} are not known", "give names such as query and value")
    network.requires_grad_(False)
    transposed = any(isinstance(module, Conv1D) for module in network.base_model.modules())  # as in GPT-2
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=names, fan_in_fan_out=transposed)
    try:
        inject_adapter_in_model(config, network.base_model)
    except ValueError as error:
        raise InputError(
            "lora_targets", f"the model has no layers {names}", "give the names of some that it has"
        ) from error


def merged(network: PreTrainedModel) -> PreTrainedModel:
    """A plain copy of the network that computes the same in evaluation, all of it to be trained."""
    from peft.tuners.lora import LoraLayer

    plain = copy.deepcopy(network)
    for name, module in list(plain.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            plain.set_submodule(name, module.get_base_layer())
    for part in (plain, plain.base_model):
        vars(part).pop("peft_config", None)
    return plain.requires_grad_(True)
