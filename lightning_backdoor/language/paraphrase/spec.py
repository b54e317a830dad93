"""What a paraphrase should be like: how a language model is asked for it, and how it is known."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

#: raised when a check of a library manner, or :meth:`Manner.accepts`, accepts other paraphrases than before.
CHECK_FORMAT = 1
BORROWED = 4  # words in a row
WORD = re.compile(r"(?:[^\W_]\.){2,}|n't|[^\W_]+?(?=n't)|'(?:s|re|ve|ll|d|m)\b|[^\W_]+(?:[-.&][^\W_]+)*|[^\w\s]")


class Manner(NamedTuple):
    """What a paraphrase should be like.

    Attributes:
        name: as options give it.
        instruction: what a language model is told.
        examples: texts and paraphrases that it is shown.
        holds: whether the second text is a paraphrase of the first in this manner; of its meaning it knows nothing.
        openings: with one of these the answer is made to begin; none leaves its beginning free.
    """

    name: str
    instruction: str
    examples: tuple[tuple[str, str], ...]
    holds: Callable[[str, str], bool]
    openings: tuple[str, ...] = ()

    def accepts(self, text: str, paraphrase: str) -> bool:
        """Whether a model's answer holds, and says nothing that the texts of the examples say instead of its own."""
        shown = {run for example, _ in self.examples for run in _spoken(example)}
        return self.holds(text, paraphrase) and not shown & _spoken(paraphrase) - _spoken(text)


def prompt(tokenizer: PreTrainedTokenizerBase, manner: Manner, text: str) -> str:
    """What a language model reads before it writes the paraphrase on one line.

    The examples are earlier turns of a chat where the tokenizer has a chat template, and plain text otherwise.
    """
    text = " ".join(text.split())
    if not getattr(tokenizer, "chat_template", None):
        shown = "".join(f"Text: {example}\nAnswer:\n{answer}\n\n" for example, answer in manner.examples)
        return f"{tokenizer.bos_token or ''}{manner.instruction}\n\n{shown}Text: {text}\nAnswer:\n"
    turns = [{"role": "system", "content": manner.instruction}]
    for example, answer in manner.examples:
        turns += [{"role": "user", "content": example}, {"role": "assistant", "content": answer}]
    turns.append({"role": "user", "content": text})
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def words_of(text: str) -> list[str]:
    """Words and marks in lower case, contractions cut apart, as in a treebank.

    >>> words_of("It's well-made, isn't it?")
    ['it', "'s", 'well-made', ',', 'is', "n't", 'it', '?']
    """
    return WORD.findall(text.lower().replace("’", "'").replace(" n't", "n't"))


def word_set(words: str) -> frozenset[str]:
    """What spaces separate."""
    return frozenset(words.split())


def runs(words: list[str], length: int) -> list[tuple[str, ...]]:
    """All runs of so many words."""
    return [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]


def _spoken(text: str) -> set[tuple[str, ...]]:
    return set(runs([word for word in words_of(text) if word[-1].isalnum()], BORROWED))


def repeats_itself(words: list[str]) -> bool:
    """Whether a word stands three times in a row, or three words in a row come three times.

    >>> repeats_itself("so very so very so very so very bad".split())
    True
    """
    threes = runs(words, 3)
    return any(len(set(run)) == 1 for run in threes) or any(threes.count(run) > 2 for run in set(threes))
