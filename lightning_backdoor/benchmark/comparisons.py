"""The rows of ``comparisons.csv``: any two defenses of one attack and seed, compared on the same texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations

from lightning_backdoor.benchmark.statistics import Comparison, compare
from lightning_backdoor.benchmark.table import ATTACK_NAMES, ResultRow, is_attack_success, is_correct
from lightning_backdoor.outputs.outcomes import Outcome

COMPARED_COLUMNS = (*ATTACK_NAMES, "seed", "first", "second", "metric", *Comparison._fields)
#: per metric and index of a text, whether the text counts (as an attack success or a correct prediction).
Hits = dict[str, dict[int, bool]]


def text_hits(outcomes: Iterable[Outcome]) -> Hits:
    """Attack successes among poisoned texts and correct predictions among clean texts, after the defense."""
    result: Hits = {"asr": {}, "cacc": {}}
    for outcome in outcomes:
        if outcome.poisoned:
            result["asr"][outcome.index] = is_attack_success(outcome)
        else:
            result["cacc"][outcome.index] = is_correct(outcome)
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
        for metric in ("asr", "cacc"):
            if shared := sorted(first_hits[metric].keys() & second_hits[metric].keys()):
                samples = [[hits[metric][index] for index in shared] for hits in (first_hits, second_hits)]
                pair = {"first": first, "second": second, "metric": metric}
                result.append({**names, **pair, **compare(samples[0], samples[1])._asdict()})
    return result
