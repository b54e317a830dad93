"""``report``: the results of grids and single tests in one page, without running anything."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_backdoor.benchmark.grid import Grid
from lightning_backdoor.benchmark.report import page
from lightning_backdoor.benchmark.report.merging import merge
from lightning_backdoor.benchmark.report.single_runs import read_test
from lightning_backdoor.benchmark.report.sources import read_sources
from lightning_backdoor.benchmark.results import collect_results
from lightning_backdoor.benchmark.table import COLUMNS, NUMBERS, csv_text
from lightning_backdoor.cli import main
from lightning_backdoor.outputs.outcomes import Outcome, write_outcomes
from tests.benchmark.example import Example, example

DEFENSES: Mapping[str, float | None] = {"none": None, "onion": 1.2}
ONION = {"class_path": "stub.Onion", "init_args": {"fpr": 0.05}}
SETTINGS: Mapping[str, Any] = {
    "datasets": {"sst2": {"class_path": "stub.Data"}},
    "models": {"minilm": "minilm"},
    "attacks": {"none": None, "badnets": {"class_path": "stub.BadNets"}},
    "defenses": {"none": None, "onion": {"inference": ONION}},
    "seeds": [0],
}


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "write_figures", lambda folder, figures: None)


def grid(folder: Path, seeds: Sequence[int] = (0,), **changes: Any) -> Example:
    """A grid's output folder, as a run leaves it."""
    made = example(folder / "cells", attacks=("badnets",), defenses=DEFENSES, seeds=seeds, n_clean=20, n_poisoned=10)
    for number, row in enumerate(made.rows):  # ids of cells differ between grids
        cell = f"{abs(hash(folder.name)) % 10**8:08d}{number:08d}"
        (folder / "cells" / row["cell"]).rename(folder / "cells" / cell)
        row |= {"cell": cell, "training": ""}
    collect_results(made.rows, "none", made.cells)
    (folder / "results.csv").write_text(csv_text(made.rows, COLUMNS), encoding="utf-8")
    (folder / "journal.jsonl").touch()
    (folder / "grids").mkdir()
    file = folder / "grid.yaml"
    file.write_text(yaml.safe_dump({**SETTINGS, "seeds": [*seeds], **changes}), encoding="utf-8")
    (folder / "grids" / "0.yaml").write_text(Grid(file).as_yaml(), encoding="utf-8")
    return made


def single_test(
    folder: Path, seed: int = 0, callbacks: Any = None, attack: str = "stub.Shout", asr: float = 1.0
) -> None:
    """The folder of a test, as it leaves it."""
    folder.mkdir(parents=True)
    model = {"class_path": attack, "init_args": {"model": "minilm", "target_label": 1}}
    data = {"class_path": "stub.Data", "init_args": {"source": {"path": "sst2", "name": None}}}
    config = {"seed_everything": seed, "trainer": {"callbacks": callbacks}, "model": model, "data": data}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    metrics: dict[str, Any] = {"test/cacc": 0.9, "test/asr": asr, "test/asr_floor": 0.1}
    for entry in callbacks or ():
        name = entry["init_args"].get("name", "")
        prefix = f"test/{name}/" if name else "test/"
        metrics |= {f"{prefix}asr_defended": 0.25, f"{prefix}auroc": None, f"{prefix}fpr": 0.0}
        (folder / name).mkdir(exist_ok=True)
        write_outcomes(folder / name / "outcomes.csv", [Outcome(0, True, "a", "b", "b", "a", True, True, 1.0)])
    if not callbacks:
        write_outcomes(folder / "outcomes.csv", [Outcome(0, True, "a", "b", "b")])
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")


@pytest.mark.parametrize(
    ("attack", "dataset"),
    [("lightning_backdoor.attacks.PoisonFiles", "badnets"), ("mine.Attack", "sst2"), ("PoisonFiles", "badnets")],
)
def test_the_folder_of_poison_files_is_the_dataset_and_that_of_another_attack_is_not(
    tmp_path: Path, attack: str, dataset: str
) -> None:
    seen = set()
    for name in ("one", "two"):
        single_test(tmp_path / name, attack=attack)
        config = yaml.safe_load((tmp_path / name / "config.yaml").read_text(encoding="utf-8"))
        config["model"]["init_args"]["folder"] = str(tmp_path / name / "badnets")
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        source = read_test(tmp_path / name, name)
        assert source.rows[0]["dataset"] == dataset
        seen.add(source.meanings["dataset"][dataset])
    assert len(seen) == (2 if dataset == "badnets" else 1)


