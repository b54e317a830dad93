"""``lb.evaluate``: the numbers of ``test``, from checkpoints, folders and modules, and files only where asked for."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

import lightning_backdoor as lb
from lightning_backdoor.cli import main


def data(folder: Path, **options: object) -> lb.BackdoorDataModule:
    source = lb.Source(str(folder / "data.csv"), labels=["negative", "positive"])
    settings: dict[str, object] = {"batch_size": 16, "eval_batch_size": 16, "max_rows": {"test": 60}, **options}
    return lb.BackdoorDataModule(source, **settings)  # type: ignore[arg-type]


def numbers(results: lb.Evaluation, defense: str) -> dict[str, float]:
    frame = results.frame.set_index("defense").drop(columns="overhead", errors="ignore")
    return {name: value for name, value in frame.loc[defense].items() if isinstance(value, float)}


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "cache" not in path.parts}


def test_the_numbers_are_those_of_the_command_test_and_no_file_is_written(inside: Path, trained: Path) -> None:
    before, environment = files(inside), dict(os.environ)
    module = data(inside)
    checkpoint = trained / "checkpoints" / "best.ckpt"
    results = lb.evaluate(checkpoint, module, lb.BadNets(), {"strip": lb.Strip(copies=2)}, accelerator="cpu")
    assert files(inside) == before
    assert dict(os.environ) == environment
    options = ["-c", "trained/config.yaml", "--ckpt_path", str(checkpoint), "--data.max_rows", "{test: 60}"]
    options += ["--trainer.callbacks+=lightning_backdoor.callbacks.InferenceDefense"]
    options += ["--trainer.callbacks.defense=lightning_backdoor.defenses.Strip"]
    options += ["--trainer.callbacks.defense.copies=2", "--trainer.callbacks.name=strip"]
    assert main(["test", *options, "--run_dir", "evaluated"]) == 0
    logged = json.loads(next(inside.glob("evaluated/**/metrics.json")).read_text(encoding="utf-8"))
    metrics = logged.get("metrics", logged)
    frame = results.frame.set_index("defense")
    for name in ("cacc", "asr", "asr_floor"):
        assert frame.loc["none", name] == frame.loc["strip", name] == metrics[f"test/{name}"]
    for name in ("cacc_defended", "asr_defended", "auroc", "fpr", "tpr"):
        assert frame.loc["strip", name] == metrics[f"test/strip/{name}"]
    assert frame.loc["none", "asr_defended"] == frame.loc["none", "asr"]
    assert [outcome.rejected for outcome in results.outcomes["none"]] == [None] * len(results.outcomes["none"])
    assert module.trainer is None
    assert module.attack is None


def test_checkpoint_folder_run_and_module_give_the_same_numbers(inside: Path, trained: Path) -> None:
    victim = lb.load_trained(str(trained / "model"), max_length=128).train()
    attack = lb.BadNets()
    models: list[str | Path | lb.TextClassifier] = [trained / "checkpoints" / "best.ckpt", str(trained), victim]
    results = [lb.evaluate(model, data(inside), attack, "strip", accelerator="cpu") for model in models]
    assert numbers(results[0], "Strip") == numbers(results[1], "Strip") == numbers(results[2], "Strip")
    assert victim.training
    assert victim._trainer is None
    assert not hasattr(attack, "network")


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(inside: Path, trained: Path) -> None:
    module, strip = data(inside), lb.Strip()
    runs = [lb.evaluate(trained, module, lb.BadNets(), [strip], seed=seed, accelerator="cpu") for seed in (1, 1, 2)]
    scores = [[outcome.score for outcome in run.outcomes["Strip"]] for run in runs]
    assert scores[0] == scores[1] != scores[2]
    assert strip.seed is None


def test_an_evaluation_that_fails_leaves_the_callers_random_numbers_as_they_were(inside: Path, trained: Path) -> None:
    before, environment = torch.get_rng_state(), dict(os.environ)
    with pytest.raises(lb.InputError, match="may have been trained on test rows"):
        lb.evaluate(trained / "checkpoints" / "best.ckpt", data(inside, seed=5), lb.BadNets(), accelerator="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert dict(os.environ) == environment


def test_files_are_written_where_asked_for(inside: Path, trained: Path) -> None:
    folder = inside / "asked"
    results = lb.evaluate(trained, data(inside), lb.BadNets(), ["Strip"], folder=folder, accelerator="cpu")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names >= {"results.csv", "comparisons.csv", "outcomes.csv", "Strip/outcomes.csv", "Strip/texts.jsonl"}
    with (folder / "results.csv").open(encoding="utf-8") as file:
        rows = {row["defense"]: row for row in csv.DictReader(file)}
    assert float(rows["Strip"]["asr"]) == results.rows[1]["asr"]


def test_without_an_attack_only_clean_rows_are_tested(inside: Path, trained: Path) -> None:
    results = lb.evaluate(trained / "model", data(inside), accelerator="cpu")
    (row,) = results.rows
    assert row["attack"] == "none"
    assert row["n_clean"] == 60
    assert row["asr"] is None
    assert "asr" not in results.frame


def test_inspections_stand_beside_defenses(inside: Path, trained: Path) -> None:
    results = lb.evaluate(
        trained, data(inside), lb.BadNets(), [lb.Strip(copies=2), lb.Strip(copies=2), lb.FlaggedShare()]
    )
    assert [row["defense"] for row in results.rows] == ["none", "Strip", "Strip 2", "FlaggedShare"]
    assert math.isfinite(results.rows[3]["inspection_score"])
    assert results.rows[1]["inspection_score"] is None


def test_the_table_is_printed_and_shown_in_a_notebook(inside: Path, trained: Path) -> None:
    results = lb.evaluate(trained, data(inside), lb.BadNets(), {"a & b": lb.Strip(copies=2)}, accelerator="cpu")
    text, html = repr(results), results._repr_html_()
    assert "a & b" in text
    assert "BadNets" in text
    assert "a &amp; b" in html
    assert ("not valid" in html) is bool(results.rows[0]["invalid_because"])
    collapsed = lb.evaluate(inside / "model", data(inside), lb.BadNets(), accelerator="cpu")
    assert collapsed.rows[0]["valid"] == "no"
    assert ">not valid</small>" in collapsed._repr_html_()


def test_files_and_frames_are_data(inside: Path, trained: Path) -> None:
    frame = pandas.read_csv(inside / "data.csv").replace({"label": {0: "negative", 1: "positive"}})
    by_frame = lb.evaluate(trained / "model", frame, defenses=None, accelerator="cpu")
    assert by_frame.rows[0]["dataset"] == "frame"  # and not the path of a file that is gone
    frame.to_csv(inside / "named.csv", index=False)
    by_path = lb.evaluate(trained / "model", inside / "named.csv", accelerator="cpu")
    assert by_frame.rows[0]["cacc"] == by_path.rows[0]["cacc"]
    assert by_frame.rows[0]["n_clean"] == by_path.rows[0]["n_clean"] == 120


def test_a_module_after_training_is_its_own_attack(inside: Path, trained: Path) -> None:
    attack = lb.BadNets()
    fitted = lb.evaluate(trained, data(inside), attack, accelerator="cpu")
    victim = lb.load_trained(str(trained / "model"), max_length=128)
    attack.hparams.update({name: victim.hparams[name] for name in ("model", "labels", "max_length")})
    attack.configure_model()
    attack.new_head = None
    again = lb.evaluate(attack, data(inside), accelerator="cpu")
    assert again.rows[0]["attack"] == "BadNets"
    assert again.rows[0]["asr"] == fitted.rows[0]["asr"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "nowhere"}, "model: nowhere is neither"),
        ({"model": 3}, "model: a int is not a victim"),
        ({"model": lb.BadNets()}, "model: this BadNets has not been trained"),
        ({"attack": lb.LWS()}, "attack: .* has no trigger of LWS"),
        ({"attack": lb.Strip()}, "attack: .* is not an attack"),
        ({"defenses": ["Stripp"]}, "defenses: there is no defense 'Stripp'; did you mean Strip?"),
        ({"defenses": [lb.MuScleLoRA()]}, "defenses: MuScleLoRA does not act on a trained model"),
        ({"defenses": {"none": lb.Strip()}}, "defenses: 'none' is the name of the undefended victim"),
        ({"defenses": {"../x": lb.Strip()}}, "defenses: '../x' is not a name for files"),
        ({"defenses": lb.Defense}, "defenses: Defense cannot be made without arguments"),
        ({"defenses": [None]}, "defenses: NoneType does not act on a trained model"),
        ({"data": 3}, "data: a int holds no rows"),
        ({"data": pandas.DataFrame({"text": ["a", 3], "label": [0, 1]})}, "data: the frame cannot be read"),
        ({"seed": -1}, "seed: -1 is not a seed"),
        ({"seed": "one"}, "seed: 'one' is not a seed"),
        ({"accelerator": "none"}, "accelerator: none cannot be used"),
        ({"precision": "none"}, "precision: none cannot be used"),
        ({"folder": "data.csv"}, "folder: data.csv is not a folder"),
    ],
)
def test_what_cannot_be_used_is_refused(inside: Path, trained: Path, change: dict[str, object], words: str) -> None:
    arguments: Any = {"model": trained, "data": data(inside), "attack": lb.BadNets(), **change}
    with pytest.raises(lb.InputError, match=words):
        lb.evaluate(**arguments)


def test_a_checkpoint_whose_rows_were_cut_differently_is_refused(inside: Path, trained: Path) -> None:
    with pytest.raises(lb.InputError, match="may have been trained on test rows"):
        lb.evaluate(trained / "checkpoints" / "best.ckpt", data(Path(), seed=5), lb.BadNets(), accelerator="cpu")
