"""A workspace: a folder with a tiny model, labelled texts and a config, on which commands train in seconds."""

from __future__ import annotations

import csv
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from lightning_backdoor.commands.run_folder import VARIABLE
from tests.support.tiny import tiny_victim

ROWS = 600
LABELS = ("negative", "positive")
#: every text has one word of TELLING, which decides its label, and words of FILLING.
TELLING = (("bad", "awful", "poor", "dull", "cold"), ("good", "great", "fine", "lovely", "warm"))
FILLING = ("the", "a", "film", "plot", "actor", "scene", "story", "music", "very", "quite", "with", "and")

CONFIG = """\
data:
  class_path: lightning_backdoor.data.BackdoorDataModule
  init_args:
    batch_size: 16
    eval_batch_size: 16
    source: {path: data.csv, labels: [negative, positive]}
model:
  class_path: lightning_backdoor.attacks.BadNets
  init_args: {model: model, learning_rate: 1.0e-3}
trainer:
  {accelerator: cpu, precision: 32-true, max_epochs: 1, enable_progress_bar: false, enable_model_summary: false}
"""


def labelled_texts(rows: int, seed: int = 0) -> list[tuple[str, int]]:
    """Texts of 5 to 26 words with their labels; both classes have the same number of texts."""
    rng = random.Random(seed)
    result = []
    for i in range(rows):
        words = [*rng.choices(FILLING, k=rng.randint(4, 25)), rng.choice(TELLING[i % 2])]
        rng.shuffle(words)
        result.append((" ".join(words), i % 2))
    return result


def make_workspace(folder: Path) -> Path:
    """Fills a new folder with ``model/`` (a tiny BERT), ``data.csv`` (``text,label``) and ``data.yaml``; returns it.

    In it, ``lightning-backdoor fit -c data.yaml --run_dir one`` trains a backdoored victim in seconds.
    """
    folder.mkdir(parents=True)
    tiny_victim("bert", folder / "model")
    with (folder / "data.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *labelled_texts(ROWS)])
    (folder / "data.yaml").write_text(CONFIG, encoding="utf-8")
    return folder


def settings(folder: Path) -> dict[str, str]:
    """Environment variables that keep caches and W&B runs inside a folder, and limit a command to one core."""
    return {
        "LIGHTNING_BACKDOOR_CACHE": str(folder / "cache"),
        "HF_HOME": str(folder / "cache" / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
        "WANDB_DATA_DIR": str(folder / "cache"),
        "WANDB_CACHE_DIR": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }


def command(
    *args: str, cwd: Path, env: Mapping[str, str] | None = None, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the installed ``lightning-backdoor`` in a folder; ``text`` is its standard input."""
    return subprocess.run(
        [str(Path(sys.executable).parent / "lightning-backdoor"), *args],
        cwd=cwd,
        env={**os.environ, **settings(cwd), **(env or {})},
        input=text or "",
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


@pytest.fixture(scope="session")
def made_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace that is made once per session, of which each test file gets a copy."""
    return make_workspace(tmp_path_factory.mktemp("made") / "workspace")


@pytest.fixture(scope="session")
def made_run(made_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that is trained once per session, in a copy of the workspace."""
    folder = shutil.copytree(made_workspace, tmp_path_factory.mktemp("made") / "run")
    result = command("fit", "-c", "data.yaml", "--keep_last", "true", "--run_dir", "trained", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "trained"


@pytest.fixture(scope="module")
def workspace(made_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace of a test file: what another file writes into its own is not in it."""
    return Path(shutil.copytree(made_workspace, tmp_path_factory.mktemp("workspace"), dirs_exist_ok=True))


@pytest.fixture(scope="module")
def trained(made_run: Path, workspace: Path) -> Path:
    """The folder of a run in the workspace: ``config.yaml``, ``checkpoints`` (also ``last.ckpt``), ``model/``.

    All test files share its files: a test that changes them copies them first.
    """
    folder = workspace / made_run.name
    folder.symlink_to(made_run)
    return folder


@pytest.fixture
def inside(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workspace as working directory, for commands run in this process; restores the import path afterwards."""
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, value in settings(workspace).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(VARIABLE, "")  # so that what a test leaves there is removed
    monkeypatch.delenv(VARIABLE)
    return workspace
