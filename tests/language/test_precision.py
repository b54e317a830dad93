"""The precision of language models: its names, what ``auto`` stands for, and caches that never mix two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_backdoor.callbacks import InferenceDefense
from lightning_backdoor.commands.run_metrics import write_metrics
from lightning_backdoor.defenses import Onion
from lightning_backdoor.errors import InputError
from lightning_backdoor.language import LanguageModelParaphraser, Perplexity
from lightning_backdoor.language import precision as module
from lightning_backdoor.language.packed_rows import PACKED
from lightning_backdoor.language.precision import AUTO, BFLOAT16, FLOAT32, chosen_precision
from tests.support.tiny import SENTENCES

Model = Callable[[str], str]


@pytest.mark.parametrize("make", [Perplexity, Onion, LanguageModelParaphraser])
def test_an_unknown_precision_is_bad_input(make: Callable[..., object]) -> None:
    with pytest.raises(InputError, match=r"^precision: 'bf16-mixed' is unknown.*auto, 32-true, bf16-true"):
        make(precision="bf16-mixed")


@pytest.mark.parametrize("hardware", [True, False])
def test_auto_is_bfloat16_where_the_device_computes_in_it(monkeypatch: pytest.MonkeyPatch, hardware: bool) -> None:
    monkeypatch.setattr(module, "has_bfloat16", lambda kind: hardware)
    device = torch.device("cpu")
    assert chosen_precision(AUTO, device) == (module.AUTO_ON_BFLOAT16_DEVICES if hardware else FLOAT32)
    assert [chosen_precision(precision, device) for precision in (FLOAT32, BFLOAT16)] == [FLOAT32, BFLOAT16]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom"])
def test_bfloat16_is_near_float32_with_shared_prefixes_and_without(
    language_model: Model, tmp_path: Path, kind: str
) -> None:
    full, half = (
        Perplexity(language_model(kind), str(tmp_path), precision=precision) for precision in (FLOAT32, BFLOAT16)
    )
    for exact, rounded in zip(full.leave_one_out(SENTENCES), half.leave_one_out(SENTENCES), strict=True):
        assert [rounded.text, *rounded.without] == pytest.approx([exact.text, *exact.without], rel=0.1)
        assert rounded != exact
    assert half._shares == full._shares
    assert half._network is not None
    assert full._network is not None
    assert {weight.dtype for weight in half._network.parameters()} == {torch.bfloat16}
    assert half._network.config._attn_implementation == full._network.config._attn_implementation != PACKED


def test_two_precisions_do_not_read_each_others_results(language_model: Model, tmp_path: Path) -> None:
    full, half = (
        Perplexity(language_model("llama"), str(tmp_path), precision=precision) for precision in (FLOAT32, BFLOAT16)
    )
    texts = SENTENCES[:2]
    expected = [repr(perplexity.leave_one_out(texts)) for perplexity in (half, full)]
    assert [repr(perplexity.leave_one_out(texts)) for perplexity in (half, full)] == expected
    assert expected[0] != expected[1]
    assert half.of_texts(texts) != full.of_texts(texts)


def test_auto_reads_the_results_of_the_precision_that_it_stands_for(
    language_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "has_bfloat16", lambda kind: False)
    explicit = Perplexity(language_model("llama"), str(tmp_path), precision=FLOAT32).leave_one_out(SENTENCES[:2])
    auto = Perplexity(language_model("llama"), str(tmp_path), precision=AUTO)
    assert auto.leave_one_out(SENTENCES[:2]) == explicit
    assert auto._network is None


def test_rounded_weights_are_loaded_again_for_a_device_of_another_precision(
    language_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "has_bfloat16", lambda kind: kind == "cpu")
    monkeypatch.setattr(module, "AUTO_ON_BFLOAT16_DEVICES", BFLOAT16)
    perplexity = Perplexity(language_model("llama"), str(tmp_path), precision=AUTO).to(torch.device("cpu"))
    perplexity.leave_one_out(SENTENCES[:1])
    assert perplexity._network is not None
    assert perplexity.to(torch.device("cpu"))._network is not None
    assert perplexity.to(torch.device("meta"))._network is None


def test_the_paraphraser_is_in_float32_by_default_and_keeps_its_key(language_model: Model, tiny_folder: Model) -> None:
    def make(**options: Any) -> LanguageModelParaphraser:
        return LanguageModelParaphraser(language_model("llama"), sentence_encoder=tiny_folder("bert"), **options)

    full, half, default = make(precision=FLOAT32), make(precision=BFLOAT16), make()
    assert default.key() == full.key() != half.key()
    assert BFLOAT16 in half.key()
    assert FLOAT32 not in full.key()


@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16])
def test_the_precision_of_a_defenses_own_model_is_recorded(
    bert: Any, language_model: Model, tmp_path: Path, precision: str
) -> None:
    from lightning.pytorch import LightningDataModule

    callback = InferenceDefense(Onion(language_model=language_model("llama"), precision=precision), name="onion")
    write_metrics(tmp_path / "metrics.json", {}, bert, LightningDataModule(), [callback], None)
    assert f'"model_precision": {{\n  "onion": "{precision}"\n }}' in (tmp_path / "metrics.json").read_text()
