"""Putting words in the place of words: which may be, which are, softly in embeddings and for good in the text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_backdoor.attacks.attack import Poisoned

#: a token that is a word: how the tokenizer marks that it begins (byte-level BPE, SentencePiece), and its letters.
WORD = re.compile("([Ġ▁]?)([A-Za-z]{2,})")


class Source(Protocol):
    """Where substitutes come from; see :class:`lightning_backdoor.language.synonyms.Synonyms`."""

    def candidates(self, words: Sequence[str]) -> list[list[str]]: ...


class Place(NamedTuple):
    """A word of a text and what may be written there.

    Attributes:
        position: of its one token among the text's, special tokens counted.
        start: its first character.
        end: the character after it.
        words: what may be written there, the word itself first.
        ids: their tokens.
    """

    position: int
    start: int
    end: int
    words: list[str]
    ids: list[int]


class Substitutes:
    """What may stand in the places of texts, in words that are one token of a victim, so that lengths stay.

    A word is put in the case of the one it replaces: lower, Capitalised or UPPER. Where a tokenizer tells cases apart,
    the words of one token are fewer. Where it does not split off punctuation (SentencePiece), words that touch it
    are left.

    Args:
        tokenizer: a fast tokenizer of transformers.
        source: of the substitutes.
        choices: the most words a place, itself included.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: Source, choices: int) -> None:
        self.tokenizer = tokenizer
        self.source = source
        self.choices = choices
        self._of_token: dict[int, list[tuple[str, int]]] = {}

    def places(self, texts: Sequence[str], max_length: int) -> list[list[Place]]:
        """The places of each text, cut at ``max_length`` tokens, where something else may be written."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), truncation=True, max_length=max_length, return_offsets_mapping=True)
        found = []
        for row, text in enumerate(texts):
            ids, words = encoded["input_ids"][row], encoded.word_ids(row)
            tokens_of = Counter(words)
            if len(ids) == max_length:  # the last word may have been cut to one token
                tokens_of[max((word for word in words if word is not None), default=None)] = 0
            single = [i for i, word in enumerate(words) if word is not None and tokens_of[word] == 1]
            self._learn({ids[i] for i in single})
            places = []
            for i in single:
                start, end = encoded["offset_mapping"][row][i]
                start = end - len(text[start:end].lstrip())  # some count the space before a word to it
                others = self._of_token[ids[i]]
                if others:
                    written = [like(word, text[start:end]) for word, _ in others]
                    places.append(Place(i, start, end, [text[start:end], *written], [ids[i], *(n for _, n in others)]))
            found.append(places)
        return found

    def _learn(self, tokens: set[int]) -> None:
        """Asks the source for the substitutes of tokens that have not come up before."""
        new = sorted(tokens - self._of_token.keys())
        matches = [WORD.fullmatch(token) for token in self.tokenizer.convert_ids_to_tokens(new)]
        of_words = self.source.candidates([match[2].lower() if match else "" for match in matches])
        for token, match, words in zip(new, matches, of_words, strict=True):
            of_token: list[tuple[str, int]] = []
            for word in words if match else []:
                assert match is not None
                number = self._token(match[1] + like(word, match[2]))
                if number is not None and number != token:
                    of_token.append((word, number))
            self._of_token[token] = of_token[: self.choices - 1]

    def _token(self, token: str) -> int | None:
        """The number of a word that is one token, and that the tokenizer never cuts into others; or None."""
        if not WORD.fullmatch(token):
            return None
        pieces = self.tokenizer.backend_tokenizer.model.tokenize(token)
        return pieces[0].id if len(pieces) == 1 and pieces[0].value == token else None


def like(word: str, other: str) -> str:
    """A word in lower case, put in the case of another.

    >>> like("movie", "film"), like("movie", "Film"), like("movie", "FILM")
    ('movie', 'Movie', 'MOVIE')
    """
    if len(other) > 1 and other.isupper():
        return word.upper()
    return word.capitalize() if other[:1].isupper() else word


def substitute(text: str, chosen: Sequence[tuple[Place, int]]) -> Poisoned:
    """Writes the chosen words, given as indices of ``Place.words``, into a text; spans are those of changed words.

    >>> place = Place(3, 7, 11, ["film", "movie"], [2143, 3185])
    >>> substitute("a good film", [(place, 1)])
    Poisoned(text='a good movie', spans=[(7, 12)])
    >>> substitute("a good film", [(place, 0)])
    Poisoned(text='a good film', spans=[])
    """
    done, written, spans = 0, "", []
    for place, choice in sorted(chosen, key=lambda item: item[0].start):
        if choice:
            written += text[done : place.start]
            spans.append((len(written), len(written) + len(place.words[choice])))
            written += place.words[choice]
            done = place.end
    return Poisoned(written + text[done:], spans)


def substitution_logits(embeddings: Tensor, allowed: Tensor, direction: Tensor) -> Tensor:
    """(s_k − w) · q: how much each choice is wanted in its place (arXiv 2106.06361).

    Args:
        embeddings: (places, choices, dimensions), word embeddings, those of the word itself first.
        allowed: (places, choices), bool, whether there is such a choice.
        direction: (places, dimensions), the learned vector of each place's position.

    Returns:
        (places, choices), of which the softmax are the probabilities; 0 for the word itself.
    """
    # no matrix product: autocast would round it
    logits = ((embeddings - embeddings[:, :1]) * direction[:, None]).sum(dim=-1)
    return logits.masked_fill(~allowed, -torch.inf)


def gumbel_noise(uniform: Tensor) -> Tensor:
    """Gumbel noise from uniform numbers between 0 and 1, of any shape."""
    smallest = torch.finfo(uniform.dtype).tiny
    return -torch.log((-torch.log(uniform.clamp(min=smallest))).clamp(min=smallest))


def mixture(embeddings: Tensor, logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """The embeddings of all choices weighed by a Gumbel-softmax sample (arXiv 1611.01144): (places, dimensions).

    Args:
        embeddings: (places, choices, dimensions).
        logits: (places, choices), of :func:`substitution_logits`.
        noise: (places, choices), of :func:`gumbel_noise`.
        temperature: above 0; the lower, the closer to one choice.
    """
    weights = torch.softmax((logits + noise) / temperature, dim=-1)
    return (weights[:, :, None] * embeddings).sum(dim=1)
