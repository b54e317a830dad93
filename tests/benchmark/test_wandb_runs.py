"""What a grid leaves in Weights & Biases, read back from the files that it keeps offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_backdoor.benchmark.comparisons import COMPARED_COLUMNS
from lightning_backdoor.benchmark.grid import Cell, PlannedVictim
from lightning_backdoor.benchmark.metrics import INTERVALS, METRIC_NAMES
from lightning_backdoor.benchmark.results import collect_results
from lightning_backdoor.benchmark.table import COLUMNS, ResultRow, measured
from lightning_backdoor.benchmark.wandb_runs import WandbRuns
from lightning_backdoor.errors import InputError
from lightning_backdoor.outputs.outcomes import Outcome, write_outcomes
from lightning_backdoor.outputs.token_view import ViewedText
from tests.outputs.test_token_view import Seen
from tests.support.wandb_files import Run, runs

EVIL = "<img src=x onerror=alert(1)> {{ 7 * 7 }} cf"
FIT: dict[str, Any] = {"model": {"class_path": "BadNets", "init_args": {"triggers": ["cf"]}}, "seed_everything": 3}
VICTIM = PlannedVictim("ab12", "reviews", "tiny", "badnets", "muscle", 3, FIT)
CELL = Cell("cd34", "badnets", "onion", VICTIM, {"trainer": {"callbacks+": [{"class_path": "Onion"}]}})
PLAIN = Cell("ef56", "badnets", "none", VICTIM, {})
SETTINGS = {"project": "tests", "tags": ["mine"], "name": "small"}


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    yield
    wandb.teardown()
    os.environ.pop("WANDB_DATA_DIR", None)


def trained(folder: Path) -> Path:
    """A run of ``fit``, resumed once after step 9."""
    logs = {0: "epoch,step,train/loss,val/cacc\n0,4,0.5,\n0,9,0.25,\n0,9,,0.75\n1,14,9,\n"}
    logs[1] = "epoch,step,train/loss\n1,14,0.125\n"
    for version, text in logs.items():
        path = folder / "logs" / f"version_{version}" / "metrics.csv"
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    return folder


def left_by(folder: Path, cell: Cell) -> tuple[Path, ResultRow]:
    """What a cell leaves: 6 clean rows, 4 poisoned ones, and texts where there is a defense."""
    outcomes = []
    for index in range(6):
        score = index / 4 if cell.defense != "none" else None
        outcomes.append(Outcome(index, False, "good" if index % 2 else "bad", "good", "good", score=score))
    for index, score in zip((0, 2, 4, 6), (0.5, 1.25, 3.0, 4.0), strict=True):
        defended = "bad" if score > 2 else "good"
        outcome = Outcome(index, True, "bad", "good", "good", defended, score > 2, score > 2, score)
        outcomes.append(outcome if cell.defense != "none" else Outcome(index, True, "bad", "good", "good"))
    folder = folder / cell.id
    folder.mkdir()
    write_outcomes(folder / "outcomes.csv", outcomes)
    if cell.defense != "none":
        row: ViewedText = {
            "index": 0,
            "text": EVIL,
            "spans": [(len(EVIL) - 2, len(EVIL))],
            "poisoned": True,
            "label": "bad",
            "prediction": "good",
            "defended_prediction": "bad",
            "flagged": True,
            "confirmed": True,
            "purified_text": "<b>",
            "score": 4.0,
            "tokens": [(len(EVIL) - 2, len(EVIL), 4.0)],
        }
        clean: ViewedText = {**row, "text": "A good film", "spans": [], "poisoned": False, "tokens": [(2, 6, 0.5)]}
        (folder / "texts.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(clean)}\n", encoding="utf-8")
    logged = {"test/cacc": 0.5, "test/asr": 1.0, "test/pacc": 0.0, "test/localisation": float("nan")}
    if cell.defense != "none":
        logged |= {"test/cacc_defended": 0.5, "test/asr_defended": 0.5, "test/auroc": 0.875, "test/overhead": 2.5}
    names: ResultRow = {**cell.names, "cell": cell.id, "victim": cell.victim.id, "training": cell.victim.training}
    names |= {"seconds": 1.5, "error": ""}
    return folder, {**names, **measured(logged, outcomes)}


def test_a_victim_has_its_history_and_its_model(tmp_path: Path) -> None:
    config = tmp_path / "grid" / "victims" / VICTIM.id / "config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("trainer: {precision: bf16-mixed}", encoding="utf-8")
    WandbRuns(SETTINGS, tmp_path / "grid").log_victim(VICTIM, trained(tmp_path), "d1g3st")
    (run,) = runs(tmp_path / "grid")
    record = run.record
    assert (record.project, record.job_type) == ("tests", "train")
    assert (record.run_group, record.display_name) == (
        "reviews/tiny/badnets",
        "reviews / tiny / badnets / muscle / seed 3",
    )
    assert {*record.tags} == {"reviews", "tiny", "badnets", "muscle", "seed 3", "mine"}
    names = {"dataset": "reviews", "model": "tiny", "attack": "badnets", "training": "muscle", "seed": 3}
    facts = {"grid": "small", "victim": "ab12", "victim_digest": "d1g3st", "fit": FIT}
    facts["training_precision"] = "bf16-mixed"
    assert {name: run.config[name] for name in (*names, *facts)} == {**names, **facts}

    history = {step: {k: v for k, v in row.items() if k[0] != "_"} for step, row in run.history.items()}
    assert history == {
        4: {"epoch": 0, "train/loss": 0.5},
        9: {"epoch": 0, "train/loss": 0.25, "val/cacc": 0.75},
        14: {"epoch": 1, "train/loss": 0.125},
    }
    model = run.artifacts["victim-ab12"]
    assert model.type == "model"
    assert json.loads(model.metadata) == {**names, "digest": "d1g3st"}
    # the files themselves, not copies of what may be gigabytes
    files = {file.path: Path(file.local_path) for file in model.manifest.contents}
    assert files == {name: tmp_path / "model" / name for name in ("config.json", "model.safetensors")}


def test_a_cell_has_its_numbers_curves_and_texts(tmp_path: Path) -> None:
    folder, row = left_by(tmp_path, CELL)
    WandbRuns(SETTINGS, tmp_path / "grid").log_cell(CELL, row, folder, "d1g3st")
    (run,) = runs(tmp_path / "grid")
    assert (run.record.job_type, run.exit_code) == ("onion", 0)
    assert run.record.run_group == "reviews/tiny/badnets"
    assert {*run.record.tags} == {"reviews", "tiny", "badnets", "onion", "seed 3", "mine"}
    facts = {**CELL.names, "seed": 3, "n_clean": 6, "n_poisoned": 4, "cell": "cd34", "victim": "ab12"}
    facts |= {"victim_artifact": "victim-ab12", "victim_digest": "d1g3st", "fit": FIT, "test": CELL.config}
    assert {name: run.config[name] for name in facts} == facts

    numbers = {name: row[name] for name in (*METRIC_NAMES, *INTERVALS) if row[name] is not None}
    assert {"cacc", "asr", "asr_defended", "auroc", "auroc_low", "overhead"} <= numbers.keys()
    for logged in (run.summary, run.logged):
        assert {name: value for name, value in logged.items() if name in (*METRIC_NAMES, *INTERVALS)} == numbers

    clean, poisoned = run.logged["scores_clean"], run.logged["scores_poisoned"]
    assert clean["bins"] == poisoned["bins"]
    assert (clean["bins"][0], clean["bins"][-1]) == (0, 4)
    assert (sum(clean["values"]), sum(poisoned["values"])) == (6, 4)

    points = [(point["fpr"], point["tpr"]) for point in run.table("roc_table")]
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))
    wins = [(p > c) + (p == c) / 2 for p in (0.5, 1.25, 3.0, 4.0) for c in (0, 0.25, 0.5, 0.75, 1, 1.25)]
    assert area == pytest.approx(sum(wins) / len(wins))
    chart = run.config["_wandb"]["visualize"]["roc"]["panel_config"]
    assert (chart["panelDefId"], chart["fieldSettings"]["x"], chart["fieldSettings"]["y"]) == (
        "wandb/line/v0",
        "fpr",
        "tpr",
    )

    evil, good = run.table("texts")
    assert (evil["plain_text"], evil["score"], evil["purified_text"]) == (EVIL, 4.0, "<b>")
    assert "<img" not in evil["text"]
    assert "".join(Seen(evil["text"]).text["span"]) == EVIL
    assert ('class="trigger"' in evil["text"], 'class="trigger"' in good["text"]) == (True, False)
    assert "background:rgba(230,120,0,0.85)" in good["text"]


def test_a_cell_without_scores_has_its_numbers_alone(tmp_path: Path) -> None:
    folder, row = left_by(tmp_path, PLAIN)
    WandbRuns({}, tmp_path / "grid").log_cell(PLAIN, row, folder, "d1g3st")
    (run,) = runs(tmp_path / "grid")
    assert (run.record.project, run.config["grid"]) == ("lightning-backdoor", "grid")
    assert run.logged["asr_defended"] == 1.0
    assert not {"roc_table", "scores_clean", "texts", "auroc"} & run.logged.keys()


def test_the_summary_has_all_tables_and_charts(tmp_path: Path) -> None:
    rows = [left_by(tmp_path, cell)[1] for cell in (CELL, PLAIN)]
    rows[0] |= {"inspection_score": 2.5}
    failed: ResultRow = {**dict.fromkeys(COLUMNS), **CELL.names, "seed": "4", "valid": "", "error": "out of memory"}
    results = collect_results([*rows, failed], "none", tmp_path)
    WandbRuns(SETTINGS, tmp_path / "grid").log_summary(results)
    (run,) = runs(tmp_path / "grid")
    assert (run.record.job_type, run.record.display_name) == ("summary", "small")
    assert run.table("results") == [{name: row[name] for name in COLUMNS} for row in [*rows, failed]]
    assert {row["metric"] for row in results.comparisons} == {"asr", "cacc", "pacc"}
    assert run.table("missing") == [{**CELL.names, "seed": "4", "reason": "failed", "message": "out of memory"}]
    assert run.table("comparisons") == [{name: row[name] for name in COMPARED_COLUMNS} for row in results.comparisons]
    (inspection,) = run.table("inspections")
    facts = {"dataset": "reviews", "model": "tiny", "defense": "onion", "benign": 0, "attacked": 1, "auroc": None}
    assert inspection == facts
    onion, plain = run.table("over_seeds")
    assert (onion["defense"], onion["seeds"], onion["asr_defended"]) == ("onion", 1, 0.5)
    assert (onion["asr_defended_spread"], onion["errors"], plain["errors"]) == (None, "out of memory", "")

    (path,) = run.folder.glob("files/media/plotly/cacc_against_asr*.json")
    traces = json.loads(path.read_text(encoding="utf-8"))["data"]
    shown = [trace for trace in traces if "name" in trace and trace.get("showlegend", True)]
    assert [(trace["name"], trace["x"], trace["y"]) for trace in shown] == [
        ("onion", [0.5], [0.5]),
        ("none", [1], [0.5]),
    ]
    assert run.table("asr_defended_by_defense_table") == [
        {"defense": "onion", "asr_defended": 0.5},
        {"defense": "none", "asr_defended": 1.0},
    ]
    assert [bar["cacc_defended"] for bar in run.table("cacc_defended_by_defense_table")] == [0.5, 0.5]
    charts = {name: chart["panel_config"] for name, chart in run.config["_wandb"]["visualize"].items()}
    assert {name: chart["panelDefId"] for name, chart in charts.items()} == {
        "asr_defended_by_defense": "wandb/bar/v0",
        "cacc_defended_by_defense": "wandb/bar/v0",
    }


def test_an_attack_that_does_not_count_is_marked_and_left_out_of_the_bars(tmp_path: Path) -> None:
    undefended = Cell("ef56", "badnets", "none", VICTIM._replace(training=""), {})
    folder, row = left_by(tmp_path, undefended)
    row["asr_floor"] = 1.0
    logged = WandbRuns(SETTINGS, tmp_path / "grid")
    logged.log_cell(undefended, row, folder, "d1g3st")
    logged.log_summary(collect_results([row], None, tmp_path))
    cell, summary = runs(tmp_path / "grid")
    why = "excess ASR 0.000 is below 0.5"
    assert cell.config["invalid_because"] == why
    (line,) = summary.table("over_seeds")
    assert (line["valid"], line["invalid_because"], line["excess_asr"]) == ("0 of 1", why, 0.0)
    assert not any(name.endswith("_by_defense_table") for name in summary.logged)


def test_what_is_logged_twice_is_one_run_and_all_of_it_lies_in_the_folder(tmp_path: Path) -> None:
    folder, row = left_by(tmp_path, CELL)
    logged = WandbRuns(SETTINGS, tmp_path / "grid")
    logged.log_cell(CELL, row, folder, "d1g3st")
    started = time.perf_counter()
    logged.log_cell(CELL, row, folder, "d1g3st")
    assert time.perf_counter() - started < 2  # 0.05 s alone
    found = runs(tmp_path / "grid")
    assert [run.record.resume for run in found] == [True] * 2
    assert found[0].record.run_id == found[1].record.run_id
    WandbRuns(SETTINGS, tmp_path / "another").log_cell(CELL, row, folder, "d1g3st")
    (elsewhere,) = runs(tmp_path / "another")
    assert elsewhere.record.run_id != found[0].record.run_id
    for run in found:
        assert all(path.is_file() and path.is_relative_to(tmp_path / "grid" / "wandb") for path in run.files.values())
        assert any((run.folder / "files" / "media" / "table").iterdir())


def test_artifacts_of_a_second_grid_lie_in_its_own_folder(tmp_path: Path) -> None:
    folder, row = left_by(tmp_path, CELL)
    for grid in ("first", "second"):
        WandbRuns(SETTINGS, tmp_path / grid).log_cell(CELL, row, folder, "d1g3st")
        assert "WANDB_DATA_DIR" not in os.environ
        assert (tmp_path / grid / "wandb" / "artifacts").is_dir()


def test_what_cannot_be_logged_is_said_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, row = left_by(tmp_path, CELL)
    logged = WandbRuns(SETTINGS, tmp_path / "grid")
    logged.log_cell(CELL, row, tmp_path / "nowhere", "d1g3st")
    said = capfd.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("warning: W&B: the run 'reviews / tiny / badnets / onion / seed 3' is incomplete (")
    logged.log_cell(CELL, row, folder, "d1g3st")  # which is not held up
    assert [run.exit_code for run in runs(tmp_path / "grid")] == [1, 0]
    assert capfd.readouterr().err == ""


def test_a_run_that_someone_else_has_open_stays_as_it_is(tmp_path: Path) -> None:
    import wandb

    folder, row = left_by(tmp_path, PLAIN)
    other: Any = wandb.init(project="other", id="other", dir=tmp_path, settings=wandb.Settings(silent=True))
    WandbRuns(SETTINGS, tmp_path / "grid").log_cell(PLAIN, row, folder, "d1g3st")
    assert wandb.run is not None
    assert wandb.run.id == "other"
    other.finish()
    assert "asr" not in Run(tmp_path / "wandb").logged
    assert [run.config["cell"] for run in runs(tmp_path / "grid")] == ["ef56"]


def test_online_a_cell_asks_for_its_victim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    folder, row = left_by(tmp_path, PLAIN)
    used: list[str] = []
    run = SimpleNamespace(offline=False, log=lambda values: None, use_artifact=used.append, finish=lambda: None)
    monkeypatch.setattr(wandb, "init", lambda **arguments: run)
    WandbRuns(SETTINGS, tmp_path).log_cell(PLAIN, row, folder, "d1g3st")
    assert used == ["victim-ab12:latest"]


SCRIPT = """
import sys
from pathlib import Path
from lightning_backdoor.benchmark import wandb_runs
from tests.benchmark.test_wandb_runs import PLAIN, SETTINGS, VICTIM, left_by, trained
folder = Path(sys.argv[1])
wandb_runs.BEGIN = 3.0
runs = wandb_runs.WandbRuns(SETTINGS, folder / "grid")
runs.log_victim(VICTIM, trained(folder), "d1g3st")
cell_folder, row = left_by(folder, PLAIN)
runs.log_cell(PLAIN, row, cell_folder, "d1g3st")
"""


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        ({"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": 40 * "a"}, "connection refused"),
        ({}, "No API key"),
        ({"WANDB_MODE": "disabled"}, ""),
    ],
    ids=["unreachable", "no key", "disabled"],
)
def test_without_a_server_all_is_kept_offline(tmp_path: Path, server: dict[str, str], reason: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"HOME": str(tmp_path), "WANDB_CACHE_DIR": str(tmp_path / "cache"), **server}
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert time.monotonic() - started < 40
    lines = result.stderr.splitlines()
    if not reason:
        assert (lines, runs(tmp_path / "grid")) == ([], [])
        return
    (line,) = lines
    assert line.startswith("warning: W&B: runs are kept offline from here on")
    assert reason in line
    victim, cell = runs(tmp_path / "grid")
    assert [victim.config["victim"], cell.config["cell"]] == ["ab12", "ef56"]
    assert "victim-ab12" in victim.artifacts
    assert cell.logged["asr"] == 1.0


@pytest.mark.parametrize(
    "settings", [{"projekt": "x"}, {"project": "a/b"}, {"project": 3}, {"tags": "one"}, {"tags": [""]}, {"name": []}]
)
def test_an_unusable_setting_is_named(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"wandb: .*{next(iter(settings))}"):
        WandbRuns(settings, tmp_path)
