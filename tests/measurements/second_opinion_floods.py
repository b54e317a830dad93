"""Sets that mislead the second opinion: few poisoned texts, and floods of harmless disputed ones.

Sums of sets add up, so that each set is put together from parts that are studied once. A flood consists of clean
training texts that the victim predicts as the target and that are disputed, each repeated with one or two words left
out. ``any`` floods take all such texts in turn; floods ``against`` take the tenth of them that lies farthest against
the directions which the poisoned texts teach, by an attacker who knows all but the threshold rows.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from lightning_backdoor.attacks import BackdoorAttack
from lightning_backdoor.batch import Batch, batch_of_texts, taken, unlabelled
from lightning_backdoor.data import BackdoorDataModule, Source
from lightning_backdoor.defenses import SecondOpinion
from lightning_backdoor.defenses.defense import judge, threshold_at_fpr
from lightning_backdoor.defenses.second_opinion_reading import SetPart, TextPart
from lightning_backdoor.models.captures import Captures, sharing
from lightning_backdoor.victim import TextClassifier, load_trained
from tests.measurements.detector_auroc import auroc

T3: tuple[TextPart, ...] = ("gap", "delta", "entropy")
GAP: tuple[TextPart, ...] = ("gap",)
VARIANTS: dict[str, tuple[tuple[TextPart, ...], tuple[SetPart, ...]]] = {
    "T3 + F + FM": (T3, ("text", "readout", "mean")),
    "T3 + F": (T3, ("text", "readout")),
    "F + FM by gap": (GAP, ("readout", "mean")),
}
#: poisoned rows per clean row of the set, and the draws of which means are shown; None: all poisoned rows.
PREVALENCES: dict[float | None, int] = {0.001: 5, 0.01: 3, 0.05: 3, None: 1}
#: flood texts per clean row of the set.
FLOODS = (0.05, 0.2, 1.0)
#: prevalences under which floods are measured.
FLOODED = (0.05, None)


class Studied(NamedTuple):
    """A victim's test rows, and the sets that are made of them.

    Attributes:
        victim: the victim.
        data: the data module, whose trusted and threshold rows the defenses are given.
        clean: batches of clean test rows.
        poisoned: batches of their poisoned copies.
        training: clean training texts.
        target: index of the target label.
    """

    victim: TextClassifier
    data: BackdoorDataModule
    clean: list[Batch]
    poisoned: list[Batch]
    training: list[str]
    target: int


def flood_table(trigger: str, seed: int, checkpoint: Path, model: Mapping[str, Any], grid: Mapping[str, Any]) -> Table:
    """What is left of each variant under each set, on one victim."""
    table = Table(title=f"{trigger}, seed {seed}: sets with few poisoned texts, and floods; means over draws")
    for heading in ("poisoned", "flood", "defense", "AUROC", "TPR", "ASR after", "CACC after", "FPR"):
        table.add_column(heading)
    studied = read(checkpoint, seed, model, grid)
    captures = Captures()
    captures.begin(studied.victim.network)
    with sharing(captures), torch.no_grad():
        for line in figures(studied):
            table.add_row(*line)
    return table


def read(checkpoint: Path, seed: int, model: Mapping[str, Any], grid: Mapping[str, Any]) -> Studied:
    victim = load_trained(checkpoint)
    base = grid["base"]["data"]["init_args"]
    source = next(iter(grid["datasets"].values()))["data"]["init_args"]["source"]
    data = BackdoorDataModule(Source(**source), **base, seed=seed)
    data.attack = attack_of(model, next(iter(grid["models"].values())))
    clean, poisoned = data.test_dataloader()[:2]
    rows = data.training_rows()
    training = [row["text"] for row in rows if not row["poisoned"]]
    return Studied(victim, data, list(clean), list(poisoned), training, data.attack.target_label)


def attack_of(entry: Mapping[str, Any], model: str) -> BackdoorAttack:
    """The attack of a grid's entry."""

    def made(part: Any) -> Any:
        if not isinstance(part, Mapping) or "class_path" not in part:
            return part
        module, _, name = part["class_path"].rpartition(".")
        arguments = {key: made(value) for key, value in part.get("init_args", {}).items()}
        return getattr(import_module(module), name)(**arguments)

    attack: BackdoorAttack = made({**entry, "init_args": {**entry["init_args"], "model": model}})
    return attack


def figures(studied: Studied) -> Iterator[list[str]]:
    """The lines of the table."""
    sets: dict[tuple[float | None, float, str], list[Sequence[Batch]]] = {}
    for prevalence, draws in PREVALENCES.items():
        sets[prevalence, 0, ""] = [poisoned_part(studied, prevalence, draw) for draw in range(draws)]
    defenses = {name: calibrated(studied, *parts) for name, parts in VARIANTS.items()}
    alone = calibrated(studied, T3, ("text",))
    yield ["–", "–", "T3", *measured(studied, alone)]
    clean = {name: defense.study(studied.victim, studied.clean) for name, defense in defenses.items()}
    for (prevalence, _, _), parts in sets.items():
        for name, defense in defenses.items():
            line = [named(prevalence), "–", name]
            yield [*line, *measured(studied, defense, [clean[name] + study(studied, defense, part) for part in parts])]
    for kind in ("any", "against"):
        floods = {parts: flood_texts(studied, parts, kind == "against") for parts in (T3, GAP)}
        for share in FLOODS:
            for prevalence in FLOODED:
                for name, defense in defenses.items():
                    texts = floods[VARIANTS[name][0]]
                    flood = study(studied, defense, batches(studied, copies(texts, share, studied)))
                    parts = sets[prevalence, 0, ""]
                    sums = [clean[name] + flood + study(studied, defense, part) for part in parts]
                    yield [named(prevalence), f"{share:.0%} {kind}", name, *measured(studied, defense, sums)]


