"""``report.html`` on paper and for a paper: printing, files of figures, the table's controls, and links to cells."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lightning_backdoor.benchmark.report.figure_files import figure_files
from lightning_backdoor.benchmark.report.page import figures_of, report_html, write_page
from lightning_backdoor.benchmark.report.paper_table import Choice, PaperTable
from tests.benchmark.browser import chromium, opened
from tests.benchmark.example import COMMAND, GRID, Example, example

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture
def undrawn() -> None:
    """The figures of these tests are drawn."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return example(tmp_path_factory.mktemp("cells"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def path(made: Example, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report_html("Grid", made.results, GRID, COMMAND), encoding="utf-8")
    return path


def test_printing_draws_all_figures_in_light_colours_and_cuts_no_row(browser: Browser, path: Path) -> None:
    with opened(browser, path, color_scheme="dark") as page:
        plots, folded = page.locator(".plot").count(), page.locator(".attack:not([open])").count()
        assert page.locator(".main-svg").count() == 0
        pdf = page.pdf(prefer_css_page_size=True, print_background=False)
        assert 100_000 < len(pdf) < 1_000_000  # vectors, not images
        assert page.locator(".plot").count() == 12 > plots  # the trade-off, two ROCs, three histograms per attack
        drawn = page.eval_on_selector_all(".plot", "all => all.filter(plot => plot.querySelector('.main-svg')).length")
        assert drawn == 12
        assert page.locator(".attack:not([open])").count() == folded > 0  # as before
        page.emulate_media(media="print")
        styles = "selector => { const s = getComputedStyle(document.querySelector(selector));"
        styles += " return [s.breakInside, s.display, s.color, s.position] }"
        assert page.evaluate(styles, "#results tbody tr")[0] == "avoid"
        assert page.evaluate(styles, "#results thead")[1] == "table-header-group"
        assert page.evaluate(styles, "#results th button")[1] == "contents"  # others are missing in repeated headings
        assert page.evaluate(styles, ".wide") == ["auto", "block", "rgb(27, 29, 33)", "static"]
        assert page.evaluate(styles, "form")[1] == "none"


def test_each_seed_of_a_row_leads_to_its_cells_folder(browser: Browser, path: Path, made: Example) -> None:
    with opened(browser, path) as page:
        links = page.eval_on_selector_all(
            "#results tbody tr", "rows => rows.map(r => [...r.querySelectorAll('a')].map(a => a.getAttribute('href')))"
        )
        wanted = [
            [f"cells/{row['cell']}/" for row in made.rows if all(row[name] == line.names[name] for name in line.names)]
            for line in made.results.summaries
        ]
        assert links == wanted
        assert all(len(of_row) == 2 for of_row in links)


def test_each_figure_lies_beside_the_page_as_svg_and_pdf(browser: Browser, made: Example, tmp_path: Path) -> None:
    one = made._replace(rows=[row for row in made.rows if row["attack"] == "badnets" and row["defense"] != "strip"])
    write_page(tmp_path, "Grid", one.results, GRID, COMMAND)
    written = sorted(path.name for path in (tmp_path / "figures").iterdir())
    names = ["roc-sst2-minilm-badnets", "scores-sst2-minilm-badnets-gradient-attention",
             "scores-sst2-minilm-badnets-onion", "trade-off"]  # fmt: skip
    assert written == sorted(f"{name}.{ending}" for name in names for ending in ("svg", "pdf"))
    with opened(browser, tmp_path / "report.html") as page:
        links = page.locator(".files a")
        assert sorted(str(link.get_attribute("href")) for link in links.all()) == [
            f"figures/{name}" for name in written
        ]
        assert all(link.get_attribute("download") is not None and link.is_visible() for link in links.all())
    assert (tmp_path / "figures" / "trade-off.pdf").read_bytes().startswith(b"%PDF")


def test_the_files_of_a_figure_are_the_same_each_time_and_show_names_as_they_are(made: Example) -> None:
    rows = [{**row, "defense": "<b>$x$ %{y} & z"} if row["defense"] == "onion" else row for row in made.rows]
    figure = figures_of(made._replace(rows=rows).results)["trade-off"]
    files = figure_files(figure)
    assert files == figure_files(figure)
    svg = files["svg"].decode()
    assert "&lt;b&gt;$x$ %{y} &amp; z" in svg
    assert "ASR after the defense" in svg


def test_the_legends_of_files_have_every_name(made: Example) -> None:
    rows = [{**row, "defense": "_onion"} if row["defense"] == "onion" else row for row in made.rows]
    for name, figure in figures_of(made._replace(rows=rows).results).items():
        svg = figure_files(figure)["svg"].decode()
        legend = re.findall("<text.*>(.*)</text>", svg[svg.index('<g id="legend_1">') :])
        assert legend == [trace["name"] for trace in figure["data"] if trace.get("showlegend", True)], name


@pytest.mark.parametrize(
    "choice",
    [
        Choice(["asr", "tpr"], ["badnets", "style"]),
        Choice(["cacc", "asr", "pacc", "asr_floor", "asr_defended", "auroc", "fpr"], percent=True),
        Choice(["overhead"], ["none"], percent=True),
    ],
)
def test_the_controls_choose_what_the_command_line_chooses(
    browser: Browser, path: Path, made: Example, choice: Choice
) -> None:
    table = PaperTable(made.results.summaries, "Grid", choice)
    with opened(browser, path) as page:
        assert page.locator("#latex").text_content() == PaperTable(made.results.summaries, "Grid").latex()
        for box in page.locator("#paper input").all():
            name, value = box.get_attribute("name"), box.get_attribute("value")
            wanted = {"column": table.chosen, "attack": table.chosen_attacks, "percent": ["percent"] * choice.percent}
            box.set_checked(value in wanted[str(name)])
        assert page.locator("#latex").text_content() == table.latex()
        assert page.locator("#markdown").text_content() == table.markdown()
