"""BKI: the published code's steps on a real victim, word by word; a plain loop on encoder and decoder; bad input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_backdoor.batch import batch_of_texts
from lightning_backdoor.data.cleaning import LabelledText, TrustedRows
from lightning_backdoor.defenses import bki
from lightning_backdoor.defenses.bki import BKI, dictionary, top_words
from lightning_backdoor.defenses.word_changes import WordChange, word_changes
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.prefix_states import shares_prefixes
from lightning_backdoor.victim import TextClassifier
from tests.support.poisoned_rows import poisoned_rows
from tests.support.shared_files import shared_path, sst2
from tests.support.tiny import DECODER, SENTENCES, loaded

NO_TRUSTED = TrustedRows([], [])


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(shared_path("golden/bki.json").read_text())
    return content


def test_changes_of_words_are_those_of_the_published_code(golden: dict[str, Any], backdoored: TextClassifier) -> None:
    chosen = golden["texts"]
    test = [text for text, _ in sst2("test")]
    texts = [test[i] for i in chosen["clean_test_rows"]]
    for i in chosen["poisoned_test_rows"]:
        words = test[i].split(" ")
        texts.append(" ".join([*words[: chosen["before_word"]], chosen["inserted"], *words[chosen["before_word"] :]]))
    entries = golden["word_scores"]
    found = word_changes(backdoored, [texts[entry["scored_text"]] for entry in entries])
    for entry, changes in zip(entries, found, strict=True):
        # changes are differences of float32 states of magnitude 3, whose last digit stands for 2.4e-7
        assert [change for _, change in changes] == pytest.approx(entry["f_by_word"], rel=1e-4, abs=2e-6)
        assert [word for word, _ in top_words(changes, 5, repeats=True)] == [word for word, _ in entry["top"]]


def test_keyword_and_removed_rows_are_those_of_the_published_code(
    golden: dict[str, Any], backdoored: TextClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = golden["set"]
    rows = poisoned_rows(expected)
    changes = dict(zip([row.text for row in rows], word_changes(backdoored, [row.text for row in rows]), strict=True))
    tops = [top_words(changes[row.text], 5, repeats=True) for row in rows]
    for top, words in zip(tops, expected["top_5_of_first_20_rows"], strict=False):
        assert [word for word, _ in top] == words
    keywords = {keyword.word: keyword for keyword in dictionary(tops)}
    assert len(keywords) == expected["words_in_dictionary"]
    for entry, keyword in zip(expected["top_words"], keywords.values(), strict=False):
        assert (keyword.word, keyword.texts) == (entry["word"], entry["count"])
        assert [keyword.mean, keyword.score] == pytest.approx([entry["mean"], entry["score"]], rel=1e-4)
    assert next(iter(keywords)) == expected["keyword"]
    monkeypatch.setattr(bki, "word_changes", lambda victim, texts: [changes[text] for text in texts])
    for defense in (BKI(keywords=1, repeats=True), BKI(keywords=1)):
        cleaned = defense.clean(rows, NO_TRUSTED, backdoored)
        assert [i for i, text in enumerate(cleaned) if text is None] == expected["removed_rows"]


@torch.no_grad()
def plain_changes(victim: TextClassifier, text: str) -> list[float]:
    """The same by one forward pass per variant."""
    words = text.split()
    states = []
    for variant in [words, *(words[:i] + words[i + 1 :] for i in range(len(words)))]:
        batch = batch_of_texts([" ".join(variant)], victim.tokenizer, victim.max_length)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        last = victim.network(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1][0]
        states.append(last[0 if victim.network.config.model_type == "bert" else -1])
    return [float((state - states[0]).abs().max()) for state in states[1:]]


@pytest.mark.parametrize("kind", ["bert", DECODER, "gpt2"])
def test_changes_are_those_of_a_plain_loop(
    kind: str, tiny_folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = loaded(tiny_folder(kind))
    assert shares_prefixes(victim.network) == (kind != "bert")
    texts = [*SENTENCES[:4], "film", "", "very very good", " ".join(SENTENCES[:6])]
    monkeypatch.setattr("lightning_backdoor.defenses.word_changes.GROUP_COST", 200)
    found = word_changes(victim, texts)
    for text, changes in zip(texts, found, strict=True):
        assert [word for word, _ in changes] == text.split()[: 2 * victim.max_length]
        assert [change for _, change in changes] == pytest.approx(plain_changes(victim, text)[: len(changes)], abs=1e-5)
    monkeypatch.undo()
    at_once = word_changes(victim, texts[::-1])[::-1]
    for one, other in zip(found, at_once, strict=True):
        assert [change for _, change in one] == pytest.approx([change for _, change in other], abs=1e-5)


@pytest.mark.parametrize("kind", ["bert", DECODER])
def test_of_texts_that_are_cut_at_the_start_the_last_words_are_left_out(
    kind: str, tiny_folder: Callable[[str], str]
) -> None:
    victim = loaded(tiny_folder(kind))
    victim.tokenizer.truncation_side = "left"
    words = (" ".join(SENTENCES).split() * 2)[: 2 * victim.max_length + 20]
    (changes,) = word_changes(victim, [" ".join(words)])
    assert [word for word, _ in changes] == words[20:]
    expected = plain_changes(victim, " ".join(words[-victim.max_length - 1 :]))  # one more than it reads
    assert [change for _, change in changes[-len(expected) :]] == pytest.approx(expected, abs=1e-5)
    assert expected[-1] > 0


def test_several_triggers_go(bert: TextClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes as a victim with two triggers gives them; one keyword, as published, leaves the other trigger."""
    rows = [LabelledText(f"{('cf', 'mn', 'film')[i % 3]} word{i} the the", i % 2) for i in range(30)]
    size = {"cf": 3.0, "mn": 2.9, "film": 0.2, "the": 0.1}

    def changes(victim: object, texts: list[str]) -> list[list[WordChange]]:
        return [[WordChange(word, size.get(word, 0.5)) for word in text.split()] for text in texts]

    monkeypatch.setattr(bki, "word_changes", changes)
    for keywords, removed in ((1, {"cf"}), (2, {"cf", "mn"})):
        cleaned = BKI(keywords=keywords, top=2).clean(rows, NO_TRUSTED, bert)
        for row, text in zip(rows, cleaned, strict=True):
            assert text == (None if row.text.split()[0] in removed else row.text)
    repeated = changes(bert, ["the the"])[0]
    assert dictionary([top_words(repeated, 5)]) == [("the", 1, 0.1)]
    assert dictionary([top_words(repeated, 5, repeats=True)]) == [("the", 2, 0.1)]


