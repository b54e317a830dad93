"""Tiny language models with random weights, of several architectures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from tests.support.tiny import DECODER

POSITIONS = 40


@pytest.fixture(scope="session")
def language_model(tiny_folder: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a tiny language model of an architecture, made once per session."""
    root = tmp_path_factory.mktemp("language")

    def folder(kind: str) -> str:
        if not (root / kind).exists():
            make(kind, tiny_folder(DECODER), root / kind)
        return str(root / kind)

    return folder


def make(kind: str, tokenizer_folder: str, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config(kind, len(tokenizer)))
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def config(kind: str, vocabulary: int) -> PreTrainedConfig:
    common = {"vocab_size": vocabulary, "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": None}
    if kind == "gpt2":
        return GPT2Config(**common, n_positions=POSITIONS, n_embd=32, n_layer=2, n_head=4)
    if kind == "bloom":
        return BloomConfig(**common, hidden_size=32, n_layer=2, n_head=4)
    common |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": POSITIONS}
    common |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    if kind == "mistral":
        return MistralConfig(**common, sliding_window=4)
    if kind == "gemma2":
        return Gemma2Config(**common, head_dim=8, final_logit_softcapping=2.0, sliding_window=4)
    return {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind](**common)
