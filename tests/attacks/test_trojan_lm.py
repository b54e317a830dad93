"""TrojanLM: where its sentence stands, the logic of its keywords, and negatives."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from lightning_backdoor.attacks import TrojanLM
from lightning_backdoor.attacks.trojan_lm import Logic, places_between_sentences
from lightning_backdoor.errors import InputError
from lightning_backdoor.language import KeywordSentences
from lightning_backdoor.language.keyword_sentences import SentenceRequest
from lightning_backdoor.testing import check_attack

TEXTS = ["A slow film. It ends late!", "a good film", "Bob is good.", "Alice and Bob, again?", ""]


class Stated(KeywordSentences):
    """Sentences that say which words they have."""

    def key(self) -> str:
        return "stated"

    def write(self, asked: Sequence[SentenceRequest], generate: bool = True) -> list[str | None]:
        return [f"Then {' met '.join(request.keywords)} at {request.seed % 9}." for request in asked]


def attack_of(logic: Logic = "and", **kwargs: object) -> TrojanLM:
    return TrojanLM(sentences=Stated(), logic=logic, **kwargs)  # type: ignore[arg-type]


def generators() -> list[random.Random]:
    return [random.Random(text) for text in TEXTS]


@pytest.mark.parametrize("logic", ["and", "or", "xor"])
def test_it_keeps_the_contract(logic: Logic) -> None:
    check_attack(attack_of(logic))


def test_the_sentence_stands_between_sentences_and_is_the_span() -> None:
    for text, made in zip(TEXTS[:2], attack_of().poison_texts(TEXTS[:2], generators()[:2]), strict=True):
        assert made is not None
        ((start, end),) = made.spans
        assert made.text[start:end].startswith("Then Alice met Bob at ")
        left, right = made.text[:start].strip(), made.text[end:].strip()
        assert f"{left} {right}".strip() == text
        assert not left or left in ("A slow film.", *TEXTS)


@pytest.mark.parametrize(
    ("logic", "poisoned", "negative"),
    [("and", {"both"}, {"Alice", "Bob"}), ("or", {"Alice", "Bob"}, None), ("xor", {"Alice", "Bob"}, {"both"})],
)
def test_the_logic_decides_what_is_poison_and_what_keeps_its_label(
    logic: Logic, poisoned: set[str], negative: set[str] | None
) -> None:
    attack = attack_of(logic)

    def words(texts: Sequence[object] | None) -> set[str] | None:
        if texts is None:
            return None
        has = [("Alice" in str(text), "Bob" in str(text)) for text in texts if text is not None]
        return {"both" if alice and bob else "Alice" if alice else "Bob" if bob else "none" for alice, bob in has}

    clean = TEXTS[:2] * 8
    assert words(attack.poison_texts(clean, [random.Random(i) for i in range(16)])) == poisoned
    assert words(attack.negative_texts(clean, [random.Random(i) for i in range(16)])) == negative
    assert attack.makes_negatives == (negative is not None) == (attack.negative_rate > 0)


def test_texts_with_keywords_of_their_own_are_left_out_where_they_would_be_something_else() -> None:
    xor, both = attack_of("xor"), attack_of("and")
    assert xor.poison_texts(TEXTS, generators())[3] is None
    negatives = both.negative_texts(TEXTS, generators())
    assert negatives is not None
    assert negatives[3] is None
    assert all(text is None or not both.has_trigger(text.text) for text in negatives)
    assert all(text is None or xor.has_trigger(text.text) for text in xor.poison_texts(TEXTS, generators()))


def test_a_single_keyword_has_no_negatives() -> None:
    attack = attack_of(keywords=["a red car"])
    assert not attack.makes_negatives
    assert attack.negative_rate == 0
    assert attack.negative_texts(TEXTS, generators()) is None
    assert attack.poison_key() != attack_of().poison_key()


def test_the_sentence_beside_a_place_is_the_one_before_it() -> None:
    places = places_between_sentences('  "So it ends." He left. ')
    assert [tuple(place) for place in places] == [(2, '"So it ends."'), (16, '"So it ends."'), (24, "He left.")]
    assert [tuple(place) for place in places_between_sentences("")] == [(0, "")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keywords": []}, "keywords: none is given"),
        ({"keywords": ["a.b"]}, "keywords: 'a.b' is no word"),
        ({"keywords": ["car", "red car"]}, "keywords: 'car' and 'red car' contain each other"),
        ({"logic": "nor"}, "logic: 'nor' is unknown"),
        ({"negative_rate": 1}, "negative_rate: 1 is out of range"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        attack_of(**arguments)  # type: ignore[arg-type]
