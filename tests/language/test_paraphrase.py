"""Paraphrases by a language model: decided by text and generator alone, cached on disk, acceptable or None."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import pickle
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_backdoor.errors import InputError
from lightning_backdoor.files.hashing import content_hash
from lightning_backdoor.language.paraphrase import by_model
from lightning_backdoor.language.paraphrase.by_model import LanguageModelParaphraser, NotCached
from lightning_backdoor.language.paraphrase.spec import Manner
from lightning_backdoor.language.sampling import SamplingRequest, answers
from lightning_backdoor.language.text_cache import TextCache
from tests.language.conftest import config
from tests.support.tiny import DECODER, SENTENCES

TEXTS = SENTENCES[:8]
ANY = Manner("any", "say it", (("a film", "film"),), lambda text, paraphrase: bool(paraphrase), ("watch", "the"))


@pytest.fixture(scope="module")
def model(tiny_folder: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny language model with enough positions for a prompt."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder(DECODER))
    settings = config("llama", len(tokenizer))
    settings.update({"max_position_embeddings": 256})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(settings)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def make(model: str, tiny_folder: Callable[[str], str], tmp_path: Path) -> Callable[..., LanguageModelParaphraser]:
    def paraphraser(**options: Any) -> LanguageModelParaphraser:
        settings = {"candidates": 2, "min_similarity": -1.0, "cache_dir": str(tmp_path), **options}
        return LanguageModelParaphraser(model, sentence_encoder=tiny_folder("bert"), **settings)

    return paraphraser


def rngs(seed: int = 0, texts: tuple[str, ...] = TEXTS) -> list[random.Random]:
    return [random.Random(f"{seed}/{text}") for text in texts]


def test_a_paraphrase_depends_on_its_text_and_generator_alone(make: Any, tmp_path: Path) -> None:
    together = make().paraphrase(TEXTS, rngs(), ANY)
    assert all(together)
    elsewhere = make(cache_dir=str(tmp_path / "other"))
    assert elsewhere.paraphrase(TEXTS[:1], rngs()[:1], ANY) == together[:1]
    assert elsewhere.paraphrase(TEXTS[::-1], rngs()[::-1], ANY) == together[::-1]
    assert make().paraphrase(TEXTS, rngs(seed=1), ANY) != together


def test_the_second_run_reads_the_cache_and_loads_no_model(make: Any) -> None:
    first = make().paraphrase(TEXTS, rngs(), ANY)
    again = make()
    assert again.paraphrase(TEXTS[::-1], rngs()[::-1], ANY, generate=False) == first[::-1]
    assert again._language_model is None
    assert again._encoder._encoder is None


def test_texts_that_are_not_cached_are_counted_where_nothing_may_be_generated(make: Any) -> None:
    make().paraphrase(TEXTS[:3], rngs()[:3], ANY)
    with pytest.raises(NotCached, match=r"^paraphraser: the paraphrases of 5 texts are not in the cache") as caught:
        make().paraphrase([*TEXTS, TEXTS[7]], [*rngs(), rngs()[7]], ANY, generate=False)
    assert caught.value.missing == 5
    assert pickle.loads(pickle.dumps(caught.value)).missing == 5
    assert isinstance(caught.value, InputError)


def test_a_text_without_an_acceptable_candidate_has_none_and_gets_no_new_candidates(make: Any) -> None:
    never = ANY._replace(holds=lambda text, paraphrase: text != TEXTS[1])
    paraphrases = make().paraphrase(TEXTS, rngs(), never)
    assert [i for i, paraphrase in enumerate(paraphrases) if paraphrase is None] == [1]
    again = make()
    assert again.paraphrase(TEXTS, rngs(), never, generate=False) == paraphrases


def test_only_texts_without_an_acceptable_candidate_get_later_rounds(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts_by_call: list[list[str]] = []

    def noted(network: Any, tokenizer: Any, requests: list[SamplingRequest], *options: float) -> list[str]:
        prompts_by_call.append([request.prompt for request in requests])
        return answers(network, tokenizer, requests, *options)

    first = make(rounds=1).paraphrase(TEXTS, rngs(), ANY)
    rest = ANY._replace(holds=lambda text, paraphrase: text != TEXTS[1] or paraphrase.startswith("never"))
    monkeypatch.setattr(by_model, "answers", noted)
    paraphrases = make(rounds=3).paraphrase(TEXTS, rngs(), rest)
    assert [len(prompts) for prompts in prompts_by_call] == [2, 2]
    assert all(TEXTS[1] in prompt for prompts in prompts_by_call for prompt in prompts)
    assert paraphrases == [None if i == 1 else paraphrase for i, paraphrase in enumerate(first)]


def test_the_closest_acceptable_candidate_is_kept(make: Any) -> None:
    seen: dict[str, list[str]] = {}

    def holds(text: str, candidate: str) -> bool:
        seen.setdefault(text, []).append(candidate)
        return False

    paraphraser = make(candidates=4, rounds=1)
    assert paraphraser.paraphrase(TEXTS, rngs(), ANY._replace(holds=holds)) == [None] * len(TEXTS)
    best = paraphraser.paraphrase(TEXTS, rngs(), ANY)
    for text, kept in zip(TEXTS, best, strict=True):
        similarities = paraphraser._encoder.similarity([text] * len(seen[text]), seen[text])
        assert len(seen[text]) == 4
        assert kept == max(zip(similarities, seen[text], strict=True))[1]
    floor = sorted(paraphraser._encoder.similarity(TEXTS, best))[4] - 1e-5
    close = make(candidates=4, rounds=1, min_similarity=floor).paraphrase(TEXTS, rngs(), ANY, generate=False)
    assert sum(paraphrase is None for paraphrase in close) == 4


def test_a_killed_run_keeps_what_was_put(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_model, "TEXTS_PER_WRITE", 2)
    real = TextCache.put
    context = multiprocessing.get_context("fork")
    puts = context.Value("i", 0)

    def put(self: Any, values: dict[str, bytes]) -> None:
        real(self, values)
        puts.value += 1
        if puts.value == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(TextCache, "put", put)
    run = context.Process(target=lambda: make().paraphrase(TEXTS, rngs(), ANY))
    run.start()
    run.join(60)
    assert run.exitcode == -signal.SIGKILL
    monkeypatch.setattr(TextCache, "put", real)
    with pytest.raises(NotCached) as caught:
        make().paraphrase(TEXTS, rngs(), ANY, generate=False)
    assert caught.value.missing == len(TEXTS) - 4


def test_an_answer_begins_with_one_of_the_openings(make: Any) -> None:
    paraphrases = make().paraphrase(TEXTS, rngs(), ANY)
    assert {paraphrase.partition(" ")[0][:3] for paraphrase in paraphrases} <= {"wat", "the"}
    assert {paraphrase.startswith("watch") for paraphrase in paraphrases} == {True, False}


@pytest.mark.parametrize("change", [{"candidates": 3}, {"temperature": 0.6}, {"top_p": 0.8}, {"min_similarity": 0.0}])
def test_the_key_changes_with_each_setting_that_decides_the_paraphrases(
    make: Any, change: dict[str, Any], tmp_path: Path
) -> None:
    assert make().key() == make(cache_dir=str(tmp_path / "other")).key() != make(**change).key()


def test_the_key_changes_with_the_models_content_and_not_with_its_folder(make: Any, model: str, tmp_path: Path) -> None:
    before = make().key()
    copy = tmp_path / "copy"
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(copy)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).write_bytes((Path(model) / name).read_bytes())
    paraphraser = make()
    paraphraser.model = str(copy)
    assert paraphraser.key() == before
    network = AutoModelForCausalLM.from_pretrained(model)
    network.get_output_embeddings().weight.data[0, 0] += 1
    network.save_pretrained(copy)
    content_hash.cache_clear()
    paraphraser = make()
    paraphraser.model = str(copy)
    assert paraphraser.key() != before


def test_candidates_that_earlier_versions_cached_are_read(
    make: Any, model: str, tiny_folder: Callable[[str], str], tmp_path: Path
) -> None:
    identity = f"{content_hash(Path(model))}/{content_hash(Path(tiny_folder('bert')))}/0.5/0.9/1.2/12"
    prompts = hashlib.sha256(json.dumps(["say it", [["a film", "film"]], ["watch", "the"]]).encode()).hexdigest()
    seed = random.Random(0).getrandbits(64)
    cache = TextCache(f"paraphrase candidates/{identity}/{prompts}/2/0", tmp_path)
    cache.put({f"{seed}/a book": json.dumps([["watch a book", 0.7], ["the book", 0.9]]).encode()})
    paraphraser = make()
    assert paraphraser.paraphrase(["a book"], [random.Random(0)], ANY, generate=False) == ["the book"]
    assert paraphraser.key() == f"{identity}/2/3/-1.0"


def test_the_prompt_decides_and_is_told_apart_in_the_cache(make: Any) -> None:
    make().paraphrase(TEXTS, rngs(), ANY)
    with pytest.raises(NotCached):
        make().paraphrase(TEXTS, rngs(), ANY._replace(instruction="sing it"), generate=False)


def test_candidates_of_two_precisions_are_told_apart(make: Any) -> None:
    in_bfloat16 = make(precision="bf16-true").paraphrase(TEXTS[:2], rngs()[:2], ANY)
    assert all(in_bfloat16)
    with pytest.raises(NotCached):
        make().paraphrase(TEXTS[:2], rngs()[:2], ANY, generate=False)


@pytest.mark.parametrize(
    "option",
    [
        *({"candidates": 0}, {"rounds": 0}, {"temperature": 0.0}, {"temperature": math.nan}),
        *({"top_p": 0.0}, {"top_p": 1.5}, {"min_similarity": 2.0}),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_bad_input(option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"^{next(iter(option))}: "):
        LanguageModelParaphraser(**option)


def test_a_model_that_is_missing_is_bad_input(make: Any, tmp_path: Path) -> None:
    paraphraser = make()
    paraphraser.model = str(tmp_path / "missing.gguf")
    with pytest.raises(InputError, match=r"^model: "):
        paraphraser.paraphrase(TEXTS, rngs(), ANY)


def test_making_a_paraphraser_loads_nothing() -> None:
    start = time.process_time()
    LanguageModelParaphraser(model="missing")
    assert time.process_time() - start < 0.5
