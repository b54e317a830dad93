"""The W&B report of a grid: its layout, built without a server, and when it is saved."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_backdoor.benchmark.missing import NOT_RUN, MissingCell
from lightning_backdoor.benchmark.results import Results, collect_results
from lightning_backdoor.benchmark.wandb_report import layout, save_report
from lightning_backdoor.benchmark.wandb_runs import WandbRuns
from tests.benchmark.example import example

wr: Any = pytest.importorskip("wandb_workspaces.reports.v2")
NAME = 'it\'s "small"'


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    made = example(tmp_path_factory.mktemp("cells"))
    names = {"dataset": "sst2", "model": "minilm", "attack": "late", "defense": "onion", "seed": "0"}
    return collect_results(made.rows, "none", made.cells, [MissingCell(names, NOT_RUN)])


def test_the_layout_needs_no_server_and_has_table_figure_bars_and_what_is_missing(results: Results) -> None:
    report = layout(results, NAME, "mine", "me")
    spec = json.loads(report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))  # private: 0.4.13
    text = json.dumps(spec, ensure_ascii=False)
    assert (report.title, report.project, report.entity) == (NAME, "mine", "me")
    assert "34 of 35 cells (1 not run)." in text
    assert "sst2 · minilm · style: the attack is not valid, since seed 0: " in text
    assert "sst2 · minilm · late · onion · 0: not run" in text
    table = next(block.text for block in report.blocks if isinstance(block, wr.MarkdownBlock))
    assert "| Attack | Defense | CACC | ASR | Excess ASR |" in table
    grids = [block for block in report.blocks if isinstance(block, wr.PanelGrid)]
    panels = [panel for grid in grids for panel in grid.panels]
    assert [panel.media_keys for panel in panels if isinstance(panel, wr.MediaBrowser)] == [["cacc_against_asr"]]
    bars = [panel for panel in panels if isinstance(panel, wr.BarPlot)]
    assert [str(bar.metrics[0]) for bar in bars] == ["asr_defended", "cacc_defended", "auroc"]
    tables = [panel.table_name for panel in panels if isinstance(panel, wr.WeavePanelSummaryTable)]
    assert tables == ["over_seeds", "comparisons"]
    # all run sets are of this grid alone
    filters = [json.dumps(run_set["filters"]) for grid in spec["blocks"] if grid["type"] == "panel-grid"
               for run_set in grid["metadata"]["runSets"]]  # fmt: skip
    assert len(filters) == 4
    assert all(json.dumps(NAME) in one for one in filters), filters[0]
    assert sum('"NIN"' in one for one in filters) == 1  # the cells; the others are of the summary run


def test_a_report_is_saved_once_and_updated_and_only_online(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[Any] = []
    monkeypatch.setattr(wr.Report, "save", lambda self: saved.append(self))
    monkeypatch.setattr(wr.Report, "url", "https://wandb.ai/me/mine/reports/x--1", raising=False)
    monkeypatch.setattr(wr.Report, "from_url", lambda url: wr.Report(project="mine", entity="me", title=url))
    run = SimpleNamespace(offline=True, project="mine", entity="me")
    kept = tmp_path / "report.txt"
    assert save_report(results, NAME, run, kept) is None
    assert (saved, kept.exists()) == ([], False)
    run.offline = False
    for _ in range(2):
        assert save_report(results, NAME, run, kept) == "https://wandb.ai/me/mine/reports/x--1"
        assert kept.read_text(encoding="utf-8") == "https://wandb.ai/me/mine/reports/x--1\n"
    assert [report.title for report in saved] == [NAME, NAME]
    assert [type(block) for block in saved[1].blocks] == [type(block) for block in saved[0].blocks]
    monkeypatch.setattr("lightning_backdoor.benchmark.wandb_report.find_spec", lambda name: None)
    assert save_report(results, NAME, run, kept) is None


def test_a_report_that_cannot_be_saved_is_said_in_one_line(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[dict[str, int]] = []
    run = SimpleNamespace(offline=False, project="mine", entity="me", log=lambda values: None)
    run.finish = lambda **arguments: ended.append(arguments)
    monkeypatch.setattr("lightning_backdoor.benchmark.wandb_runs._init", lambda **arguments: run)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    monkeypatch.setattr("lightning_backdoor.benchmark.wandb_runs.grid_media", lambda results: {})
    monkeypatch.setattr(wr.Report, "save", lambda self: 1 / 0)
    WandbRuns({}, tmp_path).log_summary(results)
    said = capsys.readouterr()
    assert said.err == "warning: W&B: the report is not saved (ZeroDivisionError: division by zero)\n"
    assert ended == [{}]
