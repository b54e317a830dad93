"""The report's section per attack: ROC curves, histograms, texts, and the rows of ``comparisons.csv``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from lightning_backdoor.benchmark.comparisons import (
    ALL_SEEDS,
    Answers,
    answers_of,
    compare_defenses,
    working_defenses,
)
from lightning_backdoor.benchmark.report.detection_figures import Curve, histogram, roc_curve, roc_figure
from lightning_backdoor.benchmark.report.figure_files import FigureNames
from lightning_backdoor.benchmark.report.figures import Figure, Style, styles
from lightning_backdoor.benchmark.report.flagged_words import words_of_defense
from lightning_backdoor.benchmark.statistics import Interval
from lightning_backdoor.benchmark.table import ATTACK_NAMES, NAMES, ResultRow, grouped, has_undefended_victim, key_of
from lightning_backdoor.errors import InputError
from lightning_backdoor.outputs.outcomes import read_outcomes
from lightning_backdoor.outputs.progress import tracked
from lightning_backdoor.outputs.token_view import ViewedText, pieces

#: the largest number of texts shown per cell: poisoned, clean.
POISONED_TEXTS, CLEAN_TEXTS = 8, 4
#: approximate limit on the characters of HTML for all texts together.
TEXT_BUDGET = 3_000_000


class Detector(NamedTuple):
    """A defense that scores the texts of one attack; its histogram and texts are from its first seed.

    ``file`` is the name of the histogram's files; ``words`` stand out among the flagged texts.
    """

    defense: str
    seed: str
    histogram: Figure
    texts: list[dict[str, Any]]
    left_out: int
    file: str
    words: str


class AttackSection(NamedTuple):
    """One dataset, model and attack: the detectors' mean ROC curves, detectors, and rows of ``comparisons.csv``.

    ``working`` has, per compared metric, the defenses that do something about the attack; ``file`` is the name of the
    ROC curves' files.
    """

    names: tuple[str, ...]
    roc: Figure | None
    detectors: list[Detector]
    comparisons: list[ResultRow]
    working: dict[str, set[str]]
    file: str

    @property
    def decisive(self) -> list[ResultRow]:
        """The comparisons over all seeds, or with the only seed."""
        return [row for row in self.comparisons if row["seed"] == ALL_SEEDS] or self.comparisons


def attack_sections(rows: Sequence[ResultRow], cells: Path) -> list[AttackSection]:
    """The section of each attack, in the order in which the attacks first occur.

    Reads ``outcomes.csv`` of each cell once, and keeps only what is shown.

    Args:
        rows: the rows of ``results.csv``.
        cells: the folder that contains the cells' folders, with ``outcomes.csv``, ``texts.jsonl`` and ``words.json`` if
            they exist.
    """
    text_budget = TEXT_BUDGET / max(len(grouped(rows, NAMES)), 1)
    style = styles(row["defense"] for row in rows)
    names = FigureNames()
    attacks = tracked(grouped(rows, ATTACK_NAMES), "comparing defenses", "attacks")
    return [_attack_section(of_attack, cells, text_budget, style, names) for of_attack in attacks]


def _attack_section(
    rows: Sequence[ResultRow], cells: Path, text_budget: float, style: Mapping[str, Style], files: FigureNames
) -> AttackSection:
    curves: dict[str, list[Curve]] = {}
    intervals: dict[str, Interval] = {}
    detectors: dict[str, Detector] = {}
    comparisons: list[ResultRow] = []
    by_defense: dict[str, dict[object, Answers]] = {}
    undefended: dict[object, Answers] = {}
    for seed_rows in grouped([row for row in rows if not row["error"]], ["seed"]):
        for row in seed_rows:
            defense, seed, folder = row["defense"], row["seed"], cells / row["cell"]
            outcomes = read_outcomes(folder / "outcomes.csv") if (folder / "outcomes.csv").is_file() else []
            answers = by_defense.setdefault(defense, {})[seed] = answers_of(outcomes)
            if has_undefended_victim(row):
                undefended.setdefault(seed, answers)
            if curve := roc_curve(outcomes):
                curves.setdefault(defense, []).append(curve)
                if None not in (ends := (row["auroc_low"], row["auroc_high"])):
                    intervals[defense] = Interval(*ends)
            if defense not in detectors and any(outcome.score is not None for outcome in outcomes):
                file = files.new("scores", *key_of(row, NAMES))
                texts, left_out = _shown_texts(folder / "texts.jsonl", text_budget)
                detectors[defense] = Detector(
                    defense, seed, histogram(outcomes), texts, left_out, file, words_of_defense(folder)
                )
        comparisons += compare_defenses(rows[0], by_defense, seed_rows[0]["seed"])
    if len({seed for of_seeds in by_defense.values() for seed in of_seeds}) > 1:
        comparisons += compare_defenses(rows[0], by_defense)
    working = working_defenses(by_defense, undefended)
    names = key_of(rows[0], ATTACK_NAMES)
    roc = roc_figure(curves, style, intervals) if curves else None
    return AttackSection(names, roc, [*detectors.values()], comparisons, working, files.new("roc", *names))


def _shown_texts(path: Path, budget: float) -> tuple[list[dict[str, Any]], int]:
    """The texts of a cell that are shown, poisoned ones first, and the number of texts left out."""
    if not path.is_file():
        return [], 0
    try:
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
            cut = pieces(text["text"], text["tokens"], text["spans"])
            shown.append({**text, "score": float(text["score"]), "pieces": cut})
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        problem = f"is not a file of texts ({type(error).__name__}: {error})"
        raise InputError(str(path), problem, "test the victim again, which writes it") from None
    return sorted(shown, key=lambda text: not text["poisoned"]), len(texts) - len(shown)
