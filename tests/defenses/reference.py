"""A plain reference of gradient-attention scoring: eager attention, one text at a time, Python loops."""

from __future__ import annotations

import string
import unicodedata
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from lightning_backdoor.language.stop_words import stop_words


class Seen(NamedTuple):
    """Logits, and attention received and gradient norm per position, of one pass over one text, padding included."""

    logits: list[float]
    attention: list[float]
    gradient: list[float]


class Scored(NamedTuple):
    """The score of each position, None for positions without one, and of the text."""

    tokens: list[float | None]
    text: float


def eager_network(folder: str) -> PreTrainedModel:
    """The network of a folder, with eager attention, which returns its probabilities."""
    return AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()


def seen(network: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, count_padding: bool = False) -> Seen:
    """Attention and gradient of one row; ``input_ids`` and ``attention_mask`` are (length,)."""
    embedded: list[Tensor] = []
    handle = network.get_input_embeddings().register_forward_hook(lambda module, args, output: embedded.append(output))
    output = network(input_ids=input_ids[None], attention_mask=attention_mask[None], output_attentions=True)
    handle.remove()
    logits: list[float] = output.logits[0].tolist()
    best = logits.index(max(logits))
    (gradient,) = torch.autograd.grad(output.logits[0, best], embedded[0])
    length = len(input_ids)
    attention = [0.0] * length
    for layer in output.attentions:
        heads = layer[0].tolist()
        for head in heads:
            for i in range(length):
                for j in range(length):
                    if count_padding or attention_mask[i] == 1:
                        attention[j] += head[i][j] / (len(heads) * len(output.attentions))
    return Seen(logits, attention, [sum(x * x for x in row) ** 0.5 for row in gradient[0].tolist()])


def content(text: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[bool]:
    """Whether each position is scored, decided from its characters."""
    encoding = tokenizer(text, truncation=True, max_length=max_length, return_offsets_mapping=True)
    result = []
    for token_id, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
        token = tokenizer.convert_ids_to_tokens(token_id)
        word = text[start:end].strip().lower()
        punctuation = all(char in string.punctuation or unicodedata.category(char)[0] == "P" for char in word)
        special = token_id in tokenizer.all_special_ids or token in ("▁", "Ġ")
        stop = word in stop_words() and not token.startswith("##")
        result.append(not (special or punctuation or stop))
    return result


def scored(found: Seen, input_ids: list[int], kept: list[bool]) -> Scored:
    """Scores of one row from its attention and gradients."""
    positions = [j for j, keep in enumerate(kept) if keep]
    if not positions:
        return Scored([None] * len(kept), 0.0)
    mean_attention = sum(found.attention[j] for j in positions) / len(positions)
    mean_gradient = sum(found.gradient[j] for j in positions) / len(positions)
    tokens: list[float | None] = [None] * len(kept)
    for j in positions:
        same = [i for i in positions if input_ids[i] == input_ids[j]]
        attention = max(found.attention[i] for i in same)
        gradient = max(found.gradient[i] for i in same)
        tokens[j] = (attention - mean_attention) * gradient / mean_gradient
    return Scored(tokens, max(score for score in tokens if score is not None))
