"""Weights that do not belong to the network are refused by name, and a new head is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
)

from lightning_backdoor.batch import batch_of_texts
from lightning_backdoor.language.language_model import load_language_model
from lightning_backdoor.models import weights
from lightning_backdoor.models.loading import load_safely
from lightning_backdoor.victim import TextClassifier, load_trained
from tests.support.folders import State, begun, changed_config, changed_weights, refused
from tests.support.tiny import FAMILIES, SENTENCES


def logits(victim: TextClassifier) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = victim.eval()(batch_of_texts(SENTENCES, victim.tokenizer, 64))
    return result


def one_less(state: State) -> State:
    """Without one weight of the first layer."""
    gone = next(name for name in state if ".0." in name and name.endswith("weight") and state[name].dim() == 2)
    return {name: tensor for name, tensor in state.items() if name != gone}


@pytest.mark.parametrize("kind", FAMILIES)
def test_missing_weights_are_refused_in_every_family(
    kind: str, tiny_folder: Callable[[str], str], tmp_path: Path
) -> None:
    less = changed_weights(tiny_folder(kind), tmp_path / "less", one_less)
    for load in (begun, load_trained):
        refused(lambda load=load: load(less), r"lacks 1 weight of its network \(\S+\)")  # type: ignore[misc]
    assert begun(tiny_folder(kind)).new_head is None


@pytest.mark.parametrize("pickled", [False, True])
def test_names_of_a_wrapper_are_refused_and_those_of_data_parallel_are_read(
    pickled: bool, tiny_folder: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bert = tiny_folder("bert")
    other = changed_weights(bert, tmp_path / "other", lambda s: {f"net.{name}": s[name] for name in s}, pickled)
    for load in (begun, load_trained):
        refused(lambda load=load: load(other), r"lacks 37 weights .*bert\.embeddings\.LayerNorm\.bias")  # type: ignore[misc]
    said: list[str] = []
    monkeypatch.setattr(weights, "rank_zero_info", said.append)
    parallel = changed_weights(bert, tmp_path / "dp", lambda s: {f"module.{name}": s[name] for name in s}, pickled)
    for load in (begun, load_trained):
        assert torch.equal(logits(load(parallel)), logits(load(bert)))
    assert len(said) == 1
    assert "module." in said[0]
    mixed = changed_weights(
        bert, tmp_path / "mixed", lambda s: {f"module.{name}" if "layer.0" in name else name: s[name] for name in s}
    )
    assert torch.equal(logits(begun(mixed)), logits(begun(bert)))


def test_a_shard_that_lacks_a_weight_is_refused(tiny_folder: Callable[[str], str], tmp_path: Path) -> None:
    network = AutoModelForSequenceClassification.from_pretrained(tiny_folder("bert"))
    network.save_pretrained(tmp_path, max_shard_size="20KB")
    AutoTokenizer.from_pretrained(tiny_folder("bert")).save_pretrained(tmp_path)
    assert torch.equal(logits(begun(str(tmp_path))), logits(begun(tiny_folder("bert"))))
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    shards[1].write_bytes(shards[0].read_bytes())
    refused(lambda: begun(str(tmp_path)), "lacks")
    shards[1].unlink()
    refused(lambda: begun(str(tmp_path)), "cannot be loaded")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(value: float, tiny_folder: Callable[[str], str], tmp_path: Path) -> None:
    name = "bert.encoder.layer.1.output.dense.weight"

    def change(state: State) -> State:
        state[name][3, 3] = value
        return state

    folder = changed_weights(tiny_folder("bert"), tmp_path / "nan", change)
    for load in (begun, load_trained):
        refused(lambda load=load: load(folder), f"not numbers \\({name}\\)")  # type: ignore[misc]


def test_a_missing_head_is_new_for_fit_and_refused_elsewhere(tiny_folder: Callable[[str], str], tmp_path: Path) -> None:
    masked = BertForMaskedLM.from_pretrained(tiny_folder("bert"))
    masked.save_pretrained(tmp_path)  # has no pooler either
    AutoTokenizer.from_pretrained(tiny_folder("bert")).save_pretrained(tmp_path)
    victim = begun(str(tmp_path))
    assert victim.new_head is not None
    assert "pooler" in victim.new_head.problem
    assert load_safely(AutoModel, str(tmp_path)).config.model_type == "bert"
    refused(lambda: load_trained(str(tmp_path)), "lacks the weights .* of its head")
    refused(lambda: load_safely(AutoModelForCausalLM, tiny_folder("qwen2")), r"lacks the weights lm_head\.weight")


def test_a_language_model_that_lacks_weights_or_a_tokenizer_is_refused(
    tiny_folder: Callable[[str], str], tmp_path: Path
) -> None:
    network = AutoModelForCausalLM.from_pretrained(tiny_folder("gpt2"))
    network.save_pretrained(tmp_path / "bare")
    refused(lambda: load_language_model(str(tmp_path / "bare"), torch.device("cpu")), "has no tokenizer")
    AutoTokenizer.from_pretrained(tiny_folder("gpt2")).save_pretrained(tmp_path / "bare")
    assert load_language_model(str(tmp_path / "bare"), torch.device("cpu"))[0].config.model_type == "gpt2"
    less = changed_weights(str(tmp_path / "bare"), tmp_path / "less", one_less)
    refused(lambda: load_language_model(less, torch.device("cpu")), "lacks 1 weight")


def test_a_head_of_another_size_is_new_for_fit_and_refused_elsewhere(
    tiny_folder: Callable[[str], str], tmp_path: Path
) -> None:
    victim = begun(tiny_folder("roberta"), ["a", "b", "c"])
    assert victim.new_head is not None
    assert victim.new_head.problem == "has a head for 2 classes, not for 3"
    assert logits(victim).shape == (len(SENTENCES), 3)
    three = changed_config(tiny_folder("roberta"), tmp_path / "three", id2label={0: "a", 1: "b", 2: "c"})
    refused(lambda: load_trained(three), "has a head for 2 classes, not for 3")


def test_unused_weights_of_the_backbone_are_said(
    tiny_folder: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(weights, "rank_zero_warn", said.append)
    begun(tiny_folder("bert"))
    assert said == []
    begun(changed_config(tiny_folder("bert"), tmp_path / "short", num_hidden_layers=1))
    assert "does not use (bert.encoder.layer.1." in said[0]


def test_names_of_weights_are_said_without_control_codes(
    tiny_folder: Callable[[str], str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = "bert.\x1b]0;owned\x07\x1b[31mx.weight"
    folder = changed_weights(tiny_folder("bert"), tmp_path / "hostile", lambda state: {**state, name: torch.ones(2)})
    with pytest.warns(UserWarning, match=r"does not use \(bert\.\\x1b\]0;owned\\x07\\x1b\[31mx\.weight\)"):
        load_trained(folder)
    assert not {"\x1b", "\x07"} & set("".join(capfd.readouterr()))


def test_finiteness_is_exact_where_sums_overflow() -> None:
    class Large(torch.nn.Module):
        def __init__(self, *values: Any) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(values))

    weights.check_finite(Large(3e38, 3e38, 3e38), "large")
    refused(lambda: weights.check_finite(Large(3e38, torch.inf), "large"), r"not numbers \(weight\)")
