"""Similarity in meaning of two texts: the cosine of their sentence embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from lightning_backdoor.language.language_model import default_device
from lightning_backdoor.language.likelihood import plain_inference
from lightning_backdoor.language.public_encoder import DEFAULT_ENCODER, PublicEncoder, load_encoder
from lightning_backdoor.models.bucketing import group_by_length, pass_limits

MAX_TOKENS = 256  # the length at which all-MiniLM-L6-v2 cuts texts


class SentenceEncoder:
    """Sentence embeddings as in all-MiniLM-L6-v2: the mean of all tokens' last hidden states, scaled to length 1.

    The model is loaded at the first text. It is not a submodule of the module that uses it, so checkpoints do not hold
    its weights. A text is cut at 256 tokens, special tokens included, or at the model's last position.

    Args:
        model: hub name, folder, or ``package://`` name of an encoder; loaded in float32, without running code of its
            own.

    Example::

        SentenceEncoder().similarity(["a good film"], ["a fine movie"])  # [0.77...]
    """

    def __init__(self, model: str = DEFAULT_ENCODER) -> None:
        self.model = model
        self._device: torch.device | None = None
        self._encoder: PublicEncoder | None = None

    def to(self, device: torch.device) -> SentenceEncoder:
        """Moves the computation to a device; by default an accelerator is used if there is one."""
        self._device = device
        if self._encoder is not None:
            self._encoder.network.to(device)
        return self

    def embed(self, texts: Sequence[str]) -> Tensor:
        """The embedding of each text; it does not depend on the other texts.

        Returns:
            (texts, size), float32, on the CPU; rows of length 1, or of zeros where a text has no token.

        Raises:
            InputError: the model cannot be loaded, or is not an encoder.
        """
        encoder = self._loaded()
        network, tokenizer = encoder
        embeddings = torch.zeros(len(texts), network.config.hidden_size, dtype=torch.float32)
        if not texts:
            return embeddings
        max_length = encoder.max_length(min(MAX_TOKENS, tokenizer.model_max_length))
        ids = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
        with plain_inference(network.device):
            for group in group_by_length([len(row) for row in ids], pass_limits(network.device)):
                embeddings[group] = _mean_states(network, [ids[i] for i in group]).cpu()
        return normalize(embeddings, dim=1)

    def similarity(self, a: Sequence[str], b: Sequence[str]) -> list[float]:
        """The cosine, from -1 to 1, of each text of ``a`` with the text at the same index of ``b``.

        Raises:
            InputError: the model cannot be loaded, or is not an encoder.
        """
        pairs = list(zip(a, b, strict=True))
        rows = {text: row for row, text in enumerate(dict.fromkeys(text for pair in pairs for text in pair))}
        embeddings = self.embed(list(rows)).double()
        left, right = (embeddings[[rows[text] for text in side]] for side in (a, b))
        cosines: list[float] = (left * right).sum(dim=1).clamp(-1, 1).tolist()
        return cosines

    def _loaded(self) -> PublicEncoder:
        if self._encoder is None:
            self._encoder = load_encoder(self.model, "sentence_encoder", self._device or default_device())
        return self._encoder


def _mean_states(network: PreTrainedModel, rows: Sequence[list[int]]) -> Tensor:
    """The mean hidden state of each row's tokens, (rows, hidden size)."""
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(network.device)
    lengths = torch.tensor([len(row) for row in rows], device=network.device)[:, None]
    real = torch.arange(ids.shape[1], device=network.device) < lengths
    states: Tensor = network(input_ids=ids, attention_mask=real.long()).last_hidden_state
    return states.mul(real[..., None]).sum(dim=1) / lengths
