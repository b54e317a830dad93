"""Several defenses in one test: what they share, how each is timed, and that one that fails fails alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import Batch
from lightning_backdoor.callbacks import InferenceDefense, InspectionCallback, OutputFolder, inference_defense
from lightning_backdoor.cli import main
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.defenses.defense import Defense, Scores, Victim
from lightning_backdoor.defenses.flagged_share import FlaggedShare
from lightning_backdoor.defenses.gradient_attention import GradientAttention
from lightning_backdoor.errors import InputError
from lightning_backdoor.metrics import Overhead
from lightning_backdoor.models.captures import Reads, readout_states
from tests.support.reviews import reviews


class Norms(Defense):
    """Scores texts by the norm of their hidden states."""

    reads: ClassVar[Reads] = frozenset({"hidden_states"})

    def score(self, victim: Victim, batch: Batch) -> Scores:
        states = readout_states(victim.network, batch["input_ids"], batch["attention_mask"])
        return Scores(states.norm(dim=-1).mean(dim=0))


class Broken(Norms):
    """Fails at the first poisoned text, or when it is calibrated."""

    def __init__(self, at_once: bool = False) -> None:
        super().__init__()
        self.at_once = at_once

    def score(self, victim: Victim, batch: Batch) -> Scores:
        if self.at_once or any("cf" in text.split() for text in batch["text"]):
            raise InputError("broken", "no score")
        return super().score(victim, batch)


@pytest.fixture
def data(tmp_path: Path) -> BackdoorDataModule:
    return reviews(tmp_path)


@pytest.fixture
def attack(tiny_folder: Callable[[str], str]) -> BadNets:
    return BadNets(model=tiny_folder("bert"))


def run(folder: Path, attack: BadNets, data: BackdoorDataModule, *callbacks: Any, **options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(
        accelerator="cpu", logger=False, callbacks=[*callbacks, OutputFolder(folder)], **{**quiet, **options}
    )
    trainer.test(attack, datamodule=data, verbose=False)
    return trainer


def test_passes_and_rows_are_shared_and_each_defense_is_timed_as_if_alone(
    tmp_path: Path, attack: BadNets, data: BackdoorDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack.hparams["labels"] = ["negative", "positive"]
    attack.configure_model()
    passes: Counter[str] = Counter()

    def count(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        passes["states" if kwargs.get("output_hidden_states") else "gradient" if torch.is_grad_enabled() else ""] += 1

    attack.network.register_forward_pre_hook(count, with_kwargs=True)
    times: list[tuple[float, float]] = []
    monkeypatch.setattr(Overhead, "update", lambda self, defended, plain: times.append((defended, plain)))
    monkeypatch.setattr(inference_defense, "now", lambda device: 0.0)
    reads: list[str] = []
    read = data.threshold_dataloader

    def counted_read() -> Any:
        reads.append("threshold")
        return read()

    monkeypatch.setattr(data, "threshold_dataloader", counted_read)
    defenses = {"a": GradientAttention(fpr=0.01), "b": GradientAttention(fpr=0.01), "c": Norms(), "d": Norms()}
    trainer = run(tmp_path, attack, data, *(InferenceDefense(defense, name) for name, defense in defenses.items()))
    batches = sum(len(loader) for loader in data.test_dataloader())
    calibration = len(data.threshold_dataloader())
    assert passes["states"] == passes["gradient"] == batches + calibration
    assert len(reads) == 2  # the second is that of the line above
    # by a clock that stands still, a defense takes the time of the passes that were computed before
    assert len(times) == 4 * batches
    assert all(defended == 0 for defended, _ in times[::4])
    assert all(defended > 0 for defended, _ in times[1::4])
    assert all(0 < defended <= plain for defended, plain in (*times[2::4], *times[3::4]))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if not name.endswith("overhead")}
    for first, second in (("a", "b"), ("c", "d")):
        both = [{n.split("/")[-1]: v for n, v in logged.items() if f"/{one}/" in n} for one in (first, second)]
        assert both[0] == pytest.approx(both[1], nan_ok=True)


def test_a_defense_that_fails_costs_the_others_nothing(
    tmp_path: Path, attack: BadNets, data: BackdoorDataModule
) -> None:
    def defenses() -> list[Any]:
        inspection = InspectionCallback(FlaggedShare(Norms()), "share")
        return [InferenceDefense(Norms(), "first"), InferenceDefense(Norms(), "last"), inspection]

    whole = run(tmp_path / "whole", attack, data, *defenses()).callback_metrics
    broken = InferenceDefense(Broken(), "broken")
    inspection = InspectionCallback(FlaggedShare(Broken(at_once=True)), "broken")
    callbacks = defenses()
    trainer_metrics: list[Any] = []

    class Keeper(OutputFolder):
        def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
            trainer_metrics.append(dict(trainer.callback_metrics))

    keeper = Keeper(tmp_path / "part")
    with (
        pytest.warns(UserWarning, match="broken failed, and the test goes on: broken: no score"),
        pytest.raises(InputError),
    ):
        run(tmp_path / "part", attack, data, keeper, callbacks[0], broken, inspection, *callbacks[1:])
    found = {name: float(value) for name, value in trainer_metrics[0].items() if not name.endswith("overhead")}
    assert found == pytest.approx({name: float(value) for name, value in whole.items() if name in found}, nan_ok=True)
    assert {name for name in whole if not name.endswith("overhead")} == found.keys()
    for name in ("first/outcomes.csv", "last/outcomes.csv", "share/inspection.json"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "part" / "broken").exists()


def test_the_command_writes_what_the_others_found_and_ends_with_the_error(
    trained: Path, inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (inside / "broken_defense.py").write_text(
        "from lightning_backdoor.defenses import Defense\n"
        "from lightning_backdoor.errors import InputError\n\n\n"
        "class Broken(Defense):\n"
        "    def score(self, victim, batch):\n"
        "        raise InputError('broken', 'no score')\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(inside)
    paths = {"broken": "broken_defense.Broken", "whole": "lightning_backdoor.defenses.GradientAttention"}
    callbacks = [
        {
            "class_path": "lightning_backdoor.callbacks.InferenceDefense",
            "init_args": {"name": name, "defense": {"class_path": path}},
        }
        for name, path in paths.items()
    ]
    (inside / "two.yaml").write_text(json.dumps({"trainer": {"callbacks": callbacks}}), encoding="utf-8")
    checkpoint = str(trained / "checkpoints" / "best.ckpt")
    options = ["--config", str(trained / "config.yaml"), "--config", "two.yaml", "--ckpt_path", checkpoint]
    assert main(["test", *options, "--run_dir", "two"]) == 2
    assert "broken: no score" in capsys.readouterr().err
    metrics = json.loads((inside / "two" / "test" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["test/whole/auroc"] is not None
    assert not any(name.startswith("test/broken") for name in metrics)
