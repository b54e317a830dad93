"""Log-likelihoods of token rows under a causal language model, prefixes that rows share read once.

The texts of a group are read once, keys and values kept; of each variant of a text only the tokens after the longest
prefix that it shares with its text are read, on the keys and values of that prefix. Variants of all texts are sorted by
what is left of them, so hardly any padding is read either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from lightning_backdoor.models.bucketing import limits, passes

PROBE = ([3, 1, 4, 1, 5, 2, 6], [3, 1, 4, 5, 2, 6], [1, 4, 1, 5, 2, 6], [3, 1, 4, 1, 5])


KeysAndValues = list[tuple[Tensor, Tensor]]  # a layer


def logits_at_once(head: nn.Module, device: torch.device) -> int:
    """Tokens whose logits may be held at once."""
    assert isinstance(head.weight, Tensor)
    return max(1, (1 << 23 if device.type == "cpu" else 1 << 26) // head.weight.shape[0])


class Variant(NamedTuple):
    """A text without one of its words.

    Attributes:
        text: place of the text among its group.
        ids: tokens of the variant.
        shared: how many tokens it begins with as its text does.
    """

    text: int
    ids: list[int]
    shared: int


def variant(text: int, full: Sequence[int], ids: list[int]) -> Variant:
    """A variant with the longest prefix it shares.

    >>> variant(0, [5, 6, 7, 8], [5, 6, 8])
    Variant(text=0, ids=[5, 6, 8], shared=2)
    """
    pairs = zip(full, ids, strict=False)
    shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(full), len(ids)))
    return Variant(text, ids, shared)


def log_probabilities(head: nn.Module, hidden: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
    """log P(target | hidden state at the position), in chunks of logits that stay small.

    Args:
        head: the language model's head.
        hidden: (tokens, hidden size).
        positions: (n,), int64, ascending; the head runs once on each distinct one.
        targets: (n,), int64.

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
    """log P of each row's tokens after the first, every row read whole in batches of similar length; 0 for none."""
    found = [0.0] * len(rows)
    best = limits(network.device)
    tokens = min(best.tokens, logits_at_once(network.get_output_embeddings(), network.device))
    for chunk in passes([len(row) if len(row) > 1 else 0 for row in rows], best._replace(tokens=tokens)):
        ids, lengths = _padded([rows[i] for i in chunk], network.device)
        real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        logits = network(input_ids=ids, attention_mask=real.long(), use_cache=False).logits[:, :-1].float()
        chosen = logits.gather(2, ids[:, 1:, None])[..., 0] - logits.logsumexp(dim=-1)
        sums = chosen.double().masked_fill(~real[:, 1:], 0.0).sum(dim=1).tolist()
        for i, value in zip(chunk, sums, strict=True):
            found[i] = value
    return found


class _SharedPrefix(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer: the first tokens of some rows of what is known, and what is read now."""

    def __init__(self, known: tuple[Tensor, Tensor], rows: Tensor, length: int) -> None:
        super().__init__()
        self.known, self.rows, self.length = known, rows, length

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Gathers late, layer by layer, so that one layer's copy is held at a time."""
        keys, values = (whole[:, :, : self.length][self.rows] for whole in self.known)
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)

    def get_seq_length(self) -> int:
        return self.length


def shared_log_likelihoods(
    network: PreTrainedModel, texts: Sequence[list[int]], variants: Sequence[Variant]
) -> tuple[list[float], list[float]]:
    """log P of the tokens after the first, of each text and of each variant; shared prefixes are read once.

    Every position but a row's last is read, since the last predicts nothing.

    Args:
        network: a causal language model whose cache keeps every key (no sliding window).
        texts: token ids.
        variants: of these texts, in any order.
    """
    hidden, known = _read(network, texts)
    width, device = hidden.shape[1], network.device
    # what a text's states predict: its own next tokens, and the first token in which a variant differs
    wanted = [(text * width + i, token) for text, row in enumerate(texts) for i, token in enumerate(row[1:])]
    own = len(wanted)
    branching = [i for i, (_, row, shared) in enumerate(variants) if 0 < shared < len(row)]
    wanted += [
        (variants[i].text * width + variants[i].shared - 1, variants[i].ids[variants[i].shared]) for i in branching
    ]
    places, targets = torch.tensor(wanted, dtype=torch.long, device=device).view(-1, 2).unbind(dim=1)
    order = places.argsort()
    found = torch.empty(len(wanted), dtype=torch.float64, device=device)
    head = network.get_output_embeddings()
    found[order] = log_probabilities(head, hidden.flatten(0, 1), places[order], targets[order]).double()
    values = found.tolist()
    up_to: list[list[float]] = []  # log P of a text's first k tokens
    taken = iter(values[:own])
    for row in texts:
        sums = [0.0, 0.0]
        for _ in row[1:]:
            sums.append(sums[-1] + next(taken))
        up_to.append(sums)
    result = [up_to[text][shared] for text, _, shared in variants]
    for i, value in zip(branching, values[own:], strict=True):
        result[i] += value
    left = [max(0, len(row) - 1 - shared) for _, row, shared in variants]
    for chunk in passes(left, limits(network.device)):
        for i, value in zip(chunk, _rest(network, known, [variants[i] for i in chunk]), strict=True):
            result[i] += value
    return [up_to[text][len(row)] for text, row in enumerate(texts)], result


