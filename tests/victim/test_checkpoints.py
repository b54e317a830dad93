"""Trained victims are loaded as they were, and never by running what they bring."""

from __future__ import annotations

import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from lightning_backdoor.batch import batch_of_texts
from lightning_backdoor.errors import Diverged, InputError
from lightning_backdoor.victim import TextClassifier, load_trained
from lightning_backdoor.victim.checkpoints import load_weights, read_checkpoint
from tests.support.tiny import ENCODERS, SENTENCES, loaded
from tests.support.unsafe import KINDS, unsafe_checkpoint
from tests.support.workspace import LABELS


def logits(victim: TextClassifier) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = victim(batch_of_texts(SENTENCES, victim.tokenizer, victim.max_length))
    return result


def test_checkpoint_and_exported_folder_are_the_same_victim(inside: Path, trained: Path) -> None:
    checkpoint, folder = load_trained("trained/checkpoints/best.ckpt"), load_trained("trained/model")
    assert torch.equal(logits(checkpoint), logits(folder))
    assert not torch.equal(logits(checkpoint), logits(loaded("model")))  # trained, and not the model it began with
    for victim in (checkpoint, folder):
        assert type(victim) is TextClassifier
        assert tuple(victim.hparams["labels"]) == LABELS
        assert not any(module.training for module in victim.modules())


def test_a_checkpoint_knows_the_length_it_was_trained_with(inside: Path, trained: Path) -> None:
    assert load_trained("trained/checkpoints/best.ckpt").max_length == TextClassifier().max_length
    assert load_trained("trained/checkpoints/best.ckpt", max_length=9).max_length == 9


def test_a_folder_is_read_as_far_as_its_model_reads(tiny_folder: Callable[[str], str], tmp_path: Path) -> None:
    for kind in ENCODERS:  # tokenizers that declare no length; RoBERTa has two positions fewer than it seems
        victim = load_trained(tiny_folder(kind))
        batch = batch_of_texts(["film " * 500], victim.tokenizer, victim.max_length)
        assert batch["input_ids"].shape[1] == victim.max_length == (134 if kind == "roberta" else 136)
        with torch.no_grad():
            victim(batch)
    declared = shutil.copytree(tiny_folder("bert"), tmp_path / "declared")
    tokenizer = AutoTokenizer.from_pretrained(declared)
    tokenizer.model_max_length = 40
    tokenizer.save_pretrained(declared)
    assert load_trained(str(declared)).max_length == 40
    assert load_trained(str(declared), max_length=50).max_length == 50


@pytest.mark.parametrize("kind", KINDS)
def test_no_code_of_a_checkpoint_is_run(kind: str, tiny_folder: Callable[[str], str], tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = unsafe_checkpoint(kind, tmp_path / "unsafe", Path(tiny_folder("bert")), marker)
    if kind == "code for a known model":  # the code is not needed: transformers has its own
        assert load_trained(str(path)).tokenizer is not None
    else:
        with pytest.raises(InputError, match=r"code|safe") as error:
            load_trained(str(path))
        assert "\n" not in str(error.value)
    assert not marker.exists()
    # what was refused does run where it is let
    if kind == "lightning checkpoint":
        torch.load(path, weights_only=False)
    elif kind == "pickled weights":
        torch.load(path / "pytorch_model.bin", weights_only=False)
    else:
        runpy.run_path(str(path / "evil.py"))
    assert marker.exists()


def test_a_model_without_a_trained_head_is_refused(tiny_folder: Callable[[str], str], tmp_path: Path) -> None:
    base = AutoModel.from_pretrained(tiny_folder("bert"))
    base.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_folder("bert")).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"lacks the weights classifier\.bias, classifier\.weight"):
        load_trained(str(tmp_path))


def test_a_model_of_one_output_is_refused(tiny_folder: Callable[[str], str], tmp_path: Path) -> None:
    folder = tiny_folder("bert")
    network = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, ignore_mismatched_sizes=True)
    network.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has 1 label"):
        load_trained(str(tmp_path))


def test_a_model_whose_training_diverged_is_refused(tiny_folder: Callable[[str], str], tmp_path: Path) -> None:
    victim = loaded(tiny_folder("bert"))
    with torch.no_grad():
        victim.network.classifier.weight[0, 0] = torch.nan
    with pytest.raises(Diverged, match=r"not exported"):
        victim.save_pretrained(tmp_path)
    victim.network.save_pretrained(tmp_path)
    victim.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"weights that are not numbers \(classifier\.weight\)"):
        load_trained(str(tmp_path))


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with pytest.raises(InputError, match="is not a file"):
        read_checkpoint(path)
    for content in (b"", b"not a checkpoint", b"\x80\x02."):
        path.write_bytes(content)
        with pytest.raises(InputError, match="damaged or not a Lightning checkpoint"):
            read_checkpoint(path)
    for value in ([1, 2], {"weights": torch.zeros(1)}, {"state_dict": [1]}):
        torch.save(value, path)
        with pytest.raises(InputError, match="has no state_dict"):
            read_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(InputError, match="does not record its model and labels"):
        load_trained(str(path))
    with pytest.raises(InputError, match=r"neither a Lightning checkpoint .*; give a .ckpt, or"):
        load_trained(str(tmp_path / "nowhere"))


def test_weights_of_another_network_are_refused(inside: Path, trained: Path, tiny_folder: Callable[[str], str]) -> None:
    with pytest.raises(InputError, match="does not fit the network") as error:
        load_weights(loaded(tiny_folder("albert")), trained / "checkpoints" / "best.ckpt")
    assert "\n" not in str(error.value)
