"""Runs an inference-time defense beside the undefended evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torchmetrics import Metric

from lightning_backdoor.attacks import BackdoorAttack
from lightning_backdoor.batch import Batch, token_spans
from lightning_backdoor.callbacks.outcome_writer import batch_outcomes, write_all
from lightning_backdoor.callbacks.processes import of_all_processes
from lightning_backdoor.callbacks.wandb_texts import log_texts
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.data.batching import TokenisedRows
from lightning_backdoor.defenses.defense import BUDGETS, REJECTED, Defense, Verdict, judge
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.atomic import write_whole
from lightning_backdoor.metrics import DetectionAUROC, FlagRate, Localisation, Overhead
from lightning_backdoor.outputs.outcomes import Outcome
from lightning_backdoor.outputs.token_view import ViewedText, page_html
from lightning_backdoor.victim.classifier import Evaluated, TextClassifier, now


class InferenceDefense(Callback):
    """Scores, flags, repairs or rejects at validation and test time, and logs defended numbers beside undefended ones.

    Before each evaluation (the victim may have changed) the defense learns from the clean reference rows of the data
    module and is calibrated on its clean threshold rows; without a :class:`BackdoorDataModule` what the checkpoint
    keeps is used. At test time what became of each row is written to ``outcomes.csv`` in the trainer's
    ``default_root_dir``, and the first texts of either kind to ``texts.jsonl`` and ``token_view.html``, and to Weights
    & Biases where a ``WandbLogger`` is on.

    Logged as ``val/...`` and ``test/...``: ``cacc_defended``, ``asr_defended``, ``pacc_defended``,
    ``asr_floor_defended``, ``auroc``, ``auroc_target``, ``tpr``, ``fpr``, ``tpr_confirmed``, ``fpr_confirmed``,
    ``tpr_at_fpr_1`` and ``fpr_at_fpr_1`` (the budget in percent; 5 and 10 as well), ``localisation``, ``overhead``.

    Args:
        defense: the algorithm.
        name: put before the names logged and the files written; needed where several defenses are attached.
        texts: how many clean and how many poisoned texts to keep for the files and the W&B table.

    Raises:
        InputError: two defenses log under the same name (in Python, of two alike the Trainer itself says so), or there
            is nothing to take a threshold from.

    Example::

        trainer = Trainer(callbacks=[InferenceDefense(GradientAttention(fpr=0.05))])
        trainer.test(victim, datamodule=data)
    """

    def __init__(self, defense: Defense, name: str = "", texts: int = 100) -> None:
        self.defense = defense
        self._own_seed = defense.seed
        self.name = name
        self.texts = texts
        self._metrics: dict[str, Metric] = {}
        self._defended: list[str] = []
        self._scores = DetectionAUROC()  # holds all scores, for histograms also where there is no AUROC
        self._rows: list[ViewedText] = []
        self._outcomes: list[Outcome] = []

    @property
    def state_key(self) -> str:
        """One state a name and kind of defense: thresholds of one are of no use to another."""
        return f"{type(self).__qualname__}[{self.name}, {type(self.defense).__qualname__}]"

    def state_dict(self) -> dict[str, Any]:
        """The defense's buffers, its threshold among them."""
        return {"defense": self.defense.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the defense's buffers."""
        self.defense.load_state_dict(state_dict["defense"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the names, and gives the defense the run's seed where it has none of its own."""
        check_names(trainer.callbacks)  # type: ignore[attr-defined]
        if self._own_seed is None:
            self.defense.seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrates."""
        self._start(trainer, pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrates."""
        self._start(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Tells the defense where a set begins."""
        self._begin_set(trainer.val_dataloaders, batch_idx, dataloader_idx)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Tells the defense where a set begins."""
        self._begin_set(trainer.test_dataloaders, batch_idx, dataloader_idx)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Judges the batch."""
        self._judge(trainer, pl_module, outputs, batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Judges the batch and keeps its texts."""
        verdict = self._judge(trainer, pl_module, outputs, batch)
        if verdict is not None:
            self._outcomes += batch_outcomes(pl_module, batch, verdict.prediction, verdict)
        self._keep(pl_module, batch, verdict)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the numbers."""
        self._log(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the numbers, writes the texts."""
        self._log(trainer, pl_module, "test")
        write_all(trainer, self._outcomes, Path(trainer.default_root_dir, self.name))
        self._write_texts(trainer)

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        victim = _text_classifier(pl_module)
        self._rows, self._outcomes = [], []
        self._metrics = {name: metric.to(victim.device) for name, metric in self._make_metrics(victim).items()}
        with torch.inference_mode(False):  # buffers moved inside it could not be written again
            self.defense.to(victim.device)
        datamodule = getattr(trainer, "datamodule", None)
        if isinstance(datamodule, BackdoorDataModule):
            on_device = trainer.strategy.batch_to_device
            with trainer.precision_plugin.forward_context():
                self.defense.learn(victim, (on_device(batch) for batch in datamodule.reference_dataloader()))
                self.defense.calibrate(victim, (on_device(batch) for batch in datamodule.threshold_dataloader()))
        elif self.defense.threshold.isnan():
            raise InputError(
                "datamodule", "a defense's threshold needs a BackdoorDataModule, or a checkpoint that has it"
            )

    def _begin_set(self, loaders: Any, batch_idx: int, dataloader_idx: int) -> None:
        loader = loaders[dataloader_idx] if isinstance(loaders, list) else loaders
        rows = getattr(loader, "dataset", None)
        if batch_idx == 0 and isinstance(rows, TokenisedRows):
            self.defense.begin_set(max(rows.lengths))

    def _make_metrics(self, victim: TextClassifier) -> dict[str, Metric]:
        defended = victim.make_metrics()
        self._defended = list(defended)
        metrics: dict[str, Any] = {f"{name}_defended": metric for name, metric in defended.items()}
        detection: dict[str, Metric] = {"fpr": FlagRate(False), "fpr_confirmed": FlagRate(False)}
        detection |= {_at("fpr", budget): FlagRate(False) for budget in BUDGETS}
        self._scores = DetectionAUROC().to(victim.device)
        if isinstance(victim, BackdoorAttack):
            detection |= {"tpr": FlagRate(True), "tpr_confirmed": FlagRate(True)}
            detection |= {_at("tpr", budget): FlagRate(True) for budget in BUDGETS}
            detection |= {"auroc": self._scores, "auroc_target": DetectionAUROC(), "localisation": Localisation()}
        return {**metrics, **detection, "overhead": Overhead()}

    def _judge(self, trainer: Trainer, pl_module: LightningModule, outputs: Evaluated, batch: Batch) -> Verdict | None:
        if trainer.sanity_checking:
            return None
        victim = _text_classifier(pl_module)
        started = now(victim.device)
        with trainer.precision_plugin.forward_context():
            verdict = judge(self.defense, victim, batch, outputs["logits"])
        seconds = now(victim.device) - started
        if verdict.scores.logits is None:  # such a defense needs the plain forward as well
            seconds += outputs["seconds"]
        self._metrics["overhead"].update(seconds, outputs["seconds"])
        for name in self._defended:
            self._metrics[f"{name}_defended"].update(verdict.defended_prediction, batch)
        self._update_detection(victim, batch, verdict)
        return verdict

    def _update_detection(self, victim: TextClassifier, batch: Batch, verdict: Verdict) -> None:
        flags = {"": verdict.flagged, "_confirmed": verdict.confirmed}
        for budget, threshold in zip(BUDGETS, self.defense.budget_thresholds, strict=True):
            flags[_at("", budget)] = verdict.scores.text >= threshold
        for suffix, flagged in flags.items():
            for rate in ("tpr", "fpr"):
                if rate + suffix in self._metrics:
                    self._metrics[rate + suffix].update(flagged, batch)
        poisoned, scores = batch["poisoned"], verdict.scores
        self._scores.update(scores.text, poisoned)
        if not isinstance(victim, BackdoorAttack):
            return
        as_target = poisoned | (verdict.prediction == victim.target_label)
        self._metrics["auroc_target"].update(scores.text[as_target], poisoned[as_target])
        rows = [] if scores.top is None else poisoned.nonzero().flatten().tolist()
        tops = [_top_span(victim, batch, i, int(scores.top[i])) for i in rows if scores.top is not None]
        self._metrics["localisation"].update(tops, [batch["spans"][i] for i in rows])

    def _log(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.sanity_checking:
            return
        prefix = f"{stage}/{self.name}/" if self.name else f"{stage}/"
        for name, metric in self._metrics.items():
            # computed values are equal on all processes: the maximum keeps them to the last digit
            pl_module.log(prefix + name, metric.compute(), sync_dist=True, reduce_fx="max")

    def _keep(self, pl_module: LightningModule, batch: Batch, verdict: Verdict | None) -> None:
        if verdict is None or self.texts == 0:
            return
        victim = _text_classifier(pl_module)
        kept = {kind: [row["index"] for row in self._rows if row["poisoned"] is kind] for kind in (True, False)}
        for i, (kind, index) in enumerate(zip(batch["poisoned"].tolist(), batch["index"].tolist(), strict=True)):
            if len(kept[kind]) < self.texts or index < max(kept[kind]):  # others are not among the first
                self._rows.append(_viewed(victim, batch, verdict, i))
        self._rows = _first(self._rows, self.texts)

    def _write_texts(self, trainer: Trainer) -> None:
        rows, (scores, poisoned) = self._rows, self._scores.gathered()
        rows = of_all_processes(trainer, rows)
        if not trainer.is_global_zero or not rows:
            return
        rows = _first(rows, self.texts)
        threshold = float(self.defense.threshold)
        folder = Path(trainer.default_root_dir, self.name)
        folder.mkdir(parents=True, exist_ok=True)
        title = f"Token view: {self.name or type(self.defense).__name__}"
        write_whole(folder / "texts.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        write_whole(folder / "token_view.html", page_html(rows, title, threshold))
        log_texts(trainer, rows, scores, poisoned, prefix=f"test/{self.name}/" if self.name else "test/")


def check_names(callbacks: Sequence[Callback]) -> None:
    """Makes sure that no two defenses log under one name.

    Raises:
        InputError: they do.
    """
    names = [callback.name for callback in callbacks if isinstance(callback, InferenceDefense)]
    for name in names:
        if names.count(name) > 1:
            raise InputError("name", f"{names.count(name)} defenses log under {name!r}", "give each its own name")


def attached(trainer: Trainer) -> list[InferenceDefense]:
    """The inference-time defenses among a trainer's callbacks."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, InferenceDefense)]


def _at(rate: str, budget: float) -> str:
    return f"{rate}_at_fpr_{100 * budget:g}"


def _text_classifier(pl_module: LightningModule) -> TextClassifier:
    if not isinstance(pl_module, TextClassifier):
        raise InputError("model", f"{type(pl_module).__name__} is no TextClassifier", "a defense needs one")
    return pl_module


def _top_span(victim: TextClassifier, batch: Batch, row: int, top: int) -> tuple[int, int] | None:
    if top < 0:
        return None
    first = int(batch["attention_mask"][row].argmax())  # tokens begin here; padding may be on the left
    return token_spans(batch["text"][row], victim.tokenizer, victim.max_length)[top - first]


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


def _first(rows: list[ViewedText], most: int) -> list[ViewedText]:
    """The first rows of either kind, poisoned ones in front; the same whatever order they came in."""
    ordered = sorted(rows, key=lambda row: row["index"])
    return [row for poisoned in (True, False) for row in [r for r in ordered if r["poisoned"] == poisoned][:most]]
