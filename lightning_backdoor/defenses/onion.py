"""ONION (arXiv 2011.10369): words without which a text reads more fluently are taken out.

The suspicion of a word is the text's perplexity less the text's without the word, by a causal language model. Words
above a bar are removed, and the victim predicts again. The bar is the lowest that costs little clean accuracy on
validation rows.

Where OpenBackdoor's implementation differs, and why ours does not follow it: it batches the variants of one text, each
read whole with the autograd graph kept; counts padding in the loss, so that a perplexity depends on batch mates; cuts
texts at 96 tokens; fixes the bar at 0 (``bar=0`` does so here); and drops texts of one word.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_backdoor.batch import Batch, Spans, token_spans
from lightning_backdoor.data.cleaning import LabelledText, TrustedRows
from lightning_backdoor.defenses.defense import BUDGETS, Defense, Scores, Victim, predict, threshold_at_fpr
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.language_model import DEFAULT_LANGUAGE_MODEL
from lightning_backdoor.language.perplexity import LeaveOneOut, Perplexity

LOWEST = torch.finfo(torch.float32).min  # of a text without suspicions: finite, so that it can be written down
HIGHEST = torch.finfo(torch.float32).max
CANDIDATES = 100  # quantiles of the clean suspicions that are tried as bars
BATCH_SIZE = 32


def suspicions(perplexity: LeaveOneOut) -> Tensor:
    """Perplexity of the text less that without each word, (words,), float32; -inf where one of them is missing.

    >>> suspicions(LeaveOneOut(100.0, [40.0, 120.0, math.nan]))
    tensor([ 60., -20., -inf])
    """
    found = perplexity.text - torch.tensor(perplexity.without, dtype=torch.float64)
    return found.float().nan_to_num(-torch.inf, torch.inf, -torch.inf)


def without_outliers(text: str, suspicion: Tensor, threshold: float) -> str:
    """The text without the words whose suspicion is at or above the threshold, the rest as it was.

    The least suspicious word always stays: alone it has no perplexity, and so is no outlier.

    Args:
        text: words separated by single spaces.
        suspicion: (words,), float32.
        threshold: float32, just above the bar.

    >>> without_outliers("a cf  film", torch.tensor([-5.0, 60.0, -1.0, 3.0]), 10.0)
    'a  film'
    """
    kept = suspicion < threshold
    kept[suspicion.argmin()] = True
    return " ".join(word for word, keep in zip(text.split(" "), kept.tolist(), strict=True) if keep)


def word_of_token(text: str, spans: Spans) -> list[int]:
    """The word that each token begins in, -1 for tokens without characters.

    >>> word_of_token("a  film", [(0, 0), (0, 1), (3, 5), (5, 7)])
    [-1, 0, 2, 2]
    """
    return [text.count(" ", 0, start) if start < end else -1 for start, end in spans]


class Onion(Defense):
    """ONION (arXiv 2011.10369): removes words without which the text is more fluent; at inference, or on training rows.

    Perplexities are kept on disk by text, so that a second run over the same texts neither computes any nor loads the
    language model; the time of such a run is that of reading.

    Args:
        accuracy_budget: share of clean accuracy, from 0 to below 1, that the bar may cost on the threshold rows; the
            paper states 0.02.
        bar: a fixed bar instead, as published implementations have it at 0.
        language_model: any causal language model: hub name such as ``gpt2``, folder, or GGUF file.
        fpr: share of trusted texts, between 0 and 1, that may lose a word on training rows, where there is no victim
            whose accuracy could be asked.
        cache_dir: folder of the cache; ``LIGHTNING_BACKDOOR_CACHE`` or ``~/.cache/lightning_backdoor`` by default.

    Raises:
        InputError: ``accuracy_budget`` or ``fpr`` is out of range (here); the language model or the cache cannot be
            used, or calibration meets unlabelled rows (later).

    Example::

        trainer = Trainer(callbacks=[InferenceDefense(Onion(), name="onion")])
        trainer.test(victim, datamodule=data)
        data = BackdoorDataModule(source, data_defense=Onion(fpr=0.05))
    """

    def __init__(
        self,
        accuracy_budget: float = 0.02,
        bar: float | None = None,
        language_model: str = DEFAULT_LANGUAGE_MODEL,
        fpr: float = 0.10,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(fpr)
        if not 0 <= accuracy_budget < 1:
            raise InputError("accuracy_budget", f"{accuracy_budget} is no share", "give a number from 0 to below 1")
        if bar is not None and math.isnan(bar):
            raise InputError("bar", "nan is no bar", "give a number, such as 0, or leave it out")
        self.accuracy_budget = accuracy_budget
        self.bar = bar
        self.perplexity = Perplexity(language_model, cache_dir)

    def calibrate(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        """Sets the bar, and the thresholds of the FPR budgets, on clean validation texts.

        Raises:
            InputError: there are no clean texts, or, where the bar is not fixed, one has no label.
        """
        batches = list(clean_batches)
        texts = [text for batch in batches for text in batch["text"]]
        if not texts:
            raise InputError("calibration", "no clean texts", "a bar needs clean validation rows")
        found = self._suspicions(texts, victim)
        clean = torch.stack([_largest(one) for one in found])
        self.budget_thresholds.copy_(torch.stack([threshold_at_fpr(clean, budget) for budget in BUDGETS]))
        if self.bar is not None:
            self.threshold.copy_(_above(self.bar))
            return
        labels = torch.cat([batch["original_label"] for batch in batches])
        if (labels < 0).any():
            raise InputError("calibration", "clean texts without labels say nothing of accuracy", "set bar, such as 0")
        self.threshold.copy_(lowest_threshold(victim, texts, labels.tolist(), found, self.accuracy_budget))

    def score(self, victim: Victim, batch: Batch) -> Scores:
        """Largest suspicion of each text, and the suspicion of the word that each of the victim's tokens lies in."""
        found = self._suspicions(batch["text"], victim)
        mask = batch["attention_mask"].bool().cpu()
        tokens = torch.full(mask.shape, -torch.inf, dtype=torch.float32)
        top = torch.full((len(found),), -1)
        for row, (text, suspicion) in enumerate(zip(batch["text"], found, strict=True)):
            places = mask[row].nonzero().flatten().tolist()
            words = word_of_token(text, token_spans(text, victim.tokenizer, victim.max_length))
            best = int(suspicion.argmax())
            for place, word in zip(places, words, strict=True):
                if word < 0:
                    continue
                tokens[row, place] = suspicion[word]
                if word == best and top[row] < 0 and suspicion[word] > -torch.inf:
                    top[row] = place
        device = batch["input_ids"].device
        return Scores(torch.stack([_largest(one) for one in found]).to(device), tokens.to(device), top.to(device))

    def purify(self, victim: Victim, batch: Batch, flagged: Tensor, scores: Scores) -> list[str | None]:
        """Flagged texts without the words above the bar."""
        threshold = float(self.threshold)
        return [
            without_outliers(text, suspicion, threshold) if flag else None
            for text, suspicion, flag in zip(
                batch["text"], self._suspicions(batch["text"], victim), flagged.tolist(), strict=True
            )
        ]

    def clean(
        self, rows: Sequence[LabelledText], trusted: TrustedRows, victim: Victim | None = None
    ) -> list[str | None]:
        """Training texts without the words above the bar: the fixed one, or else that of ``fpr`` on threshold rows.

        No row is left out.

        Raises:
            InputError: the bar is not fixed and there are no trusted texts.
        """
        if self.bar is not None:
            threshold = _above(self.bar)
        elif trusted.threshold:
            found = self._suspicions([row.text for row in trusted.threshold])
            threshold = threshold_at_fpr(torch.stack([_largest(one) for one in found]), self.fpr)
        else:
            raise InputError("data_defense", "no trusted texts to take a bar from", "set bar, such as 0")
        texts = [row.text for row in rows]
        found = self._suspicions(texts)
        return [without_outliers(text, one, float(threshold)) for text, one in zip(texts, found, strict=True)]

    def _suspicions(self, texts: Sequence[str], victim: Victim | None = None) -> list[Tensor]:
        if victim is not None:
            self.perplexity.to(victim.network.device)
        return [suspicions(one) for one in self.perplexity.leave_one_out(texts)]


