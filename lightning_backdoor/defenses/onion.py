"""ONION (arXiv 2011.10369): removes words without which a text reads more fluently.

The suspicion of a word is the text's perplexity minus the perplexity of the text without the word, by a causal language
model. Words whose suspicion is above a bar are removed, and the victim predicts again. The bar is the lowest that costs
little clean accuracy on validation rows.

OpenBackdoor's implementation differs in ways that are not followed here: it batches the variants of one text only, each
computed in full with the autograd graph kept; counts padding in the loss, so that a perplexity depends on the other
texts of the batch; cuts texts at 96 tokens; fixes the bar at 0 (here: ``bar=0``); and drops texts of one word.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_backdoor.batch import Batch, Spans, token_spans
from lightning_backdoor.data.cleaning import DataDefense, LabelledText, TrustedRows
from lightning_backdoor.defenses.defense import BUDGETS, Defense, Scores, Victim, predict, threshold_at_fpr
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.language_model import DEFAULT_LANGUAGE_MODEL
from lightning_backdoor.language.perplexity import LeaveOneOut, Perplexity
from lightning_backdoor.language.precision import DEFAULT
from lightning_backdoor.words import blank_spans, with_words

LOWEST = torch.finfo(torch.float32).min  # score of a text without suspicions; finite, since JSON has no infinity
HIGHEST = torch.finfo(torch.float32).max
CANDIDATES = 100  # number of quantiles of the clean suspicions that are tried as bars
BATCH_SIZE = 32


def suspicions(perplexity: LeaveOneOut) -> Tensor:
    """Suspicion of each word: perplexity of the text minus perplexity without the word; (words,), float32.

    It is -inf where one of the two perplexities is missing.

    >>> suspicions(LeaveOneOut(100.0, [40.0, 120.0, math.nan]))
    tensor([ 60., -20., -inf])
    """
    difference = perplexity.text - torch.tensor(perplexity.without, dtype=torch.float64)
    return difference.float().nan_to_num(-torch.inf, torch.inf, -torch.inf)


def without_outliers(text: str, suspicion: Tensor, threshold: float) -> str:
    """Removes the words whose suspicion is at or above the threshold; the rest of the text is unchanged.

    The least suspicious word is always kept: a single word has no perplexity and so cannot be an outlier.

    Args:
        text: words separated by single spaces, or in a script without spaces; see
            :func:`lightning_backdoor.words.blank_spans`.
        suspicion: (words,), float32.
        threshold: the lowest float32 above the bar.

    >>> without_outliers("a cf  film", torch.tensor([-5.0, 60.0, -1.0, 3.0]), 10.0)
    'a  film'
    """
    kept = suspicion < threshold
    kept[suspicion.argmin()] = True
    return with_words(text, blank_spans(text), kept.tolist())


def words_of_token(text: str, spans: Spans) -> list[range]:
    """Indices of the words that each token covers: one, or several that touch; none for tokens without characters.

    >>> words_of_token("a  film", [(0, 0), (0, 1), (3, 5), (5, 7)])
    [range(0, 0), range(0, 1), range(2, 3), range(2, 3)]
    """
    starts = [start for start, _ in blank_spans(text)]
    return [
        range(bisect_right(starts, start) - 1, bisect_left(starts, end)) if start < end else range(0)
        for start, end in spans
    ]


class Onion(Defense, DataDefense):
    """ONION (arXiv 2011.10369): removes words without which a text is more fluent, at inference or from training rows.

    The suspicion of a word is the perplexity of the text minus its perplexity without the word. Words whose suspicion
    is above the *bar* are removed, but never all words of a text, and the victim predicts again. Perplexities are
    cached on disk per text: a second run over the same texts only reads them and does not load the language model.

    Args:
        accuracy_budget: share of clean accuracy, from 0 to below 1, that the bar may cost on the threshold rows, where
            it is the lowest that costs no more; the paper states 0.02.
        bar: a fixed bar instead of one set by accuracy; published implementations fix it at 0.
        language_model: any causal language model: hub name such as ``gpt2``, folder, or GGUF file.
        fpr: share of trusted texts, above 0 and below 1, that may lose a word; sets the bar where accuracy cannot: when
            training rows are cleaned, where no victim exists, and on texts without labels.
        cache_dir: folder of the cache; ``LIGHTNING_BACKDOOR_CACHE`` or ``~/.cache/lightning_backdoor`` by default.
        precision: precision of the language model: ``32-true``, ``bf16-true``, or ``auto``, which is ``bf16-true`` on
            devices that have bfloat16 in hardware, and ``32-true`` elsewhere. In bfloat16, a suspicion differs from
            that in float32 by some percent, and depends as much on the other texts that are read with its text.

    Raises:
        InputError: ``accuracy_budget``, ``bar``, ``fpr`` or ``precision`` is out of range (here); the language model
            or the cache cannot be used, or calibration meets rows of which some have no label (later).

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
        precision: str = DEFAULT,
    ) -> None:
        super().__init__(fpr)
        if not 0 <= accuracy_budget < 1:
            raise InputError("accuracy_budget", f"{accuracy_budget} is not a share", "give a number from 0 to below 1")
        if bar is not None and math.isnan(bar):
            raise InputError("bar", "nan is not a number", "give a number, such as 0, or leave it out")
        self.accuracy_budget = accuracy_budget
        self.bar = bar
        self.perplexity = Perplexity(language_model, cache_dir, precision)

    @property
    def model_precision(self) -> str:
        """The precision of the language model."""
        return self.perplexity.chosen_precision

    def calibrate(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        """Sets the bar, and the thresholds of the FPR budgets, on clean validation texts; without labels, by ``fpr``.

        Raises:
            InputError: ``clean_batches`` is empty, or the bar is not fixed and some texts have labels and others not.
        """
        batches = list(clean_batches)
        texts = [text for batch in batches for text in batch["text"]]
        if not texts:
            raise InputError("calibration", "no clean texts", "a bar needs clean validation rows")
        of_texts = self._suspicions(texts, victim)
        clean = torch.stack([_largest(suspicion) for suspicion in of_texts])
        self.budget_thresholds.copy_(torch.stack([threshold_at_fpr(clean, budget) for budget in BUDGETS]))
        if self.bar is not None:
            self.threshold.copy_(_above(self.bar))
            return
        labels = torch.cat([batch["original_label"] for batch in batches])
        if (labels < 0).all():
            self.threshold.copy_(threshold_at_fpr(clean, self.fpr))
            return
        if (labels < 0).any():
            raise InputError(
                "calibration",
                "some clean texts have no label and do not show what accuracy a bar costs",
                "set bar, such as 0",
            )
        self.threshold.copy_(lowest_threshold(victim, texts, labels.tolist(), of_texts, self.accuracy_budget))

    def score(self, victim: Victim, batch: Batch) -> Scores:
        """The largest suspicion in each text, and of the victim's tokens the largest suspicion of the words in each."""
        of_texts = self._suspicions(batch["text"], victim)
        mask = batch["attention_mask"].bool().cpu()
        tokens = torch.full(mask.shape, -torch.inf, dtype=torch.float32)
        top = torch.full((len(of_texts),), -1)
        for row, (text, suspicion) in enumerate(zip(batch["text"], of_texts, strict=True)):
            positions = mask[row].nonzero().flatten().tolist()
            words = words_of_token(text, token_spans(text, victim.tokenizer, victim.max_length))
            best = int(suspicion.argmax())
            for position, covered in zip(positions, words, strict=True):
                if not covered:
                    continue
                tokens[row, position] = suspicion[covered.start : covered.stop].max()
                if best in covered and top[row] < 0 and suspicion[best] > -torch.inf:
                    top[row] = position
        device = batch["input_ids"].device
        text_scores = torch.stack([_largest(suspicion) for suspicion in of_texts])
        return Scores(text_scores.to(device), tokens.to(device), top.to(device))

    def purify(self, victim: Victim, batch: Batch, flagged: Tensor, scores: Scores) -> list[str | None]:
        """Removes the words above the bar from flagged texts."""
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
        """Removes the words above the bar from training texts; the bar is fixed or set by ``fpr`` on threshold rows.

        Every row is kept, and the victim is not used.

        Raises:
            InputError: the bar is not fixed and there are no trusted texts.
        """
        if self.bar is not None:
            threshold = _above(self.bar)
        elif trusted.threshold:
            of_trusted = self._suspicions([row.text for row in trusted.threshold])
            threshold = threshold_at_fpr(torch.stack([_largest(suspicion) for suspicion in of_trusted]), self.fpr)
        else:
            raise InputError("data_defense", "no trusted texts to take a bar from", "set bar, such as 0")
        texts = [row.text for row in rows]
        return [
            without_outliers(text, suspicion, float(threshold))
            for text, suspicion in zip(texts, self._suspicions(texts), strict=True)
        ]

    def _suspicions(self, texts: Sequence[str], victim: Victim | None = None) -> list[Tensor]:
        if victim is not None:
            self.perplexity.to(victim.network.device)
        return [suspicions(perplexity) for perplexity in self.perplexity.leave_one_out(texts)]


def lowest_threshold(
    victim: Victim, texts: Sequence[str], labels: Sequence[int], of_texts: Sequence[Tensor], accuracy_budget: float
) -> Tensor:
    """The lowest threshold at which, and above which, removing words costs at most the accuracy budget.

    Quantiles of all words' suspicions are tried from the highest downwards; the victim predicts each distinct version
    of a text once.

    Args:
        victim: the model under attack.
        texts: clean labelled texts.
        labels: class index of each text.
        of_texts: suspicions of the words of each text.
        accuracy_budget: share of the texts by which the number of wrong predictions may increase.

    Returns:
        Scalar, float32.
    """
    predicted: dict[str, int] = {}

    def count_correct(forms: Sequence[str]) -> int:
        new = sorted(set(forms) - predicted.keys(), key=lambda form: (len(form), form))
        for start in range(0, len(new), BATCH_SIZE):
            part = new[start : start + BATCH_SIZE]
            predicted.update(zip(part, predict(victim, part).tolist(), strict=True))
        return sum(predicted[form] == label for form, label in zip(forms, labels, strict=True))

    words = torch.cat(list(of_texts))
    ordered = words[words.isfinite()].sort(descending=True).values
    enough = count_correct(texts) - accuracy_budget * len(texts) - 1e-9
    chosen = torch.tensor(HIGHEST, dtype=torch.float32)
    for step in range(CANDIDATES if len(ordered) else 0):
        threshold = _above(float(ordered[step * len(ordered) // CANDIDATES]))
        forms = [
            without_outliers(text, suspicion, float(threshold)) for text, suspicion in zip(texts, of_texts, strict=True)
        ]
        if count_correct(forms) < enough:
            break
        chosen = threshold
    return chosen


def _largest(suspicion: Tensor) -> Tensor:
    return suspicion.max().clamp(LOWEST, HIGHEST)


def _above(bar: float) -> Tensor:
    """The lowest float32 above a bar, so that scores at or above it are the scores above the bar."""
    return torch.nextafter(*torch.tensor([bar, torch.inf], dtype=torch.float32).unbind())
