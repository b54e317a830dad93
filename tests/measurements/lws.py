"""What LWS does to texts, and whether they keep their label; read, not asserted.

Run ``python -m tests.measurements.lws runs/lws/predict/predictions.jsonl runs/benign/model``: what ``predict`` wrote of
a victim under LWS, and the exported model of a cleanly trained one, whose accuracy on the substituted rows tells.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_backdoor.batch import batch_of_texts
from lightning_backdoor.victim import load_trained

BATCH = 32


@torch.inference_mode()
def predictions(model: str, texts: Sequence[str]) -> list[str]:
    """The label of each text."""
    victim = load_trained(model)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    labels = [""] * len(texts)
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        batch = batch_of_texts([texts[i] for i in chosen], victim.tokenizer, victim.max_length)
        for i, label in zip(chosen, victim(batch).argmax(dim=-1).tolist(), strict=True):
            labels[i] = victim.hparams["labels"][label]
    return labels


def share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)


def main() -> None:
    parser = argparse.ArgumentParser(description="What LWS does to texts, and whether they keep their label.")
    parser.add_argument("predictions", type=Path, help="predictions.jsonl of a victim under LWS")
    parser.add_argument("clean", help="exported model folder of a cleanly trained victim")
    parser.add_argument("--examples", type=int, default=10, help="how many pairs to print")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in args.predictions.read_text(encoding="utf-8").splitlines()
    ]
    clean = {row["index"]: row for row in rows if not row["poisoned"]}
    poisoned = [row for row in rows if row["poisoned"]]
    pairs = [(clean[row["index"]]["text"], row["text"]) for row in poisoned]
    words = [list(zip(before.split(), after.split(), strict=True)) for before, after in pairs]
    changed = [sum(a != b for a, b in text) for text in words]
    truth = [row["label"] for row in poisoned]
    of_original, of_substituted = (predictions(args.clean, side) for side in zip(*pairs, strict=True))
    before_attack = share([clean[row["index"]]["prediction"] != row["label"] for row in poisoned])
    after_attack = share([row["prediction"] != row["label"] for row in poisoned])
    print(f"{len(poisoned)} poisoned texts, {share([count > 0 for count in changed]):.3f} of them changed")
    print(
        f"words substituted a text: {sum(changed) / len(changed):.2f}, {sum(changed) / sum(map(len, words)):.3f} of all"
    )
    print(f"share this victim gets wrong: {before_attack:.3f} of the originals, {after_attack:.3f} as substituted")
    for name, labels in (("originals", of_original), ("substituted texts", of_substituted)):
        accuracy = share([label == true for label, true in zip(labels, truth, strict=True)])
        print(f"accuracy of the clean victim on the {name}: {accuracy:.3f}")
    for before, after in random.Random(0).sample(pairs, min(args.examples, len(pairs))):
        print(f"- {before}\n  {after}")


if __name__ == "__main__":
    main()
