"""The intervals over texts of a cell's numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from lightning_backdoor.benchmark.statistics import Interval, auroc_interval, share_interval, split_scores
from lightning_backdoor.outputs.outcomes import Outcome


def is_correct(outcome: Outcome) -> bool:
    """Whether a text is predicted correctly after the defense."""
    return outcome.outcome == outcome.label


def is_attack_success(outcome: Outcome) -> bool:
    """Whether a text is predicted as the target label after the defense."""
    return outcome.outcome == outcome.target_label


def target_labels(outcomes: Iterable[Outcome]) -> set[str]:
    """The target labels of the attack, one or several; empty without an attack."""
    return {outcome.target_label for outcome in outcomes if outcome.target_label is not None}


def with_targets(clean: Iterable[Outcome], poisoned: Iterable[Outcome]) -> list[Outcome]:
    """Clean texts with the target label of the attack, once with each of several; none without an attack."""
    targets = sorted(target_labels(poisoned))
    of_text = [(outcome, targets if outcome.target_label is None else [outcome.target_label]) for outcome in clean]
    return [outcome._replace(target_label=target) for outcome, wanted in of_text for target in wanted]


def text_intervals(
    outcomes: Sequence[Outcome], localisation: float | None, localisation_texts: float | None = None
) -> dict[str, Interval]:
    """The interval of each number of a test that is a share of texts, or an AUROC; NaN without texts.

    Args:
        outcomes: the outcome of each row of the test.
        localisation: the test's localisation, which outcomes do not tell.
        localisation_texts: the number of texts that localisation is a share of; None, as in tests of earlier versions,
            gives it no interval.
    """
    clean, poisoned = ([o for o in outcomes if o.poisoned is side] for side in (False, True))
    of_others = [o for o in with_targets(clean, poisoned) if o.label != o.target_label]
    targets = target_labels(outcomes)
    taken_for_target = [o for o in clean if o.prediction in targets]
    judged = [[o for o in side if o.flagged is not None] for side in (clean, poisoned)]
    located = round(localisation_texts or 0) if localisation is not None else 0
    return {
        "cacc_defended": _share(is_correct, clean),
        "asr_defended": _share(is_attack_success, poisoned),
        "auroc": auroc_interval(*split_scores(outcomes)),
        "cacc": _share(lambda o: o.prediction == o.label, clean),
        "asr": _share(lambda o: o.prediction == o.target_label, poisoned),
        "pacc": _share(lambda o: o.prediction == o.label, poisoned),
        "asr_floor": _share(lambda o: o.prediction == o.target_label, of_others),
        "pacc_defended": _share(is_correct, poisoned),
        "auroc_target": auroc_interval(*split_scores([*taken_for_target, *poisoned])),
        "tpr": _share(lambda o: bool(o.flagged), judged[1]),
        "fpr": _share(lambda o: bool(o.flagged), judged[0]),
        "localisation": share_interval(round((localisation or 0) * located), located),
    }


def difference_interval(difference: float, first: tuple[float, Interval], second: tuple[float, Interval]) -> Interval:
    """The interval of a difference of two independent numbers, from the interval of each.

    The method is Newcombe's hybrid score (Statistics in Medicine 17, 1998, 873-890, method 10).

    Args:
        difference: the first number minus the second.
        first: the first number, and its interval.
        second: the second number, and its interval.

    >>> low, high = difference_interval(0.5, (0.6, Interval(0.5, 0.7)), (0.1, Interval(0.1, 0.1)))
    >>> round(low, 3), round(high, 3)
    (0.4, 0.6)
    """
    (a, (a_low, a_high)), (b, (b_low, b_high)) = first, second
    return Interval(difference - math.hypot(a - a_low, b_high - b), difference + math.hypot(a_high - a, b - b_low))


def _share(is_hit: Callable[[Outcome], bool], outcomes: Iterable[Outcome]) -> Interval:
    hits = [is_hit(outcome) for outcome in outcomes]
    return share_interval(sum(hits), len(hits))
