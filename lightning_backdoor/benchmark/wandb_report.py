"""A report in Weights & Biases, made from the summary run of a grid."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_backdoor.benchmark.report.markup import markdown_text
from lightning_backdoor.benchmark.report.paper_table import PaperTable
from lightning_backdoor.benchmark.results import Results

#: tables of the summary run that the report shows, and their headings.
TABLES = {"over_seeds": "All numbers over seeds", "comparisons": "Defenses compared on the same texts"}
#: metrics that the report shows as bars by defense, over all cells of the grid.
BARS = {"asr_defended": "ASR after the defense", "cacc_defended": "CACC after the defense", "auroc": "AUROC"}


def save_report(results: Results, name: str, run: Any, kept: Path) -> str | None:
    """Creates the report of a grid, or updates the one that an earlier call has created; returns its address.

    Args:
        results: the results of the grid.
        name: name of the grid, which its runs have in their config as ``grid``.
        run: the summary run.
        kept: the file that keeps the report's address.

    Returns:
        None if the run is offline or ``wandb-workspaces`` is not installed.
    """
    if run.offline or find_spec("wandb_workspaces") is None:
        return None
    from wandb_workspaces.reports.v2 import Report

    report = layout(results, name, run.project, run.entity)
    if kept.is_file():
        before = Report.from_url(kept.read_text(encoding="utf-8").strip())
        before.title, before.description, before.blocks = report.title, report.description, report.blocks
        report = before
    report.save()
    address: str = report.url
    kept.write_text(address + "\n", encoding="utf-8")
    return address


def layout(results: Results, name: str, project: str, entity: str) -> Any:
    """The report, a ``wandb_workspaces.reports.v2.Report``, not saved yet; asks the server for nothing.

    Args:
        results: the results of the grid.
        name: name of the grid.
        project: the project of its runs.
        entity: the user or team that the project belongs to.
    """
    from wandb_workspaces.reports import v2 as wr

    # as a text that wandb-workspaces parses, whose expressions do not quote names; without entity and project, a run
    # set is of the report's own project
    of_grid = f'Config("grid") == {name!r} and Metric("JobType")'
    summary = wr.Runset(name="summary", filters=f'{of_grid} == "summary"')
    cells = wr.Runset(name="cells", filters=f'{of_grid} not in ["train", "summary"]', groupby=["config.defense"])
    invalid = [f"{names}: the attack is not valid, since {why}." for names, why in results.invalid_attacks.items()]
    blocks = [wr.P(f"{results.cells_text}."), *(wr.CalloutBlock(text) for text in invalid)]
    blocks += [wr.H2("Results"), wr.MarkdownBlock(PaperTable(results.summaries).markdown())]
    bars = [
        wr.BarPlot(title=title, metrics=[metric], groupby="defense", groupby_aggfunc="mean", groupby_rangefunc="minmax")
        for metric, title in BARS.items()
        if any(metric in line.numbers for line in results.summaries)
    ]
    figure = wr.MediaBrowser(title="CACC against ASR after the defense", media_keys=["cacc_against_asr"])
    blocks += [wr.H2("Trade-off"), wr.PanelGrid(runsets=[summary], panels=[figure])]
    blocks += [wr.H2("Cells by defense"), wr.PanelGrid(runsets=[cells], panels=bars)]
    for table, heading in TABLES.items():
        panel = wr.WeavePanelSummaryTable(table_name=table)
        blocks += [wr.H2(heading), wr.PanelGrid(runsets=[summary], panels=[panel])]
    if results.missing:
        labels = [markdown_text(" · ".join(cell.names.values())) for cell in results.missing]
        lines = [f"- {name}: {markdown_text(cell.why)}" for name, cell in zip(labels, results.missing, strict=True)]
        blocks += [wr.H2("Missing cells"), wr.MarkdownBlock("\n".join(lines))]
    description = "Attacks and defenses compared by lightning-backdoor"
    return wr.Report(project=project, entity=entity, title=name, description=description, blocks=blocks, width="fluid")