def judging(name: str, fpr: float, **more: Any) -> dict[str, Any]:
    """A test's callback with an inference-time defense."""
    arguments = {"name": name, "defense": {"class_path": "stub.Onion", "init_args": {"fpr": fpr}}, **more}
    return {"class_path": "lightning_backdoor.callbacks.InferenceDefense", "init_args": arguments}


def report(capsys: pytest.CaptureFixture[str], *runs: Path, **options: str) -> tuple[int, list[dict[str, str]], str]:
    """The exit status, the rows of ``results.csv``, and what was said on standard error."""
    given = [part for name, value in options.items() for part in (f"--{name}", value)]
    status = main(["report", *map(str, runs), *given])
    said = capsys.readouterr()
    if status:
        return status, [], said.err
    with (Path(options.get("output", "report")) / "results.csv").open(encoding="utf-8") as file:
        return status, [*csv.DictReader(file)], said.err


def names(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, ...]]:
    return [tuple(row[name] for name in ("model", "attack", "defense", "seed")) for row in rows]


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_grid_gives_its_own_numbers_and_links(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = grid(tmp_path / "demo")
    status, rows, said = report(capsys, Path("demo"), output="out/page")
    assert (status, said) == (0, "")
    assert sorted(path.name for path in Path("out/page").iterdir()) == sorted(
        ["report.html", "table.tex", "table.md", "results.csv", "comparisons.csv"]
    )
    with (tmp_path / "demo" / "results.csv").open(encoding="utf-8") as file:
        before = [*csv.DictReader(file)]
    assert [{**row, "cell": ""} for row in rows] == [{**row, "cell": ""} for row in before]
    html = Path("out/page/report.html").read_text(encoding="utf-8")
    for row, made_row in zip(rows, made.rows, strict=True):
        assert row["cell"] == f"../../demo/cells/{made_row['cell']}"
        assert f'href="{row["cell"]}/"' in html
        assert (tmp_path / "out" / "page" / row["cell"]).is_dir()
    assert "ROC" in html


def test_the_words_of_an_inspection_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = grid(tmp_path / "demo")
    made.inspect("share", {"none": [0.5], "badnets": [2.0]})
    cell = made.cells / made.row(attack="badnets", defense="share")["cell"]
    found = {"evidence": {"words": "cf (p < 1e-9)"}}
    (cell / "inspection.json").write_text(json.dumps(found), encoding="utf-8")
    (tmp_path / "demo" / "results.csv").write_text(csv_text(made.rows, COLUMNS), encoding="utf-8")
    assert report(capsys, Path("demo"))[0] == 0
    html = Path("report/report.html").read_text(encoding="utf-8")
    assert "Words that stand out (p)" in html
    assert "cf (p &lt; 1e-9)" in html


def test_seeds_of_grids_with_the_same_settings_are_put_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid(tmp_path / "a", seeds=(0,))
    grid(tmp_path / "b", seeds=(1,))
    _, rows, said = report(capsys, Path("a"), Path("b"))
    assert {row["model"] for row in rows} == {"minilm"}
    assert {row["seed"] for row in rows} == {"0", "1"}
    assert said == ""
    assert "±" in Path("report/table.md").read_text(encoding="utf-8")


def test_one_name_for_different_settings_is_followed_by_the_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid(tmp_path / "a")
    other = {"none": None, "onion": {"inference": {**ONION, "init_args": {"fpr": 0.1}}}}
    grid(tmp_path / "b", seeds=(1,), defenses=other)
    _, rows, _ = report(capsys, tmp_path)  # a folder of folders
    of_attack = [name for name in names(rows) if name[1] == "badnets"]
    assert {name[2] for name in of_attack} == {"none", "onion (a)", "onion (b)", "clean training"}
    grid(tmp_path / "c", seeds=(2,), base={"trainer": {"max_epochs": 9}})
    _, rows, _ = report(capsys, Path("a"), Path("c"))
    assert {row["model"] for row in rows} == {"minilm (a)", "minilm (c)"}


def test_benign_victims_of_different_settings_are_told_apart_with_all_that_is_judged_by_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benign = {"class_path": "TextClassifier", "init_args": {"learning_rate": 0.5}}
    attacks = {"none": benign, "badnets": SETTINGS["attacks"]["badnets"]}
    grid(tmp_path / "a")
    made = grid(tmp_path / "b", seeds=(1,), attacks=attacks)
    (tmp_path / "b" / "results.csv").write_text(csv_text(made.rows[:-1], COLUMNS), encoding="utf-8")
    _, rows, _ = report(capsys, Path("a"), Path("b"))
    assert {(row["model"], row["seed"]) for row in rows} == {("minilm (a)", "0"), ("minilm (b)", "1")}
    assert {row["attack"] for row in rows} == {"none", "badnets"}
    assert {row["valid"] for row in rows if row["attack"] == "badnets"} == {"yes"}
    _, (cell,) = merge(read_sources([Path("a"), Path("b")]), print)
    assert cell.names["model"] == "minilm (b)"
    for seed, attack in enumerate(("TextClassifier", "TextClassifier", "stub.Shout")):
        single_test(tmp_path / "tests" / str(seed), seed=seed, attack=attack)
    config = tmp_path / "tests" / "1" / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("target_label: 1", "weight_decay: 1"), "utf-8")
    _, rows, _ = report(capsys, Path("tests"))
    assert [row["model"] for row in rows] == ["minilm (0)", "minilm (1)", "minilm"]


