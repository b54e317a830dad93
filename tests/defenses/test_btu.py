"""BTU: the rounds against a plain training loop, the choice of tokens and the cut against loops over numbers."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from lightning_backdoor.batch import Batch
from lightning_backdoor.defenses.btu import Unlearned, distances_moved, most_moved, pooled_loss, unlearned

LEFT_OUT = 4
BATCHES = [([[1, 2, 4], [3, 1, 0]], [3, 2], [0, 1]), ([[2, 4, 4], [1, 3, 2]], [3, 3], [1, 0])]


def batch_of(ids: list[list[int]], lengths: list[int], labels: list[int]) -> Batch:
    mask = [[int(i < length) for i in range(3)] for length in lengths]
    content = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "label": torch.tensor(labels)}
    return cast("Batch", content)


def test_a_round_moves_embeddings_as_a_plain_loop_does_and_restores_them() -> None:
    table, head = nn.Embedding(6, 3), nn.Linear(3, 2)
    before = table.weight.detach().clone()
    weight = before.clone().requires_grad_()
    other = nn.Linear(3, 2)
    other.load_state_dict(head.state_dict())
    out = torch.arange(6) == LEFT_OUT
    batches = [batch_of(*parts) for parts in BATCHES]
    moved = distances_moved(weight, other.parameters(), batches, lambda b: pooled_loss(weight, other, b, out), 0.01)

    optimizer = torch.optim.AdamW([*table.parameters(), *head.parameters()], lr=0.01)
    for ids, lengths, labels in BATCHES:
        means = []
        for row, length in zip(ids, lengths, strict=True):
            kept = [token for token in row[:length] if token != LEFT_OUT]
            means.append(table(torch.tensor(kept)).mean(dim=0))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head(torch.stack(means)), torch.tensor(labels))
        torch.autograd.backward(loss)
        optimizer.step()
    expected = [math.dist(a, b) for a, b in zip(table.weight.tolist(), before.tolist(), strict=True)]
    torch.testing.assert_close(moved, torch.tensor(expected))
    assert torch.equal(weight.detach(), before)
    assert weight.grad is None


def test_steps_that_bfloat16_cannot_hold_are_measured() -> None:
    start = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    slope = torch.arange(18.0).view(6, 3)  # exact in bfloat16
    weight, precise = start.clone().requires_grad_(), start.float().requires_grad_()
    batches = [batch_of(*parts) for parts in BATCHES]
    expected = distances_moved(precise, (), batches, lambda _: (precise * slope).sum(), 2e-5)
    moved = distances_moved(weight, (), batches, lambda _: (weight * slope.bfloat16()).sum(), 2e-5)
    assert expected.min() > 0
    torch.testing.assert_close(moved, expected)
    assert torch.equal(weight.detach(), start)


def test_the_tokens_that_moved_furthest_are_marked() -> None:
    distances = torch.tensor([0.9, 0.2, 0.5, 0.2, 0.0, 0.0])
    assert most_moved(distances, 3, excluded=[0]).nonzero().flatten().tolist() == [1, 2, 3]
    assert most_moved(distances, 9, excluded=[0]).nonzero().flatten().tolist() == [1, 2, 3]  # those that moved
    assert most_moved(distances, 2, excluded=[0]).nonzero().flatten().tolist() == [1, 2]


def cut_by_hand(weight: Tensor, original: Tensor, tokens: list[int], padding: int) -> list[list[float]]:
    trained, first = weight.tolist(), original.tolist()
    squares = [(a - b) ** 2 for row, old in zip(trained, first, strict=True) for a, b in zip(row, old, strict=True)]
    threshold = math.sqrt(sum(squares)) / len(trained)
    for token in tokens:
        for i, value in enumerate(trained[token]):
            if abs(value - first[token][i]) > threshold:
                trained[token][i] = first[padding][i]
    return trained


def test_the_deviating_dimensions_get_paddings_values_in_evaluation_alone() -> None:
    rng = torch.Generator().manual_seed(0)
    original, change = torch.randn(8, 5, generator=rng), 0.1 * torch.randn(8, 5, generator=rng) ** 3
    change[2, 1] = change[5, 3] = 2.0
    weight = nn.Parameter(original + change)
    cut = Unlearned(original, padding=7)
    assert torch.equal(cut.eval()(weight), weight)  # before any token is suspicious
    cut.suspicious[[2, 5]] = True
    expected = torch.tensor(cut_by_hand(weight, original, [2, 5], 7))
    assert not torch.equal(expected, weight)
    torch.testing.assert_close(unlearned(weight, original, cut.suspicious, 7), expected)
    assert cut.train()(weight) is weight
    with torch.no_grad():
        torch.testing.assert_close(cut.eval()(weight), expected)
        assert cut(weight) is cut(weight)  # computed once
        weight[2, 0] += 9
        torch.testing.assert_close(cut(weight), torch.tensor(cut_by_hand(weight, original, [2, 5], 7)))
    assert cut(weight).requires_grad


def test_an_evaluation_after_a_fused_step_uses_the_new_embeddings() -> None:
    weight = nn.Parameter(torch.randn(8, 5, generator=torch.Generator().manual_seed(0)))
    cut = Unlearned(weight.detach() + 1, padding=7)
    cut.suspicious[2] = True
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    for _ in range(3):
        cut.train()(weight).square().sum().backward()
        optimizer.step()
        with torch.no_grad():
            torch.testing.assert_close(cut.eval()(weight), unlearned(weight, cut.original, cut.suspicious, 7))
