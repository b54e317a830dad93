"""The test texts kept for display with an inference-time defense: files, and a table in Weights & Biases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_backdoor.batch import Batch, token_spans
from lightning_backdoor.callbacks.wandb_texts import log_texts
from lightning_backdoor.defenses.defense import REJECTED, Verdict
from lightning_backdoor.files.atomic import write_whole
from lightning_backdoor.outputs.token_view import ViewedText, page_html
from lightning_backdoor.victim import TextClassifier


class KeptTexts:
    """The first clean and the first poisoned texts of a test, by index, with the defense's verdict on each.

    Texts that carry a part of the trigger are not kept.

    Args:
        limit: maximum number of clean texts, and of poisoned texts, to keep.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.rows: list[ViewedText] = []

    def add(self, victim: TextClassifier, batch: Batch, verdict: Verdict) -> None:
        """Keeps the texts of a batch that are among the first so far."""
        if self.limit == 0:
            return
        kept = {kind: [row["index"] for row in self.rows if row["poisoned"] is kind] for kind in (True, False)}
        flags = zip(batch["poisoned"].tolist(), batch["negative"].tolist(), batch["index"].tolist(), strict=True)
        for row, (poisoned, negative, index) in enumerate(flags):
            if not negative and (len(kept[poisoned]) < self.limit or index <= max(kept[poisoned])):
                self.rows.append(_viewed(victim, batch, verdict, row))
        self.rows = _first(self.rows, self.limit)

    def write(
        self,
        trainer: Trainer,
        folder: Path | None,
        title: str,
        threshold: float,
        scores: tuple[Tensor, Tensor],
        prefix: str,
        notes: Sequence[str] = (),
    ) -> None:
        """Writes ``texts.jsonl`` and ``token_view.html`` and logs the W&B table, in the first process.

        :attr:`rows` are then those of all processes.

        Args:
            trainer: the trainer of the test.
            folder: the folder to write to, which is created; None writes no file.
            title: title of the page.
            threshold: threshold of the defense.
            scores: scores and poison flags of all rows, for the histograms.
            prefix: prefix of the keys logged to W&B.
            notes: sentences about all texts, which the page begins with.
        """
        rows = _first(self.rows, self.limit)
        if not rows:
            return
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / "texts.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            write_whole(folder / "token_view.html", page_html(rows, title, threshold, notes=notes))
        log_texts(trainer, rows, *scores, prefix=prefix)


def _viewed(victim: TextClassifier, batch: Batch, verdict: Verdict, row: int) -> ViewedText:
    names: list[str] = [*victim.hparams["labels"]]
    tokens: list[tuple[int, int, float]] = []
    if verdict.scores.tokens is not None:
        scores = verdict.scores.tokens[row][batch["attention_mask"][row].bool()].tolist()
        spans = token_spans(batch["text"][row], victim.tokenizer, victim.max_length)
        tokens = [(a, b, s) for (a, b), s in zip(spans, scores, strict=True) if a < b and s != float("-inf")]
    defended = int(verdict.defended_prediction[row])
    return ViewedText(
        index=int(batch["index"][row]),
        text=batch["text"][row],
        spans=batch["spans"][row],
        poisoned=bool(batch["poisoned"][row]),
        label=names[int(batch["original_label"][row])],
        prediction=names[int(verdict.prediction[row])],
        defended_prediction="rejected" if defended == REJECTED else names[defended],
        flagged=bool(verdict.flagged[row]),
        confirmed=bool(verdict.confirmed[row]),
        purified_text=verdict.purified_text[row],
        score=float(verdict.scores.text[row]),
        tokens=tokens,
    )


def _first(rows: list[ViewedText], limit: int) -> list[ViewedText]:
    """The first poisoned and then the first clean rows by index, whatever the order of ``rows``."""
    ordered = sorted(rows, key=lambda row: (row["index"], row["text"]))
    return [row for poisoned in (True, False) for row in [r for r in ordered if r["poisoned"] == poisoned][:limit]]
