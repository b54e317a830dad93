"""Inspections in a run: which rows they are given, what is logged and written, and several processes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_backdoor.attacks import BadNets, Poisoned
from lightning_backdoor.batch import Batch, Victim, unlabelled
from lightning_backdoor.callbacks import InspectionCallback, OutcomeWriter, OutputFolder
from lightning_backdoor.callbacks.inspection_callback import write_verdict
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.defenses import Dan, FlaggedShare, Inspection, ModelVerdict, Strip
from lightning_backdoor.errors import InputError
from lightning_backdoor.outputs.outcomes import read_outcomes
from lightning_backdoor.victim import TextClassifier
from tests.support.forked import forked, forked_pair
from tests.support.reviews import reviews


class Recorder(Inspection):
    """Records the batches it is given, and returns a fixed verdict."""

    def __init__(self, verdict: ModelVerdict | None = None) -> None:
        self.given: dict[str, list[Batch]] = {}
        self.verdict = verdict or ModelVerdict(1.5, 1, {"kind": "scripted"})
        self.conditions: dict[str, Any] = {}

    def to(self, device: torch.device) -> None:
        self.conditions["moved in inference mode"] = torch.is_inference_mode_enabled()

    def learn(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        self.given["learn"] = list(clean_batches)

    def calibrate(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        self.given["calibrate"] = list(clean_batches)

    def inspect(self, victim: Victim, clean_batches: Iterable[Batch], stream: Iterable[Batch] = ()) -> ModelVerdict:
        self.given |= {"trusted": list(clean_batches), "stream": list(stream)}
        self.conditions["training"] = victim.network.training
        self.conditions["autocast"] = torch.is_autocast_enabled("cpu")
        return self.verdict

    def texts(self, part: str) -> list[str]:
        return sorted(text for batch in self.given[part] for text in batch["text"])


@pytest.fixture
def data(tmp_path: Path) -> BackdoorDataModule:
    return reviews(tmp_path)


@pytest.fixture
def attack(tiny_folder: Callable[[str], str]) -> BadNets:
    return BadNets(model=tiny_folder("bert"), learning_rate=1e-3)


def run_test(
    folder: Path, module: LightningModule, data: BackdoorDataModule | None, *callbacks: Any, **options: Any
) -> dict[str, float]:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[*callbacks, OutputFolder(folder)],
        **options,
    )
    trainer.test(module, datamodule=data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_each_part_is_given_its_rows(tmp_path: Path, data: BackdoorDataModule, attack: BadNets) -> None:
    recorder = Recorder()
    run_test(tmp_path, attack, data, InspectionCallback(recorder))
    parts, splits = data.clean_validation(), data.poisoned_splits()
    expected = {
        "learn": parts.reference,
        "calibrate": parts.threshold,
        "trusted": [*parts.selection, *parts.reference],
        "stream": [*splits.clean["test"], *splits.poisoned["test"]],
    }
    assert splits.poisoned["test"]
    for part, rows in expected.items():
        assert recorder.texts(part) == sorted(row["text"] for row in rows), part


def test_the_stream_says_nothing_of_labels_and_poison(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets
) -> None:
    recorder = Recorder()
    run_test(tmp_path, attack, data, InspectionCallback(recorder))
    for batch in recorder.given["stream"]:
        for column in ("label", "original_label", "index"):
            assert set(batch[column].tolist()) == {-1}
        for column in ("poisoned", "negative"):
            assert not batch[column].any()  # type: ignore[literal-required]
        assert not any(batch["spans"])
    assert all((batch["label"] >= 0).all() for batch in recorder.given["trusted"])


def test_a_batch_without_labels_keeps_texts_and_tokens_and_leaves_the_original(
    data: BackdoorDataModule, attack: BadNets
) -> None:
    data.attack = attack
    *_, poisoned = data.test_dataloader()
    batch = next(iter(poisoned))
    hidden = unlabelled(batch)
    assert hidden.keys() == batch.keys()
    assert hidden["text"] == batch["text"]
    for column in ("input_ids", "attention_mask"):
        assert torch.equal(hidden[column], batch[column])
    for column in ("label", "original_label", "poisoned", "negative", "index"):
        assert hidden[column].dtype == batch[column].dtype  # type: ignore[literal-required]
        assert hidden[column].shape == batch[column].shape  # type: ignore[literal-required]
    assert batch["poisoned"].all()
    assert all(batch["spans"])


def test_the_score_is_logged_and_the_verdict_written(tmp_path: Path, data: BackdoorDataModule, attack: BadNets) -> None:
    verdict = ModelVerdict(2.5, 1, {"p_value": 0.25, "texts": 12, "kind": "scripted"})
    plain = run_test(tmp_path / "plain", attack, data, OutcomeWriter())
    logged = run_test(tmp_path, attack, data, InspectionCallback(Recorder(verdict)), OutcomeWriter())
    assert logged == {**plain, "test/inspection_score": 2.5, "test/inspection_p_value": 0.25}
    assert json.loads((tmp_path / "inspection.json").read_text(encoding="utf-8")) == {
        "score": 2.5,
        "suspected_label": "positive",
        "evidence": {"p_value": 0.25, "texts": 12, "kind": "scripted"},
    }
    assert read_outcomes(tmp_path / "outcomes.csv") == read_outcomes(tmp_path / "plain" / "outcomes.csv")


def test_a_verdict_without_label_and_with_odd_numbers_is_valid_json(tmp_path: Path) -> None:
    write_verdict(tmp_path / "new", ModelVerdict(0.0, None, {"ratio": float("nan")}), ["negative", "positive"])
    written = json.loads((tmp_path / "new" / "inspection.json").read_text(encoding="utf-8"))
    assert written == {"score": 0.0, "suspected_label": None, "evidence": {"ratio": None}}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_victim_is_inspected_in_float32_whatever_the_run_trains_in(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets, precision: str
) -> None:
    recorder = Recorder()
    run_test(tmp_path, attack, data, InspectionCallback(recorder), precision=precision)
    expected = {"training": False, "autocast": False, "moved in inference mode": False}
    assert recorder.conditions == expected


def test_several_inspections_run_under_their_names(tmp_path: Path, data: BackdoorDataModule, attack: BadNets) -> None:
    callbacks = [
        InspectionCallback(FlaggedShare(), name="attention"),
        InspectionCallback(FlaggedShare(Strip(fpr=0.2)), name="strip"),
    ]
    logged = run_test(tmp_path, attack, data, *callbacks)
    for name, budget in (("attention", 0.1), ("strip", 0.2)):
        written = json.loads((tmp_path / name / "inspection.json").read_text(encoding="utf-8"))
        assert logged[f"test/{name}/inspection_score"] == pytest.approx(written["score"], rel=1e-6)
        assert logged[f"test/{name}/inspection_p_value"] == pytest.approx(written["evidence"]["p_value"], rel=1e-6)
        assert written["evidence"]["budget"] == budget
        splits, parts = data.poisoned_splits(), data.clean_validation()
        texts = [splits.clean["test"], splits.poisoned["test"], parts.selection]
        texts += [parts.reference] * (name == "attention")  # the other one learns from them
        assert written["evidence"]["texts"] == sum(map(len, texts))


def test_two_inspections_of_one_name_are_refused(tmp_path: Path, data: BackdoorDataModule, attack: BadNets) -> None:
    with pytest.raises(InputError, match="2 inspections log under ''; give each its own name"):
        run_test(tmp_path, attack, data, InspectionCallback(Recorder()), InspectionCallback(FlaggedShare()))


def test_a_benign_victim_is_inspected_on_clean_rows(
    tmp_path: Path, data: BackdoorDataModule, tiny_folder: Callable[[str], str]
) -> None:
    recorder = Recorder()
    run_test(tmp_path, TextClassifier(tiny_folder("bert")), data, InspectionCallback(recorder))
    assert recorder.texts("stream") == sorted(row["text"] for row in data.clean_splits()["test"])


def test_the_inspection_takes_the_seed_of_each_run_where_it_has_none(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int | None] = []

    class Seeds(Strip):
        def calibrate(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
            used.append(self.seed)
            super().calibrate(victim, clean_batches)

    without, own = FlaggedShare(Seeds()), FlaggedShare(Seeds(seed=7))
    for seed in (3, 4):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        run_test(tmp_path, attack, data, InspectionCallback(without), InspectionCallback(own, name="own"))
        assert (without.seed, own.seed) == (None, 7)
    assert used == [3, 7, 4, 7]


def test_a_score_that_is_not_a_number_is_an_error(tmp_path: Path, data: BackdoorDataModule, attack: BadNets) -> None:
    broken = InspectionCallback(Recorder(ModelVerdict(float("nan"), None, {})))
    with pytest.raises(ValueError, match="Recorder: the score of the model is nan"):
        run_test(tmp_path, attack, data, broken)
    assert not (tmp_path / "inspection.json").exists()


def test_it_needs_the_rows_of_a_data_module(tmp_path: Path, data: BackdoorDataModule, attack: BadNets) -> None:
    run_test(tmp_path, attack, data)
    loaders = data.test_dataloader()
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[])
    trainer.callbacks.append(InspectionCallback(Recorder()))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="datamodule: an inspection needs the clean rows of a BackdoorDataModule"):
        trainer.test(attack, loaders, verbose=False)


def test_clean_rows_that_do_not_suffice_are_told_before_training(tmp_path: Path, attack: BadNets) -> None:
    few = reviews(tmp_path, validation_parts=(0.49, 0.05, 0.46))
    inspection = InspectionCallback(FlaggedShare(Dan()))
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "fast_dev_run": True}
    with pytest.raises(InputError, match=r"^reference rows"):
        Trainer(callbacks=[inspection], **options).fit(attack, datamodule=few)
    with pytest.raises(InputError, match=r"^datamodule: an inspection needs the clean rows"):
        Trainer(callbacks=[inspection], **options).fit(attack, few.train_dataloader())
    assert not hasattr(attack, "network")


def test_two_processes_come_to_the_same_verdict_as_one(workspace: Path, trained: Path) -> None:
    options = ["-c", str(trained / "config.yaml"), "--ckpt_path", str(trained / "checkpoints" / "best.ckpt")]
    options += ["--trainer.callbacks+=lightning_backdoor.callbacks.InspectionCallback"]
    options += ["--trainer.callbacks.inspection", "lightning_backdoor.defenses.FlaggedShare"]
    options += ["--trainer.callbacks+=lightning_backdoor.callbacks.InferenceDefense"]
    options += ["--trainer.callbacks.gate", "true"]
    options += ["--trainer.callbacks.defense", "lightning_backdoor.defenses.GradientAttention"]
    before = set(trained.glob("test*"))
    alone = forked("test", *options, cwd=workspace)
    (folder,) = set(trained.glob("test*")) - before
    folders = [folder, trained / "two"]
    for result in (alone, *forked_pair("test", *options, cwd=workspace, folder=folders[1])):
        assert result.returncode == 0, result.stderr
    for name in ("inspection.json", "outcomes.csv", "words.json", "token_view.html"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    metrics, of_two = (json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for folder in folders)
    assert "test/gate_open" in metrics
    assert {**metrics, "test/overhead": 0} == {**of_two, "test/overhead": 0}
    written = json.loads((folders[0] / "inspection.json").read_text(encoding="utf-8"))
    assert metrics["test/inspection_score"] == pytest.approx(written["score"], rel=1e-6)
    assert written["evidence"]["texts"] == 120 + 60 + int(0.6 * 60 + 0.5)  # clean, poisoned, trusted


class WritesOnTransfer(BadNets):
    """Writes its trigger where a learned one is written: into poisoned rows, when a batch reaches the device."""

    def poison_text(self, text: str, rng: random.Random) -> Poisoned:
        return Poisoned(text, [])

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        flags = batch["poisoned"].tolist()
        texts = [f"cf {text}" if flag else text for text, flag in zip(batch["text"], flags, strict=True)]
        return {**batch, "text": texts}


def test_the_stream_holds_a_trigger_that_is_written_when_a_batch_reaches_the_device(
    tmp_path: Path, data: BackdoorDataModule, tiny_folder: Callable[[str], str]
) -> None:
    recorder = Recorder()
    run_test(tmp_path, WritesOnTransfer(model=tiny_folder("bert")), data, InspectionCallback(recorder))
    triggered = [text for text in recorder.texts("stream") if text.startswith("cf ")]
    assert len(triggered) == len(data.poisoned_splits().poisoned["test"]) > 0
