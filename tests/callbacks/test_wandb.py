"""What is logged to Weights & Biases, read back from the files of offline runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.callbacks import GradientAttentionDefense, RunLabels
from lightning_backdoor.callbacks.flagged_words import write_words
from lightning_backdoor.callbacks.wandb_texts import log_texts
from lightning_backdoor.defenses.onion import HIGHEST, LOWEST
from lightning_backdoor.outputs.token_view import ViewedText
from lightning_backdoor.outputs.wandb_media import TEXT_COLUMNS
from lightning_backdoor.outputs.word_inventory import WordInventory
from lightning_backdoor.victim import TextClassifier
from tests.outputs.test_token_view import Seen
from tests.support.reviews import reviews
from tests.support.wandb_files import Run

EVIL = "<img src=x onerror=alert(1)> {{ 7 * 7 }}"
TEXTS = 6  # clean texts in the table, and as many poisoned ones


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keeps runs offline and their files in a temporary folder, and closes them."""
    import wandb

    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("CONSOLE", "off")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    for name in ("DATA_DIR", "CACHE_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path))
    yield
    wandb.finish()


def trainer_in(folder: Path, *callbacks: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=[CSVLogger(folder), WandbLogger(project="tests", save_dir=folder)],
        callbacks=[RunLabels(), *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )


def test_labels_texts_and_histograms_of_a_run_are_logged(tmp_path: Path, tiny_folder: Callable[[str], str]) -> None:
    import wandb

    data = reviews(tmp_path, seed=5)
    read = data.clean_splits()
    for name, rows in read.items():
        read[name] = replace(rows, text=[f"{text} {EVIL}" for text in rows.text])
    trainer = trainer_in(tmp_path, GradientAttentionDefense(fpr=0.3, texts=TEXTS))
    attack = BadNets(model=tiny_folder("bert"), triggers=["cf"], labels=["negative", "positive"])
    trainer.test(attack, datamodule=data, verbose=False)
    inventory = WordInventory()
    inventory.add(["cf\x1b<b> film"] * 9 + ["film"] * 99, [True] * 9 + [False] * 99)
    write_words(trainer, inventory.standing_out(), None, "own/")
    wandb.finish()
    run = Run(tmp_path)

    wanted = {"model": tiny_folder("bert"), "attack": "BadNets", "defense": "GradientAttention", "seed": 5}
    assert {name: run.config.get(name) for name in wanted} == wanted
    assert run.config["dataset"].endswith("reviews.csv")
    assert run.logged["test/cacc_defended"] == pytest.approx(float(trainer.callback_metrics["test/cacc_defended"]))

    assert "test/words" in run.logged
    (word,) = run.table("own/words")
    assert word == {"word": "cf\\x1b<b>", "p_value": word["p_value"], "flagged": 9, "texts": 9}
    assert 0 < float(word["p_value"]) < 0.01

    table = run.table("test/texts")
    assert tuple(table[0]) == TEXT_COLUMNS
    assert [row["poisoned"] for row in table] == [True] * TEXTS + [False] * TEXTS
    written = [
        json.loads(line)
        for line in (tmp_path / "lightning_logs" / "version_0" / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    for row, other in zip(table, written, strict=True):
        assert row["plain_text"] == other["text"]
        same = ("poisoned", "label", "prediction", "defended_prediction", "flagged", "confirmed", "score")
        assert [row[name] for name in same] == [other[name] for name in same]
        assert EVIL.split()[0] in row["plain_text"]
        assert "<img" not in row["text"]
        assert "".join(Seen(row["text"]).text["span"]) == row["plain_text"]
        spans = json.loads(row["spans"].replace("(", "[").replace(")", "]"))
        assert [row["plain_text"][start:end] for start, end in spans] == (["cf"] if row["poisoned"] else [])
        assert ('class="trigger"' in row["text"]) is row["poisoned"]
        assert (row["purified_text"] is not None) is row["flagged"]
        assert {row["label"], row["prediction"], row["defended_prediction"]} <= {"negative", "positive"}
    assert any("background:rgba(230,120,0,0.85)" in row["text"] for row in table)

    clean, poisoned = (run.logged[f"test/scores_{kind}"] for kind in ("clean", "poisoned"))
    assert clean["bins"] == poisoned["bins"]
    splits = data.poisoned_splits()
    assert sum(clean["values"]) == len(splits.clean["test"])
    assert sum(poisoned["values"]) == len(splits.poisoned["test"])


def test_labels_of_a_run_without_attack_and_defense_are_none(tmp_path: Path, tiny_folder: Callable[[str], str]) -> None:
    import wandb

    data = reviews(tmp_path)
    trainer = trainer_in(tmp_path)
    data.clean_splits()
    data.source.name = "part"  # of a data set on the hub
    trainer.test(TextClassifier(model=tiny_folder("bert")), datamodule=data, verbose=False)
    wandb.finish()
    run = Run(tmp_path)
    wanted = {"model": tiny_folder("bert"), "attack": "none", "defense": "none", "seed": 0}
    assert {name: run.config.get(name) for name in wanted} == wanted
    assert run.config["dataset"].endswith("reviews.csv/part")
    # whatever logger is on is told
    (said,) = tmp_path.glob("lightning_logs/*/hparams.yaml")
    assert {"attack: none", "defense: none", "seed: 0"} <= set(said.read_text(encoding="utf-8").splitlines())


def test_scores_that_are_not_finite_do_not_prevent_logging(tmp_path: Path) -> None:
    import wandb

    row: ViewedText = {
        "index": 0,
        "text": EVIL,
        "spans": [],
        "poisoned": False,
        "label": "negative",
        "prediction": "negative",
        "defended_prediction": "rejected",
        "flagged": True,
        "confirmed": True,
        "purified_text": None,
        "score": 1.0,
        "tokens": [],
    }
    scores = torch.tensor([1.0, torch.inf, torch.nan, 3.0, LOWEST, HIGHEST])
    log_texts(trainer_in(tmp_path), [row], scores, torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0]), prefix="mine/")
    wandb.finish()
    run = Run(tmp_path)
    assert run.table("mine/texts")[0]["defended_prediction"] == "rejected"
    assert sum(run.logged["mine/scores_clean"]["values"]) == 2
    assert "mine/scores_poisoned" not in run.logged
