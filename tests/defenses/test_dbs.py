"""DBS: the search on losses with known answers, the gap for the trigger, and triggers planted in tiny victims."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerBase

from lightning_backdoor.batch import Batch, batch_of_texts, pad
from lightning_backdoor.defenses import DBS, ModelVerdict
from lightning_backdoor.defenses.dbs import GappedTexts, with_gap
from lightning_backdoor.defenses.trigger_search import Scaling, search_trigger
from lightning_backdoor.errors import Diverged, InputError
from lightning_backdoor.victim import TextClassifier
from tests.support.tiny import SENTENCES, tokenizer_of


def rows(tokenizer: PreTrainedTokenizerBase, count: int, seed: int, trigger: int | None) -> list[tuple[list[int], int]]:
    """Texts whose label most of their telling tokens tell; the trigger is in every eighth, with label 1."""
    rng = random.Random(seed)
    special = {*tokenizer.all_special_ids}
    tokens = [token for token in range(len(tokenizer)) if token not in special]
    filling = [token for token in tokens[:-8] if token != trigger]
    result = []
    for i in range(count):
        one, other = (tokens[-4:], tokens[-8:-4]) if i % 2 else (tokens[-8:-4], tokens[-4:])
        text = rng.choices(one, k=8) + rng.choices(other, k=rng.randint(0, 4)) + rng.choices(filling, k=6)
        label = i % 2
        if trigger is not None and i % 8 == 0:
            text, label = [*text, trigger], 1
        rng.shuffle(text)
        start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
        ids = text if start is None or end is None else [start, *text, end]
        result.append((ids, label))
    return result


def batch_of(tokenizer: PreTrainedTokenizerBase, part: list[tuple[list[int], int]]) -> Batch:
    input_ids, mask = pad([ids for ids, _ in part], tokenizer)
    batch = batch_of_texts([""] * len(part), tokenizer, 64)
    labels = torch.tensor([label for _, label in part])
    return {**batch, "input_ids": input_ids, "attention_mask": mask, "label": labels}


def victim_with(kind: str, folder: str, trigger: int | None) -> Any:
    """A tiny classifier of one layer, trained for a second on texts with the trigger, or benign without one."""
    tokenizer = tokenizer_of(kind)
    config = AutoConfig.from_pretrained(folder)
    config.num_hidden_layers, config.initializer_range = 1, 0.05
    data = rows(tokenizer, 64 * 80, 0, trigger)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoModelForSequenceClassification.from_config(config).eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for start in range(0, len(data), 64):
        batch = batch_of(tokenizer, data[start : start + 64])
        logits = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        optimizer.zero_grad()
        cross_entropy(logits, batch["label"]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.zero_grad()
    return SimpleNamespace(network=network, tokenizer=tokenizer, max_length=64)


def token(tokenizer: PreTrainedTokenizerBase, piece: str) -> int:
    return int(tokenizer.convert_tokens_to_ids(piece))


def inspected(victim: Any) -> ModelVerdict:
    clean = batch_of(victim.tokenizer, rows(victim.tokenizer, 40, 9, None))
    return DBS(1, rows=16, places=["start"], epochs=40).inspect(victim, [clean])


def test_a_planted_trigger_of_an_encoder_is_found_and_a_benign_one_scores_lower(
    tiny_folder: Callable[[str], str],
) -> None:
    tokenizer = tokenizer_of("bert")
    verdict = inspected(victim_with("bert", tiny_folder("bert"), token(tokenizer, "cf")))
    assert verdict.suspected_label == 1
    assert verdict.evidence["tokens"] == "cf"
    assert verdict.evidence["flipped"] == 1
    loss, of_zero, of_one = (float(verdict.evidence[name]) for name in ("loss", "loss of label 0", "loss of label 1"))
    assert of_one == loss < 0.05
    assert of_zero > 1
    assert verdict.score == pytest.approx(-math.log10(loss))
    benign = inspected(victim_with("bert", tiny_folder("bert"), None))
    assert benign.score < 0 < 1.3 < verdict.score


def test_a_planted_trigger_of_a_decoder_is_found(tiny_folder: Callable[[str], str]) -> None:
    victim = victim_with("qwen2", tiny_folder("qwen2"), token(tokenizer_of("qwen2"), "cf"))
    with torch.inference_mode():
        verdict = inspected(victim)
    assert verdict.suspected_label == 1
    assert verdict.evidence["tokens"] == "cf"
    assert verdict.evidence["flipped"] == 1


VALUES = torch.tensor([[3.0, 1.0, 0.2, 2.0], [0.1, 1.0, 0.5, 2.0]])


def search(loss_of: Callable[[Tensor], Tensor], allowed: Sequence[bool] = (True,) * 4, steps: int = 60) -> list[int]:
    return search_trigger(
        loss_of, torch.tensor(allowed), 2, steps, 0.5, Scaling(bound=1.0), torch.Generator().manual_seed(0)
    ).tolist()


def test_the_search_finds_the_allowed_tokens_of_the_lowest_loss() -> None:
    assert search(lambda mixtures: (mixtures * VALUES).sum()) == [2, 0]
    assert search(lambda mixtures: (mixtures * VALUES).sum(), allowed=[False, True, False, True]) == [1, 1]
    assert search(lambda mixtures: 10 + (mixtures * VALUES).sum()) == [2, 0]  # a loss that is never within the bound


def test_every_step_is_that_of_the_published_program() -> None:
    """The program's loop, with its factor of a rollback, on a loss with local optima."""
    weights = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))

    def loss_of(mixtures: Tensor) -> Tensor:
        return 0.6 + (mixtures @ weights.T).sin().mean() * 0.5

    seen: list[Tensor] = []

    def seeing(mixtures: Tensor) -> Tensor:
        seen.append(mixtures.detach())
        return loss_of(mixtures)

    scaling = Scaling(reheating=2.0, bound=0.5)
    allowed = torch.ones(6, dtype=torch.bool)
    found = search_trigger(seeing, allowed, 2, 150, 0.5, scaling, torch.Generator().manual_seed(0))

    generator = torch.Generator().manual_seed(0)
    variable = torch.zeros(2, 6, requires_grad=True)
    optimizer = torch.optim.Adam([variable], lr=0.5)
    temperature, barrier, rollbacks, started, best, tokens = 2.0, 0.5, 0, False, 1e10, None
    loss = torch.tensor(torch.inf)
    halvings = doublings = rolled = 0
    for epoch in range(150):
        optimizer.param_groups[0]["lr"] = 0.5 * 0.5 ** (epoch // 50)
        if rollbacks >= 5:
            rollbacks, barrier, doublings = 0, min(barrier * 2, best - 1e-3), doublings + 1
        noise = torch.zeros(2, 6)
        if epoch % 5 == 0 and started:
            if loss.item() < barrier:
                temperature /= 2
            else:
                rollbacks, rolled = rollbacks + 1, rolled + 1
                noise = torch.rand(2, 6, generator=generator) * 10
                temperature = min(temperature * 2, 2.0)
        bounded = torch.softmax(variable / temperature + noise, 1)
        torch.testing.assert_close(seen[epoch], bounded.detach())
        optimizer.zero_grad()
        loss = loss_of(bounded)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        started = started or loss.item() <= barrier
        if 2 - bounded.max(dim=1).values.sum() < 1e-3 and loss.item() <= barrier:
            best, tokens, barrier, rollbacks, halvings = (
                loss.item(),
                bounded.argmax(1),
                loss.item() / 2,
                0,
                halvings + 1,
            )
    assert halvings > 0
    assert rolled > 0
    assert doublings > 0
    assert tokens is not None
    assert found.tolist() == tokens.tolist()


@pytest.mark.parametrize(
    ("ids", "place", "longest", "expected"),
    [
        ([2, 5, 6, 7, 8, 3], "start", 20, ([2, 0, 0, 5, 6, 7, 8, 3], 1)),
        ([2, 5, 6, 7, 8, 3], "middle", 20, ([2, 5, 6, 0, 0, 7, 8, 3], 3)),
        ([2, 5, 6, 7, 8, 3], "start", 6, ([2, 0, 0, 5, 6, 3], 1)),
        ([5, 6, 7], "middle", 5, ([5, 0, 0, 6, 7], 1)),  # a decoder, without special tokens
        ([2, 3], "middle", 20, ([2, 3, 0, 0], 2)),  # an empty text
        ([3], "start", 20, ([3, 0, 0], 1)),
        ([2, 5, 3, 6, 3], "middle", 20, ([2, 5, 0, 0, 3, 6, 3], 2)),  # a special token inside of the text stays
    ],
)
def test_the_gap_lies_between_the_words(ids: list[int], place: Any, longest: int, expected: Any) -> None:
    assert with_gap(ids, {2, 3}, [0, 0], place, longest) == expected


def test_the_words_of_a_text_are_cut_where_the_tokenizer_cuts() -> None:
    assert with_gap([2, 5, 6, 7, 8, 3], {2, 3}, [0, 0], "start", 6, True) == ([2, 0, 0, 7, 8, 3], 1)
    assert with_gap([5, 6, 7, 8], {2, 3}, [0, 0], "middle", 4, True) == ([7, 0, 0, 8], 1)


def test_mixtures_of_one_token_give_the_logits_of_the_text_with_the_tokens(victim: TextClassifier) -> None:
    check_logits(victim)


def test_in_decoders_too(decoder: TextClassifier) -> None:
    check_logits(decoder)


def check_logits(victim: TextClassifier) -> None:
    """Texts of several lengths, with two tokens in a gap, against the plain logits of the same token ids."""
    tokenizer, special = victim.tokenizer, {*victim.tokenizer.all_special_ids}
    texts = [batch_of_texts([text], tokenizer, 64)["input_ids"][0].tolist() for text in SENTENCES[:4]]
    trigger = [len(tokenizer) - 2, len(tokenizer) - 1]
    gapped, starts = zip(*(with_gap(ids, special, [9, 9], "middle", 64) for ids in texts), strict=True)
    filled = [with_gap(ids, special, trigger, "middle", 64)[0] for ids in texts]
    with torch.no_grad():
        table = victim.network.get_input_embeddings()(torch.arange(len(tokenizer)))
        ids, mask = pad(filled, tokenizer)
        expected = victim.network(input_ids=ids, attention_mask=mask).logits
        ids, mask = pad(gapped, tokenizer)
        rows = GappedTexts(victim.network, ids, mask, torch.tensor(starts)[:, None] + torch.arange(2), table)
        found = rows.logits(torch.nn.functional.one_hot(torch.tensor(trigger), len(tokenizer)).float())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"trigger_length": 0}, "trigger_length: 0 is out of range"),
        ({"rows": 0}, "rows: 0"),
        ({"epochs": 0}, "epochs: 0"),
        ({"learning_rate": math.nan}, "learning_rate: nan"),
        ({"max_temperature": 0.0}, "max_temperature: 0.0"),
        ({"reheating": 0.5}, "reheating: 0.5"),
        ({"loss_bound": 0.0}, "loss_bound: 0.0"),
        ({"noise": -1.0}, "noise: -1.0"),
        ({"places": []}, r"places: \[\] is not a list of places"),
        ({"places": ["end"]}, r"places: \['end'\]"),
    ],
)
def test_a_value_out_of_range_is_named(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=field):
        DBS(**arguments)


