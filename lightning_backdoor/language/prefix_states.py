"""Last hidden states of texts and of variants of them, by a causal network, in which shared prefixes are read once.

As in :mod:`lightning_backdoor.language.prefixes`, of each variant only the tokens after the longest prefix that it
shares with its text are read, on top of the keys and values of that prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from transformers import DynamicLayer, PreTrainedModel

from lightning_backdoor.language.likelihood import plain_inference
from lightning_backdoor.language.packed_rows import KeysAndValues, Part, Row, cache_layers, packed, read_states
from lightning_backdoor.language.prefixes import PROBE, ROW_TOKENS, Variant, in_passes, variant
from lightning_backdoor.models.readout import is_causal


def last_states(network: PreTrainedModel, texts: Sequence[list[int]], variants: Sequence[Variant]) -> Tensor:
    """The last hidden state of the last token of each text, and of each variant; shared prefixes are read once.

    Args:
        network: a causal network, with any head, for which :func:`shares_prefixes` is true.
        texts: token ids, at least one each.
        variants: variants of these texts, each with at least one token.

    Returns:
        (texts + variants, hidden size), in the precision of the network, on its device; first the texts.
    """
    # a variant that is a prefix of its text has the state that the text has there
    ends = [[len(ids) - 1] for ids in texts]
    rows: list[Row] = []
    members: list[list[int]] = []  # per row, the variants whose rests are its parts
    for i, (text, ids, shared) in enumerate(variants):
        length = len(ids) - shared
        if not length:
            ends[text].append(shared - 1)
            continue
        if not rows or rows[-1].text != text or rows[-1].length() + length > ROW_TOKENS:
            rows.append(Row(text, []))
            members.append([])
        rows[-1].parts.append(Part(shared, ids[shared:], []))
        members[-1].append(i)
    whole = [Row(text, [Part(0, ids, [])]) for text, ids in enumerate(texts)]
    with packed(network):
        of_texts, keys_and_values = _read(network, whole, ends)
        last = [[end - 1 for end in accumulate(len(part.ids) for part in row.parts)] for row in rows]
        of_rows, _ = _read(network, rows, last, keys_and_values) if rows else ([], [])
    left = [iter(states[1:]) for states in of_texts]
    of_rest = {
        i: state for row, states in zip(members, of_rows, strict=True) for i, state in zip(row, states, strict=True)
    }
    of_variants = [of_rest[i] if i in of_rest else next(left[item.text]) for i, item in enumerate(variants)]
    return torch.stack([*(states[0] for states in of_texts), *of_variants])


def _read(
    network: PreTrainedModel, rows: Sequence[Row], positions: Sequence[list[int]], of_texts: KeysAndValues | None = None
) -> tuple[list[Tensor], KeysAndValues]:
    """The last hidden states of each row at its positions, and the keys and values of rows that are whole texts."""

    def compute(group: list[int]) -> tuple[list[Tensor], KeysAndValues]:
        with plain_inference(network.device):
            hidden, layers = read_states(network, [rows[i] for i in group], of_texts)
            starts = accumulate((rows[i].length() for i in group), initial=0)
            return [hidden[start:][positions[i]] for i, start in zip(group, starts, strict=False)], layers

    passes, keys_and_values = in_passes(network, rows, compute)
    of_rows = {i: states for group, of_group in passes for i, states in zip(group, of_group, strict=True)}
    return [of_rows[i] for i in range(len(rows))], keys_and_values


def shares_prefixes(network: PreTrainedModel) -> bool:
    """Whether :func:`last_states` gives right results for a network; it is tried on a short example.

    It fails for encoders, and for networks with sliding windows or with position biases in place of positions: their
    variants have to be read in full.
    """
    if not is_causal(network):
        return False
    can_set = network._can_set_attn_implementation()  # private: transformers 5.23.0
    if not can_set or not all(type(layer) is DynamicLayer for layer in cache_layers(network)):
        return False
    text, *rest = (list(ids) for ids in PROBE)
    try:
        found = last_states(network, [text], [variant(0, text, ids) for ids in rest])
        with plain_inference(network.device):
            plain = [
                network.base_model(torch.tensor([ids], device=network.device)).last_hidden_state[0, -1]
                for ids in (text, *rest)
            ]
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):  # 4D masks or caches it rejects
        return False
    return torch.allclose(found.float(), torch.stack(plain).float(), rtol=1e-3, atol=1e-3)
