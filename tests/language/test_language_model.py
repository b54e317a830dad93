"""Loading of causal language models: other models and files are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lightning_backdoor.errors import InputError
from lightning_backdoor.files.hashing import content_hash
from lightning_backdoor.language import language_model
from lightning_backdoor.language.language_model import load_language_model, model_identity
from lightning_backdoor.models.adapters import Adapter


@pytest.mark.parametrize("name", ["missing.gguf", "package://lightning_backdoor/py.typed"])
def test_a_file_that_is_not_a_model_is_bad_input(name: str) -> None:
    with pytest.raises(InputError, match=r"^model: "):
        load_language_model(name, torch.device("cpu"))


def test_an_encoder_is_not_a_causal_language_model(tiny_folder: Callable[[str], str]) -> None:
    with pytest.raises(InputError, match=r"^model: .* is not a causal language model"):
        load_language_model(tiny_folder("bert"), torch.device("cpu"))


def test_the_identity_of_an_adapter_changes_with_its_base(tiny_folder: Callable[[str], str], tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(tiny_folder("qwen2"), base)
    network = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(network, LoraConfig(task_type="CAUSAL_LM")).save_pretrained(str(adapter))
    before = model_identity(str(adapter))
    assert model_identity(str(base)) != before
    (base / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    content_hash.cache_clear()  # as in another process
    assert model_identity(str(adapter)) != before


def test_the_identity_of_a_hub_adapter_has_the_commits_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("snapshots", "0123")
    adapters = {"someone/adapter": Adapter(folder, "someone/base", {}), "someone/base": None}
    monkeypatch.setattr(language_model, "adapter_of", adapters.__getitem__)
    monkeypatch.setattr(language_model, "load_safely", lambda *_: SimpleNamespace(_commit_hash="4567"))
    assert model_identity("someone/adapter") == "someone/adapter@0123 on someone/base@4567"