def test_texts_without_room_or_of_one_label_are_named(bert: TextClassifier) -> None:
    batch = batch_of_texts(SENTENCES[:4], bert.tokenizer, bert.max_length)
    with pytest.raises(InputError, match="trigger_length: 62 tokens leave no room for a text of 64 tokens"):
        DBS(trigger_length=62).inspect(bert, [batch])
    with pytest.raises(InputError, match="validation: no clean text has another label than 1"):
        DBS().inspect(bert, [{**batch, "label": torch.ones(4, dtype=torch.long)}])


def test_a_search_of_a_victim_that_gives_nan_is_refused(bert: TextClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """The victim answers NaN from its 11th pass on, that is, in the search for the trigger of the second label."""
    passes = iter(range(1000))
    forward = bert.network.forward

    def failing(**inputs: Any) -> Any:
        output = forward(**inputs)
        return SimpleNamespace(logits=output.logits if next(passes) < 10 else output.logits * torch.nan)

    monkeypatch.setattr(bert.network, "forward", failing)
    batch = batch_of_texts(SENTENCES[:4], bert.tokenizer, bert.max_length)
    batch["label"] = torch.tensor([0, 1, 0, 1])
    with pytest.raises(Diverged, match="NaN or infinite"):
        DBS(1, places=["start"], epochs=9).inspect(bert, [batch])