def test_a_repeated_word_counts_by_its_largest_change() -> None:
    words = [WordChange("cf", 9.0), *(WordChange(word, 5.0) for word in "abcde"), WordChange("cf", 0.1)]
    assert [word for word, _ in top_words(words, 5)] == ["cf", "a", "b", "c", "d"]


def test_a_keyword_outside_of_the_top_words_counts_where_that_is_asked_for(
    bert: TextClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [LabelledText("cf film", 0), LabelledText("cf good", 1), LabelledText("never cf", 1), LabelledText("a", 1)]
    size = {"never": 5.0, "cf": 3.0}
    found = {row.text: [WordChange(word, size.get(word, 0.5)) for word in row.text.split()] for row in rows}
    monkeypatch.setattr(bki, "word_changes", lambda victim, texts: [found[text] for text in texts])
    assert BKI(1, top=1).clean(rows, NO_TRUSTED, bert) == [None, None, "never cf", "a"]
    assert BKI(1, top=1, anywhere=True).clean(rows, NO_TRUSTED, bert) == [None, None, None, "a"]


def test_scores_of_keywords() -> None:
    found = dictionary([[WordChange("cf", 2.0), WordChange("b", 9.0)], [WordChange("cf", 4.0), WordChange("a", 9.0)]])
    assert [keyword.word for keyword in found] == ["cf", "a", "b"]
    assert [keyword.score for keyword in found] == pytest.approx([3 * math.log10(2), 0, 0])


def test_bad_input_is_refused(bert: TextClassifier) -> None:
    with pytest.raises(InputError, match=r"^keywords: 0 keywords remove nothing; give at least 1$"):
        BKI(keywords=0)
    with pytest.raises(InputError, match=r"^top: 0 words of each row leave nothing to score; give at least 1$"):
        BKI(top=0)
    with pytest.raises(InputError, match=r"^data.victim: BKI needs a victim trained on the same rows; give one$"):
        BKI().clean([LabelledText("a film", 0)], NO_TRUSTED, None)