@pytest.mark.parametrize("benign", ["TextClassifier", "lightning_backdoor.victim.classifier.TextClassifier"])
def test_benign_victims_mean_the_same_however_their_class_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], benign: str
) -> None:
    grid(tmp_path / "a")
    grid(tmp_path / "b", (1,), attacks={"none": {"class_path": benign}, "badnets": SETTINGS["attacks"]["badnets"]})
    _, rows, _ = report(capsys, Path("a"), Path("b"))
    assert {row["model"] for row in rows} == {"minilm"}


def test_a_published_checkpoint_is_not_the_victim_that_is_trained_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid(tmp_path / "a", models={"minilm": {"checkpoint": "victims/bert"}})
    grid(tmp_path / "b", seeds=(1,), models={"minilm": "victims/bert"})
    _, rows, _ = report(capsys, Path("a"), Path("b"))
    assert {row["model"] for row in rows} == {"minilm (a)", "minilm (b)"}
    single_test(tmp_path / "tests" / "published")
    single_test(tmp_path / "tests" / "trained", seed=1)
    config = tmp_path / "tests" / "trained" / "config.yaml"
    trained = {**yaml.safe_load(config.read_text(encoding="utf-8")), "ckpt_path": "runs/b/checkpoints/best.ckpt"}
    config.write_text(yaml.safe_dump(trained), encoding="utf-8")
    _, rows, _ = report(capsys, Path("tests"))
    assert {row["model"] for row in rows} == {"minilm (published)", "minilm (trained)"}


def test_any_name_of_a_folder_or_title_can_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = (b"a\xff/test", b"b\x1b[31m/test", b"b\\x1b[31m/test")
    for seed, folder in enumerate(folders):
        single_test(tmp_path / "runs" / os.fsdecode(folder), seed=seed, callbacks=[judging("", 0.1 + seed)])
    title = "\x1b[31m"
    status, rows, said = report(capsys, Path("runs"), title=title, caption=title)
    assert (status, said) == (0, "")
    assert [row["defense"] for row in rows] == [r"Onion (a\udcff)", r"Onion (b\x1b[31m)", r"Onion (b\\x1b[31m)"]
    for name in ("table.tex", "table.md", "comparisons.csv"):
        assert "\x1b" not in Path("report", name).read_text(encoding="utf-8")
    assert "\x1b" not in read_test(tmp_path / "runs" / os.fsdecode(folders[1]), "test").run_label


