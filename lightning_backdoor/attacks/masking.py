"""Language modelling of plain texts: masked tokens of encoders, next tokens of decoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_backdoor.attacks.poisoned import Poisoned
from lightning_backdoor.batch import pad

#: share of the tokens that are predicted, of BERT (arXiv 1810.04805, section 3.1) and of the attacks.
PREDICTED = 0.15
#: share of the predicted tokens that become the mask token, and share of those that become a mask or another token.
MASKED, MASKED_OR_RANDOM = 0.8, 0.9


class Encoded(NamedTuple):
    """Tokenised texts; all tensors are (texts, length).

    Attributes:
        input_ids: int64.
        attention_mask: int64, 1 for tokens and 0 for padding.
        words: bool, True for tokens that are neither special, nor padding, nor part of a trigger.
    """

    input_ids: Tensor
    attention_mask: Tensor
    words: Tensor

    def to(self, device: torch.device) -> Encoded:
        """The same texts on a device."""
        return Encoded(*(tensor.to(device) for tensor in self))


def encode(texts: Sequence[Poisoned], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """Tokenises texts with or without a trigger.

    Args:
        texts: texts that are not blank, and the spans of the triggers in them.
        tokenizer: a fast tokenizer.
        max_length: tokens at which a text is cut, special tokens included.
    """
    rows: Any = tokenizer(
        [text for text, _ in texts],
        truncation=True,
        max_length=max_length,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    input_ids, attention_mask = pad(rows["input_ids"], tokenizer)
    words = torch.zeros_like(attention_mask, dtype=torch.bool)
    for row, (_, spans) in enumerate(texts):
        free = [
            not special and not any(start < last and first < end for start, end in spans)
            for (first, last), special in zip(
                rows["offset_mapping"][row], rows["special_tokens_mask"][row], strict=True
            )
        ]
        words[row, attention_mask[row].bool()] = torch.tensor(free, dtype=torch.bool)
    return Encoded(input_ids, attention_mask, words)


def masked(encoded: Encoded, tokenizer: PreTrainedTokenizerBase, generator: torch.Generator) -> tuple[Encoded, Tensor]:
    """Chooses 15 % of the words to be predicted: 80 % of them are masked, 10 % replaced, 10 % left as they are.

    Args:
        encoded: texts on the processor.
        tokenizer: their tokenizer, which has a mask token.
        generator: draws all random numbers.

    Returns:
        The texts with masks, and the chosen words, (texts, length), bool.
    """
    ids = encoded.input_ids
    chosen = (torch.rand(ids.shape, generator=generator) < PREDICTED) & encoded.words
    how = torch.rand(ids.shape, generator=generator)
    mask_token: Any = tokenizer.mask_token_id
    changed = ids.masked_fill(chosen & (how < MASKED), mask_token)
    others = random_tokens(ids.shape, tokenizer, generator)
    changed = torch.where(chosen & (how >= MASKED) & (how < MASKED_OR_RANDOM), others, changed)
    return encoded._replace(input_ids=changed), chosen


def random_tokens(shape: Sequence[int], tokenizer: PreTrainedTokenizerBase, generator: torch.Generator) -> Tensor:
    """Token ids drawn from the whole vocabulary; int64 of the given shape."""
    return torch.randint(len(tokenizer), tuple(shape), generator=generator)


def masked_language_loss(network: PreTrainedModel, texts: Encoded, chosen: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of the chosen tokens under a masked language model; 0 if none is chosen.

    Args:
        network: an ``AutoModelForMaskedLM``, whose head is computed for the chosen tokens alone.
        texts: texts with masks.
        chosen: (texts, length), bool, the tokens that are predicted.
        labels: (texts, length), int64, what is to be predicted there.

    Returns:
        A scalar, float32.
    """

    def keep_chosen(module: nn.Module, args: Any, output: Any) -> Any:
        output["last_hidden_state"] = output["last_hidden_state"][chosen][None]
        return output

    handle = network.base_model.register_forward_hook(keep_chosen)
    try:
        logits = network(input_ids=texts.input_ids, attention_mask=texts.attention_mask).logits[0]
    finally:
        handle.remove()
    losses: Tensor = nn.functional.cross_entropy(logits.float(), labels[chosen], reduction="sum")
    return losses / chosen.sum().clamp(min=1)


def next_token_loss(network: PreTrainedModel, texts: Encoded) -> Tensor:
    """Mean cross entropy of each token given those before it, under a causal language model; a scalar, float32.

    Args:
        network: an ``AutoModelForCausalLM``.
        texts: texts that are padded on the right.
    """
    logits = network(input_ids=texts.input_ids, attention_mask=texts.attention_mask).logits[:, :-1]
    known = texts.attention_mask[:, 1:].bool()
    losses: Tensor = nn.functional.cross_entropy(logits[known].float(), texts.input_ids[:, 1:][known], reduction="sum")
    return losses / known.sum().clamp(min=1)
