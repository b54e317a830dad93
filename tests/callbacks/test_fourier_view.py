"""The Fourier view: what it measures and writes, and that training is the same with it."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from lightning_backdoor.attacks import BadNets, Composite
from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.callbacks import FourierView, OutputFolder
from lightning_backdoor.callbacks.fourier_view import heat_maps
from lightning_backdoor.errors import InputError
from lightning_backdoor.metrics.fourier import filter_weights, relative_errors, squared_distances
from lightning_backdoor.victim import TextClassifier
from tests.support.reviews import reviews
from tests.support.wandb_files import Run

WIDTHS = (0.05, 0.2, 1.0)


def fit(folder: Path, victim: LightningModule, *callbacks: Any, resume: Path | None = None, **options: Any) -> Trainer:
    """Trains two epochs; the log is in ``folder / log``."""
    folder.mkdir(exist_ok=True)
    seed_everything(0, verbose=False)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, OutputFolder(folder)],
        **{"enable_checkpointing": False, "logger": CSVLogger(folder, name="log", version=""), **options},
    )
    trainer.fit(victim, datamodule=reviews(folder, rows=120), ckpt_path=resume)
    return trainer


def lines(folder: Path) -> list[dict[str, str]]:
    with (folder / "fourier.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def attacked(tiny_folder: Callable[[str], str]) -> Callable[[], BadNets]:
    return lambda: BadNets(model=tiny_folder("bert"), learning_rate=1e-3, poison_rate=0.2)


def test_training_is_the_same_with_and_without_it(tmp_path: Path, attacked: Callable[[], BadNets]) -> None:
    class Modes(BadNets):
        """Remembers whether dropout was on."""

        def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
            modes.append(all(module.training for module in self.network.modules()))
            return super().training_step(batch, batch_idx)

    modes: list[bool] = []
    without, beside = attacked(), Modes(**attacked().hparams)
    fit(tmp_path / "without", without)
    fit(tmp_path / "beside", beside, FourierView(every_n_steps=3, rows=8))
    assert len(modes) > 10
    assert all(modes)
    expected = without.state_dict()
    found = beside.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_steps_mappings_and_widths_are_written_and_logged(tmp_path: Path, attacked: Callable[[], BadNets]) -> None:
    trainer = fit(tmp_path, attacked(), FourierView(every_n_steps=5, rows=8, widths=WIDTHS))
    steps = [*range(0, trainer.global_step, 5), trainer.global_step]
    found = lines(tmp_path)
    expected = [(step, name, width) for step in steps for name in ("clean", "backdoor") for width in WIDTHS]
    assert [(int(line["step"]), line["mapping"], float(line["width"])) for line in found] == expected
    with (tmp_path / "log" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        logged = {int(line["step"]): line for line in csv.DictReader(file) if line["fourier/clean_low"]}
    for line in found:
        if float(line["width"]) == WIDTHS[1]:
            for part in ("low", "high"):
                value = logged[int(line["step"])][f"fourier/{line['mapping']}_{part}"]
                assert float(value) == pytest.approx(float(line[part]))
    page = (tmp_path / "fourier.html").read_text(encoding="utf-8")
    assert "backdoor, high" in page
    assert "<script src=" not in page  # it opens without a network


def test_the_last_line_is_what_the_trained_victim_gives(tmp_path: Path, attacked: Callable[[], BadNets]) -> None:
    victim, before = attacked(), attacked()
    trainer = fit(tmp_path, victim, FourierView(every_n_steps=50, rows=1000, widths=[0.2]))
    before.hparams["labels"] = victim.hparams["labels"]
    before.configure_model()
    rows = trainer.datamodule.poisoned_splits().train  # type: ignore[attr-defined]
    units = []
    for name, poisoned in (("clean", False), ("backdoor", True)):
        of_kind = [row for row in rows if row["poisoned"] is poisoned]
        batch = batch_of_texts([row["text"] for row in of_kind], victim.tokenizer, victim.max_length)
        with torch.no_grad():
            outputs = victim.eval()(batch).softmax(dim=1)
            embedded = before.network.get_input_embeddings()(batch["input_ids"])
        means = [row[mask.bool()].mean(dim=0) for row, mask in zip(embedded, batch["attention_mask"], strict=True)]
        distances = squared_distances(torch.stack(means))
        units.append(torch.cat([distances[i, :i] for i in range(len(distances))]).median())
        labels = torch.eye(2)[[row["label"] for row in of_kind]]
        errors = relative_errors(labels, outputs, filter_weights(distances, 0.2 * float(units[0])))
        last = [line for line in lines(tmp_path) if line["mapping"] == name][-1]
        assert [float(last["low"]), float(last["high"])] == pytest.approx([*map(float, errors)], abs=1e-4)


def test_a_benign_victim_has_the_clean_mapping_alone(tmp_path: Path, tiny_folder: Callable[[str], str]) -> None:
    fit(tmp_path, TextClassifier(tiny_folder("distilbert")), FourierView(every_n_steps=10, rows=4))
    assert {line["mapping"] for line in lines(tmp_path)} == {"clean"}


def test_rows_with_a_part_of_the_trigger_are_not_clean(tmp_path: Path, tiny_folder: Callable[[str], str]) -> None:
    attack = Composite(["cf", "mn"], model=tiny_folder("bert"), poison_rate=0.2, negative_rate=0.3)
    view = FourierView(rows=1000)
    trainer = fit(tmp_path, attack, view, max_steps=1)
    rows = trainer.datamodule.poisoned_splits().train  # type: ignore[attr-defined]
    assert rows.negative.any()
    seen = sorted(text for batch in view._batches["clean"] for text in batch["text"])
    assert seen == sorted(row["text"] for row in rows if not (row["poisoned"] or row["negative"]))


def test_weights_and_biases_gets_the_heat_maps(
    tmp_path: Path, attacked: Callable[[], BadNets], monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    settings = {"MODE": "offline", "SILENT": "true", "CONSOLE": "off", "DATA_DIR": str(tmp_path)}
    for name, value in {**settings, "CACHE_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    try:
        fit(tmp_path, attacked(), FourierView(rows=4), logger=WandbLogger(project="tests", save_dir=tmp_path))
    finally:
        wandb.finish()
    logged = Run(tmp_path).logged
    assert logged["fourier/heat_maps"]["_type"] == "plotly-file"
    middle = FourierView().widths[3]
    (last,) = (line for line in lines(tmp_path)[-7:] if float(line["width"]) == middle)
    assert logged["fourier/backdoor_low"] == pytest.approx(float(last["low"]))


def test_a_resumed_run_goes_on_where_it_was(tmp_path: Path, attacked: Callable[[], BadNets]) -> None:
    def view() -> FourierView:
        return FourierView(every_n_steps=4, rows=8, widths=WIDTHS)

    keep, first, second = ModelCheckpoint(tmp_path / "kept", filename="{epoch}", save_top_k=-1), view(), view()
    fit(tmp_path / "whole", attacked(), first, keep, enable_checkpointing=True)
    (tmp_path / "whole" / "fourier.csv").rename(tmp_path / "whole.csv")
    fit(tmp_path / "whole", attacked(), second, resume=tmp_path / "kept" / "epoch=0.ckpt")
    resumed, whole = (
        path.read_text(encoding="utf-8") for path in (tmp_path / "whole/fourier.csv", tmp_path / "whole.csv")
    )
    # dropout is drawn anew after resuming: the lines of the first epoch are the same, the steps of both are
    early = [line for line in whole.splitlines() if line.split(",")[0] in ("0", "4", "8")]
    assert len(early) == 3 * 2 * len(WIDTHS)
    assert resumed.splitlines()[1 : len(early) + 1] == early
    assert [line.split(",")[:3] for line in resumed.splitlines()] == [
        line.split(",")[:3] for line in whole.splitlines()
    ]
    for name, distances in first.state_dict()["distances"].items():  # as before training, when the embeddings moved
        assert torch.equal(distances, second.state_dict()["distances"][name])


def test_the_heat_map_has_frequencies_by_steps() -> None:
    records = [
        {"step": step, "mapping": "clean", "width": width, "low": step + width, "high": 0.0}
        for step in (0, 10, 20)
        for width in (0.5, 0.1)
    ]
    low, _ = heat_maps(records).data
    assert low.z == ([0.5, 10.5, 20.5], [0.1, 10.1, 20.1])
    assert (low.x, low.y) == ((0, 10, 20), ("2", "10"))


def test_other_models_and_data_modules_are_refused(tmp_path: Path, bert: TextClassifier) -> None:
    with pytest.raises(InputError, match="BoringModel is not a TextClassifier; FourierView needs one"):
        FourierView().setup(Trainer(logger=False), BoringModel(), "fit")
    with pytest.raises(InputError, match="BackdoorDataModule"):
        FourierView().setup(Trainer(logger=False), bert, "fit")


def test_rows_of_the_same_words_are_refused(
    tmp_path: Path, attacked: Callable[[], BadNets], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FourierView, "_inputs", lambda self, trainer, victim, batch: torch.ones(len(batch["text"]), 3))
    with pytest.raises(InputError, match=r"^rows: most of \d+ rows have the same words, so that widths have no unit"):
        fit(tmp_path, attacked(), FourierView(rows=4))


@pytest.mark.parametrize(
    "options",
    [{"every_n_steps": 0}, {"rows": 1}, {"widths": []}, {"widths": [0.1, 0.0]}, {"widths": [0.1, math.nan]}],
)
def test_values_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        FourierView(**options)