def named(prevalence: float | None) -> str:
    return "all" if prevalence is None else f"{prevalence:.1%}"


def calibrated(studied: Studied, text_parts: Sequence[TextPart], set_parts: Sequence[SetPart]) -> SecondOpinion:
    defense = SecondOpinion(text_parts, set_parts)
    defense.learn(studied.victim, studied.data.trusted_dataloader())
    defense.calibrate(studied.victim, studied.data.threshold_dataloader())
    return defense


def study(studied: Studied, defense: SecondOpinion, part: Sequence[Batch]) -> Tensor:
    return defense.study(studied.victim, map(unlabelled, part))


def poisoned_part(studied: Studied, prevalence: float | None, draw: int) -> Sequence[Batch]:
    """The poisoned rows of a set, as many per clean row as the prevalence says."""
    if prevalence is None:
        return studied.poisoned
    texts = [text for batch in studied.poisoned for text in batch["text"]]
    count = max(1, round(prevalence * rows(studied.clean)))
    return batches(studied, random.Random(f"{draw}/prevalence").sample(texts, min(count, len(texts))))


def batches(studied: Studied, texts: Sequence[str], size: int = 32) -> list[Batch]:
    texts, victim = sorted(texts, key=len), studied.victim
    parts = [texts[start : start + size] for start in range(0, len(texts), size)]
    return [batch_of_texts(part, victim.tokenizer, victim.max_length) for part in parts]


def rows(of: Sequence[Batch]) -> int:
    return sum(len(batch["text"]) for batch in of)


def flood_texts(studied: Studied, text_parts: Sequence[TextPart], against: bool) -> list[str]:
    """Clean training texts that are disputed and predicted as the target; see the module."""
    defense = calibrated(studied, text_parts, ("readout", "mean"))
    lowest = threshold_at_fpr(defense.kept_text.float(), defense.disputed)
    found = []
    for batch in batches(studied, studied.training):
        scores = defense.score(studied.victim, batch)
        assert scores.logits is not None
        disputed = (scores.text >= lowest) & (scores.logits.argmax(dim=1) == studied.target)
        if disputed.any():
            found.append(taken(batch, disputed))
    texts = [text for batch in found for text in batch["text"]]
    if not against:
        return texts
    defense.adopt(study(studied, defense, studied.poisoned))
    along = torch.cat([defense.score(studied.victim, batch).text for batch in found])
    return [texts[row] for row in along.argsort()[: max(1, len(texts) // 10)].tolist()]


def copies(texts: Sequence[str], share: float, studied: Studied) -> list[str]:
    """As many texts as ``share`` of the clean rows, each with one or two words left out."""
    return [shortened(texts[i % len(texts)], i // len(texts)) for i in range(round(share * rows(studied.clean)))]


def shortened(text: str, copy: int) -> str:
    """A text without one or two of its words.

    >>> shortened("a good film about cooking", 0), shortened("a good film", 0)
    ('good film about cooking', 'a good film')
    """
    words, rng = text.split(" "), random.Random(f"{copy}/{text}")
    for _ in range(rng.randint(1, 2)):
        if len(words) > 3:
            del words[rng.randrange(len(words))]
    return " ".join(words)


def measured(studied: Studied, defense: SecondOpinion, sums: Sequence[Tensor] = ()) -> list[str]:
    """AUROC and TPR of poisoned rows that fool the victim, ASR, CACC, FPR; means over sets, or of T3 without any."""
    found = []
    for draw in range(len(sums) or 1):
        if sums:
            defense.adopt(sums[draw])
        clean, poisoned = (judged(studied, defense, part) for part in (studied.clean, studied.poisoned))
        fooling = poisoned.prediction == studied.target
        found.append(
            [
                auroc(clean.score, poisoned.score[fooling]),
                share(poisoned.flagged[fooling]),
                share(poisoned.answer == studied.target),
                share(clean.answer == torch.cat([batch["label"] for batch in studied.clean])),
                share(clean.flagged),
            ]
        )
    return [f"{statistics.mean(column):.3f}" for column in zip(*found, strict=True)]


class Judged(NamedTuple):
    """Scores, flags, the victim's predictions and the defended ones of some rows; each (rows,)."""

    score: Tensor
    flagged: Tensor
    prediction: Tensor
    answer: Tensor


def judged(studied: Studied, defense: SecondOpinion, part: Sequence[Batch]) -> Judged:
    verdicts = [judge(defense, studied.victim, batch) for batch in part]
    of_rows = [(v.scores.text, v.flagged, v.prediction, v.defended_prediction) for v in verdicts]
    return Judged(*map(torch.cat, zip(*of_rows, strict=True)))


def share(of: Tensor) -> float:
    return float(of.double().mean())
