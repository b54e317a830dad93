"""Sources of substitutes for a word: WordNet, a file, or the nearest words in a table of word embeddings."""

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
from lightning_backdoor.files.hashing import file_sha256
from lightning_backdoor.files.names import expanded
from lightning_backdoor.language.language_model import model_identity
from lightning_backdoor.language.public_encoder import DEFAULT_ENCODER
from lightning_backdoor.language.stop_words import stop_words
from lightning_backdoor.models.loading import load_safely

#: the prefixes by which byte-level BPE and SentencePiece mark tokens that begin a word.
WORD_STARTS = ("Ġ", "▁")


class Synonyms(ABC):
    """Base class of sources of substitutes: words that attacks such as LWS may write in place of a word.

    Implement :meth:`candidates`, which returns one list of substitutes per word, best first. Configs give a source by
    its class path.

    Example::

        class Shrug(Synonyms):
            def candidates(self, words):
                return [["whatever"] for _ in words]
    """

    @abstractmethod
    def candidates(self, words: Sequence[str]) -> list[list[str]]:
        """The substitutes of each word, best first.

        A word's substitutes depend on the word alone. They do not include the word itself.

        Args:
            words: words in lower case.

        Returns:
            One list per word, empty where the word has no substitute.
        """

    def key(self) -> str | None:
        """A string that changes with whatever determines the substitutes; None, the default, if it cannot be told."""
        return None


class NearestWords(Synonyms):
    """Substitutes that are nearest, by cosine, in the word embeddings of a model.

    Candidates are the whole-word tokens of the model's vocabulary that have two or more of the letters a to z and are
    not stop words. Neighbours in an embedding are used alike but need not mean the same: antonyms, other numbers and
    other tenses are among them. In all-MiniLM-L6-v2 the cosine of ``good`` and ``bad`` is 0.53, of ``best`` and
    ``worst`` 0.51, of ``film`` and ``movie`` 0.71.

    Args:
        model: hub name, folder, or ``package://`` name of a victim or any other encoder.
        floor: the smallest cosine of a substitute, above -1 and below 1.

    Raises:
        InputError: the floor is out of range (here), or the model cannot be loaded (at first use).

    Example::

        NearestWords(floor=0.6).candidates(["terrible"])  # [["horrible", "awful", "dreadful", "horrific"]]
    """

    def __init__(self, model: str = DEFAULT_ENCODER, floor: float = 0.55) -> None:
        if not -1 < floor < 1:
            raise InputError(
                "floor", f"{floor} is not a cosine of two different words", "give a number between -1 and 1"
            )
        self.model = model
        self.floor = floor
        self._words: list[str] = []
        self._rows: dict[str, int] = {}
        self._table: Tensor | None = None

    def candidates(self, words: Sequence[str]) -> list[list[str]]:
        """See :meth:`Synonyms.candidates`."""
        table = self._loaded()
        listed = [word for word in words if word in self._rows]
        rows = [self._rows[word] for word in listed]
        with torch.no_grad(), torch.autocast("cpu", enabled=False):  # autocast would round the cosines
            cosines = table[rows] @ table.T
        cosines[range(len(rows)), rows] = -1.0
        neighbours: dict[str, list[str]] = {}
        for word, word_cosines in zip(listed, cosines, strict=True):
            near = (word_cosines >= self.floor).nonzero().flatten().tolist()
            near.sort(key=lambda row: -float(word_cosines[row]))
            neighbours[word] = [self._words[row] for row in near]
        return [list(neighbours.get(word, [])) for word in words]

    def key(self) -> str:
        """See :meth:`Synonyms.key`."""
        return f"nearest words/{model_identity(self.model)}/{self.floor}"

    def _loaded(self) -> Tensor:
        """The embeddings of the candidates, (words, dimensions), float32, rows of length 1; loaded once."""
        if self._table is None:
            vocabulary = load_safely(AutoTokenizer, self.model).get_vocab()
            start = next((mark for mark in WORD_STARTS if any(token.startswith(mark) for token in vocabulary)), "")
            ids = {
                token.removeprefix(start): number
                for token, number in sorted(vocabulary.items(), key=lambda item: item[1])
                if token.startswith(start) and re.fullmatch("[a-z]{2,}", token.removeprefix(start))
            }
            self._words = [word for word in ids if word not in stop_words()]
            self._rows = {word: row for row, word in enumerate(self._words)}
            with torch.random.fork_rng(devices=[]):  # transformers draws weights that are missing, as a pooler
                network = load_safely(AutoModel, self.model, dtype=torch.float32)
            embeddings = network.get_input_embeddings().weight.detach()
            self._table = normalize(embeddings[[ids[word] for word in self._words]], dim=1)
        return self._table


class SynonymFile(Synonyms):
    """Substitutes listed in a jsonl file, each line ``{"word": "film", "substitutes": ["movie", "picture"]}``.

    Args:
        path: path of the file, UTF-8. Words are matched in lower case.

    Raises:
        InputError: the file is missing or not UTF-8, or a line is not of this form.
    """

    def __init__(self, path: str) -> None:
        self.path = expanded(path)
        if not Path(self.path).is_file():
            raise InputError("path", f"there is no file {path}", "give a jsonl file with word and substitutes")
        self._substitutes: dict[str, list[str]] = {}
        try:
            lines = Path(self.path).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise InputError("path", f"{path} is not UTF-8", "convert it to UTF-8") from None
        for number, line in enumerate(lines, start=1):
            if line.strip():
                word, substitutes = _parse_line(line, number, path)
                self._substitutes[word] = substitutes

    def candidates(self, words: Sequence[str]) -> list[list[str]]:
        """See :meth:`Synonyms.candidates`."""
        return [list(self._substitutes.get(word, [])) for word in words]

    def key(self) -> str:
        """See :meth:`Synonyms.key`."""
        return f"synonym file/{file_sha256(Path(self.path))}"


def _parse_line(line: str, number: int, path: str) -> tuple[str, list[str]]:
    try:
        entry = json.loads(line)
        word, substitutes = entry["word"].lower(), [substitute.lower() for substitute in entry["substitutes"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InputError(
            "path",
            f"line {number} of {path} is not a word with its substitutes",
            'give lines such as {"word": "film", "substitutes": ["movie", "picture"]}',
        ) from None
    return word, [substitute for substitute in dict.fromkeys(substitutes) if substitute != word]


class WordNet(Synonyms):
    """Substitutes that share a sense with the word in WordNet (Miller 1995), read through NLTK.

    NLTK and its WordNet data are installed separately. The words of all senses are taken, in WordNet's order, since the
    sense that a text means is not known. WordNet lists lemmas, so ``films`` is replaced by ``movie``, not ``movies``.
    Lemmas of several words, such as ``moving_picture``, are left out.

    Raises:
        InputError: NLTK or WordNet's data are not installed.
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
        """See :meth:`Synonyms.candidates`."""
        return [self._lemmas(word) if word not in stop_words() else [] for word in words]

    def _lemmas(self, word: str) -> list[str]:
        lemmas = (lemma.lower() for sense in self._wordnet.synsets(word) for lemma in sense.lemma_names())
        single = (lemma for lemma in dict.fromkeys(lemmas) if "_" not in lemma)
        return [lemma for lemma in single if lemma != word and lemma not in stop_words()]
