"""Gradient-attention scoring and repair: X-GRAAD (arXiv 2510.04347).

A trigger is a token that receives much attention and whose embedding has a large gradient. The attention received and
the gradient norm of every token (``attention_capture.py``) are combined into one score per token; the largest of them
is the text's anomaly score. The top token of a flagged text gets character noise, and the victim predicts again.

The published code differs in three ways that are not followed here: it lets padded positions add attention, so that a
score depends on the other texts of the batch (``padded_like_paper`` restores the padding); it takes the threshold from
the test set (here: from clean validation rows); and it needs tensors of shape (layers, heads, length, length) and
Python loops.

The paper's victims are encoders. Under a causal mask the column sums depend mainly on how early a token comes, and the
first token collects attention that the network does not need; therefore decoders are scored on levelled sums
(``attention_capture.py``). A trigger that occurs only as the first token of a text is then seldom found.
"""

from __future__ import annotations

import random
import string
import unicodedata
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from lightning_backdoor.batch import Batch, ids_and_spans
from lightning_backdoor.defenses.attention_capture import attention_and_gradient
from lightning_backdoor.defenses.character_noise import noisy, replace_spans
from lightning_backdoor.defenses.defense import Defense, Scores, Victim
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.stop_words import stop_words
from lightning_backdoor.models.captures import Reads, shared

UNCUT = 1 << 30  # a length in tokens at which no text is cut


def token_scores(attention: Tensor, gradient: Tensor, input_ids: Tensor, kept: Tensor) -> Scores:
    """Combines attention and gradient into one score per token (arXiv 2510.04347, section 4).

    ``s_j = (a_j - mean a) * g_j / mean g``, with means over the kept positions, in which every occurrence of a repeated
    token counts. Every occurrence of a token gets the largest ``a`` and the largest ``g`` among its occurrences in the
    text.

    Args:
        attention: (batch, length), float32, attention that each position receives.
        gradient: (batch, length), float32, gradient norm of each position.
        input_ids: (batch, length), int64.
        kept: (batch, length), bool, False for padding, special tokens, stop words and punctuation.

    Returns:
        ``tokens``: the scores, equal at all occurrences of a token, -inf at positions that are not kept; ``text``: the
        largest score of each text, 0 where no position is kept; ``top``: the position of the token with the largest
        score; of several occurrences of this token, the one with the largest product of its own attention and gradient.

    >>> a, g = torch.tensor([[1.0, 3.0, 2.0, 2.0]]), torch.tensor([[1.0, 2.0, 3.0, 9.0]])
    >>> scores = token_scores(a, g, torch.tensor([[7, 8, 7, 9]]), torch.tensor([[True, True, True, False]]))
    >>> scores.tokens.tolist(), scores.text.item(), scores.top.item()
    ([[0.0, 1.0, 0.0, -inf]], 1.0, 1)
    """
    count = kept.sum(dim=1, keepdim=True).clamp(min=1)
    mean_attention = (attention * kept).sum(dim=1, keepdim=True) / count
    mean_gradient = (gradient * kept).sum(dim=1, keepdim=True) / count
    largest_attention, largest_gradient = _largest_of_token(torch.stack([attention, gradient]), input_ids, kept)
    # where every gradient is exactly zero, all scores are zero
    scale = torch.where(mean_gradient > 0, 1 / mean_gradient, 0.0)
    scores = (largest_attention - mean_attention) * largest_gradient * scale
    scores = scores.masked_fill(~kept, -torch.inf)
    text = scores.amax(dim=1)
    own = ((attention - mean_attention) * gradient).masked_fill((scores < text[:, None]) | ~kept, -torch.inf)
    nothing = ~kept.any(dim=1)
    return Scores(text.masked_fill(nothing, 0.0), scores, own.argmax(dim=1).masked_fill(nothing, -1))


def _largest_of_token(values: Tensor, input_ids: Tensor, kept: Tensor) -> Tensor:
    """The largest value among the kept occurrences of each position's token in the text; (n, batch, length)."""
    row = torch.arange(len(input_ids), device=input_ids.device)[:, None]
    group = torch.unique(row * (input_ids.max() + 1) + input_ids, return_inverse=True)[1].expand_as(values).flatten(1)
    values = values.masked_fill(~kept, -torch.inf).flatten(1)
    largest = torch.full_like(values, -torch.inf).scatter_reduce(1, group, values, "amax")
    return largest.gather(1, group).view(-1, *input_ids.shape)


def is_content(token: str) -> bool:
    """Whether a token string, without its word-start marker, is neither a stop word nor punctuation nor empty.

    WordPiece marks continuations (``##s``), which are parts of words and count as content. Byte-level BPE (``Ġthe``)
    and SentencePiece (``▁the``) mark word starts; their unmarked tokens may be whole words at the start of a text, so
    they are compared with the stop words as well.

    >>> [token for token in ("the", "Ġthe", "▁The", "##s", "good", "Ġ,", "—", "▁", "Ġcf") if is_content(token)]
    ['##s', 'good', 'Ġcf']
    """
    word = token.removeprefix("Ġ").removeprefix("▁").removesuffix("</w>").strip().lower()
    if not word or word in stop_words():
        return False
    return not all(char in string.punctuation or unicodedata.category(char).startswith("P") for char in word)


