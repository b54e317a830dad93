"""How ONION's suspicions in bfloat16 differ from those in float32, on clean and poisoned SST-2 texts.

Run ``python -m tests.measurements.onion_fidelity --data sst2``. Per seed, clean validation texts set each precision's
threshold, and clean test texts and poisoned ones (BadNets, on other test texts) are scored in both precisions, without
a cache. Compared are the suspicions of all words and the scores of all texts (rank correlation, median change), the
AUROC of the scores, and the words that are removed (those removed in both precisions, of those removed in any): at the
published bar of 0, at float32's threshold, and at each precision's own. Some clean texts are also read alone in
bfloat16, since rounding depends on the other texts that are read with a text.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.defenses.defense import threshold_at_fpr
from lightning_backdoor.defenses.onion import suspicions
from lightning_backdoor.files.atomic import write_whole
from lightning_backdoor.language import Perplexity
from lightning_backdoor.language.language_model import DEFAULT_LANGUAGE_MODEL
from lightning_backdoor.language.precision import BFLOAT16, FLOAT32
from lightning_backdoor.metrics import DetectionAUROC

FPR = 0.10
#: label whose texts are poisoned.
SOURCE_LABEL = "0"
AUROC_BOUND = 0.005
#: clean texts that are also read alone, in bfloat16.
ALONE = 10


class Texts(NamedTuple):
    """The texts of one seed."""

    validation: list[str]
    clean: list[str]
    poisoned: list[str]


class Scored(NamedTuple):
    """The suspicions of the words of each text, and the seconds that they took."""

    validation: list[Tensor]
    clean: list[Tensor]
    poisoned: list[Tensor]
    seconds: float


def texts_of(folder: Path, count: int, seed: int) -> Texts:
    """Draws the texts of a seed: ``count`` of each kind, and poisoned texts that are not among the clean ones."""
    validation, test = (_lines(folder / f"{name}.tsv") for name in ("validation", "test"))
    rng = random.Random(f"onion fidelity/{seed}")
    poisonable = rng.sample([i for i, line in enumerate(test) if line["label"] == SOURCE_LABEL], count)
    others = sorted(set(range(len(test))) - set(poisonable))
    attack = BadNets()
    return Texts(
        [line["text"] for line in rng.sample(validation, count)],
        [test[i]["text"] for i in rng.sample(others, count)],
        [attack.poison_text(test[i]["text"], random.Random(f"{seed}/{i}")).text for i in poisonable],
    )


def _lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def scored(perplexity: Perplexity, texts: Texts) -> Scored:
    """Scores the texts of a seed with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        perplexity.cache_dir = folder
        started = time.perf_counter()
        found = iter(perplexity.leave_one_out([text for kind in texts for text in kind]))
        seconds = time.perf_counter() - started
    validation, clean, poisoned = ([suspicions(next(found)) for _ in kind] for kind in texts)
    return Scored(validation, clean, poisoned, seconds)


def scored_alone(perplexity: Perplexity, texts: Sequence[str]) -> list[Tensor]:
    """The suspicions of the words of each text, read without the other texts."""
    return [scored(perplexity, Texts([], [text], [])).clean[0] for text in texts]


def highest(of_texts: Sequence[Tensor]) -> Tensor:
    return torch.stack([suspicion.max() for suspicion in of_texts])


def auroc(scores: Scored) -> float:
    metric = DetectionAUROC()
    for of_texts, poisoned in ((scores.clean, False), (scores.poisoned, True)):
        metric.update(highest(of_texts), torch.full((len(of_texts),), poisoned))
    return float(metric.compute())


def in_common(left: Scored, right: Scored, thresholds: tuple[float, float]) -> float:
    """The share of words removed in both precisions among the words removed in any, of test texts."""
    both = either = 0
    for one, other in zip(left.clean + left.poisoned, right.clean + right.poisoned, strict=True):
        a, b = (removed(suspicion, bar) for suspicion, bar in zip((one, other), thresholds, strict=True))
        both += int((a & b).sum())
        either += int((a | b).sum())
    return both / either if either else math.nan


