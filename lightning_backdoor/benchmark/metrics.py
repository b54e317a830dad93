"""The metrics in a grid's results: the name, heading, meaning and direction of each, written here alone."""

from __future__ import annotations

from typing import NamedTuple

#: the parts of the tables, in the order in which they are shown, and their titles.
PARTS = {
    "undefended": "Undefended",
    "defended": "After the defense",
    "detection": "Detection",
    "inspection": "Inspection",
    "cleaning": "Cleaning",
    "cost": "Cost",
}


class Metric(NamedTuple):
    """One metric of a cell.

    Attributes:
        name: as a test logs it (``test/<name>``), and the column in ``results.csv``.
        part: where the tables show it, a key of ``PARTS``; empty for a metric that is in ``results.csv`` alone.
        heading: of its column below the title of its part.
        meaning: one sentence for the reader of a table.
        better: ``high`` or ``low``; empty where no defense is better than another by this metric.
        interval: whether ``results.csv`` has its interval over texts, as ``<name>_low`` and ``<name>_high``.
        brief: whether the table on the terminal shows it too.
        decimals: shown in tables.
    """

    name: str
    part: str
    heading: str
    meaning: str
    better: str = ""
    interval: bool = False
    brief: bool = False
    decimals: int = 3

    @property
    def title(self) -> str:
        """The heading of a table that does not show the parts.

        >>> next(metric.title for metric in METRICS if metric.name == "asr_defended")
        'ASR defended'
        """
        prefix = self.part.capitalize() + " " if self.part in ("inspection", "cleaning") else ""
        return prefix + (self.heading.lower() if prefix else self.heading) + " defended" * (self.part == "defended")


#: in the order of their columns in ``results.csv``; new ones are added at the end.
METRICS = (
    Metric("cacc", "undefended", "CACC", "Accuracy on clean texts.", brief=True),
    Metric("asr", "undefended", "ASR", "Share of poisoned texts predicted as the target label.", brief=True),
    Metric("pacc", "undefended", "PACC", "Accuracy on poisoned texts against their labels before poisoning."),
    Metric(
        *("asr_floor", "undefended", "Floor"),
        "Share of clean texts of other labels predicted as the target label: about the lowest ASR that a defense can"
        " reach.",
    ),
    Metric(
        *("cacc_defended", "defended", "CACC", "Accuracy on clean texts; a rejected text counts as wrong.", "high"),
        interval=True,
        brief=True,
    ),
    Metric(
        *("asr_defended", "defended", "ASR", "Share of poisoned texts still predicted as the target label.", "low"),
        interval=True,
        brief=True,
    ),
    Metric(
        *("pacc_defended", "defended", "PACC"),
        "Accuracy on poisoned texts against their labels before poisoning; a rejected text counts as wrong.",
        "high",
    ),
    Metric(
        *("auroc", "detection", "AUROC"),
        "Probability that a poisoned text scores above a clean one: 1 separates all of them, 0.5 is chance.",
        "high",
        interval=True,
        brief=True,
    ),
    Metric(
        *("auroc_target", "detection", "AUROC, target"),
        "The same against only those clean texts that the victim predicts as the target label.",
        "high",
    ),
    Metric("tpr", "detection", "TPR", "Share of poisoned texts that are flagged.", "high"),
    Metric("fpr", "detection", "FPR", "Share of clean texts that are flagged.", "low"),
    Metric(
        *("localisation", "detection", "Located"),
        "Share of poisoned texts whose highest-scoring token lies in the trigger.",
        "high",
    ),
    Metric("overhead", "cost", "Time", "Time through the defense over time through the victim alone.", "low"),
    Metric(
        *("ftr", "undefended", "FTR"),
        "Share of negatives, texts that carry a part of the trigger, predicted as the target label.",
    ),
    Metric(
        *("inspection_score", "inspection", "Score"),
        "How strongly the inspection takes the victim for backdoored; higher is more suspicious.",
        brief=True,
    ),
    Metric("inspection_p_value", "", "p", "Probability of evidence at least as strong from a victim without backdoor."),
    Metric("cleaning_removed", "cleaning", "Removed", "Number of training rows that were removed.", decimals=0),
    Metric("cleaning_changed", "cleaning", "Changed", "Number of training rows whose text was repaired.", decimals=0),
    Metric(
        *("cleaning_precision", "cleaning", "Precision"),
        "Share of poisoned rows among the training rows removed or changed.",
        "high",
    ),
    Metric(
        *("cleaning_recall", "cleaning", "Recall"),
        "Share of the poisoned training rows that were removed or changed.",
        "high",
    ),
)
METRIC_NAMES = tuple(metric.name for metric in METRICS)
#: columns of the intervals' ends in ``results.csv``.
INTERVALS = tuple(f"{metric.name}_{end}" for metric in METRICS if metric.interval for end in ("low", "high"))