def test_a_cell_in_two_folders_counts_once_and_it_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = grid(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    _, rows, said = report(capsys, Path("a"), Path("copy"), Path("a"))
    assert len(rows) == len(made.rows)
    assert said == f"copy: {len(rows)} rows left out, which another folder has too\n"


def test_other_cells_of_the_same_names_and_seed_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid(tmp_path / "a")
    grid(tmp_path / "b")  # the same settings, but other files behind them: other ids
    _, rows, _ = report(capsys, Path("a"), Path("b"))
    assert {row["model"] for row in rows} == {"minilm (a)", "minilm (b)"}


def test_cells_that_have_not_run_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = grid(tmp_path / "a")
    path = tmp_path / "a" / "results.csv"
    path.write_text(csv_text(made.rows[:-1], COLUMNS), encoding="utf-8")
    main(["report", "a"])
    assert f"{len(made.rows) - 1} of {len(made.rows)} cells (1 not run)" in capsys.readouterr().out
    assert "1 not run" in Path("report/report.html").read_text(encoding="utf-8")


def test_single_tests_are_rows_by_attack_defense_and_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strip = {"class_path": "stub.Strip", "init_args": {"fpr": 0.1}}
    attached = [
        {"class_path": "lightning_backdoor.callbacks.InferenceDefense", "init_args": {"name": "s", "defense": strip}},
        {"class_path": "lightning_backdoor.callbacks.GradientAttentionDefense", "init_args": {"name": "ga"}},
    ]
    single_test(tmp_path / "runs" / "first" / "test")
    single_test(tmp_path / "runs" / "first" / "test-2", callbacks=attached)
    single_test(tmp_path / "runs" / "second" / "test", seed=1, asr=0.95)
    single_test(tmp_path / "runs" / "benign" / "test", attack="lightning_backdoor.victim.TextClassifier")
    _, rows, said = report(capsys, Path("runs"))
    assert said == ""
    assert sorted(names(rows)) == sorted(
        [
            ("minilm", "Shout", "none", "0"),
            ("minilm", "Shout", "none", "1"),
            ("minilm", "Shout", "Strip", "0"),
            ("minilm", "Shout", "GradientAttention", "0"),
            ("minilm", "none", "none", "0"),
        ]
    )
    strip_row = next(row for row in rows if row["defense"] == "Strip")
    assert strip_row["cell"] == "../runs/first/test-2/s"
    assert (strip_row["asr"], strip_row["asr_defended"], strip_row["auroc"]) == ("1.0", "0.25", "")
    assert strip_row["valid"] == "yes"
    assert strip_row["n_poisoned"] == "1"


def test_defenses_of_one_class_in_a_test_are_told_apart_by_their_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"class_path": "lightning_backdoor.callbacks.GradientAttentionDefense", "init_args": {"name": "ga"}}
    for seed in (0, 1):
        attached = [judging("weak", 0.1), judging("strong", 0.2), other]
        single_test(tmp_path / f"run{seed}" / "test", seed=seed, callbacks=attached)
        path = tmp_path / f"run{seed}" / "test" / "metrics.json"
        metrics = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**metrics, "test/weak/asr_defended": 0.9}), encoding="utf-8")
    _, rows, _ = report(capsys, tmp_path)
    assert {(row["model"], row["defense"], row["asr_defended"]) for row in rows} == {
        ("minilm", "Onion (weak)", "0.9"),
        ("minilm", "Onion (strong)", "0.25"),
        ("minilm", "GradientAttention", "0.25"),
    }
    table = Path("report/table.md").read_text(encoding="utf-8")
    assert "0.900 ±0.000" in table
    assert "0.250 ±0.000" in table


@pytest.mark.parametrize(("failed", "other"), [("weak", ""), ("", "weak"), ("weak", "strong")])
def test_a_defense_that_failed_alone_in_a_test_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], failed: str, other: str
) -> None:
    folder = tmp_path / "run" / "test"
    strip = judging(failed, 0.1)
    strip["init_args"]["defense"] = {"class_path": "stub.Strip"}
    single_test(folder, callbacks=[judging(other, 0.1), strip])
    metrics = {"test/cacc": 0.9, "test/asr": 1.0}
    metrics |= {f"test/{other}/{name}".replace("//", "/"): 0.5 for name in ("cacc_defended", "auroc", "tpr", "fpr")}
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    (folder / failed / "outcomes.csv").unlink()
    _, rows, _ = report(capsys, tmp_path)
    by_defense = {row["defense"]: row for row in rows}
    assert (by_defense["Onion"]["auroc"], by_defense["Onion"]["error"]) == ("0.5", "")
    assert by_defense["Strip"]["error"] == "the test has no numbers of it"
    assert not [name for name in NUMBERS if by_defense["Strip"][name]]
    page = Path("report/report.html").read_text(encoding="utf-8")
    assert "1 of 2 cells (1 failed)" in page
    assert "failed: the test has no numbers of it" in page