def removed(suspicion: Tensor, threshold: float) -> Tensor:
    """The words that :func:`lightning_backdoor.defenses.onion.without_outliers` removes, (words,), bool."""
    outliers = suspicion >= threshold
    outliers[suspicion.argmin()] = False
    return outliers


def median_change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The median change of a suspicion, as a share of its size."""
    a, b = torch.cat(list(before)), torch.cat(list(after))
    shares = (b - a).abs() / a.abs()
    return float(shares[shares.isfinite()].median())


def compared(full: Scored, half: Scored, alone: Sequence[Tensor]) -> dict[str, float]:
    """The figures of one seed.

    Args:
        full: in float32.
        half: in bfloat16.
        alone: in bfloat16, the first clean texts, each read alone.
    """
    words = [torch.cat([*side.clean, *side.poisoned]) for side in (full, half)]
    finite = words[0].isfinite() & words[1].isfinite()
    texts = [highest([*side.clean, *side.poisoned]) for side in (full, half)]
    own = [float(threshold_at_fpr(highest(side.validation), FPR)) for side in (full, half)]
    just_above_0 = float(torch.nextafter(torch.tensor(0.0), torch.tensor(1.0)))
    aurocs = auroc(full), auroc(half)
    return {
        "rank correlation of words": float(spearman_corrcoef(*(part[finite] for part in words))),
        "rank correlation of texts": float(spearman_corrcoef(*texts)),
        "change of a suspicion by bfloat16": median_change(full.clean, half.clean),
        "change in bfloat16 by reading a text alone": median_change(half.clean[: len(alone)], alone),
        "AUROC in float32": aurocs[0],
        "AUROC in bfloat16": aurocs[1],
        "AUROC difference": aurocs[1] - aurocs[0],
        "removed in common, bar 0": in_common(full, half, (just_above_0, just_above_0)),
        "removed in common, float32's threshold": in_common(full, half, (own[0], own[0])),
        "removed in common, own thresholds": in_common(full, half, (own[0], own[1])),
        "threshold in float32": own[0],
        "threshold in bfloat16": own[1],
        "seconds in float32": full.seconds,
        "seconds in bfloat16": half.seconds,
    }


def print_table(by_seed: dict[int, dict[str, float]], caption: str) -> None:
    """Prints the figures of each seed and their means."""
    table = Table(title="ONION in bfloat16 and in float32", caption=caption)
    table.add_column("figure")
    for heading in (*(f"seed {seed}" for seed in by_seed), "mean"):
        table.add_column(heading, justify="right")
    for name in next(iter(by_seed.values())):
        values = [figures[name] for figures in by_seed.values()]
        table.add_row(name, *(f"{value:.4f}" for value in (*values, statistics.mean(values))))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def main() -> None:
    options = argparse.ArgumentParser(description="ONION's suspicions in bfloat16 against those in float32.")
    options.add_argument("--texts", type=int, default=40, help="texts of each of three kinds, per seed")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--threads", type=int, default=2, help="threads of torch")
    options.add_argument("--model", default=DEFAULT_LANGUAGE_MODEL, help="the language model")
    options.add_argument("--data", type=Path, default=Path("sst2"), help="folder with validation.tsv and test.tsv")
    options.add_argument("--json", type=Path, help="a file to write the figures to as well")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    models = [Perplexity(args.model, precision=precision) for precision in (FLOAT32, BFLOAT16)]
    for model in models:
        scored(model, Texts(["the model is loaded"], [], []))
    by_seed: dict[int, dict[str, float]] = {}
    for seed in args.seeds:
        texts = texts_of(args.data, args.texts, seed)
        full, half = (scored(model, texts) for model in models)
        by_seed[seed] = compared(full, half, scored_alone(models[1], texts.clean[:ALONE]))
    worst = max(abs(figures["AUROC difference"]) for figures in by_seed.values())
    caption = f"per seed {args.texts} clean validation, {args.texts} clean and {args.texts} poisoned test texts; "
    caption += f"largest AUROC difference {worst:.4f}, bound {AUROC_BOUND}"
    print_table(by_seed, caption)
    if args.json:
        write_whole(args.json, json.dumps({"caption": caption, "seeds": by_seed}, indent=1))


if __name__ == "__main__":
    main()
