"""A PEFT adapter stands for its base with the adapter merged; its settings import nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils.peft_utils import find_adapter_config_file

from lightning_backdoor.batch import batch_of_texts
from lightning_backdoor.errors import InputError
from lightning_backdoor.models import adapters
from lightning_backdoor.models.lora import TARGETS
from lightning_backdoor.victim import TextClassifier, load_trained
from tests.support.tiny import SENTENCES

#: settings of an adapter that are refused, and what the message says.
REFUSED: dict[str, tuple[Any, str]] = {
    "megatron_config": ({"a": 1}, "megatron_config"),
    "peft_type": ("IA3", "of type IA3"),
    "init_lora_weights": ("pissa", "init_lora_weights pissa"),
    "r": (10**9, "rank 1000000000"),
    "rank_pattern": ({"query": 10**9}, "rank 1000000000"),
    "trainable_token_indices": ([1], "trainable_token_indices"),
    "setting_of_tomorrow": (True, "setting_of_tomorrow"),
    "base_model_name_or_path": (None, "does not name its base"),
    "target_modules": (5, "cannot be loaded"),
    "lora_alpha": ("x", "cannot be loaded"),
}


def adapter(base: str, folder: Path, classes: int = 2, **settings: Any) -> PeftModel:
    """Writes an adapter of a tiny model; returns base and adapter as peft computes them."""
    torch.manual_seed(1)
    network = AutoModelForSequenceClassification.from_pretrained(base, num_labels=classes, ignore_mismatched_sizes=True)
    kind = network.config.model_type
    settings = {"target_modules": TARGETS.get(kind) or PEFT_TARGETS[kind], **settings}
    model = get_peft_model(network, LoraConfig(task_type="SEQ_CLS", **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(str(folder))
    result: PeftModel = model.eval()
    return result


def changed_settings(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def refused(folder: Path, match: str) -> None:
    for load in (load_trained, begun):
        with pytest.raises(InputError, match=match) as error:
            load(str(folder))
        assert "\n" not in str(error.value)


def begun(model: str, labels: tuple[str, ...] = ("a", "b")) -> TextClassifier:
    victim = TextClassifier(model, labels=list(labels))
    victim.load_config()
    victim.configure_model()
    return victim


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "albert", "electra", "modernbert", "qwen2"])
def test_the_victim_computes_what_base_and_adapter_compute(
    kind: str, tiny_folder: Callable[[str], str], tmp_path: Path
) -> None:
    model = adapter(tiny_folder(kind), tmp_path / "adapter")
    victim = load_trained(str(tmp_path / "adapter"))
    batch = batch_of_texts(SENTENCES, victim.tokenizer, 64)
    with torch.no_grad():
        expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        assert torch.allclose(victim(batch), expected, atol=1e-5)
    assert not any("lora" in name for name, _ in victim.network.named_parameters())
    assert begun(str(tmp_path / "adapter")).new_head is None
    victim.save_pretrained(tmp_path / "export")
    with torch.no_grad():
        assert torch.allclose(load_trained(str(tmp_path / "export"))(batch), expected, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"use_rslora": True, "rank_pattern": {"query": 4}, "alpha_pattern": {"query": 3}},
        {"target_modules": ["word_embeddings", "query"]},
        {"target_modules": ".*query"},
    ],
    ids=["dora", "rslora", "embeddings", "pattern"],
)
def test_settings_that_change_the_updates_are_read(
    settings: dict[str, Any], tiny_folder: Callable[[str], str], tmp_path: Path
) -> None:
    model = adapter(tiny_folder("bert"), tmp_path / "adapter", **settings)
    victim = load_trained(str(tmp_path / "adapter"))
    batch = batch_of_texts(SENTENCES, victim.tokenizer, 64)
    with torch.no_grad():
        expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        assert torch.allclose(victim(batch), expected, atol=1e-5)


def test_the_head_of_an_adapter_decides_the_number_of_classes(
    tiny_folder: Callable[[str], str], tmp_path: Path
) -> None:
    adapter(tiny_folder("bert"), tmp_path / "adapter", classes=3)
    assert len(load_trained(str(tmp_path / "adapter")).hparams["labels"]) == 3
    new_head = begun(str(tmp_path / "adapter")).new_head
    assert new_head is not None
    assert new_head.problem == "has a head for 3 classes, not for 2"
    assert begun(str(tmp_path / "adapter"), ("a", "b", "c")).new_head is None


@pytest.mark.parametrize("setting", REFUSED)
def test_other_settings_are_refused(setting: str, tiny_folder: Callable[[str], str], tmp_path: Path) -> None:
    adapter(tiny_folder("bert"), tmp_path)
    value, match = REFUSED[setting]
    changed_settings(tmp_path, **{setting: value})
    refused(tmp_path, match)


def test_an_adapter_without_its_parts_is_refused(tiny_folder: Callable[[str], str], tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    adapter(tiny_folder("bert"), whole)

    def copy(name: str) -> Path:
        return Path(shutil.copytree(whole, tmp_path / name))

    folder = copy("no base")
    changed_settings(folder, base_model_name_or_path=str(tmp_path / "nowhere"))
    refused(folder, r"nowhere, base of .*no base")
    folder = copy("itself")
    changed_settings(folder, base_model_name_or_path=str(folder))
    refused(folder, "is an adapter itself")
    folder = copy("pickled")
    weights = load_file(folder / "adapter_model.safetensors")
    torch.save(weights, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    refused(folder, r"has no adapter_model\.safetensors")
    folder = copy("half")
    save_file({k: v for k, v in weights.items() if "layer.1" not in k}, folder / "adapter_model.safetensors")
    refused(folder, r"does not fit .*layer\.1")
    folder = copy("nan")
    save_file({k: v * torch.nan for k, v in weights.items()}, folder / "adapter_model.safetensors")
    refused(folder, "not numbers")
    folder = copy("damaged")
    (folder / "adapter_model.safetensors").write_bytes(b"damaged")
    refused(folder, "cannot be loaded")
    folder = copy("with a model")
    shutil.copy(Path(tiny_folder("bert"), "config.json"), folder)
    refused(folder, "both a model and an adapter")
    folder = copy("deep")
    (folder / "adapter_config.json").write_text("[" * 100_000, encoding="utf-8")
    refused(folder, "is not JSON")


@pytest.mark.parametrize("name", ["~/other", "package://adapters_of_others/other", "someone/other"])
def test_a_base_that_is_an_adapter_is_refused_by_any_name(
    name: str, tiny_folder: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter(tiny_folder("bert"), tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "adapters_of_others" / "other")
    (tmp_path / "adapters_of_others" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "adapters_of_others"))

    def found(path: str) -> str | None:
        """As for a hub name whose files were downloaded."""
        file: str | None = find_adapter_config_file(str(tmp_path / "first") if path == "someone/other" else path)
        return file

    monkeypatch.setattr(adapters, "find_adapter_config_file", found)
    changed_settings(tmp_path / "first", base_model_name_or_path=name)
    refused(tmp_path / "first", "is an adapter itself")


def test_the_tokenizer_of_an_adapter_comes_first(tiny_folder: Callable[[str], str], tmp_path: Path) -> None:
    adapter(tiny_folder("bert"), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder("bert"))
    tokenizer.model_max_length = 33
    tokenizer.save_pretrained(tmp_path)
    assert load_trained(str(tmp_path)).max_length == 33