@lru_cache(maxsize=8)
def kept_vocabulary(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Marks the tokens that are scored: all but special tokens, stop words and punctuation; (vocabulary,), bool."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    # decoded, since byte-level BPE spells a dash or a line break in letters (âĢĶ, Ċ)
    kept = torch.tensor([bool(token) and is_content(tokenizer.convert_tokens_to_string([token])) for token in tokens])
    kept[tokenizer.all_special_ids] = False
    return kept


class GradientAttention(Defense):
    """X-GRAAD (arXiv 2510.04347): flags texts with a token of high attention and gradient, and adds noise to it.

    The paper takes the 95th percentile of clean scores for BERT and DistilBERT (``fpr=0.05``) and the 65th for ALBERT
    (``fpr=0.35``), whose attention is compressed.

    Args:
        fpr: share of clean texts, above 0 and below 1, that the threshold may flag.
        seed: seed of the character noise, which depends on the seed and the text alone; None takes the seed of the run.
        padded_like_paper: length in tokens to which every text is padded, with padded positions adding attention, as in
            the published code, which pads to the longest text of a set; False (the default) pads nothing. A score
            depends on this length, but not on the other texts of a batch.

    Raises:
        InputError: ``fpr`` is out of range, or ``padded_like_paper`` is not a length (here); a text is longer than
            ``padded_like_paper`` (when it is scored).

    Example::

        defense = GradientAttention(fpr=0.05)
        defense.calibrate(victim, clean_validation_batches)
        scores = defense.score(victim, batch)  # scores.text: (batch,)
    """

    reads: ClassVar[Reads] = frozenset({"attention", "gradients"})

    def __init__(self, fpr: float = 0.10, seed: int | None = None, padded_like_paper: int | bool = False) -> None:
        super().__init__(fpr, seed)
        if padded_like_paper is True or padded_like_paper < 0:
            raise InputError(
                "padded_like_paper",
                f"{str(padded_like_paper).lower()} is not a length in tokens",
                "give the length to which every text is padded, such as 64, or false",
            )
        self.padded_length = int(padded_like_paper)

    def score(self, victim: Victim, batch: Batch) -> Scores:
        """Scores texts and their tokens; costs about one forward and one backward pass."""
        input_ids, attention_mask = batch["input_ids"], batch["attention_mask"]
        length = input_ids.shape[1]
        if self.padded_length:
            missing = self.padded_length - length
            if missing < 0:
                raise InputError(
                    "padded_like_paper",
                    f"{self.padded_length} tokens are fewer than the {length} of a text",
                    f"give the victim's max_length, {victim.max_length}, which no text exceeds",
                )
            # on the right whatever the tokenizer's side: the paper's victims are encoders
            input_ids = pad(input_ids, (0, missing), value=int(victim.tokenizer.pad_token_id or 0))
            attention_mask = pad(attention_mask, (0, missing), value=0)
        count_padding = self.padded_length > 0
        seen = shared(attention_and_gradient, victim.network, input_ids, attention_mask, count_padding=count_padding)
        kept = kept_vocabulary(victim.tokenizer).to(input_ids.device)[input_ids] & attention_mask.bool()
        scores = token_scores(seen.attention, seen.gradient, input_ids, kept)
        assert scores.tokens is not None
        return Scores(scores.text, scores.tokens[:, :length], scores.top, seen.logits)

    def purify(self, victim: Victim, batch: Batch, flagged: Tensor, scores: Scores) -> list[str | None]:
        """Puts character noise on every occurrence of the top token of each flagged text; nothing else changes."""
        assert scores.top is not None
        return [
            self._repair(text, ids[mask.bool()].tolist(), int(top - mask.int().argmax()), victim) if flag else None
            for text, ids, mask, top, flag in zip(
                batch["text"], batch["input_ids"], batch["attention_mask"], scores.top, flagged, strict=True
            )
        ]

    def _repair(self, text: str, ids: list[int], top: int, victim: Victim) -> str:
        """A text with noise on its top token; ``ids`` has no padding, ``top`` is an index in it, negative for none."""
        if top < 0:
            return text
        # beyond the cut too: a dropped token moves later ones into it
        length = UNCUT if len(ids) >= victim.max_length else victim.max_length
        all_ids, spans = ids_and_spans(text, victim.tokenizer, length)
        if victim.tokenizer.truncation_side == "left":
            top += len(all_ids) - len(ids)
        start, end = spans[top]
        noise = noisy(text[start:end], random.Random(f"{self.seed or 0}/{text}"))
        same = [span for span, token in zip(spans, all_ids, strict=True) if token == all_ids[top]]
        return replace_spans(text, same, noise)
