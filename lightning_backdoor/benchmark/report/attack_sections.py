"""The report's section per attack: ROC curves, histograms, texts, and the rows of ``comparisons.csv``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, combinations, groupby, zip_longest
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from lightning_backdoor.benchmark.report.detection_figures import Curve, histogram, roc_curve, roc_figure
from lightning_backdoor.benchmark.report.figures import Figure, Style, styles
from lightning_backdoor.benchmark.statistics import Comparison, Interval, compare
from lightning_backdoor.benchmark.table import ATTACK_NAMES, NAMES, ResultRow, grouped, is_attack_success, is_correct
from lightning_backdoor.outputs.outcomes import Outcome, read_outcomes
from lightning_backdoor.outputs.token_view import ViewedText, pieces

COMPARED_COLUMNS = (*ATTACK_NAMES, "seed", "first", "second", "metric", *Comparison._fields)
#: per metric and index of a text, whether the text counts (as an attack success or a correct prediction).
Hits = dict[tuple[str, int], bool]
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
    """One dataset, model and attack: the detectors' mean ROC curves, detectors, and rows of ``comparisons.csv``."""

    names: tuple[str, ...]
    roc: Figure | None
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
    style = styles(row["defense"] for row in rows)
    return [_attack_section(attack_rows, cells, text_budget, style) for attack_rows in grouped(rows, ATTACK_NAMES)]


def text_hits(outcomes: Iterable[Outcome]) -> Hits:
    """Attack successes among poisoned texts and correct predictions among clean texts, after the defense."""
    result = {}
    for outcome in outcomes:
        metric, is_hit = ("asr", is_attack_success) if outcome.poisoned else ("cacc", is_correct)
        result[metric, outcome.index] = is_hit(outcome)
    return result


def compare_defenses(names: Mapping[str, object], by_defense: Mapping[str, Hits]) -> list[ResultRow]:
    """Compares every two defenses in ASR and in CACC, each on the texts that both were tested on.

    Args:
        names: dataset, model, attack and seed.
        by_defense: the hits under each defense.
    """
    result = []
    names = {name: names[name] for name in (*ATTACK_NAMES, "seed")}
    for (first, first_hits), (second, second_hits) in combinations(by_defense.items(), 2):
        for metric, texts in groupby(sorted(first_hits.keys() & second_hits.keys()), itemgetter(0)):
            pairs = [(first_hits[text], second_hits[text]) for text in texts]
            place = {"first": first, "second": second, "metric": metric}
            result.append({**names, **place, **compare(pairs)._asdict()})
    return result


def _attack_section(
    rows: Sequence[ResultRow], cells: Path, text_budget: float, style: Mapping[str, Style]
) -> AttackSection:
    curves: dict[str, list[Curve]] = {}
    intervals: dict[str, Interval] = {}
    detectors: dict[str, Detector] = {}
    comparisons: list[ResultRow] = []
    for seed_rows in grouped([row for row in rows if not row["error"]], ["seed"]):
        by_defense: dict[str, Hits] = {}
        for row in seed_rows:
            defense, seed, folder = row["defense"], row["seed"], cells / row["cell"]
            outcomes = read_outcomes(folder / "outcomes.csv") if (folder / "outcomes.csv").is_file() else []
            by_defense[defense] = text_hits(outcomes)
            if curve := roc_curve(outcomes):
                curves.setdefault(defense, []).append(curve)
                if None not in (ends := (row["auroc_low"], row["auroc_high"])):
                    intervals[defense] = Interval(*ends)
            if defense not in detectors and any(outcome.score is not None for outcome in outcomes):
                texts, left_out = _shown_texts(folder / "texts.jsonl", text_budget)
                detectors[defense] = Detector(defense, seed, histogram(outcomes), texts, left_out)
        comparisons += compare_defenses(seed_rows[0], by_defense)
    names = tuple(rows[0][name] for name in ATTACK_NAMES)
    return AttackSection(
        names, roc_figure(curves, style, intervals) if curves else None, [*detectors.values()], comparisons
    )


def _shown_texts(path: Path, budget: float) -> tuple[list[dict[str, Any]], int]:
    """The texts of a cell that are shown, poisoned ones first, and the number of texts left out."""
    if not path.is_file():
        return [], 0
    with path.open(encoding="utf-8") as file:
        texts: list[ViewedText] = [json.loads(line) for line in file]
    poisoned, clean = ([text for text in texts if text["poisoned"] is side] for side in (True, False))
    # alternately, so that a small budget keeps texts of both kinds
    in_turn = chain.from_iterable(zip_longest(poisoned[:POISONED_TEXTS], clean[:CLEAN_TEXTS]))
    shown: list[dict[str, Any]] = []
    for text in filter(None, in_turn):
        budget -= 300 + len(text["text"]) + len(text["purified_text"] or "") + 40 * len(text["tokens"])
        if shown and budget < 0:
            break
        shown.append({**text, "pieces": pieces(text["text"], text["tokens"], text["spans"])})
    return sorted(shown, key=lambda text: not text["poisoned"]), len(texts) - len(shown)
