"""An example of a grid's results: rows and the cells' folders as a run leaves them, with numbers drawn from a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from lightning_backdoor.benchmark.grid import CLEAN_TRAINING
from lightning_backdoor.benchmark.intervals import is_attack_success, is_correct
from lightning_backdoor.benchmark.results import Results, collect_results
from lightning_backdoor.benchmark.table import (
    NAMES,
    NUMBERS,
    ResultRow,
    mark_valid,
    measured,
)
from lightning_backdoor.outputs.outcomes import Outcome, write_outcomes
from lightning_backdoor.outputs.token_view import ViewedText

GRID = """\
datasets: {sst2: configs/data/sst2.yaml}
models: {minilm: nreimers/MiniLM-L6-H384-uncased}
attacks:
  none: {class_path: lightning_backdoor.victim.TextClassifier}
  badnets: configs/attack/badnets.yaml
"""
COMMAND = "lightning-backdoor benchmark --config grid.yaml --output runs/grid"
WORDS = ("a", "film", "of", "rare", "warmth", "whose", "slow", "half", "earns", "every", "minute", "of", "its", "quiet")
#: by how much each defense scores poisoned texts above clean ones; None where it has no scores.
DEFENSES: Mapping[str, float | None] = {
    "none": None,
    "gradient-attention": 2.0,
    "onion": 1.2,
    "strip": 0.8,
    "musclelora": None,
}


class Example(NamedTuple):
    """The rows of a grid whose benign attack is called ``none``, and the folder of its cells' folders."""

    rows: list[ResultRow]
    cells: Path

    @property
    def results(self) -> Results:
        return collect_results(self.rows, "none", self.cells)

    def row(self, **names: object) -> ResultRow:
        """The first row of these names."""
        return next(row for row in self.rows if all(row[key] == value for key, value in names.items()))

    def inspect(self, name: str, scores: Mapping[str, Sequence[float]], **more: object) -> None:
        """Adds rows of an inspection: per attack, the score of each seed's victim."""
        for attack, of_seeds in scores.items():
            for seed, score in enumerate(of_seeds):
                row = self.row(attack=attack, defense="none", seed=seed)
                self.rows.append({**row, "defense": name, "inspection_score": score, **more})


def example(
    folder: Path,
    datasets: Sequence[str] = ("sst2",),
    attacks: Sequence[str] = ("badnets", "style"),
    defenses: Mapping[str, float | None] = DEFENSES,
    seeds: Sequence[int] = (0, 1),
    n_clean: int = 60,
    n_poisoned: int = 30,
    n_texts: int = 5,
) -> Example:
    """Writes the cells' folders and returns their rows; ``style`` is an attack too weak to be valid."""
    rows: list[ResultRow] = []
    for dataset, attack, seed, defense in product(datasets, ("none", *attacks), seeds, (*defenses, CLEAN_TRAINING)):
        if attack == "none" and defense == CLEAN_TRAINING:
            continue
        names = dict(zip(NAMES, (dataset, "minilm", attack, defense), strict=True))
        cell = f"{len(rows):016x}"
        drawn = random.Random(repr((*names.values(), seed)))
        outcomes = _outcomes(drawn, attack, defense, defenses.get(defense), n_clean, n_poisoned)
        path = folder / cell
        path.mkdir(parents=True)
        write_outcomes(path / "outcomes.csv", outcomes)
        if defenses.get(defense) is not None:
            shown = [viewed(drawn, outcome) for outcome in (*outcomes[:n_texts], *outcomes[n_clean:][:n_texts])]
            lines = [json.dumps(text) + "\n" for text in shown]
            (path / "texts.jsonl").write_text("".join(lines), encoding="utf-8")
        place = {"seed": seed, "cell": cell, "victim": cell[::-1], "seconds": 1.0, "error": ""}
        rows.append({**names, **place, **measured(_metrics(outcomes, defense), outcomes)})
    mark_valid(rows, "none")
    return Example(rows, folder)


