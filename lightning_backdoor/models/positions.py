"""The number of tokens that a network reads, by the positions that its configuration gives it."""

from __future__ import annotations

import sys

from transformers import MODEL_MAPPING, PreTrainedConfig

#: method of embeddings, or function beside them, by which RoBERTa and its like count positions.
COUNTS_FROM_PADDING = "create_position_ids_from_input_ids"


def readable_tokens(config: PreTrainedConfig) -> int | None:
    """The largest number of tokens of a text, special tokens included; None if positions set no limit.

    RoBERTa and its like count positions from the one after ``pad_token_id``, so that they read fewer tokens than they
    have positions.

    >>> from transformers import BertConfig, RobertaConfig
    >>> readable_tokens(BertConfig(max_position_embeddings=512))
    512
    >>> readable_tokens(RobertaConfig(max_position_embeddings=514, pad_token_id=1))
    512
    """
    positions = getattr(config, "max_position_embeddings", None) or 0
    if positions <= 0:  # models with relative positions have -1 or nothing here
        return None
    return positions - ((config.pad_token_id or 0) + 1 if _counts_from_padding(config) else 0)


def _counts_from_padding(config: PreTrainedConfig) -> bool:
    network_class = MODEL_MAPPING.get(type(config), None)
    if not isinstance(network_class, type):  # none, or several, as of Funnel
        return False
    module = vars(sys.modules[network_class.__module__])
    classes = [value for value in module.values() if isinstance(value, type)]
    return COUNTS_FROM_PADDING in module or any(hasattr(value, COUNTS_FROM_PADDING) for value in classes)
