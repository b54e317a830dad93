"""Small grids for tests: one that trains tiny victims, and one whose commands only write what the real ones would."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Mapping
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import yaml

from lightning_backdoor.benchmark.grid import Grid
from lightning_backdoor.benchmark.running import worker
from lightning_backdoor.benchmark.running.worker import Worker
from lightning_backdoor.outputs.outcomes import Outcome, write_outcomes
from lightning_backdoor.outputs.token_view import ViewedText
from tests.support.forked import FORK

#: for the workspace of tests/support/workspace.py.
SMALL = """\
base:
  trainer: {accelerator: cpu, precision: 32-true, max_epochs: 2, num_sanity_val_steps: 0}
  data: {init_args: {batch_size: 16, eval_batch_size: 8, max_rows: {train: 120, validation: 40, test: 40}}}
datasets:
  reviews: {data: {init_args: {source: {path: data.csv, labels: [negative, positive]}}}}
models:
  tiny: {model: {init_args: {model: model, learning_rate: 1e-3}}}
attacks:
  none: {class_path: lightning_backdoor.victim.TextClassifier}
  BadNets: {class_path: lightning_backdoor.attacks.BadNets, init_args: {triggers: [cf], poison_rate: 0.2}}
defenses:
  none:
  gradient attention: {inference: {class_path: lightning_backdoor.defenses.gradient_attention.GradientAttention}}
seeds: [0]
"""


def stub_grid(path: Path, attacks: int = 2, defenses: int = 2, seeds: int = 2, **more: Any) -> Grid:
    """A grid of as many cells as the three numbers multiply to; ``more`` are further entries of ``defenses``."""
    content = {
        "datasets": {"texts": {"class_path": "stub.Data"}},
        "models": {"stub": "stub"},
        "attacks": {f"attack {i}": {"class_path": "stub.Attack", "init_args": {"number": i}} for i in range(attacks)},
        "defenses": {f"defense {i}": {"inference": inference(i)} for i in range(defenses)} | more,
        "seeds": list(range(seeds)),
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return Grid(path)


def inference(number: int) -> dict[str, Any]:
    """A class path of a defense that does not exist, for grids whose commands are stubs."""
    return {"class_path": "stub.Defense", "init_args": {"number": number}}


#: entries of ``defenses`` for grids whose commands are stubs: two that share a repaired victim.
REPAIRED: dict[str, Any] = {
    "repaired": {"repair": {"data": {"init_args": {"train_on": "trusted"}}}},
    "repaired and defense 0": {"repair": {"data": {"init_args": {"train_on": "trusted"}}}, "inference": inference(0)},
}


def stub_command(
    command: str, args: list[str], folder: Path, log: int, trainer: Mapping[str, Any], *more: object
) -> None:
    """Writes what ``fit`` and ``test`` write, in pieces, and numbers that depend on the folder's name alone."""
    pause = float(os.environ.get("STUB_SECONDS", "0"))
    time.sleep(pause)
    rng = random.Random(folder.name)
    if command == "fit":
        config = yaml.safe_load((folder / "fit.yaml").read_text(encoding="utf-8"))
        arguments = config["model"]["init_args"] | config["data"].get("init_args", {})
        for checkpoint in (arguments[name] for name in ("published", "victim") if name in arguments):
            assert Path(checkpoint).is_file(), checkpoint
        (folder / "model").mkdir()
        weights = hashlib.sha256(folder.name.encode()).digest()
        for part in (weights[:16], weights[16:]):
            with (folder / "model" / "model.safetensors").open("ab") as file:
                file.write(part)
            time.sleep(pause)
        if "data_defense" in arguments:
            record = {"rows": 100, "removed": 7, "changed": 0, "precision": 0.5, "recall": None}
            (folder / "cleaning.json").write_text(json.dumps(record), encoding="utf-8")
        (folder / "config.yaml").write_text("{}", encoding="utf-8")
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "best.ckpt").touch()
        return
    metrics = {f"test/{name}": rng.random() for name in ("cacc", "asr", "pacc", "asr_floor", "cacc_defended", "auroc")}
    outcomes = [
        Outcome(i, poisoned, "a", "b", rng.choice("ab"), rng.choice("ab"), rng.random() < 0.5, False, rng.random())
        for poisoned in (False, True)
        for i in range(20)
    ]
    (folder / "metrics.json").write_text(json.dumps(metrics)[:20], encoding="utf-8")
    time.sleep(pause)
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    write_outcomes(folder / "outcomes.csv", outcomes)
    texts = [
        ViewedText(
            index=i,
            text=f"text {i} cf",
            spans=[],
            poisoned=i == 0,
            label="a",
            prediction="b",
            defended_prediction="b",
            flagged=False,
            confirmed=False,
            purified_text=None,
            score=0.5,
            tokens=[],
        )
        for i in range(2)
    ]
    (folder / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
    (folder / "words.json").write_text(json.dumps([{"word": "cf", "log10_p": -9.5}]), encoding="utf-8")
    (folder / "inspection.json").write_text(json.dumps({"evidence": {"words": "cf"}}), encoding="utf-8")


def run_stub(folder: Path, seconds: float = 0.0) -> None:
    """A worker on the grid ``grid.yaml`` in a folder, with stub commands that pause now and then for some seconds."""
    vars(worker)["run_command"] = stub_command
    os.environ["STUB_SECONDS"] = str(seconds)
    Worker(folder, Grid(folder / "grid.yaml").cells, "launch").run()


def stub_process(folder: Path, seconds: float) -> ForkProcess:
    """Starts :func:`run_stub` in a new process, which begins at once."""
    process = FORK.Process(target=run_stub, args=(folder, seconds))
    process.start()
    return process
