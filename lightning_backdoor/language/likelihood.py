"""Log-likelihoods of token sequences under a causal language model, with shared prefixes computed once.

A *variant* is a text without one of its words. All texts of a group are read once, and their keys and values kept. Of
each variant, only the tokens after the longest prefix that it shares with its text are read, on top of the keys and
values of that prefix. Variants are grouped by the number of tokens that remain to be read, so little padding is
computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache, DynamicLayer, PreTrainedModel

from lightning_backdoor.models.bucketing import group_by_length, pass_limits

#: token ids of a text and of variants of it, on which a model is tried: ids that every vocabulary has.
PROBE = ([3, 1, 4, 1, 5, 2, 6], [3, 1, 4, 5, 2, 6], [1, 4, 1, 5, 2, 6], [3, 1, 4, 1, 5])

#: keys and values of each layer, each (texts, heads, tokens, size).
KeysAndValues = list[tuple[Tensor, Tensor]]


def logits_at_once(head: nn.Module, device: torch.device) -> int:
    """The number of tokens whose logits are held in memory at once: 32 MiB on a processor, 256 MiB elsewhere."""
    assert isinstance(head.weight, Tensor)
    return max(1, (1 << 23 if device.type == "cpu" else 1 << 26) // head.weight.shape[0])


class Variant(NamedTuple):
    """A text without one of its words, as tokens.

    Attributes:
        text: index of the text in its group.
        ids: token ids of the variant.
        shared: length of the longest prefix that the variant's tokens share with those of its text.
    """

    text: int
    ids: list[int]
    shared: int


def variant(text: int, full: Sequence[int], ids: list[int]) -> Variant:
    """Makes a variant, with the length of the longest prefix that it shares with its text.

    Args:
        text: index of the text in its group.
        full: token ids of the text.
        ids: token ids of the variant.

    >>> variant(0, [5, 6, 7, 8], [5, 6, 8])
    Variant(text=0, ids=[5, 6, 8], shared=2)
    """
    pairs = zip(full, ids, strict=False)
    shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(full), len(ids)))
    return Variant(text, ids, shared)


def log_probabilities(head: nn.Module, hidden: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
    """log P(target token | hidden state at its position), computed in chunks to bound the memory of the logits.

    Args:
        head: the language model's output layer.
        hidden: (tokens, hidden size).
        positions: (n,), int64, ascending rows of ``hidden``; the head is applied once to each distinct one.
        targets: (n,), int64, token ids.

    Returns:
        (n,), float32.
    """
    out = torch.empty(len(positions), device=hidden.device)
    distinct, row = torch.unique_consecutive(positions, return_inverse=True)
    size = logits_at_once(head, hidden.device)
    starts = range(0, len(distinct), size)
    bounds = torch.searchsorted(row, torch.tensor([*starts, len(distinct)], device=row.device)).tolist()
    for start, first, last in zip(starts, bounds, bounds[1:], strict=False):
        logits = head(hidden[distinct[start : start + size]]).float()
        part = row[first:last] - start
        out[first:last] = logits[part, targets[first:last]] - logits.logsumexp(dim=-1)[part]
    return out


def plain_log_likelihoods(network: PreTrainedModel, rows: Sequence[list[int]]) -> list[float]:
    """log P (natural logarithm) of each row's tokens after the first; every row is read whole.

    Rows are read in batches of similar length.

    Args:
        network: a causal language model.
        rows: token ids; rows of fewer than two tokens get 0.
    """
    log_likelihoods = [0.0] * len(rows)
    limits = pass_limits(network.device)
    tokens = min(limits.tokens, logits_at_once(network.get_output_embeddings(), network.device))
    lengths_to_read = [len(row) if len(row) > 1 else 0 for row in rows]
    for group in group_by_length(lengths_to_read, limits._replace(tokens=tokens)):
        ids, lengths = _padded([rows[i] for i in group], network.device)
        real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        logits = network(input_ids=ids, attention_mask=real.long(), use_cache=False).logits[:, :-1].float()
        chosen = logits.gather(2, ids[:, 1:, None])[..., 0] - logits.logsumexp(dim=-1)
        sums = chosen.double().masked_fill(~real[:, 1:], 0.0).sum(dim=1).tolist()
        for i, value in zip(group, sums, strict=True):
            log_likelihoods[i] = value
    return log_likelihoods


class _SharedPrefix(DynamicLayer):  # type: ignore[misc]  # private: transformers 5.23.0
    """One layer's keys and values: in each row the stored prefix of its text, then the tokens that are read now."""

    def __init__(self, of_texts: tuple[Tensor, Tensor], text_of_row: Tensor, length: int) -> None:
        super().__init__()
        self.of_texts, self.text_of_row, self.length = of_texts, text_of_row, length

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Copies the prefixes only when the layer is computed, so that one layer's copy is in memory at a time."""
        keys, values = (states[:, :, : self.length][self.text_of_row] for states in self.of_texts)
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)

    def get_seq_length(self) -> int:
        return self.length


