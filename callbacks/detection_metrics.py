"""The metrics of an inference-time defense in one evaluation: defended rates, detection, localisation, overhead."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, SumMetric

from lightning_backdoor.attacks import BackdoorAttack
from lightning_backdoor.batch import Batch, clean_rows, token_spans
from lightning_backdoor.data.aims import distinct_targets
from lightning_backdoor.defenses.defense import BUDGETS, Verdict
from lightning_backdoor.metrics import DetectionAUROC, FlagRate, Localisation, Overhead
from lightning_backdoor.victim import TextClassifier


class DetectionMetrics:
    """Collects verdicts batch by batch and computes the metrics that :class:`InferenceDefense` logs.

    Rows that carry a part of the trigger count neither as clean nor as poisoned in the detection metrics. A benign
    victim has no poisoned rows, so the metrics of poisoned rows are missing.

    Args:
        victim: the model under attack. Its metrics are computed again on the defended predictions; all metrics are on
            its device.
    """

    def __init__(self, victim: TextClassifier) -> None:
        defended = victim.make_metrics()
        self._defended = list(defended)
        metrics: dict[str, Any] = {f"{name}_defended": metric for name, metric in defended.items()}
        detection: dict[str, Metric] = {"fpr": FlagRate(False), "fpr_confirmed": FlagRate(False)}
        detection |= {_at_budget("fpr", budget): FlagRate(False) for budget in BUDGETS}
        self._scores = DetectionAUROC()  # holds all scores: histograms need them also where AUROC is undefined
        self._targets: Tensor | None = None
        if isinstance(victim, BackdoorAttack):
            self._targets = torch.tensor(distinct_targets(victim.aims), device=victim.device)
            detection |= {"tpr": FlagRate(True), "tpr_confirmed": FlagRate(True)}
            detection |= {_at_budget("tpr", budget): FlagRate(True) for budget in BUDGETS}
            detection |= {"auroc": self._scores, "auroc_target": DetectionAUROC(), "localisation": Localisation()}
            detection["localisation_texts"] = SumMetric()
        self._scores.to(victim.device)
        self._metrics: dict[str, Metric] = {
            name: metric.to(victim.device) for name, metric in {**metrics, **detection, "overhead": Overhead()}.items()
        }

    def update(self, victim: TextClassifier, batch: Batch, verdict: Verdict, budget_thresholds: Tensor) -> None:
        """Adds the verdict on a batch.

        Args:
            victim: the model under attack.
            batch: the batch, with labels and poison flags.
            verdict: the defense's verdict on the batch.
            budget_thresholds: (budgets,), the defense's threshold per budget of ``BUDGETS``.
        """
        for name in self._defended:
            self._metrics[f"{name}_defended"].update(verdict.defended_prediction, batch)
        flags = {"": verdict.flagged, "_confirmed": verdict.confirmed}
        for budget, threshold in zip(BUDGETS, budget_thresholds, strict=True):
            flags[_at_budget("", budget)] = verdict.scores.text >= threshold
        for suffix, flagged in flags.items():
            for rate in ("tpr", "fpr"):
                if rate + suffix in self._metrics:
                    self._metrics[rate + suffix].update(flagged, batch)
        poisoned, scores = batch["poisoned"], verdict.scores
        counted = poisoned | clean_rows(batch)
        self._scores.update(scores.text[counted], poisoned[counted])
        if self._targets is None:
            return
        as_target = poisoned | (clean_rows(batch) & torch.isin(verdict.prediction, self._targets))
        self._metrics["auroc_target"].update(scores.text[as_target], poisoned[as_target])
        rows = [] if scores.top is None else poisoned.nonzero().flatten().tolist()
        tops = [_top_span(victim, batch, row, int(scores.top[row])) for row in rows if scores.top is not None]
        triggers = [batch["spans"][row] for row in rows]
        self._metrics["localisation"].update(tops, triggers)
        self._metrics["localisation_texts"].update(sum(map(bool, triggers)))  # as localisation counts them

    def update_overhead(self, defended: float, plain: float) -> None:
        """Adds the seconds that the computed texts of a batch took with the defense and with the victim alone."""
        self._metrics["overhead"].update(defended, plain)

    def compute(self) -> dict[str, Tensor]:
        """The metrics by name, as scalars that are equal on all processes; every process must call it."""
        return {name: metric.compute() for name, metric in self._metrics.items()}

    def scores(self) -> tuple[Tensor, Tensor]:
        """Anomaly scores and poison flags (0 or 1) of the clean and poisoned rows of all processes, both (rows,)."""
        return self._scores.gathered()


def _at_budget(rate: str, budget: float) -> str:
    return f"{rate}_at_fpr_{100 * budget:g}"


def _top_span(victim: TextClassifier, batch: Batch, row: int, top: int) -> tuple[int, int] | None:
    """The characters of the token at position ``top`` of a row; None where ``top`` is -1."""
    if top < 0:
        return None
    first = int(batch["attention_mask"][row].argmax())  # position of the first token; padding may be on the left
    return token_spans(batch["text"][row], victim.tokenizer, victim.max_length)[top - first]
