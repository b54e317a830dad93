"""The folder of a grid that was moved: trained victims are used as they are, an interrupted one resumes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_backdoor.cli import main
from tests.benchmark.grids import SMALL

FAILING_ONCE = """\
from pathlib import Path

from lightning.pytorch import Callback


class FailingOnce(Callback):
    def __init__(self, mark: str):
        self.mark = Path(mark)

    def on_train_batch_end(self, trainer, *args):
        if trainer.current_epoch == 1 and not self.mark.exists():
            self.mark.touch()
            raise RuntimeError("out of memory")
"""


def events(folder: Path, kind: str) -> int:
    return (folder / "journal.jsonl").read_text(encoding="utf-8").count(f'"kind": "{kind}"')


def test_a_moved_folder_is_continued(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (inside / "failing_once.py").write_text(FAILING_ONCE, encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(SMALL)
    gradient_attention = content["defenses"].pop("gradient attention")
    content["attacks"] = {"BadNets": content["attacks"]["BadNets"]}
    content["defenses"]["fine-tuned"] = {"repair": {"data": {"init_args": {"train_on": "trusted"}}}}
    models = []
    for mark in ("unfailing", "once"):
        callback = {"class_path": "failing_once.FailingOnce", "init_args": {"mark": mark}}
        content["base"]["trainer"] |= {"max_epochs": 3, "callbacks": [callback]}
        content["base"]["data"]["init_args"]["max_rows"] = {"train": 64, "validation": 24, "test": 16}
        content["defenses"].pop("fine-tuned and gradient attention", None)
        Path(f"{mark}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        args = ["benchmark", "--config", f"{mark}.yaml", "--output", f"{mark}-out"]
        if mark == "unfailing":
            Path(mark).touch()
            args.append("--only=defense=none")
        else:
            assert main([*args, "--only", "defense=none"]) == 1
            (inside / "once-out").rename(inside / "moved")
            args[4] = "moved"
        assert main(args) == 0, capsys.readouterr().out
        folder = inside / args[4]
        (fit,) = [path for path in folder.glob("victims/*/fit.yaml") if "published" not in path.read_text("utf-8")]
        assert ("last.ckpt" in (fit.parent / "log.txt").read_text(encoding="utf-8")) == (mark == "once")
        models.append((fit.parent / "model" / "model.safetensors").read_bytes())
    assert models[0] == models[1]
    assert not (inside / "once-out").exists()

    (inside / "moved").rename(inside / "moved again")
    content["defenses"]["fine-tuned and gradient attention"] = content["defenses"]["fine-tuned"] | gradient_attention
    Path("more.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert main(["benchmark", "--config", "more.yaml", "--output", "moved again"]) == 0
    assert events(inside / "moved again", "cell") == 4  # one failed
    assert events(inside / "moved again", "victim") == 3
    assert not (inside / "moved").exists()
    assert not (inside / "once-out").exists()
    sys.modules.pop("failing_once", None)
