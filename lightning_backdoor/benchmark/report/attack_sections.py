"""The report's section per attack: ROC curves, histograms, texts, and defenses compared on the same texts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from lightning_backdoor.benchmark.comparisons import Hits, compare_defenses, text_hits
from lightning_backdoor.benchmark.detection import split_scores
from lightning_backdoor.benchmark.report.figures import Figure, RocCurve, histogram, roc_curve
from lightning_backdoor.benchmark.table import ATTACK_NAMES, NAMES, ResultRow, grouped
from lightning_backdoor.outputs.outcomes import read_outcomes
from lightning_backdoor.outputs.token_view import ViewedText, pieces

#: the largest number of texts shown per cell: poisoned, clean.
POISONED_TEXTS, CLEAN_TEXTS = 8, 4
#: approximate limit on the characters of HTML for all texts together.
TEXT_BUDGET = 3_000_000


class Detector(NamedTuple):
    """A defense that scores the texts of one attack; its histogram and texts are from its first seed."""

    defense: str
    seed: str
    histogram: Figure
    texts: list[dict[str, Any]]
    left_out: int


class AttackSection(NamedTuple):
    """One dataset, model and attack: ROC curves per detector and seed, detectors, and rows of ``comparisons.csv``."""

    names: tuple[str, ...]
    curves: list[RocCurve]
    detectors: list[Detector]
    comparisons: list[ResultRow]


def attack_sections(rows: Sequence[ResultRow], cells: Path) -> list[AttackSection]:
    """The section of each attack, in the order in which the attacks first occur.

    Reads ``outcomes.csv`` of each cell once, and keeps only what is shown.

    Args:
        rows: the rows of ``results.csv``.
        cells: the folder that contains the cells' folders, with ``outcomes.csv`` and ``texts.jsonl`` if they exist.
    """
    text_budget = TEXT_BUDGET / max(len(grouped(rows, NAMES)), 1)
    return [_attack_section(attack_rows, cells, text_budget) for attack_rows in grouped(rows, ATTACK_NAMES)]


def _attack_section(rows: Sequence[ResultRow], cells: Path, text_budget: float) -> AttackSection:
    section = AttackSection(tuple(rows[0][name] for name in ATTACK_NAMES), [], [], [])
    for seed_rows in grouped([row for row in rows if not row["error"]], ["seed"]):
        by_defense: dict[str, Hits] = {}
        for row in seed_rows:
            defense, seed, folder = row["defense"], row["seed"], cells / row["cell"]
            outcomes = read_outcomes(folder / "outcomes.csv") if (folder / "outcomes.csv").is_file() else []
            by_defense[defense] = text_hits(outcomes)
            clean, poisoned = split_scores(outcomes)
            if len(clean) and len(poisoned):
                section.curves.append(roc_curve(defense, seed, outcomes))
            if (len(clean) or len(poisoned)) and defense not in [detector.defense for detector in section.detectors]:
                texts, left_out = _shown_texts(folder / "texts.jsonl", text_budget)
                section.detectors.append(Detector(defense, seed, histogram(outcomes), texts, left_out))
        section.comparisons.extend(compare_defenses(seed_rows[0], by_defense))
    return section


def _shown_texts(path: Path, budget: float) -> tuple[list[dict[str, Any]], int]:
    """The texts of a cell that are shown, poisoned ones first, and the number of texts left out."""
    if not path.is_file():
        return [], 0
    with path.open(encoding="utf-8") as file:
        texts: list[ViewedText] = [json.loads(line) for line in file]
    shown: list[dict[str, Any]] = []
    for text in _alternating(texts):
        budget -= 300 + len(text["text"]) + len(text["purified_text"] or "") + 40 * len(text["tokens"])
        if shown and budget < 0:
            break
        shown.append({**text, "pieces": pieces(text["text"], text["tokens"], text["spans"])})
    return sorted(shown, key=lambda text: not text["poisoned"]), len(texts) - len(shown)


def _alternating(texts: Sequence[ViewedText]) -> Iterator[ViewedText]:
    """Poisoned and clean texts in turn, so that a small budget includes both kinds."""
    poisoned, clean = ([text for text in texts if text["poisoned"] is side] for side in (True, False))
    pairs = zip_longest(poisoned[:POISONED_TEXTS], clean[:CLEAN_TEXTS])
    return (text for text in chain.from_iterable(pairs) if text is not None)