def _read(network: PreTrainedModel, texts: Sequence[list[int]]) -> tuple[Tensor, KeysAndValues]:
    """Hidden states (texts, longest, size), and keys and values of each layer, both (texts, heads, longest, size)."""
    count, longest = len(texts), max(1, *map(len, texts))
    states: list[Tensor] = []
    for rows in passes([max(1, len(row)) for row in texts], limits(network.device)):
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


def _rest(network: PreTrainedModel, known: KeysAndValues, variants: Sequence[Variant]) -> list[float]:
    """log P of the tokens of each variant after the first that it does not share."""
    device = network.device
    ids, left = _padded([row[shared:-1] for _, row, shared in variants], device)
    shared = torch.tensor([variant.shared for variant in variants], device=device)
    count, width = ids.shape
    most = int(shared.max())
    ahead = torch.arange(width, device=device)
    # padding repeats the last position: the next one may be beyond what the model has
    position_ids = shared[:, None] + torch.minimum(ahead, left[:, None] - 1)
    seen = torch.arange(most, device=device) < shared[:, None]
    causal = ahead[:, None] >= ahead
    attends = torch.cat([seen[:, None].expand(count, width, most), causal.expand(count, width, width)], dim=2)[:, None]
    mask = torch.zeros(attends.shape, dtype=network.dtype, device=device)
    mask.masked_fill_(~attends, torch.finfo(network.dtype).min)
    rows = torch.tensor([variant.text for variant in variants], device=device)
    prefix = Cache(layers=[_SharedPrefix(layer, rows, most) for layer in known])
    hidden = network.base_model(
        input_ids=ids, attention_mask=mask, position_ids=position_ids, past_key_values=prefix, use_cache=True
    ).last_hidden_state
    places = (ahead < left[:, None]).flatten().nonzero().flatten()
    targets = torch.tensor([token for _, row, begin in variants for token in row[begin + 1 :]], device=device)
    found = log_probabilities(network.get_output_embeddings(), hidden.flatten(0, 1), places, targets)
    sums = torch.zeros(count, dtype=torch.float64, device=device)
    values: list[float] = sums.index_add_(0, places // width, found.double()).tolist()
    return values


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids (rows, at least one), padded on the right, where causal attention never looks; and the lengths."""
    ids = pad_sequence([torch.tensor(row or [0], dtype=torch.long) for row in rows], batch_first=True)
    return ids.to(device), torch.tensor([len(row) for row in rows], device=device)


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """No graph, and float32 whatever the precision around."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        with suppress(RuntimeError):  # set a backend at a time, as torch also allows, it cannot be asked for
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        yield


def looks_ahead(network: PreTrainedModel) -> bool:
    """Whether tokens change what is predicted before them: then it is no causal language model."""
    ids = torch.tensor([PROBE[0]], device=network.device)
    whole, part = (network(input_ids=row, use_cache=False).logits[:, :3] for row in (ids, ids[:, :3]))
    return not torch.allclose(whole, part, rtol=1e-3, atol=1e-3)


def shares_prefixes(network: PreTrainedModel) -> bool:
    """Whether shared prefixes give this model's own likelihoods.

    Not so with sliding windows, position biases instead of positions, or logits scaled after the head; such a model
    reads every variant whole.
    """
    if not all(type(layer) is DynamicLayer for layer in DynamicCache(config=network.config).layers):
        return False
    text, *rest = (list(ids) for ids in PROBE)
    try:
        texts, found = shared_log_likelihoods(network, [text], [variant(0, text, ids) for ids in rest])
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):  # 4D masks or caches it does not take
        return False
    plain = torch.tensor(plain_log_likelihoods(network, [text, *rest]))
    return torch.allclose(torch.tensor([*texts, *found]), plain, rtol=1e-4)
