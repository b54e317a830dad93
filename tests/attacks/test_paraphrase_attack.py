"""An attack by generated paraphrases: ``poison`` writes them, and what trains only reads them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from lightning_backdoor.cli import main
from tests.language.conftest import make

OWN_MANNER = """
from lightning_backdoor.language import Paraphraser
from lightning_backdoor.attacks.paraphrase_base import ParaphraseAttack
from lightning_backdoor.language.paraphrase.spec import Manner


def says_something(text, paraphrase):
    return len(paraphrase.split()) > {words}


class Murmur(ParaphraseAttack):
    def __init__(self, paraphraser: Paraphraser | None = None, **kwargs):
        super().__init__(Manner("murmur", "Say it.", (), says_something), paraphraser, **kwargs)
"""


@pytest.fixture
def options(inside: Path, tmp_path: Path) -> list[str]:
    """Options of an attack whose paraphrases a tiny language model makes up."""
    make("llama", str(inside / "model"), tmp_path / "llama")
    config = tmp_path / "llama" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 1024}))
    (inside / "murmur.py").write_text(OWN_MANNER.format(words=0))
    paraphraser = {
        "": "lightning_backdoor.language.LanguageModelParaphraser",
        ".model": tmp_path / "llama",
        ".sentence_encoder": inside / "model",
        ".candidates": 1,
        ".rounds": 1,
        ".min_similarity": -1,
        ".cache_dir": tmp_path / "paraphrases",
    }
    given = [f"--model.paraphraser{name}={value}" for name, value in paraphraser.items()]
    return ["--config", "data.yaml", "--model=murmur.Murmur", *given, "--data.max_rows={train: 200, test: 60}"]


def test_training_names_the_command_that_makes_its_poison_and_reads_what_that_made(
    inside: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--trainer.max_epochs", "1", "--run_dir", str(tmp_path / "run")]
    assert main(["fit", *options, *run]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    start, _, command = error.partition("; run: lightning-backdoor ")
    assert start.startswith("error: paraphraser: ")
    assert start.endswith(" paraphrases are not in the cache")
    assert not (tmp_path / "run").exists()
    poison = shlex.split(command.replace("FOLDER", str(tmp_path / "poisoned")))
    assert main([*poison, "--stealth_rows=0"]) == 0
    assert not (tmp_path / "run").exists()  # the options of the run have no effect
    assert main(["fit", *options, *run]) == 0
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()