@pytest.mark.parametrize("name", ["", "flags"])
@pytest.mark.parametrize("failed", [False, True])
def test_an_inspection_has_the_score_that_it_logged_and_one_that_failed_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, failed: bool
) -> None:
    inspecting = {
        "class_path": "lightning_backdoor.callbacks.InspectionCallback",
        "init_args": {"name": name, "inspection": {"class_path": "stub.Flags"}},
    }
    folder = tmp_path / "run" / "test"
    single_test(folder, callbacks=[inspecting])
    metrics = {"test/cacc": 0.9, "test/asr": 1.0}
    if not failed:
        metrics[f"test/{name}/inspection_score".replace("//", "/")] = 2.5
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    _, (row,), _ = report(capsys, tmp_path)
    assert (row["defense"], row["inspection_score"]) == ("Flags", "" if failed else "2.5")
    assert row["error"] == ("the test has no numbers of it" if failed else "")


def test_the_scores_of_a_defense_without_a_name_are_those_of_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"class_path": "lightning_backdoor.callbacks.GradientAttentionDefense", "init_args": {"name": "ga"}}
    single_test(tmp_path / "run" / "test", callbacks=[judging("", 0.1), other])
    path = tmp_path / "run" / "test" / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**metrics, "test/tpr": 0.75, "test/ftr": 0.5}), encoding="utf-8")
    _, rows, _ = report(capsys, tmp_path)
    assert {row["defense"]: (row["tpr"], row["ftr"]) for row in rows} == {
        "Onion": ("0.75", "0.5"),
        "GradientAttention": ("", "0.5"),
    }


def test_a_gate_tells_tests_apart_and_the_number_of_kept_texts_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, more in enumerate(({"texts": 9}, {"texts": 5}, {"texts": 5, "gate": True})):
        single_test(tmp_path / f"run{seed}" / "test", seed=seed, callbacks=[judging("", 0.1, **more)])
    _, rows, _ = report(capsys, tmp_path)
    assert [row["defense"] for row in rows] == ["Onion (run0)", "Onion (run0)", "Onion (run2)"]


def test_tests_of_one_run_that_differ_are_told_apart_by_their_own_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, (folder, fpr) in enumerate({"one/test": 0.1, "one/test-2": 0.2, "two/test": 0.1}.items()):
        single_test(tmp_path / folder, seed=seed, callbacks=[judging("", fpr)])
    _, rows, _ = report(capsys, tmp_path)
    assert [row["defense"] for row in rows] == ["Onion (one/test)", "Onion (one/test-2)", "Onion (one/test)"]
    _, rows, _ = report(capsys, Path("one"))
    assert [row["defense"] for row in rows] == ["Onion (test)", "Onion (test-2)"]


def test_tests_of_other_rows_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, rows_hash in enumerate(("1", "1", "2")):
        single_test(tmp_path / f"run{seed}" / "test", seed=seed)
        path = tmp_path / f"run{seed}" / "test" / "metrics.json"
        path.write_text(
            json.dumps({**json.loads(path.read_text(encoding="utf-8")), "data": rows_hash}), encoding="utf-8"
        )
    _, rows, _ = report(capsys, tmp_path)
    assert [row["dataset"] for row in rows] == ["sst2 (run0)", "sst2 (run0)", "sst2 (run2)"]


def test_single_tests_are_named_as_in_wandb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repair = {"class_path": "lightning_backdoor.callbacks.Pure", "init_args": {"min_accuracy": 0.8}}
    single_test(tmp_path / "runs" / "a" / "test", callbacks=[repair])
    file = tmp_path / "runs" / "a" / "test" / "config.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    config["model"]["init_args"] |= {"model": "package://tiny/model", "published": "runs/b/checkpoints/best.ckpt"}
    config["data"]["init_args"] |= {"source": {"path": "package://reviews", "name": "x"}, "train_on": "trusted"}
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    status, rows, _ = report(capsys, Path("runs"))
    assert status == 0
    assert [rows[0][name] for name in ("dataset", "model", "defense")] == [
        *("reviews/x", "tiny/model", "Pure on trusted rows")
    ]


def test_grids_and_tests_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid(tmp_path / "demo")
    single_test(tmp_path / "first" / "test")
    status, rows, _ = report(capsys, Path("demo"), Path("first/test"))
    assert status == 0
    assert {row["attack"] for row in rows} == {"none", "badnets", "Shout"}


