"""Passes that compute the last layer for the readout token alone give what plain passes give."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from lightning_backdoor.batch import batch_of_texts
from lightning_backdoor.defenses import attention_capture
from lightning_backdoor.defenses.attention_capture import attention_and_gradient
from lightning_backdoor.models import captures
from lightning_backdoor.models.lora import insert_lora
from lightning_backdoor.models.readout_only import readout_only
from lightning_backdoor.victim import TextClassifier
from tests.support.reviews import reviews
from tests.support.tiny import FAMILIES, MAX_LENGTH, SENTENCES, loaded

Folder = Callable[[str], str]


def inputs(victim: TextClassifier, side: str = "right") -> tuple[PreTrainedModel, Tensor, Tensor]:
    victim.tokenizer.padding_side = side
    batch = batch_of_texts([SENTENCES[0], "w", SENTENCES[4]], victim.tokenizer, MAX_LENGTH)
    return victim.network, batch["input_ids"], batch["attention_mask"]


def logits_and_gradients(network: PreTrainedModel, ids: Tensor, mask: Tensor, readout: bool) -> dict[str, Tensor]:
    """All that a training step would use, and the generator's state after it."""
    network.zero_grad()
    torch.manual_seed(0)
    with readout_only(network, ids, mask) if readout else nullcontext():
        logits = network(input_ids=ids, attention_mask=mask).logits
    logits.square().sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}
    return {"logits": logits.detach(), "generator": torch.get_rng_state(), **gradients}


def check_same(network: PreTrainedModel, ids: Tensor, mask: Tensor) -> None:
    found, expected = (logits_and_gradients(network, ids, mask, readout) for readout in (True, False))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def operations(network: PreTrainedModel, ids: Tensor, mask: Tensor, readout: bool) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), readout_only(network, ids, mask) if readout else nullcontext(), counter:
        network(input_ids=ids, attention_mask=mask)
    return int(counter.get_total_flops())


def saves(network: PreTrainedModel, ids: Tensor, mask: Tensor) -> bool:
    """Whether a pass is shorter than a plain one; the network is probed before."""
    with readout_only(network, ids, mask):
        pass
    return operations(network, ids, mask, readout=True) < operations(network, ids, mask, readout=False)


@pytest.mark.parametrize("kind", FAMILIES)
def test_logits_gradients_and_random_draws_are_those_of_a_plain_pass(kind: str, tiny_folder: Folder) -> None:
    victim = loaded(tiny_folder(kind))
    for side in ("right", "left"):
        given = inputs(victim, side)
        for training in (False, True):
            given[0].train(training)
            check_same(*given)
    assert saves(*given) == (kind != "albert")  # whose layers share their weights
    assert all(module.training for module in given[0].modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in given[0].base_model.modules())


def test_dropout_between_feed_forward_layers_draws_as_in_a_plain_pass(tiny_folder: Folder) -> None:
    given = inputs(loaded(tiny_folder("modernbert")))
    for layer in given[0].model.layers:
        layer.mlp.drop.p = 0.5
    given[0].train()
    check_same(*given)
    assert saves(*given)


def test_a_head_that_averages_tokens_is_given_all_of_them(tiny_folder: Folder) -> None:
    given = inputs(loaded(tiny_folder("modernbert")))
    given[0].config.classifier_pooling = "mean"
    check_same(*given)
    assert not saves(*given)


def test_dropout_and_pooling_that_are_changed_later_are_noticed(tiny_folder: Folder) -> None:
    given = inputs(loaded(tiny_folder("modernbert")))
    given[0].train()
    assert saves(*given)
    for layer in given[0].model.layers:
        layer.mlp.drop.p = 0.5
    check_same(*given)
    given[0].config.classifier_pooling = "mean"
    check_same(*given)
    assert not saves(*given)


def test_updates_inserted_later_are_found(tiny_folder: Folder) -> None:
    network, ids, mask = inputs(loaded(tiny_folder("bert")))
    assert saves(network, ids, mask)
    insert_lora(network, rank=2, alpha=4, targets=["query", "dense"])
    for name, weight in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    check_same(network, ids, mask)
    assert saves(network, ids, mask)
    assert saves(copy.deepcopy(network), ids, mask)


def test_threads_share_a_network(tiny_folder: Folder) -> None:
    network, ids, mask = inputs(loaded(tiny_folder("qwen2")))
    shorter = network, ids[:2, :5], mask[:2, :5]
    assert saves(network, ids, mask)
    with readout_only(network, ids, mask), ThreadPoolExecutor(1) as thread:
        thread.submit(check_same, *shorter).result()
        assert thread.submit(saves, *shorter).result()
        logits = network(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(logits, network(input_ids=ids, attention_mask=mask).logits, rtol=1e-5, atol=1e-5)


def test_hooks_of_others_see_all_tokens(tiny_folder: Folder) -> None:
    network, ids, mask = inputs(loaded(tiny_folder("bert")))
    assert saves(network, ids, mask)
    seen: list[Tensor] = []
    network.bert.encoder.layer[-1].output.register_forward_hook(lambda module, args, output: seen.append(output))
    for readout in (True, False):
        operations(network, ids, mask, readout)
    assert torch.equal(*seen)


@pytest.mark.parametrize("change", ["recomputed", "compiled"])
def test_networks_whose_layers_run_at_other_times_compute_all(change: str, tiny_folder: Folder) -> None:
    network, ids, mask = inputs(loaded(tiny_folder("bert")))
    if change == "compiled":
        network._compiled_call_impl = network._call_impl  # as network.compile() does, which takes seconds
    else:
        network.train().activation_checkpointing_enable()
    with readout_only(network, ids, mask):
        assert not any(module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "qwen2"])
def test_attention_and_gradients_are_those_of_a_plain_pass(
    kind: str, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = inputs(loaded(tiny_folder(kind)))
    assert saves(*given)
    found = attention_and_gradient(*given)
    monkeypatch.setattr(attention_capture, "readout_only", lambda *batch: nullcontext())
    expected = attention_and_gradient(*given)
    assert torch.equal(found.attention, expected.attention)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_training_ends_with_the_weights_of_training_by_plain_passes(
    tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights() -> dict[str, Any]:
        seed_everything(0, verbose=False)
        victim = TextClassifier(tiny_folder("bert"), learning_rate=1e-3)
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(victim, datamodule=reviews(tmp_path, 120, validation_share=0.4, max_rows={"train": 24}))
        # attention does not depend on the bias of keys: its gradients are rounding errors, which AdamW scales up
        return {name: weight for name, weight in victim.network.state_dict().items() if "key.bias" not in name}

    found = weights()
    monkeypatch.setattr(captures, "readout_only", lambda *batch: nullcontext())
    torch.testing.assert_close(found, weights(), rtol=1e-4, atol=1e-5)
