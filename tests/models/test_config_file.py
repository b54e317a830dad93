"""``config.json`` decides what is built, within bounds, and never what is downloaded and run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer
from transformers.integrations import hub_kernels

from lightning_backdoor.errors import InputError
from lightning_backdoor.models.config_file import no_hub_kernels
from lightning_backdoor.models.loading import load_safely
from lightning_backdoor.victim import load_trained
from tests.support.folders import LABELS, begun, changed_config, refused, without_tokenizer

KERNEL = "kernels-community/flash-attn2"

#: values of config.json that are refused by fit and scan alike, and what the message says.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "kernel": ({"attn_implementation": KERNEL}, "asks for a kernel"),
    "kernel, private": ({"_attn_implementation": KERNEL}, "asks for a kernel"),
    "kernel, internal": ({"_attn_implementation_internal": KERNEL}, "asks for a kernel"),
    "kernel of a part": ({"text_config": {"attn_implementation": KERNEL}}, "asks for a kernel"),
    "kernel of a layer": ({"per_layer_config": {"0": {"attn_implementation": KERNEL}}}, "asks for a kernel"),
    "kernel by part": ({"attn_implementation": {"": KERNEL}}, "asks for a kernel"),
    "kernel, paged": ({"attn_implementation": f"paged|{KERNEL}"}, "asks for a kernel"),
    "kernel, list": ({"attn_implementation": ["eager"]}, "asks for a kernel"),
    "experts": ({"experts_implementation": "sonicmoe"}, "asks for a kernel"),
    "use_kernels": ({"use_kernels": True}, "asks for a kernel"),
    "quantized": ({"quantization_config": {"quant_method": "mxfp4"}}, r"quantized weights \(mxfp4\)"),
    "ten million labels": ({"num_labels": 10_000_000}, "has 10000000 labels"),
    "of a part": ({"text_config": {"num_labels": 10_000_000}}, "has 10000000 labels"),
    "layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000; 1 to 256 are read"),
    "fewer than no layers": ({"num_hidden_layers": -1}, "num_hidden_layers -1; 1 to 256 are read"),
    "width": ({"hidden_size": 10**8}, "asks for a network of .* its files have"),
    "words": ({"vocab_size": 10**10}, "asks for a network of .* its files have"),
    "positions": ({"max_position_embeddings": 10**12}, "asks for a network of .* its files have"),
    "few words": (
        {"vocab_size": 100},
        r"204 tokens, its network 100|\(204, 32\), its config.json asks for \(100, 32\)",
    ),
    "names for numbers": ({"id2label": {"neg": 0, "pos": 1}}, "has the key 'neg', which is not a number"),
    "list of names": ({"id2label": ["neg", "pos"]}, "not an object"),
    "outside": ({"transformers_weights": "../../model.safetensors"}, "inside the model directory"),
    "activation": ({"hidden_act": "nope"}, "'nope' is unknown"),
    "heads": ({"num_attention_heads": 0}, "cannot be loaded"),
}
#: values that scan refuses, and fit has no use for.
REFUSED_BY_SCAN: dict[str, tuple[dict[str, Any], str]] = {
    "gap": ({"id2label": {"0": "neg", "2": "pos"}}, "2 names and none for 1"),
    "twice": ({"id2label": {"0": "neg", "1": "neg"}}, "two labels .* named 'neg'"),
    "several": ({"problem_type": "multi_label_classification"}, "is a multi-label classifier"),
    "number": ({"problem_type": "regression", "num_labels": 1}, "has 1 label"),
    "numbers": ({"problem_type": "regression"}, "predicts numbers, not labels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_out_of_bounds_is_refused(case: str, tiny_folder: Callable[[str], str], tmp_path: Path) -> None:
    values, match = REFUSED[case]
    folder = changed_config(tiny_folder("bert"), tmp_path / "model", **values)
    refused(lambda: begun(folder), match)
    refused(lambda: load_trained(folder), match)


@pytest.mark.parametrize("case", REFUSED_BY_SCAN)
def test_a_model_without_one_label_per_text_is_refused_unless_it_is_trained(
    case: str, tiny_folder: Callable[[str], str], tmp_path: Path
) -> None:
    values, match = REFUSED_BY_SCAN[case]
    folder = changed_config(tiny_folder("bert"), tmp_path / "model", **values)
    refused(lambda: load_trained(folder), match)
    victim = begun(folder)
    victim.save_pretrained(tmp_path / "export")
    assert load_trained(str(tmp_path / "export")).hparams["labels"] == LABELS


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 900 + "1" + "}" * 900, "[1]", "\ufeff{", '{"a": "' + "x" * 2**24]
)
def test_a_config_that_is_no_json_object_is_refused(
    content: str, tiny_folder: Callable[[str], str], tmp_path: Path
) -> None:
    folder = changed_config(tiny_folder("bert"), tmp_path / "model")
    Path(folder, "config.json").write_text(content, encoding="utf-8")
    refused(lambda: load_safely(AutoConfig, folder), "config.json of|recursion")
    refused(lambda: load_trained(folder), "config.json of|recursion")


def test_attention_of_other_packages_is_replaced(tiny_folder: Callable[[str], str], tmp_path: Path) -> None:
    used = {}
    for wanted in ("flash_attention_2", "flash_attention_3", "flex_attention", "eager", "sdpa"):
        folder = changed_config(tiny_folder("bert"), tmp_path / wanted, attn_implementation=wanted)
        used[wanted] = begun(folder).network.config._attn_implementation
    assert used == {
        "flash_attention_2": "sdpa",
        "flash_attention_3": "sdpa",
        "flex_attention": "sdpa",
        "eager": "eager",
        "sdpa": "sdpa",
    }


@pytest.mark.parametrize("architecture", ["yoso", "mra", "rwkv"])
def test_no_architecture_fetches_a_kernel(
    architecture: str, tiny_folder: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def get_kernel(name: str, **kwargs: object) -> None:
        fetched.append(name)
        raise ImportError

    monkeypatch.setattr(hub_kernels, "get_kernel", get_kernel)
    for module in ("yoso.modeling_yoso", "mra.modeling_mra", "rwkv.modeling_rwkv"):
        monkeypatch.setattr(f"transformers.models.{module}.is_kernels_available", lambda: True)
        monkeypatch.setattr(f"transformers.models.{module}.is_torch_cuda_available", lambda: True, raising=False)
        monkeypatch.setattr(f"transformers.models.{module}.is_ninja_available", lambda: True, raising=False)
    folder = changed_config(tiny_folder("bert"), tmp_path / "model", model_type=architecture)
    with pytest.raises(InputError):
        begun(folder)
    assert fetched == []
    with no_hub_kernels(), pytest.raises(ImportError, match="asks for the kernel a/b"):
        hub_kernels.get_kernel("a/b")
    with pytest.raises(ImportError):
        hub_kernels.get_kernel("a/b")
    assert fetched == ["a/b"]


@pytest.mark.parametrize("kind", ["bert", "roberta", "albert", "deberta-v2", "modernbert", "qwen2", "gpt2"])
def test_a_model_without_a_tokenizer_is_refused(kind: str, tiny_folder: Callable[[str], str], tmp_path: Path) -> None:
    folder = without_tokenizer(tiny_folder(kind), tmp_path / "model")
    for load in (begun, load_trained, lambda name: load_safely(AutoTokenizer, name)):
        refused(lambda load=load: load(folder), "has no tokenizer|backend tokenizer")  # type: ignore[misc]


def test_tokens_without_an_embedding_and_a_tokenizer_without_padding_are_refused(
    tiny_folder: Callable[[str], str], tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder("bert"))
    tokenizer.add_tokens(["<new>", "<newer>"])
    folder = changed_config(tiny_folder("bert"), tmp_path / "more")
    tokenizer.save_pretrained(folder)
    for load in (begun, load_trained):
        refused(lambda load=load: load(folder), "206 tokens, its network 204 embeddings")  # type: ignore[misc]
    bare = AutoTokenizer.from_pretrained(tiny_folder("bert"))
    bare.pad_token = None
    folder = changed_config(tiny_folder("bert"), tmp_path / "bare")
    bare.save_pretrained(folder)
    for load in (begun, load_trained):
        refused(lambda load=load: load(folder), "neither a padding nor an end token")  # type: ignore[misc]