def shared_log_likelihoods(
    network: PreTrainedModel, texts: Sequence[list[int]], variants: Sequence[Variant]
) -> tuple[list[float], list[float]]:
    """log P of the tokens after the first, of each text and of each variant; shared prefixes are read once.

    The last token of a row is not read, since it predicts nothing.

    Args:
        network: a causal language model whose cache keeps every key (without a sliding window).
        texts: token ids.
        variants: variants of these texts, in any order.

    Returns:
        The log-likelihoods of the texts, and the log-likelihoods of the variants.
    """
    hidden, keys_and_values = _read(network, texts)
    width, device = hidden.shape[1], network.device
    # predictions from the states of a text: its own next tokens, and the first token in which a variant differs
    predictions = [(text * width + i, token) for text, row in enumerate(texts) for i, token in enumerate(row[1:])]
    own_count = len(predictions)
    branching = [i for i, (_, row, shared) in enumerate(variants) if 0 < shared < len(row)]
    predictions += [
        (variants[i].text * width + variants[i].shared - 1, variants[i].ids[variants[i].shared]) for i in branching
    ]
    positions, targets = torch.tensor(predictions, dtype=torch.long, device=device).view(-1, 2).unbind(dim=1)
    order = positions.argsort()
    log_probs = torch.empty(len(predictions), dtype=torch.float64, device=device)
    head = network.get_output_embeddings()
    log_probs[order] = log_probabilities(head, hidden.flatten(0, 1), positions[order], targets[order]).double()
    values = log_probs.tolist()
    prefix_sums: list[list[float]] = []  # per text, log P of its first k tokens by k
    own_values = iter(values[:own_count])
    for row in texts:
        sums = [0.0, 0.0]
        for _ in row[1:]:
            sums.append(sums[-1] + next(own_values))
        prefix_sums.append(sums)
    of_variants = [prefix_sums[text][shared] for text, _, shared in variants]
    for i, value in zip(branching, values[own_count:], strict=True):
        of_variants[i] += value
    to_read = [max(0, len(row) - 1 - shared) for _, row, shared in variants]
    for group in group_by_length(to_read, pass_limits(network.device)):
        rests = _rest_log_likelihoods(network, keys_and_values, [variants[i] for i in group])
        for i, value in zip(group, rests, strict=True):
            of_variants[i] += value
    return [prefix_sums[text][len(row)] for text, row in enumerate(texts)], of_variants


def _read(network: PreTrainedModel, texts: Sequence[list[int]]) -> tuple[Tensor, KeysAndValues]:
    """Hidden states (texts, longest, size), and keys and values of each layer, both (texts, heads, longest, size)."""
    count, longest = len(texts), max(1, *map(len, texts))
    states: list[Tensor] = []
    for rows in group_by_length([max(1, len(row)) for row in texts], pass_limits(network.device)):
        ids, lengths = _padded([texts[i] for i in rows], network.device)
        real = torch.arange(ids.shape[1], device=ids.device) < lengths.clamp(min=1)[:, None]
        cache = DynamicCache()
        output = network.base_model(
            input_ids=ids, attention_mask=real.long(), past_key_values=cache, use_cache=True
        ).last_hidden_state
        parts = [output[:, None], *(part for layer in cache.layers for part in (layer.keys, layer.values))]
        states = states or [part.new_zeros(count, part.shape[1], longest, part.shape[3]) for part in parts]
        for state, part in zip(states, parts, strict=True):
            state[rows, :, : ids.shape[1]] = part
    return states[0][:, 0], list(zip(states[1::2], states[2::2], strict=True))


