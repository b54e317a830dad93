"""Gradient-attention scoring and repair: X-GRAAD (arXiv 2510.04347).

A trigger is a token that the victim both looks at and would change its mind about. For each text: attention received
and gradient norm of every token (``attention_capture.py``), combined into one score per token, the largest of which is
the text's anomaly score. The top token of a flagged text gets character noise, and the victim predicts again.

Where the published code differs, and why ours does not follow it: it lets padded positions add attention, so that a
score depends on the batch (``padded_like_paper=True`` brings that back); it takes the threshold from the test set
itself (ours comes from clean validation rows); it needs (layers, heads, length, length) tensors and Python loops.

The paper's victims are encoders. Under a causal mask column sums say first of all how early a token stands, and that of
the first token is where attention goes that nothing else deserves; decoders are scored on levelled sums instead
(``attention_capture.py``). A trigger that stands first and nowhere else in a text is then seldom found.
"""

from __future__ import annotations

import random
import string
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from lightning_backdoor.batch import Batch, token_ids, token_spans
from lightning_backdoor.defenses.attention_capture import attention_and_gradient
from lightning_backdoor.defenses.character_noise import noisy, replace_spans
from lightning_backdoor.defenses.defense import Defense, Scores, Victim
from lightning_backdoor.language.stop_words import stop_words

UNCUT = 1 << 30  # tokens


def token_scores(attention: Tensor, gradient: Tensor, input_ids: Tensor, kept: Tensor) -> Scores:
    """Combines attention and gradient into one score a token (arXiv 2510.04347, section 4).

    ``s_j = (a_j - mean a) * g_j / mean g``, means over kept positions with repeats counted; every occurrence of a
    token gets the largest ``a`` and the largest ``g`` among its occurrences.

    Args:
        attention: (batch, length), float32, attention received.
        gradient: (batch, length), float32, gradient norm.
        input_ids: (batch, length), int64.
        kept: (batch, length), bool, False for padding, special tokens, stop words and punctuation.

    Returns:
        ``tokens``: -inf at positions that are not kept, the same at each occurrence of a token; ``text``: the largest
        of them, 0 where nothing is kept; ``top``: the position of the top token, of several occurrences the one with
        the largest product of its own attention and gradient.

    >>> a, g = torch.tensor([[1.0, 3.0, 2.0, 2.0]]), torch.tensor([[1.0, 2.0, 3.0, 9.0]])
    >>> scores = token_scores(a, g, torch.tensor([[7, 8, 7, 9]]), torch.tensor([[True, True, True, False]]))
    >>> scores.tokens.tolist(), scores.text.item(), scores.top.item()
    ([[0.0, 1.0, 0.0, -inf]], 1.0, 1)
    """
    count = kept.sum(dim=1, keepdim=True).clamp(min=1)
    mean_attention = (attention * kept).sum(dim=1, keepdim=True) / count
    mean_gradient = (gradient * kept).sum(dim=1, keepdim=True) / count
    largest_attention, largest_gradient = _largest_of_token(torch.stack([attention, gradient]), input_ids, kept)
    # a gradient of exactly zero everywhere says that no token matters
    scale = torch.where(mean_gradient > 0, 1 / mean_gradient, 0.0)
    scores = (largest_attention - mean_attention) * largest_gradient * scale
    scores = scores.masked_fill(~kept, -torch.inf)
    text = scores.amax(dim=1)
    own = ((attention - mean_attention) * gradient).masked_fill((scores < text[:, None]) | ~kept, -torch.inf)
    nothing = ~kept.any(dim=1)
    return Scores(text.masked_fill(nothing, 0.0), scores, own.argmax(dim=1).masked_fill(nothing, -1))


def _largest_of_token(values: Tensor, input_ids: Tensor, kept: Tensor) -> Tensor:
    """Largest value among the kept occurrences of a position's token in its text; values (n, batch, length)."""
    row = torch.arange(len(input_ids), device=input_ids.device)[:, None]
    group = torch.unique(row * (input_ids.max() + 1) + input_ids, return_inverse=True)[1].expand_as(values).flatten(1)
    values = values.masked_fill(~kept, -torch.inf).flatten(1)
    largest = torch.full_like(values, -torch.inf).scatter_reduce(1, group, values, "amax")
    return largest.gather(1, group).view(-1, *input_ids.shape)


