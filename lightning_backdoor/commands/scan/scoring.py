"""The line of the output for each text: what the victim predicts, and what each defense makes of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_backdoor.batch import Batch, ids_and_spans
from lightning_backdoor.commands.scan.calibration import Guard, batch_on_device
from lightning_backdoor.commands.scan.tally import Line
from lightning_backdoor.defenses.defense import REJECTED, Verdict, judge
from lightning_backdoor.defenses.explanation import explained
from lightning_backdoor.models.captures import Captures, sharing
from lightning_backdoor.victim import TextClassifier

#: score of a token that a defense finds infinitely suspicious, since JSON has no infinity.
HIGHEST = torch.finfo(torch.float32).max


def score_group(
    guards: Sequence[Guard],
    victim: TextClassifier,
    texts: Sequence[str],
    batch_size: int,
    done: Callable[[int], object] | None = None,
) -> list[Line]:
    """Scores texts that are read together; the lines depend on these texts alone, to the last digit.

    Args:
        guards: calibrated defenses.
        victim: the victim, in evaluation mode and with its network built.
        texts: the texts, of which those of similar length are scored together.
        batch_size: number of texts scored at once.
        done: called with the number of texts of each batch that is done.

    Returns:
        The line of each text, in the order of the texts.
    """
    order = sorted(range(len(texts)), key=lambda position: len(texts[position]))
    lines: dict[int, Line] = {}
    captures = Captures()  # defenses that read the same share its passes
    captures.begin(victim.network)
    for start in range(0, len(order), batch_size):
        positions = order[start : start + batch_size]
        with sharing(captures):
            batch_lines = _score_batch(guards, victim, [texts[position] for position in positions])
        lines.update(zip(positions, batch_lines, strict=True))
        if done is not None:
            done(len(positions))
    return [lines[position] for position in range(len(texts))]


def _score_batch(guards: Sequence[Guard], victim: TextClassifier, texts: list[str]) -> list[Line]:
    batch = batch_on_device(victim, texts)
    verdicts: dict[str, Verdict] = {}
    logits: Tensor | None = None
    with torch.inference_mode():
        for name, defense in guards:
            verdicts[name] = explained(defense, victim, batch, judge(defense, victim, batch, logits))
            logits = verdicts[name].logits
    first = next(iter(verdicts.values()))
    labels: list[str] = [*victim.hparams["labels"]]
    lines = []
    for row, text in enumerate(texts):
        prediction = labels[int(first.prediction[row])]
        flags = {name: bool(verdict.flagged[row]) for name, verdict in verdicts.items()}
        alone = {name: bool(verdict.flagged_alone[row]) for name, verdict in verdicts.items()}
        content: dict[str, Any] = {"text": text, "prediction": prediction, "logits": first.logits[row].tolist()}
        results = {}
        for name, defense in guards:
            with_tokens = flags[name] or not defense.explains  # which explains flagged texts alone
            results[name] = _result(victim, batch, verdicts[name], row, labels, with_tokens)
        if len(results) == 1:
            content |= next(iter(results.values()))
        else:
            content |= {"flagged": any(flags.values()), **results}
        lines.append(Line(json.dumps(content, ensure_ascii=False) + "\n", text, prediction, flags, alone))
    return lines


def _result(
    victim: TextClassifier, batch: Batch, verdict: Verdict, row: int, labels: list[str], with_tokens: bool
) -> dict[str, Any]:
    """What one defense makes of one text."""
    flagged = bool(verdict.flagged[row])
    defended = int(verdict.defended_prediction[row])
    of_set = verdict.scores.flagged_alone is not None
    return {
        "anomaly_score": float(verdict.scores.text[row]),
        "flagged": flagged,
        **({"flagged_alone": bool(verdict.flagged_alone[row])} if of_set else {}),
        "purified_text": verdict.purified_text[row],
        "purified_prediction": labels[defended] if flagged and defended != REJECTED else None,
        "tokens": _tokens(victim, batch, verdict, row) if with_tokens else [],
    }


def _tokens(victim: TextClassifier, batch: Batch, verdict: Verdict, row: int) -> list[dict[str, Any]]:
    """The tokens of a text in its order, those without characters left out; the score is None where there is none."""
    if verdict.scores.tokens is None:
        return []
    mask = batch["attention_mask"][row].bool()
    scores = verdict.scores.tokens[row][mask].tolist()
    ids, spans = ids_and_spans(batch["text"][row], victim.tokenizer, victim.max_length)
    strings = victim.tokenizer.convert_ids_to_tokens(ids)
    return [
        {"token": string, "start": start, "end": end, "score": _finite(score)}
        for string, (start, end), score in zip(strings, spans, scores, strict=True)
        if start < end
    ]


def _finite(score: float) -> float | None:
    return None if score == -math.inf or math.isnan(score) else min(score, HIGHEST)
