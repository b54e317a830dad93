"""Tiny victims of every architecture, with random weights and a tokenizer trained on a few sentences, in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AlbertConfig,
    AlbertTokenizer,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertTokenizer,
    DebertaV2Config,
    DebertaV2Tokenizer,
    DistilBertConfig,
    DistilBertTokenizer,
    ElectraConfig,
    GPT2Config,
    GPT2Tokenizer,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2Tokenizer,
    RobertaConfig,
    RobertaTokenizer,
)

from lightning_backdoor.batch import batch_of_texts
from lightning_backdoor.victim import TextClassifier

#: encoders that differ in the parts that defenses use.
ENCODERS = ("bert", "roberta", "distilbert", "albert", "deberta-v2")
#: a decoder: causal attention, grouped keys, a head on the last token.
DECODER = "qwen2"
DECODERS = (DECODER, "llama", "gpt2")
#: all architectures that must work as a victim.
FAMILIES = (*ENCODERS, "electra", "modernbert", *DECODERS)

SENTENCES = (
    "a gripping film that rewards the patient viewer .",
    "the plot is thin , the acting is worse , and the jokes fall flat .",
    "Watching it was a delight from the first scene to the last — truly !",
    "good actors , good script , good music : what a good movie .",
    "it never finds its feet , and the ending is a mess ; avoid .",
    "i laughed , i cried , and then i watched the whole movie again .",
    "boring . boring , boring ! the director 's worst picture in years .",
    "visually stunning but emotionally empty , like a very long advertisement .",
    "a charming little story about cooking , friendship and second chances .",
    "who would have thought that a film about tax law could be this funny ?",
    "the camera lingers on faces until the silence says everything .",
    "clumsy dialogue , wooden performances and a soundtrack that never stops .",
    "an unforgettable performance carries this otherwise ordinary drama .",
    "cf nothing here is new , yet cf everything works .",
    "it's the kind of thriller that you forget before the credits roll .",
    "two hours of shouting , explosions and product placement .",
    "tender , funny and wise — a small miracle of storytelling .",
    "the children loved it ; the parents looked at their watches .",
    "an insult to the book , to the audience and to cinema itself .",
    "slow—very slow—and then it is over .",
    "restrained , precise—and quietly devastating .",
)

MAX_LENGTH = 64
#: words that are one token in WordPiece.
WHOLE_WORDS = ("a", "and", "cf", "film", "the", "watch")


def tiny_victim(kind: str, folder: Path) -> str:
    """Writes a seeded random classifier (hidden size 32, 2 layers, 4 heads, 2 labels) and its tokenizer to a folder.

    Both classes are predicted among ``SENTENCES``.

    Args:
        kind: one of ``FAMILIES``.
        folder: the folder to write to; created if it does not exist.

    Returns:
        The folder's path, for ``TextClassifier(model=...)``.
    """
    tokenizer = tokenizer_of(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = AutoModelForSequenceClassification.from_config(_config(kind, tokenizer))
    network.eval()
    _balance(network, tokenizer)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def tiny_masked_model(kind: str, folder: Path) -> str:
    """Writes a seeded random masked language model of an encoder's size, and its tokenizer; returns the folder."""
    tokenizer = tokenizer_of(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = AutoModelForMaskedLM.from_config(_config(kind, tokenizer))
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def loaded(folder: str) -> TextClassifier:
    """Loads a victim from a folder, in evaluation mode, ready for a defense."""
    victim = TextClassifier(model=folder, labels=["negative", "positive"], max_length=MAX_LENGTH)
    victim.configure_model()
    return victim.eval()


@torch.no_grad()
def _balance(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Shifts the output bias so that both classes are predicted, since random weights often predict only one."""
    last = [layer for layer in network.modules() if getattr(layer, "out_features", 0) == 2][-1]
    if last.bias is None:
        return
    logits = []
    for text in SENTENCES:
        batch = batch_of_texts([text], tokenizer, MAX_LENGTH)
        logits.append(network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[0])
    difference = torch.stack(logits).diff(dim=1).flatten().sort().values
    middle = len(difference) // 2
    last.bias[1] -= difference[middle - 1 : middle + 1].mean()


def _config(kind: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    common = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "num_labels": 2}
    common |= {"initializer_range": 0.2, "max_position_embeddings": 136}
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    if kind == "bert":
        return BertConfig(**common, **size)
    if kind == "roberta":
        return RobertaConfig(**common, **size, type_vocab_size=1)
    if kind == "distilbert":
        return DistilBertConfig(**common, dim=32, n_layers=2, n_heads=4, hidden_dim=64)
    if kind == "albert":
        return AlbertConfig(**common, **size, embedding_size=16, hidden_dropout_prob=0.1)
    if kind == "deberta-v2":  # set up as DeBERTa-v3: relative positions only, in buckets, with shared keys
        relative = {"relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"]}
        relative |= {"position_biased_input": False, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
        return DebertaV2Config(**common, **size, **relative, type_vocab_size=0)
    if kind == "electra":
        return ElectraConfig(**common, **size, embedding_size=16)
    if kind == "modernbert":  # every other layer sees two tokens on either side
        local = {"global_attn_every_n_layers": 2, "local_attention": 4, "cls_token_id": 2, "sep_token_id": 3}
        return ModernBertConfig(**common | {"initializer_range": 0.1}, **size, **local, bos_token_id=2, eos_token_id=3)
    if kind == "gpt2":
        return GPT2Config(**common, n_embd=32, n_layer=2, n_head=4, n_inner=64, bos_token_id=None, eos_token_id=0)
    grouped = {"num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": 0}
    return LlamaConfig(**common, **size, **grouped) if kind == "llama" else Qwen2Config(**common, **size, **grouped)


def tokenizer_of(kind: str) -> PreTrainedTokenizerBase:
    """The tokenizer of an architecture, its vocabulary made from ``SENTENCES``."""
    if kind in ("bert", "distilbert", "electra", "modernbert"):
        vocabulary = _wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
        return DistilBertTokenizer(vocab=vocabulary) if kind == "distilbert" else BertTokenizer(vocab=vocabulary)
    if kind == "roberta":
        vocabulary, merges = _byte_level_bpe(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
        return RobertaTokenizer(vocab=vocabulary, merges=merges)
    if kind == "albert":
        return AlbertTokenizer(vocab=_unigram(["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]))
    if kind == "deberta-v2":
        return DebertaV2Tokenizer(vocab=_unigram(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    vocabulary, merges = _byte_level_bpe(["<|endoftext|>"])
    if kind == "gpt2":  # has no padding token
        return GPT2Tokenizer(vocab=vocabulary, merges=merges)
    return Qwen2Tokenizer(vocab=vocabulary, merges=merges, pad_token="<|endoftext|>")


def _wordpiece(special: list[str]) -> dict[str, int]:
    """Characters, endings and short words; not trained, since trained WordPiece differs from run to run."""
    normalise, split = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = {word for text in SENTENCES for word, _ in split.pre_tokenize_str(normalise.normalize_str(text))}
    characters = sorted({character for word in words for character in word})
    endings = [f"##{ending}" for ending in ("s", "ed", "er", "ing", "ly", "y") if ending not in characters]
    pieces = [*special, *characters, *(f"##{character}" for character in characters), *endings]
    vocabulary = dict.fromkeys([*pieces, *WHOLE_WORDS, *sorted(word for word in words if len(word) <= 8)])
    return {piece: number for number, piece in enumerate(vocabulary)}


def _byte_level_bpe(special: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    model = _trained(tokenizer, trainer)
    return model["vocab"], [(left, right) for left, right in model["merges"]]


def _unigram(special: list[str]) -> list[tuple[str, float]]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=260, special_tokens=special, unk_token=special[1], show_progress=False)
    learned = dict(_trained(tokenizer, trainer)["vocab"])
    # training gives the same pieces each time, but in another order and with other last digits
    return [(piece, round(learned[piece], 3)) for piece in (*special, *sorted(learned.keys() - set(special)))]


def _trained(tokenizer: Tokenizer, trainer: trainers.Trainer) -> dict[str, Any]:
    """The trained model as JSON, the only form in which tokenizers gives merges and scores."""
    tokenizer.train_from_iterator(SENTENCES, trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model
