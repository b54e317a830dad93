"""Inference-time defenses in a run: which rows they are given, and what is logged and written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import Batch
from lightning_backdoor.callbacks import GradientAttentionDefense, InferenceDefense, OutputFolder
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.defenses.defense import Defense, Scores, Victim, judge
from lightning_backdoor.defenses.gradient_attention import GradientAttention
from lightning_backdoor.defenses.strip import Strip
from lightning_backdoor.errors import InputError
from lightning_backdoor.language import TextCache
from lightning_backdoor.metrics import Overhead
from lightning_backdoor.victim import TextClassifier
from tests.support.reviews import reviews


class Recorder(Defense):
    """Scores texts by length, rejects flagged texts, and records the rows it is given."""

    def __init__(self, fpr: float = 0.3) -> None:
        super().__init__(fpr)
        self.calibrated: list[tuple[str, bool]] = []
        self.scored: list[str] = []

    def calibrate(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        batches = list(clean_batches)
        self.calibrated = [pair for b in batches for pair in zip(b["text"], b["poisoned"].tolist(), strict=True)]
        super().calibrate(victim, batches)
        self.scored = []

    def score(self, victim: Victim, batch: Batch) -> Scores:
        self.scored += batch["text"]
        return Scores(batch["attention_mask"].sum(dim=1).float())


@pytest.fixture
def data(tmp_path: Path) -> BackdoorDataModule:
    return reviews(tmp_path)


@pytest.fixture
def attack(tiny_folder: Callable[[str], str]) -> BadNets:
    return BadNets(model=tiny_folder("bert"), learning_rate=1e-3)


def trainer_with(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, OutputFolder(folder)],
        **{"enable_checkpointing": False, **options},
    )


def run_test(folder: Path, module: LightningModule, data: BackdoorDataModule, *callbacks: Any) -> dict[str, float]:
    trainer = trainer_with(folder, *callbacks)
    trainer.test(module, datamodule=data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_calibration_sees_the_threshold_rows_and_no_others(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets
) -> None:
    recorder = Recorder()
    run_test(tmp_path, attack, data, InferenceDefense(recorder))
    threshold_rows = data.clean_validation().threshold
    assert sorted(recorder.calibrated) == sorted((row["text"], False) for row in threshold_rows)


def test_every_test_row_is_scored_once(tmp_path: Path, data: BackdoorDataModule, attack: BadNets) -> None:
    recorder = Recorder()
    run_test(tmp_path, attack, data, InferenceDefense(recorder))
    splits = data.poisoned_splits()
    rows = splits.clean["test"] + splits.poisoned["test"]
    assert sorted(recorder.scored) == sorted(row["text"] for row in rows)


class Peeking(Recorder):
    """Flags all texts, and records the labels, flags, indices and spans that it is shown in an evaluation."""

    def calibrate(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        super().calibrate(victim, clean_batches)
        self.threshold.fill_(0.0)
        self.shown: dict[str, list[Any]] = {}

    def score(self, victim: Victim, batch: Batch) -> Scores:
        if not self.threshold.isnan():
            self.note("score", batch)
        return super().score(victim, batch)

    def purify(self, victim: Victim, batch: Batch, flagged: Tensor, scores: Scores) -> None:
        self.note("purify", batch)

    def explain(self, victim: Victim, batch: Batch) -> None:
        self.note("explain", batch)

    def note(self, method: str, batch: Batch) -> None:
        for name, column in batch.items():
            if name not in ("text", "input_ids", "attention_mask"):
                seen = column.tolist() if isinstance(column, Tensor) else column
                self.shown.setdefault(f"{method} {name}", []).extend(seen)  # type: ignore[arg-type]


def test_no_label_or_flag_of_what_is_judged_is_shown(tmp_path: Path, data: BackdoorDataModule, attack: BadNets) -> None:
    peeking = Peeking()
    logged = run_test(tmp_path, attack, data, InferenceDefense(peeking))
    splits = data.poisoned_splits()
    count = len(splits.clean["test"] + splits.poisoned["test"])
    for method in ("score", "purify", "explain"):
        for name in ("label", "original_label", "index"):
            assert peeking.shown[f"{method} {name}"] == [-1] * count
        for name in ("poisoned", "negative"):
            assert peeking.shown[f"{method} {name}"] == [False] * count
        assert peeking.shown[f"{method} spans"] == [[]] * count
    assert logged["test/tpr"] == logged["test/fpr"] == 1  # the metrics know the flags


def test_the_threshold_does_not_depend_on_the_test_rows(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets
) -> None:
    thresholds = []
    for test_rows in (data.clean_splits()["test"], data.clean_splits()["test"][:10]):
        data.clean_splits()["test"] = test_rows
        defense = GradientAttention()
        run_test(tmp_path, attack, data, InferenceDefense(defense))
        thresholds.append(torch.cat([defense.threshold[None], defense.budget_thresholds]))
    assert torch.equal(*thresholds)


def test_logged_numbers_are_those_of_judging_each_row_alone(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets
) -> None:
    defense = GradientAttention(fpr=0.3)
    logged = run_test(tmp_path, attack, data, InferenceDefense(defense))
    attack.eval()
    data.attack = attack
    judged: dict[bool, list[dict[str, bool]]] = {False: [], True: []}
    data.eval_batch_size = 1
    for batch in [batch for loader in data.test_dataloader() for batch in loader]:
        with torch.no_grad():
            verdict = judge(defense, attack, batch, attack(batch))
        judged[bool(batch["poisoned"])].append(
            {
                "correct": bool(verdict.defended_prediction == batch["original_label"]),
                "target": int(verdict.defended_prediction) == attack.target_label,
                "other": int(batch["original_label"]) != attack.target_label,
                "flagged": bool(verdict.flagged),
                "confirmed": bool(verdict.confirmed),
            }
        )
    clean, poisoned = judged[False], judged[True]

    def share(rows: list[dict[str, bool]], key: str) -> float:
        return sum(row[key] for row in rows) / len(rows)

    expected = {
        "cacc_defended": share(clean, "correct"),
        "pacc_defended": share(poisoned, "correct"),
        "asr_defended": share(poisoned, "target"),
        "asr_floor_defended": share([row for row in clean if row["other"]], "target"),
        "fpr": share(clean, "flagged"),
        "tpr": share(poisoned, "flagged"),
        "fpr_confirmed": share(clean, "confirmed"),
        "tpr_confirmed": share(poisoned, "confirmed"),
    }
    for name, value in expected.items():
        assert logged[f"test/{name}"] == pytest.approx(value), name
    assert 0 < logged["test/fpr"] < 1  # some clean texts are flagged, not all
    assert logged["test/overhead"] > 0
    assert 0 <= logged["test/localisation"] <= 1


def test_a_rejected_text_is_neither_correct_nor_an_attack_success(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets
) -> None:
    class RejectAll(Recorder):
        def calibrate(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
            super().calibrate(victim, clean_batches)
            self.threshold.fill_(0.0)

    logged = run_test(tmp_path, attack, data, InferenceDefense(RejectAll()))
    assert logged["test/cacc"] > 0
    for rate in ("cacc", "asr", "pacc"):
        assert logged[f"test/{rate}_defended"] == 0
    assert logged["test/tpr_confirmed"] == logged["test/fpr_confirmed"] == 1
    rows = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["defended_prediction"] for row in rows} == {"rejected"}


def test_undefended_numbers_are_the_same_beside_a_defense(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets
) -> None:
    alone = run_test(tmp_path, attack, data)
    beside = run_test(tmp_path, attack, data, GradientAttentionDefense())
    assert {name: beside[name] for name in alone} == alone


def test_several_defenses_run_side_by_side_under_their_names(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets
) -> None:
    together = run_test(
        tmp_path, attack, data, GradientAttentionDefense(name="attention"), InferenceDefense(Recorder(), name="length")
    )
    alone = run_test(tmp_path, attack, data, GradientAttentionDefense())
    for name in ("cacc_defended", "asr_defended", "auroc", "fpr"):
        assert together[f"test/attention/{name}"] == alone[f"test/{name}"]
    assert "test/length/asr_defended" in together
    assert (tmp_path / "attention" / "token_view.html").exists()
    assert (tmp_path / "length" / "texts.jsonl").exists()


def test_two_defenses_of_one_name_are_refused(tmp_path: Path, data: BackdoorDataModule, attack: BadNets) -> None:
    with pytest.raises(InputError, match="give each its own name"):
        run_test(tmp_path, attack, data, GradientAttentionDefense(), InferenceDefense(Recorder()))


def test_validation_inside_fit_is_defended_and_the_checkpoint_keeps_the_threshold(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets
) -> None:
    callback = GradientAttentionDefense()
    trainer = trainer_with(tmp_path, callback, max_epochs=1, num_sanity_val_steps=2)
    trainer.fit(attack, datamodule=data)
    assert {"val/cacc", "val/asr", "val/cacc_defended", "val/asr_defended"} <= set(trainer.callback_metrics)
    trainer.save_checkpoint(tmp_path / "kept.ckpt")

    restored = GradientAttentionDefense()
    loaders = data.test_dataloader()  # no data module: the threshold can only come from the checkpoint
    trainer_with(tmp_path, restored).test(attack, loaders, ckpt_path=tmp_path / "kept.ckpt", verbose=False)
    assert torch.equal(restored.defense.threshold, callback.defense.threshold)
    with pytest.raises(InputError, match="threshold"):
        trainer_with(tmp_path, GradientAttentionDefense()).test(attack, loaders, verbose=False)


def test_a_benign_victim_shows_what_the_defense_costs(
    tmp_path: Path, data: BackdoorDataModule, tiny_folder: Callable[[str], str]
) -> None:
    logged = run_test(tmp_path, TextClassifier(model=tiny_folder("bert")), data, GradientAttentionDefense())
    assert {"test/cacc", "test/cacc_defended", "test/fpr", "test/overhead"} <= set(logged)
    assert not any("asr" in name or "tpr" in name for name in logged)


@pytest.mark.parametrize("defense", [GradientAttention, Strip])
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_low_precision(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets, precision: str, defense: type[Defense]
) -> None:
    trainer = trainer_with(tmp_path, InferenceDefense(defense()), precision=precision)
    trainer.test(attack, datamodule=data, verbose=False)
    assert trainer.callback_metrics["test/auroc"].isfinite()


def test_thresholds_of_one_defense_are_not_taken_for_those_of_another(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets
) -> None:
    trainer = trainer_with(tmp_path, InferenceDefense(Strip()), max_epochs=1)
    trainer.fit(attack, datamodule=data)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    loaders = data.test_dataloader()
    fresh = BadNets(model=attack.hparams["model"], labels=["negative", "positive"])
    with pytest.raises(InputError, match="threshold needs a BackdoorDataModule, or a checkpoint that has it"):
        trainer_with(tmp_path, InferenceDefense(GradientAttention())).test(
            fresh, loaders, ckpt_path=tmp_path / "one.ckpt", weights_only=True
        )
    tester = trainer_with(tmp_path, InferenceDefense(Strip()))
    tester.test(fresh, loaders, ckpt_path=tmp_path / "one.ckpt", weights_only=True, verbose=False)
    assert tester.callback_metrics["test/auroc"].isfinite()


def test_texts_are_kept_up_to_the_number_asked_for(tmp_path: Path, data: BackdoorDataModule, attack: BadNets) -> None:
    run_test(tmp_path, attack, data, GradientAttentionDefense(texts=3))
    rows = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    first = sorted(row["index"] for row in data.clean_splits()["test"])[:3]
    assert [row["index"] for row in rows if not row["poisoned"]] == first
    assert [row["poisoned"] for row in rows] == [True] * 3 + [False] * 3
    for row in rows[:3]:
        assert all(row["text"][start:end] == "cf" for start, end in row["spans"])
    with pytest.raises(InputError, match=r"^texts: -1 is not a number of texts; give 0 or more$"):
        GradientAttentionDefense(texts=-1)


def test_a_token_view_without_token_scores(tmp_path: Path, data: BackdoorDataModule, attack: BadNets) -> None:
    run_test(tmp_path, attack, data, InferenceDefense(Recorder()))
    assert "Token view" in (tmp_path / "token_view.html").read_text(encoding="utf-8")


def test_buffers_that_were_moved_in_evaluation_can_be_written_again(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets
) -> None:
    class Moved(GradientAttention):
        def to(self, *args: Any, **kwargs: Any) -> Moved:  # as a move to a GPU: every buffer is made anew
            self.threshold, self.budget_thresholds = self.threshold.clone(), self.budget_thresholds.clone()
            return self

    defense = Moved()
    run_test(tmp_path, attack, data, InferenceDefense(defense))
    defense.load_state_dict(defense.state_dict())
    assert not defense.threshold.is_inference()


def test_the_overhead_counts_the_plain_forward_where_the_defense_needs_it(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets
) -> None:
    logged = run_test(tmp_path, attack, data, InferenceDefense(Recorder()))
    assert logged["test/overhead"] > 1


class Remembering(Recorder):
    """A defense of a user that keeps the score of each text in a cache."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.cache = TextCache("length", folder)

    def score(self, victim: Victim, batch: Batch) -> Scores:
        missing = [text for text, value in zip(batch["text"], self.cache.get(batch["text"]), strict=True) if not value]
        self.cache.put({text: str(len(text)).encode() for text in missing})
        values = self.cache.get(batch["text"])
        return Scores(torch.tensor([float(value or 0) for value in values]))


