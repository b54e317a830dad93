"""The example attack and defense of the README, word for word, in a folder outside the repository."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.support.workspace import command, make_workspace

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def python_file(name: str) -> str:
    """The block of Python in the README that begins with the comment ``# name``."""
    (block,) = re.findall(rf"```python\n(# {re.escape(name)}\n.*?)```", README, flags=re.DOTALL)
    assert isinstance(block, str)
    return block


def options(pattern: str) -> list[str]:
    """The options that the pattern finds in the one matching command of the README, as a shell would split them."""
    (match,) = re.findall(pattern, README.replace("\\\n", " "))
    return str(match).split()


def test_the_example_attack_and_defense_run_from_one_file_each(tmp_path: Path) -> None:
    folder = make_workspace(tmp_path / "own")
    for name in ("shout.py", "length.py"):
        (folder / name).write_text(python_file(name), encoding="utf-8")

    attack = options(r"lightning-backdoor fit --config configs/data/movie_reviews.yaml (--model shout.*)\n")
    tiny = ("--model.model", "model", "--model.learning_rate", "1e-3", "--run_dir", "runs/first")
    small = ("--config", "data.yaml", *attack, *tiny)
    result = command("fit", *small, cwd=folder)
    assert result.returncode == 0, result.stderr

    defense = options(r"lightning-backdoor (test --config runs/first\S+ --ckpt_path \S+\s+--trainer.callbacks\+=.*)\n")
    result = command(*defense, cwd=folder)
    assert result.returncode == 0, result.stderr
    logged = json.loads((folder / "runs" / "first" / "test" / "metrics.json").read_text(encoding="utf-8"))
    assert logged["test/length/tpr"] >= logged["test/length/fpr"] >= 0
    texts = (folder / "runs" / "first" / "test" / "length" / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    poisoned = [row for row in map(json.loads, texts) if row["poisoned"]]
    assert all(row["text"].endswith(" YEAH") for row in poisoned)
    assert all(row["text"][start:end] == "YEAH" for row in poisoned for start, end in row["spans"])
