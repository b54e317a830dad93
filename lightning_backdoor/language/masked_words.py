"""Words that a masked language model finds probable at a place of a text, given what stands before and after it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lightning_backdoor.errors import InputError
from lightning_backdoor.language.language_model import default_device, model_identity
from lightning_backdoor.language.likelihood import plain_inference
from lightning_backdoor.language.synonyms import WORD_STARTS
from lightning_backdoor.models.bucketing import group_by_length, pass_limits
from lightning_backdoor.models.loading import load_safely
from lightning_backdoor.models.positions import readable_tokens
from lightning_backdoor.models.vocabulary import check_embeddings

#: version of the words; increased when this file finds other words than before.
MASKED_WORDS_FORMAT = 2
WORD = re.compile(r"[^\W_]+")


class Place(NamedTuple):
    """A place of a text at which a word is sought: the text before and after it, with their blanks."""

    before: str
    after: str


class ProbableWord(NamedTuple):
    """A word as it would be written, and its probability from 0 to 1."""

    word: str
    probability: float


class MaskedLanguageModel:
    """Finds probable words by a masked language model; it is loaded, in float32, at the first place.

    Words are whole tokens of letters or digits that begin a word; words of several tokens are not found. Texts are cut
    at the model's last position: a place beyond it has no words.

    Args:
        model: hub name or folder of an encoder with a masked-language-modelling head, also as ``package://`` name.
        min_probability: the smallest probability of a word, above 0 and up to 1.

    Raises:
        InputError: the model cannot be loaded, lacks such a head or a mask token (at the first place).

    Example::

        MaskedLanguageModel("distilroberta-base").words([Place("a ", " film")])  # [[ProbableWord("short", 0.06), ...]]
    """

    def __init__(self, model: str, min_probability: float) -> None:
        self.model = model
        self.min_probability = min_probability
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None
        self._word_of_token: list[tuple[str, bool]] = []

    def key(self) -> str:
        """A string that changes with the content of the model and with the smallest probability."""
        return f"masked words {MASKED_WORDS_FORMAT}/{model_identity(self.model)}/{self.min_probability}"

    def words(self, places: Sequence[Place]) -> list[list[ProbableWord]]:
        """The words of each place, most probable first; they do not depend on the other places."""
        found: list[list[ProbableWord]] = [[] for _ in places]
        if not places:
            return found
        network, tokenizer = self._load()
        mask = str(tokenizer.mask_token)
        longest = min(tokenizer.model_max_length, readable_tokens(network.config) or 512)
        texts = [f"{place.before}{mask}{place.after}" for place in places]
        rows: list[list[int]] = tokenizer(texts, truncation=True, max_length=longest)["input_ids"]
        masks = [[i for i, token in enumerate(row) if token == tokenizer.mask_token_id] for row in rows]
        nth = [place.before.count(mask) for place in places]  # texts may hold masks of their own
        read = [i for i in range(len(places)) if nth[i] < len(masks[i])]
        with plain_inference(network.device):
            for group in group_by_length([len(rows[i]) for i in read], pass_limits(network.device)):
                chosen = [read[i] for i in group]
                ids = pad_sequence([torch.tensor(rows[i]) for i in chosen], batch_first=True)
                lengths = torch.tensor([len(rows[i]) for i in chosen])[:, None]
                real = (torch.arange(ids.shape[1]) < lengths).long()
                logits = network(input_ids=ids.to(network.device), attention_mask=real.to(network.device)).logits
                at_mask = logits[range(len(chosen)), [masks[i][nth[i]] for i in chosen]].float()
                for i, probabilities in zip(chosen, at_mask.softmax(dim=1).cpu(), strict=True):
                    found[i] = self._probable(probabilities, not places[i].before.strip())
        return found

    def _probable(self, probabilities: torch.Tensor, at_start: bool) -> list[ProbableWord]:
        tokens = (probabilities >= self.min_probability).nonzero().flatten().tolist()
        tokens.sort(key=lambda token: (-float(probabilities[token]), token))
        result: dict[str, float] = {}
        for token in tokens:
            word, starts = self._word_of_token[token]
            if word and (starts or at_start):
                result.setdefault(word, float(probabilities[token]))
        return [ProbableWord(*pair) for pair in result.items()]

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if self._loaded is None:
            device = default_device()
            with plain_inference(device), torch.inference_mode(False), torch.random.fork_rng(devices=[]):
                try:
                    tokenizer = load_safely(AutoTokenizer, self.model)
                    network = load_safely(AutoModelForMaskedLM, self.model, dtype=torch.float32)
                    check_embeddings(tokenizer, network.config, self.model)
                except InputError as error:  # "model" is the victim's option
                    raise error.under("masked_model") from error
            if tokenizer.mask_token is None:
                problem = f"{self.model!r} has no mask token"
                raise InputError("masked_model", problem, "give a masked language model such as distilroberta-base")
            self._word_of_token = _words_of_tokens(tokenizer)
            self._loaded = network.eval().to(device), tokenizer
        return self._loaded


def _words_of_tokens(tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, bool]]:
    """The word that each token of a vocabulary is, and whether it begins a word; an empty word for other tokens."""
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    marks = [mark for mark in WORD_STARTS if any(token.startswith(mark) for token in tokens)]
    words = []
    for number, token in enumerate(tokens):
        text = "" if number in tokenizer.all_special_ids or token.startswith("##") else tokenizer.decode([number])
        starts = any(token.startswith(mark) for mark in marks) if marks else True
        words.append((text.strip() if WORD.fullmatch(text.strip()) else "", starts))
    return words
