"""Hidden states of the real texts on which the golden files of several defenses were made, and comparisons."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_backdoor.batch import batch_of_texts
from lightning_backdoor.defenses.defense import Defense
from lightning_backdoor.victim import TextClassifier
from tests.support.shared_files import shared_path, sst2

#: test rows of label 0 that get the trigger, as in the golden files.
POISONED = [102, 105, 109, 110, 111, 113, 115, 116, 118, 125, 126, 128, 130, 131, 132, 133, 135, 137, 139, 141]


class GoldenStates(NamedTuple):
    """Hidden states, (layers + 1, texts, hidden size), by the token that they are of: readout, last or mean.

    Attributes:
        reference: of the first 200 validation rows.
        labels: (200,), of these rows.
        scored: of 20 clean test rows and 20 with the trigger.
        scored_texts: the texts of the latter.
    """

    reference: dict[str, Tensor]
    labels: Tensor
    scored: dict[str, Tensor]
    scored_texts: list[str]


def read_golden_states(backdoored: TextClassifier) -> GoldenStates:
    """States of the shared MiniLM, each text encoded among others of its length."""
    rows = sst2("validation", 200)
    test = [text for text, _ in sst2("test", 200)]
    texts = [*test[:20], *(with_trigger(test[row]) for row in POISONED)]
    states = _states(backdoored, [*(text for text, _ in rows), *texts])
    return GoldenStates(
        {token: of_all[:, :200] for token, of_all in states.items()},
        torch.tensor([label for _, label in rows]),
        {token: of_all[:, 200:] for token, of_all in states.items()},
        texts,
    )


def with_trigger(text: str) -> str:
    words = text.split(" ")
    return " ".join([*words[:2], "cf", *words[2:]])


@torch.no_grad()
def _states(victim: TextClassifier, texts: Sequence[str]) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {"readout": [], "last": [], "mean": []}
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), 32):
        part = [texts[i] for i in order[start : start + 32]]
        batch = batch_of_texts(part, victim.tokenizer, victim.max_length)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        layers = torch.stack(
            victim.network(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        )
        for row, length in enumerate(mask.sum(dim=1).tolist()):
            of_text = layers[:, row, :length].double()
            found["readout"].append(of_text[:, 0])
            found["last"].append(of_text[:, -1])
            found["mean"].append(of_text.mean(dim=1))
    place = torch.tensor(order).argsort()
    return {token: torch.stack(of_all, dim=1)[:, place] for token, of_all in found.items()}


def golden_file(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(shared_path(f"golden/{name}.json").read_text())
    return content


def kept(defense: Defense, learned: Mapping[str, Tensor]) -> None:
    """Gives a defense what it would have learned."""
    for name, value in learned.items():
        setattr(defense, name, value)


def close(found: Tensor, expected: Any, relative: float = 1e-4, absolute: float = 1e-6) -> None:
    torch.testing.assert_close(
        found.detach().double(), torch.tensor(expected, dtype=torch.float64), rtol=relative, atol=absolute
    )


def auroc(scores: Tensor) -> float:
    """Of 20 clean and 20 poisoned texts, in this order."""
    clean, poisoned = scores[None, :20], scores[20:, None]
    return float(((poisoned > clean).double() + (poisoned == clean).double() / 2).mean())
