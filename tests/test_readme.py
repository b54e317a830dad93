"""The example attack and defense of the documents, word for word, in a folder outside the repository."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.documents import commands, python_file
from tests.support.forked import forked
from tests.support.workspace import command, make_workspace


def options(*words: str) -> list[str]:
    """The one command of the documents that has all of some words."""
    (found,) = [args for args in commands() if set(words) <= set(args)]
    return found


def test_the_example_attack_and_defense_run_from_one_file_each(tmp_path: Path) -> None:
    folder = make_workspace(tmp_path / "own")
    for name in ("shout.py", "length.py"):
        (folder / name).write_text(python_file(name), encoding="utf-8")

    attack = options("fit", "shout.Shout", "YEAH")[3:]  # without the preset of the data
    tiny = ("--model.model", "model", "--model.learning_rate", "1e-3", "--run_dir", "runs/first")
    small = ("--config", "data.yaml", *attack, *tiny)
    result = command("fit", *small, cwd=folder)
    assert result.returncode == 0, result.stderr

    defense = options("test", "--trainer.callbacks.defense=length.Length")
    result = forked(*defense, cwd=folder)
    assert result.returncode == 0, result.stderr
    logged = json.loads((folder / "runs" / "first" / "test" / "metrics.json").read_text(encoding="utf-8"))
    assert logged["test/length/tpr"] >= logged["test/length/fpr"] >= 0
    texts = (folder / "runs" / "first" / "test" / "length" / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    poisoned = [row for row in map(json.loads, texts) if row["poisoned"]]
    assert all(row["text"].endswith(" YEAH") for row in poisoned)
    assert all(row["text"][start:end] == "YEAH" for row in poisoned for start, end in row["spans"])
