"""The vocabulary of a pretrained tokenizer, checked against texts and against the network's embeddings."""

from __future__ import annotations

from itertools import islice

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from lightning_backdoor.errors import InputError


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Checks that a tokenizer tells texts apart; for a model without a tokenizer, transformers makes an empty one.

    Raises:
        InputError: the tokenizer has special tokens alone, or encodes all texts alike.
    """
    special = set(tokenizer.all_special_tokens)
    words = list(islice((token for token in tokenizer.get_vocab() if token not in special), 50))
    texts = [tokenizer.convert_tokens_to_string([word]) for word in words]
    if len({tuple(ids) for ids in tokenizer(texts)["input_ids"]} if texts else ()) < 2:
        problem = f"{name!r} has no tokenizer, or one without a vocabulary"
        raise InputError("model", problem, "add its tokenizer.json, or the vocabulary files of the model it comes from")


def check_embeddings(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, name: str) -> None:
    """Checks that every token has an embedding.

    Raises:
        InputError: the tokenizer has token ids beyond the network's embeddings.
    """
    rows = getattr(config.get_text_config(), "vocab_size", None)
    tokens = max(tokenizer.get_vocab().values(), default=-1) + 1
    if isinstance(rows, int) and tokens > rows:
        problem = f"the tokenizer of {name!r} has {tokens} tokens, its network {rows} embeddings"
        raise InputError("model", problem, "resize the embeddings, or give the tokenizer that belongs to the model")