def test_the_table_is_as_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid(tmp_path / "a")
    args = ["--columns", "asr_defended, tpr", "--attacks", "badnets", "--caption", "50% of it", "--label", "tab:x"]
    assert main(["report", "a", "--percent", *args]) == 0
    latex = Path("report/table.tex").read_text(encoding="utf-8")
    assert r"\caption{50\% of it}" in latex
    assert r"\label{tab:x}" in latex
    assert "Attack & Defense & ASR & TPR" in latex
    assert "none &  &" not in latex
    assert 'value="percent" autocomplete="off" checked' in Path("report/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["nowhere"], "RUNS: nowhere is not a folder"),
        (["empty"], "RUNS: empty has no results of benchmark or test"),
        (["file"], "RUNS: file is not a folder"),
        (["unwritten"], "results.csv is missing; run the grid's command"),
        (["columns"], "results.csv: has no column 'cell'"),
        (["numbers"], "results.csv: line 2, has 'x' as cacc"),
        (["huge"], "results.csv: line 2, has '9999999999999999999999999999999999999999' as cacc"),
        (["cut"], ", has not as many fields as there are columns"),
        (["cut outcomes"], "outcomes.csv: is not a table of outcomes"),
        (["outside"], "results.csv: line 2, has a cell that is unusable"),
        (["config"], "config.yaml is not the config of a test"),
        (["metrics"], "metrics.json cannot be read"),
        (["huge metrics"], "metrics.json cannot be read (int too large to convert to float)"),
        (["outcomes"], "outcomes.csv: is not a table of outcomes"),
        (["good", "--columns", "asrr"], "columns: there is no 'asrr'; give any of cacc"),
        (["good", "--attacks", "x"], "attacks: there is no 'x'; give any of none, badnets"),
        (["good", "--output", "good"], "output: good holds a grid"),
        (["copied", "--output", "copied"], "output: copied holds a grid"),
        (["good", "--output", "file"], "output: "),
        ([], "options: the following arguments are required: RUNS"),
    ],
)
def test_a_folder_or_option_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], words: str
) -> None:
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    (tmp_path / "file").touch()
    kind = given[0] if given else ""
    if kind in ("good", "copied", "unwritten", "columns", "numbers", "huge", "outside", "cut"):
        made = grid(tmp_path / kind)
        path = tmp_path / kind / "results.csv"
        broken_cells = {"numbers": {"cacc": "x"}, "huge": {"cacc": "9" * 400}, "outside": {"cell": "../../x"}}
        changed = broken_cells.get(kind, {})
        columns = [name for name in COLUMNS if (kind, name) != ("columns", "cell")]
        path.write_text(csv_text([{**row, **changed} for row in made.rows], columns), encoding="utf-8")
        if kind == "unwritten":
            path.unlink()
        if kind == "copied":
            (tmp_path / kind / "journal.jsonl").unlink()
        if kind == "cut":
            lines = path.read_text(encoding="utf-8").splitlines()
            path.write_text("\n".join([*lines[:-1], lines[-1][:40]]), encoding="utf-8")
    if kind in ("config", "metrics", "outcomes"):
        single_test(tmp_path / kind / "test")
        broken = {"config": "config.yaml", "metrics": "metrics.json", "outcomes": "outcomes.csv"}[kind]
        (tmp_path / kind / "test" / broken).write_text("{a: [" if kind == "metrics" else "a: b\n", encoding="utf-8")
    if kind == "huge metrics":
        single_test(tmp_path / kind / "test")
        (tmp_path / kind / "test" / "metrics.json").write_text(f'{{"test/cacc": {"9" * 400}}}', encoding="utf-8")
    if kind == "cut outcomes":
        single_test(tmp_path / kind / "test")
        path = tmp_path / kind / "test" / "outcomes.csv"
        path.write_text(path.read_text(encoding="utf-8") + "1,1,a", encoding="utf-8")
    status, _, said = report(capsys, *given)  # type: ignore[arg-type]
    assert status == 2
    assert words in said
    assert said.count("\n") == 1
    assert said.startswith("error: ")
    assert not (tmp_path / "report").exists()


def test_folders_in_the_home_folder_are_named_by_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    grid(tmp_path / "a")
    assert main(["report", "~/a", "--output", "~/b"]) == 0
    assert (tmp_path / "b" / "results.csv").is_file()


def test_no_torch_is_imported(tmp_path: Path) -> None:
    grid(tmp_path / "a")
    code = "import sys; from lightning_backdoor.cli import main; main(['report', 'a'])"
    code += "; print({m for m in sys.modules if m in ('torch', 'lightning', 'transformers', 'datasets', 'wandb')})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.splitlines()[-1] == "set()"
    assert len([*Path("report/figures").glob("*.pdf")]) == len([*Path("report/figures").glob("*.svg")]) == 4
