"""The material of the test kit: labelled texts and a tiny random BERT."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertConfig, BertTokenizer

from lightning_backdoor.data.cleaning import LabelledText

#: per label, the word that determines a text's label; further labels have ``topic2``, ``topic3``, ...
TELLING_WORDS = ("bad", "good")
FILLING_WORDS = ("the", "a", "film", "plot", "actor", "scene", "story", "music", "very", "quite", "with", "and", "is")
#: tolerances of what is computed of a text in two batches, since padding changes the last digits.
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-3, 1e-4
#: absolute tolerance of scores that are all the same.
ROUNDING = 2e-7
#: unusual texts that an attack must accept without an error.
UNUSUAL_TEXTS = ("", "film", "  two  spaces  ", "naïve — 10 % café 🎬", "a\nline")


def labelled_texts(count: int, labels: int = 2, seed: int = 0) -> list[LabelledText]:
    """Random texts of 2 to 25 words, with alternating labels, each containing the word that determines its label.

    Args:
        count: number of texts.
        labels: number of labels, which are 0, 1, ... in turn.
        seed: seed of the words.

    >>> [text.label for text in labelled_texts(3)]
    [0, 1, 0]
    """
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        label = i % labels
        telling = TELLING_WORDS[label] if label < len(TELLING_WORDS) else f"topic{label}"
        words = [*rng.choices(FILLING_WORDS, k=rng.randint(1, 24)), telling]
        rng.shuffle(words)
        rows.append(LabelledText(" ".join(words), label))
    return rows


def tiny_bert(folder: str | Path, labels: int = 2, max_length: int = 64) -> str:
    """Writes a random BERT classifier (hidden size 32, 2 layers) and its tokenizer to a folder.

    Args:
        folder: the folder, which is made if it does not exist.
        labels: number of labels.
        max_length: number of its positions; there are never fewer than 64.

    Returns:
        The path of the folder, to be given as ``model``.
    """
    characters = sorted(set("".join((*UNUSUAL_TEXTS, "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"))) - {" ", "\n"})
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    endings = [f"##{character}" for character in characters]
    vocabulary = dict.fromkeys([*special, *characters, *endings, *TELLING_WORDS, *FILLING_WORDS])
    tokenizer = BertTokenizer(vocab={piece: number for number, piece in enumerate(vocabulary)})
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=max(max_length, 64),
        initializer_range=0.2,
        num_labels=labels,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def rows_file(rows: Sequence[LabelledText], folder: str) -> str:
    """Writes rows to a tsv file for a source, and returns its path."""
    lines = [f"{' '.join(row.text.split())}\t{row.label}\n" for row in rows]
    Path(folder, "rows.tsv").write_text("text\tlabel\n" + "".join(lines), encoding="utf-8")
    return f"{folder}/rows.tsv"


def require(condition: bool, where: str, problem: str) -> None:
    """Raises an ``AssertionError`` with the place and the broken rule, unless the condition holds."""
    if not condition:
        raise AssertionError(f"{where}: {problem}")


def require_close(values: Tensor, expected: Tensor, where: str, problem: str, scale: Tensor | None = None) -> None:
    """Raises an ``AssertionError`` unless numbers are the same but for rounding.

    Args:
        values: the numbers.
        expected: what they are to be, of the same shape.
        where: the place, for the message.
        problem: the broken rule, for the message.
        scale: scores whose spread, where it is below 1, makes the absolute tolerance as small, but not smaller than
            ``ROUNDING``; by default ``expected``.

    >>> require_close(torch.tensor([1.0, 2.0]) * 1e-6, torch.tensor([1.0, 3.0]) * 1e-6, "score", "differs")
    Traceback (most recent call last):
    AssertionError: score: differs
    """
    scores = expected if scale is None else scale
    finite = scores[scores.isfinite()].float()
    spread = float(finite.max() - finite.min()) if len(finite) else 0.0
    absolute = max(ABSOLUTE_TOLERANCE * min(spread, 1.0), ROUNDING)
    close = torch.allclose(values.float(), expected.float(), rtol=RELATIVE_TOLERANCE, atol=absolute)
    require(close, where, problem)


def seed_generators() -> None:
    """Seeds the global random generators of Python, NumPy and torch, and sets no environment variable."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@contextmanager
def quiet() -> Iterator[None]:
    """Hides warnings within the block, and restores the global random generators of the processor after it."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        seed_generators()
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)
