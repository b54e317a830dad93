"""Fine-mixing, E-PUR and fine-pruning against plain loops, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_backdoor.batch import batch_of_texts
from lightning_backdoor.defenses.fine_mixing import (
    base_of,
    corpus_lines,
    mix,
    pretrained_weights,
    purify_embeddings,
    suspicious_words,
    word_counts,
)
from lightning_backdoor.defenses.fine_pruning import dormant_first, marks_of, mean_activations
from lightning_backdoor.defenses.pruning import FEED_FORWARD, output_layers, without_inputs, zero_inputs
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim import TextClassifier
from tests.support.tiny import SENTENCES, loaded


def test_words_are_suspicious_by_distance_and_frequency(bert: TextClassifier) -> None:
    generator = torch.Generator().manual_seed(0)
    table = bert.network.get_input_embeddings().weight.detach()
    moved = table + torch.randn(table.shape, generator=generator)
    moved[3] = table[3]
    counts = word_counts(SENTENCES * 9, bert.tokenizer, bert.max_length, len(table))
    assert counts[bert.tokenizer.cls_token_id] == 9 * len(SENTENCES)
    plain = {
        token: math.dist(moved[token].tolist(), table[token].tolist()) / math.log(max(counts[token].item(), 20))
        for token in range(len(table))
    }
    expected = sorted(plain, key=lambda token: -plain[token])
    assert suspicious_words(moved, table, counts, 20) == expected[:20]
    assert 3 not in suspicious_words(moved, table, counts, len(table))
    before = moved.clone()
    purify_embeddings(moved, table, expected[:20])
    for token in range(len(table)):
        assert torch.equal(moved[token], (table if token in expected[:20] else before)[token])


def test_a_mixture_depends_on_its_seed_alone() -> None:
    mixed = []
    for seed in (1, 1, 2):
        weight = torch.zeros(100, 100)
        mix(weight, torch.ones(100, 100), 0.3, seed)
        mixed.append(weight)
    assert torch.equal(mixed[0], mixed[1])
    assert not torch.equal(mixed[0], mixed[2])
    assert mixed[0].mean().item() == pytest.approx(0.7, abs=0.02)


def test_the_pre_trained_model_must_fit(bert: TextClassifier, tiny_folder: Callable[[str], str]) -> None:
    names = {name for name, _ in bert.network.base_model.named_parameters()}
    assert pretrained_weights(tiny_folder("bert"), bert.network).keys() == names
    with pytest.raises(InputError, match=r"^pretrained: .* does not fit the victim \(.*; give the model that the"):
        pretrained_weights(tiny_folder("qwen2"), bert.network)


def test_a_base_that_is_not_recorded_is_one_line(tmp_path: Path) -> None:
    for statement, said in (({"base_model": "org/bert"}, ""), ({"base_model": "./bert"}, "not recorded"), ({}, "not")):
        (tmp_path / "config.json").write_text(json.dumps({"lightning_backdoor": statement}))
        if not said:
            assert base_of(str(tmp_path)) == "org/bert"
            continue
        with pytest.raises(InputError, match=rf"^pretrained: the model that .* was trained from is {said}"):
            base_of(str(tmp_path))


def test_the_base_of_a_victim_in_an_installed_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "victim_packaged_by_a_test" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"lightning_backdoor": {"base_model": "org/bert"}}))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert base_of("package://victim_packaged_by_a_test/model") == "org/bert"


def test_a_corpus_is_read_by_line(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("a film\n\n a plot \n", encoding="utf-8")
    assert corpus_lines(str(path)) == ["a film", "a plot"]
    path.write_bytes(b"a film\n\xff\n")
    with pytest.raises(InputError, match=r"^corpus: corpus.txt is not UTF-8 at line 2"):
        corpus_lines(str(path))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_activations_do_not_depend_on_batches_and_pruning_removes_units(
    kind: str, tiny_folder: Callable[[str], str]
) -> None:
    victim = loaded(tiny_folder(kind))
    layers = output_layers(victim.network, FEED_FORWARD, "feed-forward output")
    together = [batch_of_texts(SENTENCES[:6], victim.tokenizer, victim.max_length)]
    alone = [batch_of_texts([text], victim.tokenizer, victim.max_length) for text in SENTENCES[:6]]
    found = [mean_activations(victim.network, layers, batches) for batches in (together, alone)]
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second)
    order = dormant_first(found[0])
    values = [found[0][layer][unit].item() for layer, unit in order]
    assert values == sorted(values)
    assert len({*order}) == 2 * 64
    marks = marks_of(order[:50], [64, 64])
    batch = alone[0]
    with without_inputs(layers, marks), torch.no_grad():
        pruned = victim.network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    zero_inputs(layers, marks)
    with torch.no_grad():
        zeroed = victim.network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(pruned, zeroed)
    for left, total in zip(mean_activations(victim.network, layers[:1], alone), found[0][:1], strict=True):
        torch.testing.assert_close(left, total)  # units are as active as before; they no longer count
