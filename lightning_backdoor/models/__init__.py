"""Pretrained networks: loading without running their code, GGUF, LoRA, fine-tuning and batches by length."""

from lightning_backdoor.models.bucketing import PassLimits, group_by_length, pass_limits
from lightning_backdoor.models.gguf import dequantized
from lightning_backdoor.models.loading import load_safely
from lightning_backdoor.models.lora import insert_lora, merge_lora
from lightning_backdoor.models.precision import auto_precision

__all__ = [
    "PassLimits",
    "auto_precision",
    "dequantized",
    "group_by_length",
    "insert_lora",
    "load_safely",
    "merge_lora",
    "pass_limits",
]
