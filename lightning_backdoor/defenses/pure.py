"""PURE (Zhao et al., ICML 2024): pruning of attention heads that clean texts do not use, and attention normalisation.

"Defense against Backdoor Attack on Pre-trained Language Models via Head Pruning and Attention Normalization", PMLR
235:61108-61120. Heads whose attention from the readout token varies little on clean texts are pruned while clean
accuracy holds; then the network is fine-tuned on clean texts with a penalty on the norm of the readout token's
attention, which is what a trigger draws to itself. With A the attention of the readout token (``[CLS]`` in encoders,
the last token in decoders)::

    v(l, h) = mean over texts of the variance of A over the text's tokens
    w_l     = (1 / v_l) / sum over layers of 1 / v,    v_l = mean over the layer's remaining heads of v(l, h)
    loss    = cross entropy + penalty * sum_l k_l * sum_h |A(l, h)|

The published code differs in these points, which are not followed by default:

- It takes the row of ``[CLS]`` from texts padded to 128 tokens, without its last column, so that short texts have a
  lower variance (``padded_length`` restores this), and averages batches of different sizes with equal weights.
- k_l = (w_l - min w) / (max w - min w), so that the layer of the highest variance is never penalised. Here k_l is
  w_l / max w: the largest coefficient is 1 as well, and none is 0 (``from_zero`` restores theirs).
- The norm is taken over all texts of a batch, so that the loss depends on the batch size and on the number of
  processes. Here it is the mean over texts of their own norms, times the root of 32, the published batch size, for
  which the published weight of the penalty was chosen (``over_batch`` restores theirs).
- Its search ends in an index error where no head can be pruned.
- The published setting is a backdoored encoder without a head, which is fine-tuned first and fine-tuned again from the
  backdoored weights after pruning. Here the victim is a classifier, which is pruned and fine-tuned as it is.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from lightning_backdoor.errors import InputError

#: rows per batch in the published training, for which the weight of the penalty was chosen.
PUBLISHED_BATCH = 32


def row_variance(rows: Tensor, attention_mask: Tensor, padded_length: int | None = None) -> Tensor:
    """The variance of each attention row over the tokens of its text, with divisor n - 1; 0 for a text of one token.

    Args:
        rows: (layers, batch, heads, length), attention of the readout token, 0 at padding.
        attention_mask: (batch, length), 1 for tokens and 0 for padding.
        padded_length: length to which texts are padded with zeros, as in the published code, which leaves out the last
            column; None takes the text's own tokens.

    Returns:
        (batch, layers, heads), float32.

    Raises:
        InputError: a text is longer than ``padded_length``.

    >>> rows, mask = torch.tensor([0.5, 0.1, 0.4, 0.0]).view(1, 1, 1, 4), torch.tensor([[1, 1, 1, 0]])
    >>> round(row_variance(rows, mask).item(), 4), round(row_variance(rows, mask, 6).item(), 4)
    (0.0433, 0.055)
    """
    if padded_length is not None:
        length = rows.shape[-1]
        if length > padded_length:
            raise InputError(
                "padded_like_paper",
                f"{padded_length} tokens are fewer than the {length} of a text",
                "give the victim's max_length, which no text exceeds",
            )
        padded = torch.nn.functional.pad(rows, (0, padded_length - length))
        return padded[..., :-1].var(dim=-1).transpose(0, 1)
    mask = attention_mask[:, None].to(rows)
    tokens = mask.sum(dim=-1, keepdim=True)
    centred = (rows - rows.sum(dim=-1, keepdim=True) / tokens) * mask
    return (centred.square().sum(dim=-1) / (tokens.squeeze(-1) - 1).clamp(min=1)).transpose(0, 1)


def pruning_order(variance: Tensor) -> tuple[list[tuple[int, int]], set[tuple[int, int]]]:
    """The heads from the lowest variance to the highest, and the head of each layer that is never pruned, its highest.

    Args:
        variance: (layers, heads).

    >>> pruning_order(torch.tensor([[0.1, 0.4], [0.3, 0.2]]))
    ([(0, 0), (1, 1), (1, 0), (0, 1)], {(0, 1), (1, 0)})
    """
    heads = variance.shape[1]
    order = [divmod(position, heads) for position in variance.flatten().argsort(stable=True).tolist()]
    return order, set(dict(order).items())


def layer_coefficients(variance: Tensor, pruned: Collection[tuple[int, int]] = (), from_zero: bool = False) -> Tensor:
    """The coefficient k of each layer, (layers,), up to 1: layers of low variance are penalised more.

    Args:
        variance: (layers, heads), above 0.
        pruned: heads that do not count.
        from_zero: subtract the smallest coefficient, as the published code does.

    >>> layer_coefficients(torch.tensor([[0.1, 0.3], [0.4, 0.4]]))
    tensor([1.0000, 0.5000])
    """
    remaining = remaining_heads(variance, pruned)
    mean = (variance * remaining).sum(dim=1) / remaining.sum(dim=1)
    weights = (-mean.clamp(min=torch.finfo(mean.dtype).tiny).log()).softmax(dim=0)
    lowest = weights.min() if from_zero else torch.zeros(())
    return (weights - lowest) / (weights.max() - lowest).clamp(min=torch.finfo(mean.dtype).tiny)


def remaining_heads(like: Tensor, pruned: Collection[tuple[int, int]]) -> Tensor:
    """1 for heads that are not pruned and 0 for others, (layers, heads), in the precision of ``like``."""
    remaining = torch.ones_like(like)
    for layer, head in pruned:
        remaining[layer, head] = 0
    return remaining


def attention_penalty(rows: Tensor, weights: Tensor, over_batch: bool = False) -> Tensor:
    """The sum of the norms of the readout token's attention, weighted by head; a scalar with gradients.

    Args:
        rows: (layers, batch, heads, length), attention of the readout token, 0 at padding.
        weights: (layers, heads), the layer's coefficient, 0 for pruned heads.
        over_batch: take one norm over all texts of the batch, as the published code does; otherwise the mean of the
            norms of the texts, times the root of ``PUBLISHED_BATCH``.

    >>> rows = torch.full((1, 2, 1, 4), 0.25)
    >>> round(attention_penalty(rows, torch.ones(1, 1)).item(), 4), 0.5 * 32**0.5
    (2.8284, 2.8284271247461903)
    """
    squares = rows.square().sum(dim=-1)  # softmax rows are never all zero
    norms = squares.sum(dim=1).sqrt() if over_batch else squares.sqrt().mean(dim=1) * PUBLISHED_BATCH**0.5
    return (norms * weights).sum()