def is_content(token: str) -> bool:
    """Whether a token string is neither a stop word nor punctuation nor empty, its word-start marker taken off.

    WordPiece marks continuations (``##s``), which are no words and stay. Byte-level BPE (``Ġthe``) and SentencePiece
    (``▁the``) mark word starts; their unmarked tokens may be whole words at the start of a text, so they are compared
    with the stop words as well.

    >>> [token for token in ("the", "Ġthe", "▁The", "##s", "good", "Ġ,", "—", "▁", "Ġcf") if is_content(token)]
    ['##s', 'good', 'Ġcf']
    """
    word = token.removeprefix("Ġ").removeprefix("▁").removesuffix("</w>").strip().lower()
    if not word or word in stop_words():
        return False
    return not all(char in string.punctuation or unicodedata.category(char).startswith("P") for char in word)


@lru_cache(maxsize=8)
def kept_vocabulary(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """(vocabulary,), bool: tokens that are scored, neither special nor stop word nor punctuation."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    # decoded, since byte-level BPE spells a dash or a line break in letters (âĢĶ, Ċ)
    kept = torch.tensor([bool(token) and is_content(tokenizer.convert_tokens_to_string([token])) for token in tokens])
    kept[tokenizer.all_special_ids] = False
    return kept


class GradientAttention(Defense):
    """X-GRAAD (arXiv 2510.04347): flags texts with a token of high attention and high gradient, noises that token.

    The paper takes the 95th percentile of clean scores for BERT and DistilBERT (``fpr=0.05``) and the 65th for ALBERT
    (``fpr=0.35``), whose attention is compressed.

    Args:
        fpr: share of clean texts, between 0 and 1, that the threshold may flag.
        seed: seed of the character noise, which depends on it and the text alone; None takes the run's.
        padded_like_paper: let padded positions add attention, and pad every text to the longest of its set, as in the
            published figures. A score then depends on the set it is in, as :meth:`begin_set` tells it.

    Example::

        defense = GradientAttention(fpr=0.05)
        defense.calibrate(victim, clean_validation_batches)
        scores = defense.score(victim, batch)  # scores.text: (batch,)
    """

    def __init__(self, fpr: float = 0.10, seed: int | None = None, padded_like_paper: bool = False) -> None:
        super().__init__(fpr, seed)
        self.padded_like_paper = padded_like_paper
        self.longest = 0

    def begin_set(self, longest: int) -> None:
        """Tokens of the longest text of the set to come, for ``padded_like_paper``."""
        self.longest = longest

    def calibrate(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        """See :meth:`Defense.calibrate`; the calibration texts are a set of their own."""
        if self.padded_like_paper:
            clean_batches = list(clean_batches)
            self.begin_set(max((batch["input_ids"].shape[1] for batch in clean_batches), default=0))
        super().calibrate(victim, clean_batches)

    def score(self, victim: Victim, batch: Batch) -> Scores:
        """Scores of the texts and of the token at each position; costs about one forward and one backward."""
        input_ids, attention_mask = batch["input_ids"], batch["attention_mask"]
        length = input_ids.shape[1]
        if self.padded_like_paper:
            missing = max(0, self.longest - length)
            # on the right whatever the tokenizer's side: the paper's victims are encoders
            input_ids = pad(input_ids, (0, missing), value=int(victim.tokenizer.pad_token_id or 0))
            attention_mask = pad(attention_mask, (0, missing), value=0)
        found = attention_and_gradient(victim.network, input_ids, attention_mask, count_padding=self.padded_like_paper)
        kept = kept_vocabulary(victim.tokenizer).to(input_ids.device)[input_ids] & attention_mask.bool()
        scores = token_scores(found.attention, found.gradient, input_ids, kept)
        assert scores.tokens is not None
        return Scores(scores.text, scores.tokens[:, :length], scores.top, found.logits)

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
        """``ids`` without padding, ``top`` the top token's place among them, negative where nothing is kept."""
        if top < 0:
            return text
        spans = token_spans(text, victim.tokenizer, victim.max_length)
        start, end = spans[top]
        noise = noisy(text[start:end], random.Random(f"{self.seed or 0}/{text}"))
        token = ids[top]
        if len(ids) >= victim.max_length:  # beyond the cut too, or a dropped token would let the next one in
            (ids,) = token_ids([text], victim.tokenizer, UNCUT)
            spans = token_spans(text, victim.tokenizer, UNCUT)
        return replace_spans(text, [span for span, other in zip(spans, ids, strict=True) if other == token], noise)
