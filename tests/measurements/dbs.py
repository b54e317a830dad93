"""What DBS finds in a model, the loss per label and the tokens, and the time that it takes.

Run ``python -m tests.measurements.dbs --model shared/models/minilm-sst2-badnets-cf --data shared/data/sst2``.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import torch
import transformers

from lightning_backdoor.batch import batch_of_texts
from lightning_backdoor.defenses import Dbs
from tests.measurements.pairs import load_victim


def main() -> None:
    options = argparse.ArgumentParser(description="What DBS finds in a model of two labels.")
    options.add_argument("--model", required=True, help="folder of the model")
    options.add_argument("--data", type=Path, required=True, help="folder with validation.tsv (text, label)")
    options.add_argument("--rows", type=int, default=200, help="number of clean validation rows, the first ones")
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    transformers.utils.logging.disable_progress_bar()
    victim = load_victim(args.model)
    with (args.data / "validation.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[: args.rows]
    batch = batch_of_texts([row["text"] for row in rows], victim.tokenizer, victim.max_length)
    batch["label"] = torch.tensor([int(row["label"]) for row in rows])
    started = time.perf_counter()
    verdict = Dbs(seed=args.seed).inspect(victim, [batch])
    print(f"score {verdict.score:.3f}, suspected label {verdict.suspected_label}")
    for name, value in verdict.evidence.items():
        print(f"{name}: {value}")
    print(f"{time.perf_counter() - started:.0f} s on {victim.network.device}")


if __name__ == "__main__":
    main()
