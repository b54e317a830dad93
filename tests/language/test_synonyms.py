"""The sources of substitutes: embeddings, files, WordNet."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoModel, AutoTokenizer

from lightning_backdoor.errors import InputError
from lightning_backdoor.language.stop_words import stop_words
from lightning_backdoor.language.synonyms import NearestWords, SynonymFile, WordNet
from tests.support.tiny import tiny_masked_model

WORD_STARTS = {"bert": "", "roberta": "Ġ", "albert": "▁"}


@pytest.mark.parametrize("kind", WORD_STARTS)
def test_neighbours_are_the_words_above_the_floor_nearest_first(kind: str, tiny_folder: Callable[[str], str]) -> None:
    folder, mark = tiny_folder(kind), WORD_STARTS[kind]
    table = AutoModel.from_pretrained(folder).get_input_embeddings().weight.detach()
    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    tokens = {token.removeprefix(mark): number for token, number in vocabulary.items() if token.startswith(mark)}
    words = {word: n for word, n in tokens.items() if re.fullmatch("[a-z][a-z]+", word) and word not in stop_words()}
    assert len(words) > 20
    for word, near in zip(words, NearestWords(folder, floor=0.2).candidates(list(words)), strict=True):
        cosines = {
            other: float(cosine_similarity(table[words[word]], table[number], dim=0))
            for other, number in words.items()
            if other != word
        }
        expected = [other for other in sorted(cosines, key=lambda o: -cosines[o]) if cosines[other] >= 0.2]
        assert near == expected


def test_stop_words_endings_and_unknown_words_have_no_neighbours(tiny_folder: Callable[[str], str]) -> None:
    source = NearestWords(tiny_folder("bert"), floor=-0.9)
    assert source.candidates(["the", "##ing", "zebra", "", "."]) == [[]] * 5
    (near,) = source.candidates(["film"])
    assert len(near) > 50
    assert not {"the", "and", "film"} & set(near)


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    source = NearestWords(tiny_masked_model("bert", tmp_path))  # without a pooler, which transformers draws
    torch.manual_seed(0)
    source.candidates(["film"])
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))


def test_the_substitutes_of_a_word_do_not_depend_on_the_other_words(tiny_folder: Callable[[str], str]) -> None:
    source = NearestWords(tiny_folder("bert"), floor=0.1)
    together = source.candidates(["film", "story", "film", "music"])
    assert together == [source.candidates([word])[0] for word in ("film", "story", "film", "music")]
    assert any(together)


@pytest.mark.parametrize("floor", [-1, 1, float("nan")])
def test_a_floor_that_is_not_a_cosine_is_refused(floor: float) -> None:
    with pytest.raises(InputError, match=r"^floor: \S+ is not a cosine of two different words; give a number between"):
        NearestWords(floor=floor)


def test_the_substitutes_of_a_file_are_read_in_order_and_once(tmp_path: Path) -> None:
    file = tmp_path / "synonyms.jsonl"
    file.write_text('{"word": "Film", "substitutes": ["Movie", "film", "picture", "movie"]}\n\n', encoding="utf-8")
    assert SynonymFile(str(file)).candidates(["film", "plot"]) == [["movie", "picture"], []]


@pytest.mark.parametrize(
    "line", ["film,movie", '["film", "movie"]', '{"word": "film"}', '{"word": 1, "substitutes": []}']
)
def test_a_line_of_another_form_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "synonyms.jsonl"
    file.write_text('{"word": "plot", "substitutes": []}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(
        InputError, match=r"^path: line 2 of \S+synonyms.jsonl is not a word with its substitutes; give lines"
    ):
        SynonymFile(str(file))


def test_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match=r"^path: there is no file none.jsonl; give a jsonl file"):
        SynonymFile("none.jsonl")


def test_wordnet_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.delitem(sys.modules, "nltk.corpus", raising=False)
    with pytest.raises(InputError, match=r"^substitutes: WordNet needs the package nltk; run: pip install nltk$"):
        WordNet()


def wordnet_of(monkeypatch: pytest.MonkeyPatch, senses: dict[str, list[list[str]]], installed: bool = True) -> None:
    """A stand-in for ``nltk.corpus.wordnet``, whose data need a download."""

    def ensure_loaded() -> None:
        if not installed:
            raise LookupError

    def synsets(word: str) -> list[Any]:
        return [SimpleNamespace(lemma_names=lambda lemmas=lemmas: lemmas) for lemmas in senses.get(word, [])]

    corpus = ModuleType("nltk.corpus")
    corpus.wordnet = SimpleNamespace(ensure_loaded=ensure_loaded, synsets=synsets)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nltk", ModuleType("nltk"))
    monkeypatch.setitem(sys.modules, "nltk.corpus", corpus)


def test_wordnet_without_its_data_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    wordnet_of(monkeypatch, {}, installed=False)
    with pytest.raises(InputError, match=r"^substitutes: WordNet's data are missing; run: python -m nltk.downloader"):
        WordNet()


def test_wordnet_gives_the_other_single_words_of_all_senses_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    senses = {"film": [["movie", "film", "moving_picture"], ["film", "Cinema", "movie"]], "a": [["angstrom", "A"]]}
    wordnet_of(monkeypatch, senses)
    assert WordNet().candidates(["film", "a", "zebra"]) == [["movie", "cinema"], [], []]
