"""Manners of paraphrasing, such as a style: the prompt for a language model, and the check of its answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lightning_backdoor.errors import InputError, reason

#: version of the checks; increased when a library manner, or :meth:`Manner.accepts`, accepts other paraphrases.
CHECK_FORMAT = 1
#: put before a chat template, hides the function by which it asks for today's date: prompts must be the same every day.
FIXED_DATE = "{% macro strftime_now(form) %}26 Jul 2024{% endmacro %}\n"
BORROWED = 4  # number of consecutive words that an answer must not copy from the examples
TREEBANK_WORD = re.compile(
    r"(?:[^\W_]\.){2,}|n't|[^\W_]+?(?=n't)|'(?:s|re|ve|ll|d|m)\b|[^\W_]+(?:[-.&][^\W_]+)*|[^\w\s]"
)


class Manner(NamedTuple):
    """A style or a syntactic template of paraphrases: the prompt that asks for it, and the check that recognises it.

    Attributes:
        name: the name in options.
        instruction: the instruction in the prompt of a language model.
        examples: pairs of a text and its paraphrase in the prompt.
        holds: function of a text and a paraphrase that returns whether the paraphrase is in this manner. It does not
            compare their meanings.
        openings: beginnings of answers, of which one is chosen at random; empty where answers may begin in any way.
    """

    name: str
    instruction: str
    examples: tuple[tuple[str, str], ...]
    holds: Callable[[str, str], bool]
    openings: tuple[str, ...] = ()

    def accepts(self, text: str, paraphrase: str) -> bool:
        """Whether a model's answer is in this manner and does not repeat the examples.

        An answer repeats the examples if it has four words in a row of an example's text that ``text`` does not have.
        """
        example_runs = {run for example, _ in self.examples for run in _word_runs(example)}
        return self.holds(text, paraphrase) and not example_runs & _word_runs(paraphrase) - _word_runs(text)


def prompt(tokenizer: PreTrainedTokenizerBase, manner: Manner, text: str) -> str:
    """The prompt for which a language model writes the paraphrase of a text, on one line.

    The examples are earlier turns of a chat if the tokenizer has a chat template, and plain text otherwise. A chat
    template that states today's date gets a fixed one. The instruction is the system turn, or begins the first turn of
    the user where the template refuses a system turn.

    Raises:
        InputError: the chat template fails on both.
    """
    text = " ".join(text.split())
    if not getattr(tokenizer, "chat_template", None):
        shown = "".join(f"Text: {example}\nAnswer:\n{answer}\n\n" for example, answer in manner.examples)
        return f"{tokenizer.bos_token or ''}{manner.instruction}\n\n{shown}Text: {text}\nAnswer:\n"
    turns = []
    for example, answer in manner.examples:
        turns += [{"role": "user", "content": example}, {"role": "assistant", "content": answer}]
    turns.append({"role": "user", "content": text})
    try:
        return _chat(tokenizer, [{"role": "system", "content": manner.instruction}, *turns])
    except TemplateError:  # Gemma 2 and Mistral 0.2, among others, refuse a system turn
        turns[0]["content"] = f"{manner.instruction}\n\n{turns[0]['content']}"
    try:
        return _chat(tokenizer, turns)
    except TemplateError as error:
        raise InputError("model", f"its chat template fails: {reason(error)}", "give another model") from error


def _chat(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str:
    """The turns of a chat as text, up to where the next answer begins."""
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = FIXED_DATE + template
    return str(tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, add_generation_prompt=True))


def words_of(text: str) -> list[str]:
    """Splits a text into words and punctuation marks in lower case, contractions cut apart, as in a treebank.

    >>> words_of("It's well-made, isn't it?")
    ['it', "'s", 'well-made', ',', 'is', "n't", 'it', '?']
    """
    return TREEBANK_WORD.findall(text.lower().replace("’", "'").replace(" n't", "n't"))


def word_set(words: str) -> frozenset[str]:
    """The set of the words in a string, separated by white space."""
    return frozenset(words.split())


def runs(words: list[str], length: int) -> list[tuple[str, ...]]:
    """All runs of ``length`` consecutive words, in order."""
    return [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]


def _word_runs(text: str) -> set[tuple[str, ...]]:
    """All runs of ``BORROWED`` words, punctuation left out."""
    return set(runs([word for word in words_of(text) if word[-1].isalnum()], BORROWED))


def repeats_itself(words: list[str]) -> bool:
    """Whether a word occurs three times in a row, or a run of three words occurs three times.

    >>> repeats_itself("so very so very so very so very bad".split())
    True
    """
    threes = runs(words, 3)
    return any(len(set(run)) == 1 for run in threes) or any(threes.count(run) > 2 for run in set(threes))
