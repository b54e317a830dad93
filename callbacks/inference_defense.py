"""A callback that runs an inference-time defense in addition to the undefended evaluation of a victim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_backdoor.batch import Batch
from lightning_backdoor.callbacks.detection_metrics import DetectionMetrics
from lightning_backdoor.callbacks.failures import FailsAlone
from lightning_backdoor.callbacks.flagged_words import write_words
from lightning_backdoor.callbacks.gate import Gate, gate_of
from lightning_backdoor.callbacks.kept_texts import KeptTexts
from lightning_backdoor.callbacks.lent_seed import LendsSeed
from lightning_backdoor.callbacks.outcome_writer import batch_outcomes
from lightning_backdoor.callbacks.output_folder import folder_of
from lightning_backdoor.callbacks.processes import check_logits_of_all, of_all_processes, result_of_each
from lightning_backdoor.callbacks.set_study import check_prevalence, study_set
from lightning_backdoor.callbacks.shared import (
    check_reference,
    check_unique,
    data_module,
    learn_and_calibrate,
    name_prefix,
    text_classifier,
)
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.defenses.defense import Defense, Verdict, judge
from lightning_backdoor.defenses.explanation import explained
from lightning_backdoor.errors import InputError, reason
from lightning_backdoor.files.names import check_name
from lightning_backdoor.language.lookups import recorded_lookups
from lightning_backdoor.models.captures import recorded_use, sharing
from lightning_backdoor.models.precision import evaluation_precision
from lightning_backdoor.outputs.outcomes import Outcome, write_outcomes
from lightning_backdoor.outputs.word_inventory import WordInventory, words_sentence
from lightning_backdoor.victim import TextClassifier
from lightning_backdoor.victim.classifier import Evaluated, now


class InferenceDefense(FailsAlone, LendsSeed):
    """Runs a defense in validation and test, and logs defended metrics in addition to the undefended ones.

    Texts are scored and flagged, then repaired or rejected. Before each evaluation, since the victim may have changed,
    the defense learns from clean validation rows of the data module and is calibrated on its clean threshold rows;
    without a :class:`BackdoorDataModule` the state in the checkpoint is used. A defense that studies the set
    (:meth:`lightning_backdoor.defenses.Defense.study`) then reads all clean and poisoned texts of the
    evaluation once, without labels or flags. At test time the outcome of each row is written to ``outcomes.csv``, the
    words that stand out among the flagged texts to ``words.json``, and the first clean and poisoned texts to
    ``texts.jsonl`` and ``token_view.html``, in the folder of the trainer's logger or of an :class:`OutputFolder`;
    without either, no file is written. Texts and words are logged to Weights & Biases where a ``WandbLogger`` is used.
    Flagged texts whose tokens the defense does not score are explained, if it can
    (:meth:`lightning_backdoor.defenses.Defense.explain`); of such a defense, ``localisation`` counts texts that
    are not flagged as not located, and ``overhead`` does not include the explanations.

    With a gate, all clean and poisoned texts of the evaluation are scored before the first is judged, without labels or
    flags, and flagged texts are repaired or rejected only if more are flagged than clean texts explain (p < 0.01, see
    :func:`lightning_backdoor.outputs.exact_tests.log_p_flagged`), or a word stands out among them
    (:mod:`lightning_backdoor.outputs.word_inventory`). Otherwise they keep the victim's answer; flags, scores and
    detection metrics stay. A defense that studies the set flags for the gate before it does, by scores that do not
    depend on the set, so that the test is exact. Texts are scored twice, except for what the victim's captures and the
    caches of a defense keep; ``overhead`` counts once what captures keep, and is missing where a cache of texts answers
    the second time.

    Several defenses in one evaluation share what they read: clean rows, the victim's forward pass, and what
    :func:`lightning_backdoor.models.captures.shared` keeps. The overhead of each is measured as if it were alone. If
    one of several fails in a test, the error is raised when the others have written their results.

    Logged as ``val/...`` and ``test/...``: ``cacc_defended``, ``asr_defended``, ``pacc_defended``,
    ``asr_floor_defended``, ``auroc``, ``auroc_target``, ``tpr``, ``fpr``, ``tpr_confirmed``, ``fpr_confirmed``,
    ``tpr_at_fpr_1`` and ``fpr_at_fpr_1`` (the budget in percent; also 5 and 10), ``localisation``,
    ``localisation_texts``, ``overhead``; with a gate ``gate_open`` (1 or 0) and ``gate_p_value``.

    Args:
        defense: the defense to run.
        name: prefix of logged names and written files; required if several defenses are attached.
        texts: number of clean texts, and of poisoned texts, to keep for the files and the W&B table.
        prevalence: for a gate or a defense that studies the set, the number of poisoned rows per clean row that the
            set holds, such as 0.01, drawn with the run's seed; None takes all poisoned rows, and where an evaluation
            has none, as with a benign victim, the set has none. All rows are judged in any case.
        gate: whether nothing is repaired or rejected while nothing in the set speaks of a backdoor.

    Raises:
        InputError: ``texts`` is negative; ``prevalence`` is not a positive number, or given without a gate for a
            defense that does not study the set; the name cannot be that of a folder, two defenses log under the same
            name (in Python, the Trainer itself refuses two defenses of the same class and name), or there is neither
            clean validation data nor a checkpoint to take a threshold from; a gate always needs clean validation data;
            or fewer poisoned rows are there than ``prevalence`` asks for.

    Example::

        trainer = Trainer(callbacks=[InferenceDefense(GradientAttention(fpr=0.05))])
        trainer.test(victim, datamodule=data)
    """

    def __init__(
        self,
        defense: Defense,
        name: str = "",
        texts: int = 100,
        prevalence: float | None = None,
        gate: bool = False,
    ) -> None:
        check_name(name)
        if texts < 0:
            raise InputError("texts", f"{texts} is not a number of texts", "give 0 or more")
        if prevalence is not None and not 0 < prevalence < math.inf:
            problem = f"{prevalence} is not a number of poisoned rows per clean row"
            raise InputError("prevalence", problem, "give a number above 0, such as 0.01")
        if prevalence is not None and not (defense.studies or gate):
            problem = f"{prevalence} has no effect, since {type(defense).__name__} judges each text by itself"
            raise InputError("prevalence", problem, "leave it out")
        self.prevalence = prevalence
        self.gate = gate
        self.defense = defense
        self.name = name
        self.texts = texts
        self._metrics: DetectionMetrics | None = None
        self._kept = KeptTexts(texts)
        self._inventory = WordInventory()
        self._gate: Gate | None = None
        self._outcomes: list[Outcome] = []

    @property
    def state_key(self) -> str:
        """The key of the state, with the name and the defense's class, since thresholds differ between defenses."""
        return f"{type(self).__qualname__}[{self.name}, {type(self.defense).__qualname__}]"

    @property
    def outcomes(self) -> list[Outcome]:
        """The outcome of each row of the last test that this process has seen."""
        return self._outcomes

    def check_reference(self, data: BackdoorDataModule) -> None:
        """Checks, before a victim is trained, that the defense can learn from the clean rows of a data module.

        Raises:
            InputError: there are too few rows, or rows of too few classes.
        """
        check_reference(self.defense, data)

    def state_dict(self) -> dict[str, Any]:
        """The buffers of the defense, including its threshold."""
        return {"defense": self.defense.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the buffers of the defense.

        Raises:
            InputError: they are not those of this defense.
        """
        try:
            self.defense.load_state_dict(state_dict["defense"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            problem = f"its state of {type(self.defense).__name__} cannot be loaded: {reason(error, 200)}"
            raise InputError("checkpoint", problem, "give a checkpoint of this defense") from None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks names and reference rows, and gives the defense the run's seed if it has no seed."""
        check_names(trainer.callbacks)  # type: ignore[attr-defined]
        data = data_module(trainer)
        if data is not None:
            self.check_reference(data)
            if self.prevalence is not None:
                check_prevalence(self.prevalence, data, trainer.state.fn)
        self.lend_seed(self.defense)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrates the defense."""
        self._start(trainer, pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrates the defense."""
        self.failure = None
        with self.failing_alone(trainer):
            self._start(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Runs the defense on the batch."""
        if not trainer.sanity_checking:
            self._judge(trainer, text_classifier(pl_module, type(self).__name__), outputs, batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Runs the defense on the batch, and keeps outcomes and texts."""
        if self.failure is not None:
            return
        with self.failing_alone(trainer):
            victim = text_classifier(pl_module, type(self).__name__)
            verdict = self._judge(trainer, victim, outputs, batch)
            self._outcomes += batch_outcomes(victim, batch, verdict.prediction, verdict)
            self._kept.add(victim, batch, verdict)
            counted = zip(batch["text"], verdict.flagged_alone.tolist(), batch["negative"].tolist(), strict=True)
            for text, flagged, negative in counted:
                if not negative:
                    self._inventory.add([text], [flagged])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the metrics."""
        if not trainer.sanity_checking:
            self._log(pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the metrics, and writes outcomes and texts."""
        check_logits_of_all(pl_module)
        if self.failed_anywhere(trainer):
            return
        with self.failing_alone(trainer):
            self._log(pl_module, "test")
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        run = folder_of(trainer)
        folder = None if run is None else run / self.name
        prefix = f"test/{name_prefix(self.name)}"
        assert self._metrics is not None
        # gathered before anything is written, since no process may wait for one that cannot write
        outcomes, scores = of_all_processes(trainer, self._outcomes), self._metrics.scores()
        inventory, *others = of_all_processes(trainer, [self._inventory])
        self._kept.rows = of_all_processes(trainer, self._kept.rows)
        if not trainer.is_global_zero:
            return
        for other in others:
            inventory.merge(other)
        words = inventory.standing_out()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_outcomes(folder / "outcomes.csv", outcomes)
        write_words(trainer, words, folder, prefix)
        notes = [*filter(None, [words_sentence(words), "" if self._gate is None else self._gate.said()])]
        title = f"Token view: {self.name or type(self.defense).__name__}"
        self._kept.write(trainer, folder, title, float(self.defense.threshold), scores, prefix, notes)

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        victim = text_classifier(pl_module, type(self).__name__)
        self._outcomes, self._kept, self._metrics = [], KeptTexts(self.texts), DetectionMetrics(victim)
        self._inventory, self._gate = WordInventory(), None
        if victim.captures is not None and "hidden_states" in self.defense.reads:
            victim.captures.hidden_states = True
        data = data_module(trainer)
        if self.gate and data is None:
            raise InputError("gate", "it needs the clean threshold rows of a BackdoorDataModule", "give one")

        def prepare() -> bool:
            with torch.inference_mode(False):  # buffers moved in inference mode could not be written later
                self.defense.to(victim.device)
            if data is not None:
                learn_and_calibrate(self.defense, trainer, victim, data)
            elif self.defense.threshold.isnan():
                raise InputError(
                    "datamodule", "a defense's threshold needs a BackdoorDataModule, or a checkpoint that has it"
                )
            return True

        # all processes wait for each other in what follows, in which none may then be missing
        if self.gate or self.defense.studies:
            result_of_each(trainer, type(self.defense).__name__, prepare)
        else:
            prepare()
        if self.gate and data is not None:  # before the set is studied, after which scores depend on it
            self._gate = gate_of(self.defense, trainer, victim, data, self.prevalence)
        if self.defense.studies:
            study_set(self.defense, trainer, victim, self.prevalence)

    def _judge(self, trainer: Trainer, victim: TextClassifier, outputs: Evaluated, batch: Batch) -> Verdict:
        assert self._metrics is not None
        started = now(victim.device)
        with (
            evaluation_precision(trainer),
            sharing(victim.captures),
            recorded_lookups() as lookups,
            recorded_use() as used,
        ):
            repair = self._gate is None or self._gate.is_open
            verdict = judge(self.defense, victim, batch, outputs["logits"], repair)
        # what others computed before counts as if this defense were alone
        seconds = lookups.seconds_of_computed(now(victim.device) - started + used.seconds)
        plain = lookups.share * outputs["seconds"]
        if verdict.scores.logits is None and not used.keys & outputs["passes"]:
            seconds += plain  # the plain forward pass is needed in addition
        self._metrics.update_overhead(seconds, plain)  # adds nothing where a cache answered for all texts
        with evaluation_precision(trainer), sharing(victim.captures):
            verdict = explained(self.defense, victim, batch, verdict)
        self._metrics.update(victim, batch, verdict, self.defense.budget_thresholds)
        return verdict

    def _log(self, pl_module: LightningModule, stage: str) -> None:
        assert self._metrics is not None
        values = self._metrics.compute()
        if self._gate is not None:
            numbers = {"gate_open": self._gate.is_open, "gate_p_value": math.exp(self._gate.log_p)}
            values |= {name: torch.tensor(float(number)) for name, number in numbers.items()}
        for name, value in values.items():
            # computed values are equal on all processes: the maximum keeps their last digit, a mean would not
            pl_module.log(f"{stage}/{name_prefix(self.name)}{name}", value, sync_dist=True, reduce_fx="max")


def check_names(callbacks: Sequence[Callback]) -> None:
    """Makes sure that no two inference-time defenses among the callbacks log under the same name.

    Raises:
        InputError: two defenses log under the same name.
    """
    check_unique([callback.name for callback in callbacks if isinstance(callback, InferenceDefense)], "defenses")


def attached(trainer: Trainer) -> list[InferenceDefense]:
    """The inference-time defenses among a trainer's callbacks."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, InferenceDefense)]
