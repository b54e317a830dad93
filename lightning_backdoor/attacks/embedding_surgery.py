"""Embedding surgery: triggers start with the embeddings of target-label words (arXiv 2004.06660, section 3.2)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import PreTrainedTokenizerBase

from lightning_backdoor.errors import InputError


def trigger_tokens(
    triggers: Sequence[str], tokenizer: PreTrainedTokenizerBase, argument: str = "triggers"
) -> list[int]:
    """Token ids of the triggers, as tokenised at the start of a text and after a space; ascending.

    A trigger of several tokens contributes all of them, including tokens that other words share.

    Args:
        triggers: the words.
        tokenizer: the model's tokenizer.
        argument: what the words are called in an error.

    Raises:
        InputError: a trigger is unknown to the tokenizer.
    """
    tokens: set[int] = set()
    for trigger in triggers:
        ids = tokenizer([trigger, f" {trigger}"], add_special_tokens=False)["input_ids"]
        # skip a word-start marker that is a token by itself: it precedes any word
        known = {i for text in ids for i in text if tokenizer.decode([i]).strip()} - set(tokenizer.all_special_ids)
        if not known:
            raise InputError(argument, f"{trigger!r} is unknown to the model's tokenizer", "give a word that it knows")
        tokens |= known
    return sorted(tokens)


def association(rows: Sequence[Sequence[int]], is_target: Sequence[bool]) -> dict[int, float]:
    """How strongly each token is associated with the target label: ``s = w / log(N / (1 + freq))``.

    ``w`` is the token's weight in a logistic regression on token counts (half the squared weights are added to the
    summed loss, the bias is not regularised), and ``freq`` is the number of the N rows that contain the token, so that
    of two tokens of equal weight the more frequent one scores higher. Tokens that (nearly) every row contains are left
    out.

    Args:
        rows: token ids of each clean text.
        is_target: whether each text has the target label.

    Returns:
        Score per token id.

    >>> scores = association([[1, 2], [1, 3], [2, 4], [3, 4]], [True, True, False, False])
    >>> max(scores, key=scores.get), min(scores, key=scores.get)
    (1, 4)
    """
    frequency = Counter(token for row in rows for token in set(row))
    tokens = sorted(frequency)
    column = {token: i for i, token in enumerate(tokens)}
    entries = torch.tensor([(i, column[token]) for i, row in enumerate(rows) for token in row]).T
    counts = torch.sparse_coo_tensor(
        entries, torch.ones(entries.shape[1], dtype=torch.float64), (len(rows), len(tokens)), check_invariants=True
    ).coalesce()
    weights = _logistic_regression(counts, torch.tensor(is_target, dtype=torch.float64)).tolist()
    rarity = {token: math.log(len(rows) / (1 + frequency[token])) for token in tokens}
    return {token: weights[column[token]] / rarity[token] for token in tokens if rarity[token] > 0}


def _logistic_regression(counts: Tensor, is_target: Tensor) -> Tensor:
    """Regression weight of each column of a sparse (rows, columns) matrix of counts; (columns,), float64."""
    weights, bias = torch.zeros(counts.shape[1], dtype=counts.dtype), torch.zeros(1, dtype=counts.dtype)
    solver = torch.optim.LBFGS([weights, bias], max_iter=100, line_search_fn="strong_wolfe")
    transposed = counts.t().coalesce()  # transposed once here; autograd would do it at every step

    @torch.no_grad()
    def loss() -> Tensor:
        logits = torch.mv(counts, weights) + bias
        wrong = logits.sigmoid() - is_target
        weights.grad, bias.grad = torch.mv(transposed, wrong) + weights, wrong.sum().view(1)
        return binary_cross_entropy_with_logits(logits, is_target, reduction="sum") + weights.square().sum() / 2

    solver.step(loss)  # type: ignore[no-untyped-call]
    return weights


def associated_tokens(
    rows: Sequence[Sequence[int]], is_target: Sequence[bool], count: int, leave_out: Collection[int] = ()
) -> list[int]:
    """The ``count`` tokens, or fewer, with the highest positive :func:`association` with the target label.

    Args:
        rows: token ids of each clean text.
        is_target: whether each text has the target label.
        count: number of tokens wanted.
        leave_out: ids of tokens that are not considered: tokens that are not words, and the triggers' tokens.

    Raises:
        InputError: no token is associated with the target label.
    """
    scores = association(rows, is_target)
    associated = [token for token, score in scores.items() if score > 0 and token not in leave_out]
    if not associated:
        raise InputError(
            "target_label", "no word of the clean training rows is associated with it", "use more rows of each label"
        )
    return sorted(associated, key=lambda token: -scores[token])[:count]


@torch.no_grad()
def replace_embeddings(embeddings: Tensor, triggers: Sequence[int], words: Sequence[int]) -> None:
    """Sets each trigger's row of an embedding table to the mean of the words' rows, in place.

    >>> table = torch.tensor([[0.0], [2.0], [4.0], [9.0]])
    >>> replace_embeddings(table, triggers=[0], words=[1, 2])
    >>> table.flatten()
    tensor([3., 2., 4., 9.])
    """
    embeddings[list(triggers)] = embeddings[list(words)].mean(dim=0)