def lowest_threshold(
    victim: Victim, texts: Sequence[str], labels: Sequence[int], found: Sequence[Tensor], accuracy_budget: float
) -> Tensor:
    """The lowest threshold at which, as at all higher ones, removing words costs little accuracy.

    Tried are quantiles of all words' suspicions, from the highest down; a text is predicted once for each form that
    it takes.

    Args:
        victim: the model under attack.
        texts: clean, labelled.
        labels: class index of each.
        found: suspicions of each text's words.
        accuracy_budget: share of accuracy that may be lost.

    Returns:
        Scalar, float32.
    """
    predicted: dict[str, int] = {}

    def right(forms: Sequence[str]) -> int:
        new = sorted(set(forms) - predicted.keys(), key=lambda form: (len(form), form))
        for start in range(0, len(new), BATCH_SIZE):
            part = new[start : start + BATCH_SIZE]
            predicted.update(zip(part, predict(victim, part).tolist(), strict=True))
        return sum(predicted[form] == label for form, label in zip(forms, labels, strict=True))

    words = torch.cat(list(found))
    ordered = words[words.isfinite()].sort(descending=True).values
    enough = right(texts) - accuracy_budget * len(texts) - 1e-9
    chosen = torch.tensor(HIGHEST, dtype=torch.float32)
    for step in range(CANDIDATES if len(ordered) else 0):
        threshold = _above(float(ordered[step * len(ordered) // CANDIDATES]))
        forms = [without_outliers(text, one, float(threshold)) for text, one in zip(texts, found, strict=True)]
        if right(forms) < enough:
            break
        chosen = threshold
    return chosen


def _largest(suspicion: Tensor) -> Tensor:
    return suspicion.max().clamp(LOWEST, HIGHEST)


def _above(bar: float) -> Tensor:
    """The lowest float32 above a bar: at or above it is above the bar."""
    return torch.nextafter(*torch.tensor([bar, torch.inf], dtype=torch.float32).unbind())