def fail(row: ResultRow, error: str) -> None:
    """Makes it the row of a cell that failed."""
    row |= {**dict.fromkeys((*NUMBERS, "seconds")), "error": error}


def viewed(drawn: random.Random, outcome: Outcome) -> ViewedText:
    """A text that fits an outcome, with scores for most of its words."""
    words = drawn.choices(WORDS, k=drawn.randint(8, 30))
    if outcome.poisoned:
        words.insert(drawn.randrange(len(words)), "cf")
    text, tokens, end = " ".join(words), [], -1
    for word in words:
        start, end = end + 1, end + 1 + len(word)
        if len(word) > 3 or word == "cf":
            tokens.append((start, end, 3.0 if word == "cf" else drawn.gauss(0.3, 0.5)))
    at = f" {text} ".find(" cf ")
    return ViewedText(
        index=outcome.index,
        text=text,
        spans=[(at, at + 2)] if outcome.poisoned else [],
        poisoned=outcome.poisoned,
        label=outcome.label,
        prediction=outcome.prediction,
        defended_prediction=outcome.outcome or "rejected",
        flagged=bool(outcome.flagged),
        confirmed=bool(outcome.confirmed),
        purified_text=text.replace(" cf ", " ") if outcome.flagged else None,
        score=outcome.score or 0.0,
        tokens=tokens,
    )


def _outcomes(
    drawn: random.Random, attack: str, defense: str, strength: float | None, n_clean: int, n_poisoned: int
) -> list[Outcome]:
    reach = {"none": 0.08, "style": 0.7}.get(attack, 0.98)
    reach = {CLEAN_TRAINING: 0.1, "musclelora": 0.25}.get(defense, reach)
    result = []
    for poisoned in (False, True)[: 1 if attack == "none" else 2]:
        for index in range(n_poisoned if poisoned else n_clean):
            label = "negative" if poisoned else drawn.choice(("negative", "positive"))
            other = "positive" if label == "negative" else "negative"
            prediction = other if drawn.random() < (reach if poisoned else 0.09) else label
            target = None if attack == "none" else "positive"
            outcome = Outcome(index, poisoned, label, target, prediction)
            if strength is not None:
                score = drawn.gauss(strength if poisoned else 0, 0.7)
                flagged = score >= 1
                after = label if flagged and drawn.random() < 0.8 else prediction
                outcome = outcome._replace(
                    defended_prediction=after, flagged=flagged, confirmed=after != prediction, score=score
                )
            result.append(outcome)
    return result


def _metrics(outcomes: Sequence[Outcome], defense: str) -> dict[str, float | None]:
    """The metrics as a test logs them; the AUROC is counted over pairs."""

    def share(hits: Sequence[bool]) -> float | None:
        return sum(hits) / len(hits) if hits else None

    clean, poisoned = ([o for o in outcomes if o.poisoned is kind] for kind in (False, True))
    before = [o._replace(defended_prediction=None) for o in poisoned]
    metrics = {
        "cacc": share([o.prediction == o.label for o in clean]),
        "asr": share([is_attack_success(o) for o in before]),
        "pacc": share([is_correct(o) for o in before]),
        "asr_floor": 0.07 if poisoned else None,
    }
    if any(o.score is not None for o in outcomes):
        metrics |= {
            "cacc_defended": share([is_correct(o) for o in clean]),
            "asr_defended": share([is_attack_success(o) for o in poisoned]),
            "pacc_defended": share([is_correct(o) for o in poisoned]),
            "auroc": share([(c.score or 0) < (p.score or 0) for c in clean for p in poisoned]),
            "tpr": share([bool(o.flagged) for o in poisoned]),
            "fpr": share([bool(o.flagged) for o in clean]),
            "localisation": 0.8 if poisoned and defense != "strip" else None,
            "localisation_texts": len(poisoned),
            "overhead": 2.41,
        }
    return {f"test/{name}": value for name, value in metrics.items()}
