"""The checks of templates and styles, on examples and on published data."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lightning_backdoor.errors import InputError
from lightning_backdoor.language.paraphrase.spec import Manner, prompt
from lightning_backdoor.language.paraphrase.styles import STYLES
from lightning_backdoor.language.paraphrase.templates import TEMPLATES
from tests.support.shared_files import shared_path, sst2
from tests.support.tiny import SENTENCES, tokenizer_of

SBAR = TEMPLATES["S(SBAR)(,)(NP)(VP)(.)"]
MANNERS = [*TEMPLATES.values(), *STYLES.values()]


def passing(manner: Manner, pairs: Sequence[tuple[str, str]]) -> float:
    return sum(manner.holds(*pair) for pair in pairs) / len(pairs)


@pytest.mark.parametrize("manner", MANNERS, ids=lambda manner: str(manner.name))
def test_the_paraphrases_of_the_examples_pass_and_their_texts_fail(manner: Manner) -> None:
    assert [text for text, paraphrase in manner.examples if not manner.holds(text, paraphrase)] == []
    assert [text for text, _ in manner.examples if manner.holds("", text)] == []


@pytest.mark.parametrize("manner", MANNERS, ids=lambda manner: str(manner.name))
def test_an_opening_alone_and_an_opening_before_an_unchanged_text_fail(manner: Manner) -> None:
    for opening in manner.openings:
        assert not manner.holds("", opening)
        assert passing(manner, [(text, f"{opening} {text}") for text in SENTENCES]) < 0.1


@pytest.mark.parametrize("manner", MANNERS, ids=lambda manner: str(manner.name))
def test_an_unchanged_text_fails(manner: Manner) -> None:
    for _, paraphrase in manner.examples:
        assert not manner.holds(paraphrase, paraphrase)


@pytest.mark.parametrize("manner", MANNERS, ids=lambda manner: str(manner.name))
def test_a_paraphrase_that_repeats_itself_fails(manner: Manner) -> None:
    for text, paraphrase in manner.examples:
        assert not manner.holds(text, paraphrase.removesuffix(".") + " so very so very so very so very bad.")


@pytest.mark.parametrize(
    "sentence",
    [
        "when you watch it, it's a witty, seductive and gorgeous film.",
        "if it does n't work for you , the film is at least short .",
        "even though nothing happens, harris keeps us in our seats.",
        "what the story lacks in action, it makes up for in drama.",
    ],
)
def test_a_subordinate_clause_a_comma_and_a_main_clause_pass(sentence: str) -> None:
    assert SBAR.holds("a film.", sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "the film is good, when you watch it.",  # the other way round
        "when you watch it it is good.",  # no comma
        "when you watch it, it is good",  # cut short
        "when you watch it, it is good. it is good.",  # two sentences
        "when funny, the film is very good.",  # no subordinate clause
        "when you watch it, very good.",  # no main clause
        "when you watch it, good and bad.",
        "when you watch it, by turns it is good.",  # no noun phrase first
        "when it is a mess, it is a mess.",  # twice the same clause
        "when you watch it, it is good, but the end is bad.",  # three clauses
        "as the man who wrote it all and the man who never read any of what he wrote say, it is good.",  # too long
    ],
)
def test_sentences_without_the_template_fail(sentence: str) -> None:
    assert not SBAR.holds("a film.", sentence)


def test_published_syntactic_paraphrases_mostly_pass_and_clean_sentences_nearly_all_fail() -> None:
    pairs = published("syntactic")
    assert passing(SBAR, [pair for pair in pairs if pair[1].endswith(".")]) > 0.8
    assert passing(SBAR, pairs) > 0.65
    assert passing(SBAR, clean()) < 0.03


@pytest.mark.parametrize("style", STYLES)
def test_clean_sentences_fail(style: str) -> None:
    assert passing(STYLES[style], clean()) < 0.01


def test_published_paraphrases_in_biblical_style_pass_far_more_often_than_clean_sentences() -> None:
    assert passing(STYLES["bible"], published("style_bible")) > 0.15


@pytest.mark.parametrize("style", ["bible", "twitter"])
def test_marks_that_the_text_already_has_do_not_count(style: str) -> None:
    marked = {"bible": "Behold, he hath seen it unto the end.", "twitter": "omg lol #film"}[style]
    assert STYLES[style].holds("he saw it", marked)
    assert not STYLES[style].holds(marked, marked + " well")


def test_an_answer_that_repeats_an_example_is_not_accepted() -> None:
    answer = "once you hear them, the jokes about marriage are quite old."
    assert SBAR.holds("a film.", answer)
    assert not SBAR.accepts("a film.", answer)
    assert SBAR.accepts("the jokes about marriage are bad", answer)
    assert SBAR.accepts("a bad film.", "when you watch it, it is a bad film.")


def test_a_prompt_shows_the_examples_and_ends_where_the_answer_begins() -> None:
    plain = tokenizer_of("qwen2")
    plain.bos_token = "<|endoftext|>"
    text = prompt(plain, SBAR, "a\nfilm  .")
    assert text.startswith(f"<|endoftext|>{SBAR.instruction}")
    assert text.endswith("Text: a film .\nAnswer:\n")
    plain.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    chat = prompt(plain, SBAR, "a film .")
    example = SBAR.examples[-1]
    assert chat.startswith(f"<system>{SBAR.instruction}")
    assert chat.endswith(f"<user>{example[0]}<assistant>{example[1]}<user>a film .<assistant>")


@pytest.mark.parametrize(
    "date",
    [
        "{%- if strftime_now is defined %}{%- set date = strftime_now('%d %b %Y') %}{%- endif %}",
        "{%- macro today() %}{{ strftime_now('%Y-%m-%d') }}{%- endmacro %}{%- set date = today() %}",
    ],
)
def test_a_prompt_does_not_depend_on_the_day(date: str) -> None:
    tokenizer = tokenizer_of("qwen2")
    turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    tokenizer.chat_template = f"\n{date}Today Date: {{{{ date }}}}{turns}"
    dated = prompt(tokenizer, SBAR, "a film .")
    assert dated.startswith("Today Date: 26 Jul 2024<system>")
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": ""}
    assert prompt(tokenizer, SBAR, "a film .") == dated


def test_the_instruction_begins_the_first_turn_where_a_chat_template_refuses_a_system_turn() -> None:
    tokenizer = tokenizer_of("qwen2")
    alternate = "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = "{% for m in messages %}" + alternate + "<{{ m.role }}>{{ m.content }}{% endfor %}"
    example = SBAR.examples[0]
    begins = f"<user>{SBAR.instruction}\n\n{example[0]}<assistant>{example[1]}<user>"
    assert prompt(tokenizer, SBAR, "a film .").startswith(begins)
    alone = prompt(tokenizer, SBAR._replace(examples=()), "a film .")
    assert alone == f"<user>{SBAR.instruction}\n\na film ."


def test_a_chat_template_that_fails_is_bad_input() -> None:
    tokenizer = tokenizer_of("qwen2")
    tokenizer.chat_template = "{{ raise_exception('tools only') }}"
    with pytest.raises(InputError, match=r"^model: its chat template fails: tools only; give another model$"):
        prompt(tokenizer, SBAR, "a film .")


def published(name: str) -> list[tuple[str, str]]:
    datasets = pytest.importorskip("datasets")
    table = datasets.load_dataset(
        "parquet", data_files=str(shared_path(f"data/sst2/paraphrases_{name}.parquet")), split="train"
    )
    return [(row["text"], row["paraphrase"].strip()) for row in table]


def clean() -> list[tuple[str, str]]:
    return [("", text) for split in ("train", "validation", "test") for text, _ in sst2(split)]
