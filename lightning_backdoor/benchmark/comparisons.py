"""Comparing the defenses against one attack on the same texts: the rows of ``comparisons.csv``."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from lightning_backdoor.benchmark.intervals import is_attack_success, is_correct, target_labels
from lightning_backdoor.benchmark.statistics import (
    SIGNIFICANT,
    Comparison,
    PairedScores,
    compare,
    compare_auroc,
    is_more_frequent,
)
from lightning_backdoor.benchmark.table import ATTACK_NAMES, ResultRow
from lightning_backdoor.outputs.outcomes import Outcome

COMPARED_COLUMNS = (*ATTACK_NAMES, "seed", "first", "second", "metric", *Comparison._fields)
#: the metrics by which defenses are compared, as named in ``comparisons.csv``, and the metrics of ``results.csv``.
COMPARED = {
    "asr": "asr_defended",
    "cacc": "cacc_defended",
    "pacc": "pacc_defended",
    "tpr": "tpr",
    "fpr": "fpr",
    "auroc": "auroc",
    "auroc_target": "auroc_target",
}
#: the value of ``seed`` in a comparison over all seeds.
ALL_SEEDS = "all"


class Text(NamedTuple):
    """What tells a text of a cell from others.

    Attributes:
        poisoned: whether it carries the trigger.
        index: the row's position in its source split; rows that ``rating_cut`` leaves out are not counted.
        target_label: the label that the attack wants for it, where one row has several poisoned copies.
        copy: number of the text among those that the other fields do not tell apart, as in files of poisoned rows.
    """

    poisoned: bool
    index: int  # type: ignore[assignment]  # hides the method tuple.index
    target_label: str | None
    copy: int


class Answers(NamedTuple):
    """The outcomes of one cell by text, as far as defenses are compared by them.

    Attributes:
        hits: per metric, whether a text counts: ``asr``, ``pacc`` and ``tpr`` of poisoned texts, ``cacc`` and ``fpr``
            of clean ones.
        before: ``asr`` and ``cacc`` by the victim's own predictions.
        scores: per metric, ``auroc`` and ``auroc_target``, the scores of texts.
    """

    hits: dict[str, dict[Text, bool]]
    before: dict[str, dict[Text, bool]]
    scores: dict[str, dict[Text, float]]


#: the answers under one defense by seed.
BySeed = Mapping[Any, Answers]


def answers_of(outcomes: Iterable[Outcome]) -> Answers:
    """The answers of a cell from its outcomes; a text without a score is in none of the scores."""
    result = Answers(defaultdict(dict), defaultdict(dict), defaultdict(dict))
    outcomes = [*outcomes]
    targets = target_labels(outcomes)
    seen: Counter[tuple[bool, int, str | None]] = Counter()
    for outcome in outcomes:
        own = outcome._replace(defended_prediction=None, rejected=None)
        known = outcome.poisoned, outcome.index, outcome.target_label
        text = Text(*known, seen[known])
        seen[known] += 1
        if outcome.poisoned:
            result.hits["asr"][text] = is_attack_success(outcome)
            result.hits["pacc"][text] = is_correct(outcome)
            result.before["asr"][text] = is_attack_success(own)
        else:
            result.hits["cacc"][text] = is_correct(outcome)
            result.before["cacc"][text] = is_correct(own)
        if outcome.flagged is not None:
            result.hits["tpr" if outcome.poisoned else "fpr"][text] = outcome.flagged
        if outcome.score is not None and not np.isnan(outcome.score):
            result.scores["auroc"][text] = outcome.score
            if outcome.poisoned or outcome.prediction in targets:
                result.scores["auroc_target"][text] = outcome.score
    return result


def compare_defenses(
    names: Mapping[str, object], by_defense: Mapping[str, BySeed], seed: object | None = None
) -> list[ResultRow]:
    """Compares every two defenses by each metric that both have, on the rows that both were tested on.

    Args:
        names: dataset, model and attack.
        by_defense: the answers under each defense by seed.
        seed: the seed to compare with; None compares over all seeds, where ``seed`` of the result is ``ALL_SEEDS``.
    """
    result = []
    common = {**{name: names[name] for name in ATTACK_NAMES}, "seed": ALL_SEEDS if seed is None else seed}
    for (first, of_first), (second, of_second) in combinations(by_defense.items(), 2):
        seeds = [one for one in of_first if one in of_second and seed in (None, one)]
        pairs = [(of_first[one], of_second[one]) for one in seeds]
        for metric in COMPARED:
            compared = _auroc_compared(metric, pairs) if metric.startswith("auroc") else _hits_compared(metric, pairs)
            if compared is not None:
                result.append({**common, "first": first, "second": second, "metric": metric, **compared._asdict()})
    return result


def _hits_compared(metric: str, pairs: Iterable[tuple[Answers, Answers]]) -> Comparison | None:
    by_text: dict[int, tuple[int, int, int]] = {}  # copies of a text, and hits among them, by both
    for first, second in pairs:
        others = second.hits.get(metric, {})
        for text, hit in first.hits.get(metric, {}).items():
            if (other := others.get(text)) is not None:
                copies, a, b = by_text.get(text.index, (0, 0, 0))
                by_text[text.index] = copies + 1, a + hit, b + other
    shares = [(a / copies, b / copies) for copies, a, b in by_text.values()]
    return compare(shares) if shares else None


def _auroc_compared(metric: str, pairs: Iterable[tuple[Answers, Answers]]) -> Comparison | None:
    return compare_auroc(
        paired_scores(first.scores.get(metric, {}), second.scores.get(metric, {})) for first, second in pairs
    )


def paired_scores(first: Mapping[Text, float], second: Mapping[Text, float]) -> PairedScores:
    """The scores of the texts that both defenses have scored."""
    rows = [row for row in first if row in second]
    return PairedScores(
        np.array([text.index for text in rows], dtype=np.int64),
        np.array([text.poisoned for text in rows], dtype=np.bool_),
        np.array([first[row] for row in rows], dtype=np.float64),
        np.array([second[row] for row in rows], dtype=np.float64),
    )


def working_defenses(by_defense: Mapping[str, BySeed], undefended: BySeed) -> dict[str, set[str]]:
    """Per metric of ``COMPARED``, the defenses that do something about the attack, and so can be the best by it.

    By ASR, CACC and PACC these are the defenses that keep a larger share of the victim's correct predictions than of
    its attack successes, so neither one that changes nothing nor one that rejects everything; by TPR and FPR, those
    that flag a larger share of poisoned texts than of clean ones, both by Fisher's exact test, in which a text counts
    once whatever the number of seeds; by AUROC, those whose AUROC is above 0.5.

    Args:
        by_defense: the answers under each defense by seed.
        undefended: the answers of the undefended victim by seed; its own predictions are used.
    """
    result: dict[str, set[str]] = {metric: set() for metric in COMPARED}
    for defense, of_seeds in by_defense.items():
        pairs = [(answers, undefended[seed]) for seed, answers in of_seeds.items() if seed in undefended]
        kept = [_counted(_kept(metric, *pair) for pair in pairs) for metric in ("cacc", "asr")]
        flags = [_counted(answers.hits[metric] for answers in of_seeds.values()) for metric in ("tpr", "fpr")]
        for metrics, (more, less) in ((("asr", "cacc", "pacc"), kept), (("tpr", "fpr"), flags)):
            if is_more_frequent(*more, *less):
                for metric in metrics:
                    result[metric].add(defense)
        for metric in ("auroc", "auroc_target"):
            scores = [answers.scores[metric] for answers in of_seeds.values()]
            above = compare_auroc(paired_scores(of_seed, dict.fromkeys(of_seed, 0.0)) for of_seed in scores)
            if above is not None and above.difference > 0 and above.p < SIGNIFICANT:
                result[metric].add(defense)
    return result


def _kept(metric: str, answers: Answers, undefended: Answers) -> dict[Text, bool]:
    """For each hit of the undefended victim, whether it is one under the defense too."""
    hits = answers.hits[metric]
    return {text: hits[text] for text, hit in undefended.before[metric].items() if hit and text in hits}


def _counted(seeds: Iterable[Mapping[Text, bool]]) -> tuple[int, int]:
    """The number of hits, and of texts; a text counts once, with the share of its copies and seeds that are hits.

    The same text under other seeds is not independent.
    """
    by_text: dict[int, list[bool]] = defaultdict(list)
    for hits in seeds:
        for text, hit in hits.items():
            by_text[text.index].append(hit)
    return round(sum(sum(hits) / len(hits) for hits in by_text.values())), len(by_text)
