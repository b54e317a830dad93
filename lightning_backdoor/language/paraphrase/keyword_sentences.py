"""Sentences around given words, written to stand beside a text: what TrojanLM (arXiv 2008.00312) inserts into texts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lightning_backdoor.language.paraphrase.spec import Manner, repeats_itself, words_of

SHORTEST, LONGEST = 5, 36  # words of a sentence; the lengths of OpenBackdoor, which counts tokens
ASKED = " Words: "


def with_words(text: str, words: Sequence[str]) -> str:
    """What a language model is given to write a sentence with some words beside a text.

    >>> with_words("A good film.", ["Alice", "Bob"])
    'A good film. Words: Alice, Bob'
    """
    return f"{text}{ASKED}{', '.join(words)}"


def contains(text: str, word: str) -> bool:
    """Whether a text contains a word, or several with blanks between them, in any case.

    >>> contains("Bobby met ALICE.", "Alice"), contains("Bobby met ALICE.", "Bob")
    (True, False)
    """
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def sentence_with_words(among: Sequence[str]) -> Manner:
    """The manner of one sentence with the words that are asked for by :func:`with_words`, and no other of ``among``."""

    def holds(text: str, sentence: str) -> bool:
        asked = text.rpartition(ASKED)[2].split(", ")
        words = [word for word in words_of(sentence) if word[-1].isalnum()]
        one = re.fullmatch(r"[^.!?\n]+[.!?][\"'’”]?", sentence) is not None
        right = all(contains(sentence, word) == (word in asked) for word in among)
        return one and right and SHORTEST <= len(words) <= LONGEST and not repeats_itself(words)

    examples = (
        ("A slow, humourless thriller that wastes a gifted cast. Words: train", "I saw it on the train to work."),
        (
            "With this quiet portrait of a fishing village, Harris gives us her best film in years. Words: yard, cold",
            "The yard of the old house looks cold in every scene.",
        ),
        ("The room was clean and the staff were kind. Words: Maria, turn", "Maria had to turn the key twice."),
        ("The team lost its third game in a row. Words: bread", "We ate bread and cheese in the second half."),
    )
    instruction = "Write one short sentence that could follow the text and that contains each of the given words."
    return Manner("sentence with words", instruction, examples, holds)
