"""Word substitution: substitutes of one token, their mixtures as embeddings, and writing them into texts.

Whoever changes what these functions return must increase ``result_format`` of every attack that calls them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_backdoor.attacks.poisoned import Poisoned

#: a token that is a word: an optional word-start marker (byte-level BPE, SentencePiece), and the word's letters.
WORD_TOKEN = re.compile("([Ġ▁]?)([A-Za-z]{2,})")


class SubstituteSource(Protocol):
    """A source of substitutes for words; see :class:`lightning_backdoor.language.synonyms.Synonyms`."""

    def candidates(self, words: Sequence[str]) -> list[list[str]]: ...


class ReplaceableWord(NamedTuple):
    """A word of a text, and the words that may be written in its place.

    Attributes:
        position: index of the word's only token among the text's tokens, special tokens counted.
        start: index of the word's first character.
        end: index of the character after its last.
        words: the word itself and then its substitutes.
        ids: token id of each of ``words``.
    """

    position: int
    start: int
    end: int
    words: list[str]
    ids: list[int]


class Substitutes:
    """Finds substitutes for the words of texts; every word and substitute is one token, so that lengths are kept.

    A substitute takes the case of the word that it replaces: lower, Capitalised or UPPER. With a cased tokenizer, fewer
    words are a single token. With a tokenizer that does not split off punctuation (SentencePiece), words that touch
    punctuation are not replaceable.

    Args:
        tokenizer: a fast tokenizer of transformers.
        source: source of the substitutes.
        choices: maximum number of words to choose from per replaced word, the word itself included.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: SubstituteSource, choices: int) -> None:
        self.tokenizer = tokenizer
        self.source = source
        self.choices = choices
        self._of_token: dict[int, list[tuple[str, int]]] = {}

    def replaceable_words(self, texts: Sequence[str], max_length: int) -> list[list[ReplaceableWord]]:
        """The words with a substitute in each text, which is cut at ``max_length`` tokens."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), truncation=True, max_length=max_length, return_offsets_mapping=True)
        at_cut = min if self.tokenizer.truncation_side == "left" else max
        by_text = []
        for row, text in enumerate(texts):
            ids, words = encoded["input_ids"][row], encoded.word_ids(row)
            tokens_of = Counter(words)
            if len(ids) == max_length:  # the word at the cut may have been cut to one token
                tokens_of[at_cut((word for word in words if word is not None), default=None)] = 0
            single = [i for i, word in enumerate(words) if word is not None and tokens_of[word] == 1]
            self._learn({ids[i] for i in single})
            replaceable = []
            for i in single:
                start, end = encoded["offset_mapping"][row][i]
                start = end - len(text[start:end].lstrip())  # some tokenizers include the space before a word
                word, substitutes = text[start:end], self._of_token[ids[i]]
                if substitutes:
                    written = [word, *(in_case_of(substitute, word) for substitute, _ in substitutes)]
                    tokens = [ids[i], *(token for _, token in substitutes)]
                    replaceable.append(ReplaceableWord(i, start, end, written, tokens))
            by_text.append(replaceable)
        return by_text

    def _learn(self, tokens: set[int]) -> None:
        """Asks the source for the substitutes of tokens that are not known yet."""
        new = sorted(tokens - self._of_token.keys())
        matches = [WORD_TOKEN.fullmatch(token) for token in self.tokenizer.convert_ids_to_tokens(new)]
        candidates = self.source.candidates([match[2].lower() if match else "" for match in matches])
        for token, match, words in zip(new, matches, candidates, strict=True):
            substitutes: list[tuple[str, int]] = []
            for word in words if match else []:
                assert match is not None
                substitute = self._token(match[1] + in_case_of(word, match[2]))
                if substitute is not None and substitute != token:
                    substitutes.append((word, substitute))
            self._of_token[token] = substitutes[: self.choices - 1]

    def _token(self, token: str) -> int | None:
        """The id of a word that is always a single token; None for other words."""
        if not WORD_TOKEN.fullmatch(token):
            return None
        pieces = self.tokenizer.backend_tokenizer.model.tokenize(token)
        return pieces[0].id if len(pieces) == 1 and pieces[0].value == token else None


def in_case_of(word: str, model: str) -> str:
    """A lower-case word in the case of another word: lower, Capitalised or UPPER.

    >>> in_case_of("movie", "film"), in_case_of("movie", "Film"), in_case_of("movie", "FILM")
    ('movie', 'Movie', 'MOVIE')
    """
    if len(model) > 1 and model.isupper():
        return word.upper()
    return word.capitalize() if model[:1].isupper() else word


def substitute(text: str, chosen: Sequence[tuple[ReplaceableWord, int]]) -> Poisoned:
    """Writes the chosen words into a text; the spans cover the changed words.

    Args:
        text: the text.
        chosen: replaceable words of the text, each with the index of the choice in ``ReplaceableWord.words``.

    >>> film = ReplaceableWord(3, 7, 11, ["film", "movie"], [2143, 3185])
    >>> substitute("a good film", [(film, 1)])
    Poisoned(text='a good movie', spans=[(7, 12)])
    >>> substitute("a good film", [(film, 0)])
    Poisoned(text='a good film', spans=[])
    """
    copied, written, spans = 0, "", []
    for replaced, choice in sorted(chosen, key=lambda item: item[0].start):
        if choice:
            written += text[copied : replaced.start]
            spans.append((len(written), len(written) + len(replaced.words[choice])))
            written += replaced.words[choice]
            copied = replaced.end
    return Poisoned(written + text[copied:], spans)


def substitution_logits(embeddings: Tensor, allowed: Tensor, direction: Tensor) -> Tensor:
    """(s_k − w) · q: the logit of each choice (arXiv 2106.06361).

    Args:
        embeddings: (words, choices, dimensions), word embeddings, the replaceable word's own first.
        allowed: (words, choices), bool, False at padded choices.
        direction: (words, dimensions), the learned vector of each word's position.

    Returns:
        (words, choices), logits whose softmax gives the probabilities; 0 for the word itself.
    """
    # not a matrix product, which autocast would round
    logits = ((embeddings - embeddings[:, :1]) * direction[:, None]).sum(dim=-1)
    return logits.masked_fill(~allowed, -torch.inf)


def gumbel_noise(uniform: Tensor) -> Tensor:
    """Gumbel noise from uniform numbers between 0 and 1, of any shape."""
    smallest = torch.finfo(uniform.dtype).tiny
    return -torch.log((-torch.log(uniform.clamp(min=smallest))).clamp(min=smallest))


def mixture(embeddings: Tensor, logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """The choices' embeddings weighted by a Gumbel-softmax sample (arXiv 1611.01144): (words, dimensions).

    Args:
        embeddings: (words, choices, dimensions).
        logits: (words, choices), see :func:`substitution_logits`.
        noise: (words, choices), see :func:`gumbel_noise`.
        temperature: above 0; the lower it is, the closer the mixture is to a single choice.
    """
    weights = torch.softmax((logits + noise) / temperature, dim=-1)
    return (weights[:, :, None] * embeddings).sum(dim=1)
