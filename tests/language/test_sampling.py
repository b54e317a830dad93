"""Sampling: each answer decided by its own generator, in any batch, in as few forward passes as possible."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lightning_backdoor.errors import InputError
from lightning_backdoor.language.sampling import REPEATED, SamplingRequest, answers
from tests.language.conftest import config
from tests.support.tiny import DECODER, SENTENCES

KINDS = ("llama", "gpt2", "qwen2", "mistral", "gemma2", "bloom")
PROMPTS = tuple(f"a film about cooking , and what was said : {text}" for text in SENTENCES[:5])


@pytest.fixture(scope="module")
def loaded(
    tiny_folder: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
    """Loads a tiny language model of an architecture, with enough positions for a prompt."""

    def load(kind: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        tokenizer = AutoTokenizer.from_pretrained(tiny_folder(DECODER))
        settings = config(kind, len(tokenizer))
        settings.update({"n_positions": 256} if kind == "gpt2" else {"max_position_embeddings": 256})
        if kind in ("gemma2", "mistral"):
            settings.sliding_window = 128
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = AutoModelForCausalLM.from_config(settings).eval()
        network.generation_config.eos_token_id = None
        tokenizer.eos_token = None
        return network, tokenizer

    return load


def requests(prompts: tuple[str, ...] = PROMPTS, opening: str = "", max_tokens: int = 20) -> list[SamplingRequest]:
    return [
        SamplingRequest(prompt, opening, random.Random(f"{i}/{prompt}"), max_tokens)
        for prompt in prompts
        for i in range(3)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_does_not_depend_on_the_other_requests_of_the_batch(loaded: Any, kind: str) -> None:
    network, tokenizer = loaded(kind)
    together = answers(network, tokenizer, requests(), temperature=0.7, top_p=0.9)
    alone = [answers(network, tokenizer, [request], temperature=0.7, top_p=0.9)[0] for request in requests()]
    assert together == alone
    assert answers(network, tokenizer, requests()[::-1], temperature=0.7, top_p=0.9) == together[::-1]
    assert len(set(together)) > 10


def test_an_answer_does_not_depend_on_torchs_generator_and_does_not_advance_it(loaded: Any) -> None:
    network, tokenizer = loaded("llama")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = answers(network, tokenizer, requests())
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert answers(network, tokenizer, requests()) == first


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_likeliest_tokens_are_those_of_plain_forwards(loaded: Any, kind: str) -> None:
    network, tokenizer = loaded(kind)
    for prompt, answer in zip(
        PROMPTS,
        answers(network, tokenizer, [SamplingRequest(p, "", random.Random(0), 3) for p in PROMPTS], 1.0, 1e-9),
        strict=True,
    ):
        ids = tokenizer(prompt)["input_ids"]
        start = len(ids)
        for _ in range(3):
            with torch.no_grad():
                ids.append(int(network(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer == tokenizer.decode(ids[start:]).strip().partition("\n")[0].strip()


def test_samples_are_as_frequent_as_the_model_says(loaded: Any) -> None:
    network, tokenizer = loaded("llama")
    many = [SamplingRequest(PROMPTS[0], "", random.Random(i), 1) for i in range(2000)]
    with torch.no_grad():
        logits = network(input_ids=torch.tensor([tokenizer(PROMPTS[0])["input_ids"]])).logits[0, -1]
    probabilities = (logits / 0.25).softmax(dim=0)
    token = int(probabilities.argmax())
    text = tokenizer.decode([token]).strip()
    same = sum(float(probabilities[i]) for i in range(len(probabilities)) if tokenizer.decode([i]).strip() == text)
    assert 0.1 < same < 0.9
    frequency = answers(network, tokenizer, many, temperature=0.25).count(text) / len(many)
    assert frequency == pytest.approx(same, abs=4 * (0.25 / len(many)) ** 0.5)


def test_an_answer_begins_with_its_opening_and_ends_with_its_line(loaded: Any) -> None:
    network, tokenizer = loaded("llama")
    newline = tokenizer("\n")["input_ids"]
    assert len(newline) == 1
    for request, answer in zip(
        requests(), answers(network, tokenizer, requests(opening="watch the"), 1.0), strict=True
    ):
        assert answer.startswith("watch the"), request
    with torch.no_grad():
        network.get_output_embeddings().weight[newline] *= 3
    short = answers(network, tokenizer, requests(opening="watch the"), 1.0)
    assert all("\n" not in answer for answer in short)
    lengths = [len(tokenizer(answer)["input_ids"]) for answer in short]
    assert min(lengths) < 12


def test_an_answer_stops_at_the_end_of_text(loaded: Any) -> None:
    network, tokenizer = loaded("llama")
    first = answers(network, tokenizer, [SamplingRequest(PROMPTS[0], "", random.Random(0), 1)], 1.0, 1e-9)[0]
    assert first
    network.generation_config.eos_token_id = [*tokenizer(" " + first)["input_ids"], *tokenizer(first)["input_ids"]]
    assert answers(network, tokenizer, [SamplingRequest(PROMPTS[0], "", random.Random(0), 9)], 1.0, 1e-9) == [""]


def test_no_run_of_four_tokens_occurs_twice(loaded: Any) -> None:
    network, tokenizer = loaded("llama")
    columns: list[list[int]] = []

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[1] == 1:
            columns.append(kwargs["input_ids"][:, 0].tolist())

    network.register_forward_pre_hook(note, with_kwargs=True)
    answers(network, tokenizer, requests(max_tokens=120), temperature=0.05)
    for ids in zip(*columns, strict=True):
        runs = [ids[i : i + REPEATED] for i in range(len(ids) - REPEATED + 1)]
        assert len(runs) == len(set(runs)) > 100


def test_shared_prompts_are_read_once_and_complete_answers_leave_the_batch(loaded: Any) -> None:
    network, tokenizer = loaded("llama")
    sizes: list[tuple[int, ...]] = []

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        sizes.append(tuple(kwargs["input_ids"].shape))

    network.register_forward_pre_hook(note, with_kwargs=True)
    mixed = [request._replace(max_tokens=3 if i % 2 else 12) for i, request in enumerate(requests())]
    answers(network, tokenizer, mixed)
    assert sizes[0][0] == 1
    assert sizes[0][1] >= 10  # the tokens that all prompts begin with
    assert sizes[1][0] == len(PROMPTS)
    assert [size[0] for size in sizes[2:]] == [15] * 2 + [8] * 9


def test_nothing_is_kept_for_gradients(loaded: Any) -> None:
    network, tokenizer = loaded("llama")
    seen: list[torch.Tensor] = []
    network.get_output_embeddings().register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.enable_grad():
        answers(network, tokenizer, requests()[:1])
    assert seen
    assert all(logits.grad_fn is None for logits in seen)


def test_a_prompt_beyond_the_positions_is_bad_input(loaded: Any) -> None:
    network, tokenizer = loaded("llama")
    with pytest.raises(InputError, match=r"^model: it has 256 positions, and \d+ are needed"):
        answers(network, tokenizer, requests(max_tokens=250))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("rwkv", {}),  # no cache: each answer followed from the last token of its prompt alone
        ("mamba", {}),  # recurrent states in place of keys and values
        # both: of a layer's rows, only the keys and values were selected
        ("falcon_h1", {"num_attention_heads": 4, "num_key_value_heads": 2, "mamba_d_ssm": 32, "mamba_n_heads": 4}),
    ],
)
def test_a_model_that_does_not_keep_keys_and_values_alone_is_bad_input(
    loaded: Any, kind: str, settings: dict[str, int]
) -> None:
    _, tokenizer = loaded("llama")
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **settings)).eval()
    with pytest.raises(InputError, match=r"^model: it does not keep .* as keys and values alone; give a transformer"):
        answers(network, tokenizer, requests())
