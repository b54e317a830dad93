"""Words that a masked language model finds probable at a place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from lightning_backdoor.errors import InputError
from lightning_backdoor.language.masked_words import MaskedLanguageModel, Place
from tests.support.tiny import DECODER, tiny_masked_model, tiny_victim

PLACES = [
    Place("a ", " film"),
    Place("", " film that rewards the patient viewer ."),
    Place("the plot is thin and ", ""),
]
LEAST = 1e-3


@pytest.mark.parametrize("kind", ["bert", "roberta", "albert"])
def test_the_words_are_whole_tokens_of_at_least_the_probability(kind: str, tmp_path: Path) -> None:
    folder = tiny_masked_model(kind, tmp_path)
    network, tokenizer = AutoModelForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    found = MaskedLanguageModel(folder, LEAST).words(PLACES)
    for place, words in zip(PLACES, found, strict=True):
        encoded = tokenizer(f"{place.before}{tokenizer.mask_token}{place.after}", return_tensors="pt")
        with torch.no_grad():
            logits = network(**encoded).logits[0, encoded["input_ids"][0] == tokenizer.mask_token_id]
        probabilities = logits.softmax(dim=-1)[0]
        expected: dict[str, float] = {}
        for token in probabilities.argsort(descending=True).tolist():
            name, word = tokenizer.convert_ids_to_tokens(token), tokenizer.decode([token]).strip()
            begins = name[0] in "Ġ▁" or not place.before if kind != "bert" else not name.startswith("##")
            plain = word.isalnum() and token not in tokenizer.all_special_ids
            if begins and plain and probabilities[token] >= LEAST:
                expected.setdefault(word, float(probabilities[token]))
        assert words
        assert [word for word, _ in words] == [*expected]
        assert [probability for _, probability in words] == pytest.approx([*expected.values()], rel=1e-4)


def test_the_words_of_a_place_do_not_depend_on_the_others(tmp_path: Path) -> None:
    model = MaskedLanguageModel(tiny_masked_model("bert", tmp_path), 0.002)
    together = model.words(PLACES)
    alone = [model.words([place])[0] for place in PLACES]
    for one, other in zip(together, alone, strict=True):
        assert [word for word, _ in one] == [word for word, _ in other]


def test_a_place_beyond_the_last_position_has_no_words_and_masks_in_the_text_count(tmp_path: Path) -> None:
    model = MaskedLanguageModel(tiny_masked_model("bert", tmp_path), LEAST)
    beyond, masked = model.words([Place("a film " * 200, " film"), Place("a [MASK] and ", " film")])
    assert not beyond
    assert masked == model.words([Place("a [MASK] and ", " film")])[0]


def test_a_model_without_such_a_head_is_refused(tmp_path: Path) -> None:
    classifier, decoder = tiny_victim("bert", tmp_path / "a"), tiny_victim(DECODER, tmp_path / "b")
    for folder in (classifier, decoder, str(tmp_path)):
        with pytest.raises(InputError, match=r"^masked_model: "):
            MaskedLanguageModel(folder, LEAST).words(PLACES)
