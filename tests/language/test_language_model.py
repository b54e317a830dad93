"""Loading of causal language models: other models and files are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lightning_backdoor.errors import InputError
from lightning_backdoor.language.language_model import load_language_model


@pytest.mark.parametrize("name", ["missing.gguf", "package://lightning_backdoor/py.typed"])
def test_a_file_that_is_not_a_model_is_bad_input(name: str) -> None:
    with pytest.raises(InputError, match=r"^model: "):
        load_language_model(name, torch.device("cpu"))


def test_an_encoder_is_not_a_causal_language_model(tiny_folder: Callable[[str], str]) -> None:
    with pytest.raises(InputError, match=r"^model: .* is not a causal language model"):
        load_language_model(tiny_folder("bert"), torch.device("cpu"))