def _rest_log_likelihoods(
    network: PreTrainedModel, keys_and_values: KeysAndValues, variants: Sequence[Variant]
) -> list[float]:
    """log P of each variant's tokens after the first one that it does not share with its text."""
    device = network.device
    ids, lengths = _padded([row[shared:-1] for _, row, shared in variants], device)
    shared = torch.tensor([variant.shared for variant in variants], device=device)
    count, width = ids.shape
    longest_shared = int(shared.max())
    offsets = torch.arange(width, device=device)
    # padding repeats the last position, since a further position may be beyond the model's last one
    position_ids = shared[:, None] + torch.minimum(offsets, lengths[:, None] - 1)
    in_prefix = torch.arange(longest_shared, device=device) < shared[:, None]
    causal = offsets[:, None] >= offsets
    attends = torch.cat(
        [in_prefix[:, None].expand(count, width, longest_shared), causal.expand(count, width, width)], dim=2
    )[:, None]
    mask = torch.zeros(attends.shape, dtype=network.dtype, device=device)
    mask.masked_fill_(~attends, torch.finfo(network.dtype).min)
    text_of_row = torch.tensor([variant.text for variant in variants], device=device)
    prefix = Cache(layers=[_SharedPrefix(layer, text_of_row, longest_shared) for layer in keys_and_values])
    hidden = network.base_model(
        input_ids=ids, attention_mask=mask, position_ids=position_ids, past_key_values=prefix, use_cache=True
    ).last_hidden_state
    positions = (offsets < lengths[:, None]).flatten().nonzero().flatten()
    targets = torch.tensor([token for _, row, begin in variants for token in row[begin + 1 :]], device=device)
    log_probs = log_probabilities(network.get_output_embeddings(), hidden.flatten(0, 1), positions, targets)
    sums = torch.zeros(count, dtype=torch.float64, device=device)
    values: list[float] = sums.index_add_(0, positions // width, log_probs.double()).tolist()
    return values


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids (rows, longest), padded on the right, to which no token attends, and the rows' lengths (rows,)."""
    ids = pad_sequence([torch.tensor(row or [0], dtype=torch.long) for row in rows], batch_first=True)
    return ids.to(device), torch.tensor([len(row) for row in rows], device=device)


@contextmanager
def float32_inference(device: torch.device) -> Iterator[None]:
    """Disables gradients within the block, and computes in full float32 whatever precision the caller has set."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        # torch raises if the precision has been set per backend
        with suppress(RuntimeError):
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        yield


def looks_ahead(network: PreTrainedModel) -> bool:
    """Whether a model's predictions depend on later tokens, as a causal language model's predictions never do."""
    ids = torch.tensor([PROBE[0]], device=network.device)
    whole, part = (network(input_ids=row, use_cache=False).logits[:, :3] for row in (ids, ids[:, :3]))
    return not torch.allclose(whole, part, rtol=1e-3, atol=1e-3)


def shares_prefixes(network: PreTrainedModel) -> bool:
    """Whether :func:`shared_log_likelihoods` gives right results for a model; it is tried on a short example.

    It fails for models with sliding windows, with position biases in place of positions, or with logits that are scaled
    after the head. For these models every variant has to be read in full.
    """
    if not all(type(layer) is DynamicLayer for layer in DynamicCache(config=network.config).layers):
        return False
    text, *rest = (list(ids) for ids in PROBE)
    try:
        of_texts, of_variants = shared_log_likelihoods(network, [text], [variant(0, text, ids) for ids in rest])
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):  # 4D masks or caches it rejects
        return False
    plain = torch.tensor(plain_log_likelihoods(network, [text, *rest]))
    return torch.allclose(torch.tensor([*of_texts, *of_variants]), plain, rtol=1e-4)
