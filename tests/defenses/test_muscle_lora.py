"""Layers and alignment of MuScleLoRA: against published numbers, and on every architecture."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_backdoor.batch import batch_of_texts
from lightning_backdoor.defenses.muscle_lora import (
    MultiScaleHead,
    MultiScaleLinear,
    align,
    insert_multi_scale,
    mean_norm,
    merge_muscle_lora,
    raw_gradient_ratio,
)
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.lora import insert_lora
from lightning_backdoor.victim import TextClassifier
from tests.support.shared_files import shared_path
from tests.support.tiny import DECODERS, FAMILIES, SENTENCES, loaded

Folder = Callable[[str], str]


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shared_path("golden/muscle_lora.json").read_text(encoding="utf-8"))
    return found


def test_the_layer_gives_the_published_numbers(golden: dict[str, Any]) -> None:
    layer = golden["layer"]
    linear = nn.Linear(len(layer["W"][0]), len(layer["W"]))
    linear.weight.data, linear.bias.data = torch.tensor(layer["W"]), torch.tensor(layer["b"])
    ours = MultiScaleLinear(linear, layer["radial_scalings"], layer["inner_rank"], layer["alpha"])
    assert ours.L.shape == torch.tensor(layer["L"]).shape
    assert ours.R.shape == torch.tensor(layer["R"]).shape
    ours.L.data, ours.R.data = torch.tensor(layer["L"]), torch.tensor(layer["R"])
    for module in (ours, ours.merged()):
        torch.testing.assert_close(module(torch.tensor(layer["x"])), torch.tensor(layer["y"]), rtol=1e-5, atol=1e-6)


def test_the_alignment_gives_the_published_numbers(golden: dict[str, Any]) -> None:
    for case in golden["alignment"]:
        task, reference = torch.tensor(case["task_gradient"]), torch.tensor(case["reference_gradient"])
        aligned = align(task, reference, case["raw_gradient_ratio"] or 0.0)
        torch.testing.assert_close(aligned, torch.tensor(case["aligned"]), rtol=1e-5, atol=1e-7)


def test_an_aligned_gradient_never_opposes_the_reference() -> None:
    random = torch.Generator().manual_seed(0)
    for _ in range(50):
        task, reference = torch.randn(2, 3, 4, generator=random)
        aligned = align(task, reference)
        torch.testing.assert_close(aligned / aligned.norm(), reference / reference.norm())
        assert aligned.norm() <= task.norm() + 1e-6
        torch.testing.assert_close((aligned * reference).sum().abs(), (task * reference).sum().abs())


def test_with_a_zero_reference_gradient_the_gradient_stays() -> None:
    task = torch.tensor([1.0, -2.0])
    assert torch.equal(align(task, torch.zeros(2)), task)
    assert torch.equal(align(task, torch.zeros(2), 0.5), task)


def test_the_raw_share_grows_from_the_start_epoch_on() -> None:
    shares = [raw_gradient_ratio(epoch, epochs=6, start_epoch=2, limit=0.8) for epoch in range(6)]
    assert shares == pytest.approx([None, None, 0.0, 0.2, 0.4, 0.6], nan_ok=False)
    assert raw_gradient_ratio(5, epochs=6, start_epoch=2, limit=0.0) is None


def test_the_mean_norm_leaves_out_zeros() -> None:
    assert mean_norm([torch.tensor([3.0, 4.0]), torch.zeros(3), torch.tensor([1.0])]).item() == 3
    assert mean_norm([torch.zeros(3)]).item() == 0


def logits(victim: TextClassifier) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = victim(batch_of_texts(SENTENCES, victim.tokenizer, victim.max_length))
    return found


def trained(victim: TextClassifier) -> None:
    """Changes all trainable parameters, as training would, so that no inserted weight is zero."""
    torch.manual_seed(1)
    for parameter in victim.network.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_architecture_merges_into_a_plain_model(tiny_folder: Folder, kind: str) -> None:
    victim = loaded(tiny_folder(kind))
    plain = {name: parameter.shape for name, parameter in victim.network.state_dict().items()}
    before = logits(victim)
    insert_lora(victim.network, rank=2, alpha=4)
    if kind not in DECODERS:  # begins as the model it was inserted into; a decoder's added layer does not
        torch.testing.assert_close(logits(victim), before, rtol=1e-5, atol=1e-6)
    insert_multi_scale(victim.network, [1, 2, 4], inner_rank=2, alpha=6)
    trained(victim)
    changed = logits(victim)
    assert not torch.allclose(changed, before, atol=1e-3)
    inserted = set(victim.network.state_dict())
    victim.network = merge_muscle_lora(victim.network)
    assert {name: parameter.shape for name, parameter in victim.network.state_dict().items()} == plain
    assert inserted != set(plain)
    torch.testing.assert_close(logits(victim), changed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", FAMILIES)
def test_under_lora_nothing_else_is_trained(tiny_folder: Folder, kind: str) -> None:
    victim = loaded(tiny_folder(kind))
    insert_lora(victim.network, rank=2, alpha=4)
    insert_multi_scale(victim.network, [1, 2], inner_rank=1, alpha=6)
    names = [name for name, parameter in victim.network.named_parameters() if parameter.requires_grad]
    assert sum(name.endswith((".L", ".R")) for name in names) == 2
    assert sum("lora_" in name for name in names) == len(names) - 2 > 0
    victim.network(
        **{k: v for k, v in batch(victim).items() if k in ("input_ids", "attention_mask")}
    ).logits.sum().backward()
    assert all(p.grad is not None for p in victim.network.parameters() if p.requires_grad)


def batch(victim: TextClassifier) -> dict[str, Any]:
    return {**batch_of_texts(SENTENCES[:2], victim.tokenizer, victim.max_length)}


def test_multi_scale_alone_trains_the_backbone_and_the_classifier(tiny_folder: Folder) -> None:
    victim = loaded(tiny_folder("bert"))
    insert_multi_scale(victim.network, [1, 2], inner_rank=1, alpha=6)
    frozen = [name for name, parameter in victim.network.named_parameters() if not parameter.requires_grad]
    assert frozen == ["bert.pooler.dense.linear.weight", "bert.pooler.dense.linear.bias"]


def test_the_published_layers_are_replaced(tiny_folder: Folder) -> None:
    layers = {
        "bert": "bert.pooler.dense",
        "roberta": "classifier.dense",
        "distilbert": "pre_classifier",
        "albert": "albert.pooler",
        "deberta-v2": "pooler.dense",
        "electra": "classifier.dense",
        "modernbert": "head.dense",
        **dict.fromkeys(DECODERS, "score"),
    }
    for kind, name in layers.items():
        victim = loaded(tiny_folder(kind))
        insert_multi_scale(victim.network, [1], inner_rank=1, alpha=6)
        assert isinstance(victim.network.get_submodule(name), MultiScaleHead | MultiScaleLinear), kind


def test_unknown_layers_are_named_in_one_line(tiny_folder: Folder) -> None:
    victim = loaded(tiny_folder("bert"))
    with pytest.raises(InputError, match=r"^lora_targets: the model has no layers \['nowhere'\]"):
        insert_lora(victim.network, rank=2, alpha=4, targets=["nowhere"])
    victim.network.config.model_type = "new"
    with pytest.raises(InputError, match=r"^lora_targets: layers of 'new' are not known"):
        insert_lora(victim.network, rank=2, alpha=4)
