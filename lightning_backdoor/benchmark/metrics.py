"""The metrics of a grid's results: name, heading, direction and meaning of each."""

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


class Column(NamedTuple):
    """A metric as a column of the results' tables.

    Attributes:
        name: name in ``results.csv`` and in the log of a test (``test/<name>``).
        part: part of the tables that shows it, a key of ``PARTS``; empty for a metric that is only in ``results.csv``.
        heading: heading of the column, below the title of its part.
        better: ``high`` or ``low``, the better direction; empty for a metric that is neither.
        meaning: one sentence for the reader of a table.
    """

    name: str
    part: str
    heading: str
    better: str
    meaning: str

    @property
    def title(self) -> str:
        """The heading in a table without parts.

        >>> next(metric.title for metric in METRICS if metric.name == "asr_defended")
        'ASR defended'
        """
        if self.part in ("inspection", "cleaning"):
            return f"{PARTS[self.part]} {self.heading.lower()}"
        return f"{self.heading} defended" if self.part == "defended" else self.heading


#: all metrics, in the order of their columns in ``results.csv``; new metrics are added at the end.
METRICS = (
    Column("cacc", "undefended", "CACC", "", "Accuracy on clean texts."),
    Column("asr", "undefended", "ASR", "", "Share of poisoned texts predicted as the target label."),
    Column("pacc", "undefended", "PACC", "", "Accuracy on poisoned texts against their labels before poisoning."),
    Column("asr_floor", "undefended", "Floor", "", "Share of clean non-target texts predicted as the target label."),
    Column("cacc_defended", "defended", "CACC", "high", "Accuracy on clean texts; a rejected text counts as wrong."),
    Column("asr_defended", "defended", "ASR", "low", "Share of poisoned texts still predicted as the target label."),
    Column("pacc_defended", "defended", "PACC", "high", "Accuracy on poisoned texts; a rejected text counts as wrong."),
    Column(
        "auroc", "detection", "AUROC", "high", "Probability that a poisoned text outscores a clean one; chance is 0.5."
    ),
    Column("auroc_target", "detection", "AUROC, target", "high", "AUROC against clean texts predicted as the target."),
    Column("tpr", "detection", "TPR", "high", "Share of poisoned texts that are flagged."),
    Column("fpr", "detection", "FPR", "low", "Share of clean texts that are flagged."),
    Column("localisation", "detection", "Located", "high", "Share of poisoned texts whose top token is in a trigger."),
    Column("overhead", "cost", "Time", "low", "Time through the defense over time through the victim alone."),
    Column("ftr", "undefended", "FTR", "", "Share of texts with a part of the trigger predicted as the target label."),
    Column("inspection_score", "inspection", "Score", "", "How suspicious the victim is; higher is more suspicious."),
    Column("inspection_p_value", "", "p", "", "Probability of evidence this strong from a victim without backdoor."),
    Column("cleaning_removed", "cleaning", "Removed", "", "Number of training rows removed."),
    Column("cleaning_changed", "cleaning", "Changed", "", "Number of training rows whose text was repaired."),
    Column("cleaning_precision", "cleaning", "Precision", "high", "Share of poisoned rows among the cleaned ones."),
    Column("cleaning_recall", "cleaning", "Recall", "high", "Share of poisoned rows that were removed or changed."),
    Column("excess_asr", "undefended", "Excess ASR", "", "ASR above the floor, or above clean training if larger."),
)
METRIC_NAMES = tuple(metric.name for metric in METRICS)
#: metrics shown in the terminal's table.
BRIEF = ("cacc", "asr", "excess_asr", "cacc_defended", "asr_defended", "auroc", "inspection_score")
#: metrics that are not between 0 and 1, and are not shown in percent.
NOT_SHARES = ("overhead", "inspection_score", "inspection_p_value", "cleaning_removed", "cleaning_changed")
#: metrics that are numbers of rows; all others are shown with three decimals.
COUNTS = ("cleaning_removed", "cleaning_changed")
#: metrics for which ``results.csv`` has intervals over texts, and the columns of the intervals' ends.
WITH_INTERVAL = (
    *("cacc_defended", "asr_defended", "auroc", "cacc", "asr", "pacc", "asr_floor", "pacc_defended", "auroc_target"),
    *("tpr", "fpr", "localisation", "excess_asr"),
)
INTERVALS = tuple(f"{name}_{end}" for name in WITH_INTERVAL for end in ("low", "high"))