def test_the_overhead_is_that_of_texts_that_no_cache_answered(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[tuple[float, float]] = []
    monkeypatch.setattr(Overhead, "update", lambda self, defended, plain: added.append((defended, plain)))
    defense = InferenceDefense(Remembering(tmp_path / "cache"))
    run_test(tmp_path, attack, data, defense)
    first, batches = list(added), len(added)
    run_test(tmp_path, attack, data, defense)
    assert first
    assert all(defended > plain > 0 for defended, plain in first)
    assert added[batches:] == [(0.0, 0.0)] * batches  # all texts were cached


def test_a_run_whose_texts_a_cache_answered_has_no_overhead(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets
) -> None:
    defense = InferenceDefense(Remembering(tmp_path / "cache"))
    first, second = (run_test(tmp_path, attack, data, defense)["test/overhead"] for _ in range(2))
    assert first > 1
    assert math.isnan(second)


class Seeds(Recorder):
    """Records the seed with which it scores, and fails if it is asked to."""

    fails = False

    def score(self, victim: Victim, batch: Batch) -> Scores:
        self.used = self.seed
        if self.fails:
            raise RuntimeError("asked to")
        return super().score(victim, batch)


def test_the_defense_takes_the_seed_of_each_run_where_it_has_none(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets, monkeypatch: pytest.MonkeyPatch
) -> None:
    without, own = Seeds(), Seeds()
    own.seed = 7
    kept = InferenceDefense(without, name="without")
    for seed, callback in ((3, kept), (4, kept), (5, InferenceDefense(without, name="without"))):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        run_test(tmp_path, attack, data, callback, InferenceDefense(own, name="own"))
        assert (without.used, own.used) == (seed, 7)
        assert (without.seed, own.seed) == (None, 7)


def test_a_run_that_fails_leaves_the_defense_without_a_seed(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    defense = Seeds()
    defense.fails = True
    with pytest.raises(RuntimeError, match="asked to"):
        run_test(tmp_path, attack, data, InferenceDefense(defense))
    assert (defense.used, defense.seed) == (3, None)


def test_test_rows_cut_by_another_seed_are_refused_since_they_may_be_training_rows(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets
) -> None:
    trainer = trainer_with(tmp_path, max_epochs=1)
    trainer.fit(attack, datamodule=data)
    trainer.save_checkpoint(tmp_path / "kept.ckpt")
    path = data.source.path
    other = reviews(tmp_path, seed=1)
    assert other.source.path == path
    with pytest.raises(InputError, match="may have been trained on test rows"):
        trainer_with(tmp_path).test(attack, datamodule=other, ckpt_path=tmp_path / "kept.ckpt", verbose=False)
    same = reviews(tmp_path, max_rows={"test": 10})
    trainer_with(tmp_path).test(attack, datamodule=same, ckpt_path=tmp_path / "kept.ckpt", verbose=False)


def test_label_names_other_than_those_of_the_data_are_refused(
    tmp_path: Path, data: BackdoorDataModule, tiny_folder: Callable[[str], str]
) -> None:
    attack = BadNets(model=tiny_folder("bert"), labels=["positive", "negative"])
    with pytest.raises(InputError, match="differ from the data's labels"):
        run_test(tmp_path, attack, data)
