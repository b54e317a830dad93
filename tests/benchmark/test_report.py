"""``report.html``: what it says, and that it opens, sorts, draws and stays inert in a browser."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lightning_backdoor.benchmark.report.attack_sections import CLEAN_TEXTS, POISONED_TEXTS, TEXT_BUDGET
from lightning_backdoor.benchmark.report.page import report_html
from lightning_backdoor.benchmark.report.paper_table import PaperTable
from lightning_backdoor.errors import InputError
from tests.benchmark.browser import chromium, opened
from tests.benchmark.colours import contrast, luminance, over
from tests.benchmark.example import COMMAND, GRID, Example, example, fail

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PWNED = "window.pwned=1"
HOSTILE = (
    f"<b>bold</b> %{{x}} &lt; </script><script>{PWNED}</script><img src=x onerror={PWNED}><!--<script>\u2028"
    f"\"'</title></pre></style></textarea><a href='javascript:{PWNED}'>x</a> {{{{ 7 * 7 }}}} \u202e | \\ \ud800"
)
#: as written: UTF-8 has no surrogates
WRITTEN = HOSTILE.replace("\ud800", "?")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return example(tmp_path_factory.mktemp("cells"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def path(made: Example, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(made, tmp_path_factory.mktemp("page"))


def html(made: Example, title: str = "Grid", grid: str = GRID, command: str = COMMAND) -> str:
    return report_html(title, made.results, grid, command)


def written(made: Example, folder: Path, **given: str) -> Path:
    path = folder / "report.html"
    path.write_text(html(made, **given), encoding="utf-8")
    return path


def test_a_failed_cell_is_shown_with_its_error_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    made = example(tmp_path)
    for seed in (0, 1):
        fail(made.row(attack="badnets", defense="onion", seed=seed), f"ValueError: broke at {seed}")
    fail(made.row(attack="badnets", defense="strip", seed=0), "OSError: gone")
    page = html(made)
    assert "✗ failed: ValueError: broke at 0" in page
    assert page.count("OSError: gone") == 1  # its line has another seed's numbers
    assert "31 of 34 cells (3 failed)." in page


def test_an_attack_that_is_not_valid_is_marked_and_a_note_says_why(made: Example) -> None:
    note = "An attack is valid if"
    page = html(made)
    assert note in page
    [why] = made.results.invalid_attacks.values()
    assert f"<li>⚠ <bdi>sst2 · minilm · style</bdi>: {why}</li>" in page
    assert page.count(">⚠ not valid</small>") == 6  # in the narrow column only the mark
    assert note not in html(made._replace(rows=[row for row in made.rows if row["attack"] != "style"]))


def test_cells_without_files_and_a_grid_without_cells_have_their_page(made: Example, tmp_path: Path) -> None:
    page = html(made._replace(cells=tmp_path))
    assert "badnets" in page
    assert 'id="attacks"' not in page
    assert "<table" in html(Example([], tmp_path))


# the page, unopened


def test_an_inspection_shows_each_victim_and_how_well_it_tells_them_apart(tmp_path: Path) -> None:
    made = example(tmp_path, attacks=("badnets",))
    assert "Is there a backdoor?" not in html(made)
    made.inspect("share", {"none": [0.5, 1.0], "badnets": [2.0, 0.75]}, inspection_p_value=0.0123)
    made.inspect("alone", {"badnets": [4.0]})
    page = html(made)
    section = page[page.index('<section id="inspections">') :]
    section = re.sub(r"<[^>]*>", " ", section[: section.index("</section>")])
    words = " ".join(section.split())
    assert "share on sst2 , minilm : AUROC 0.750 (2 benign, 2 attacked)" in words
    assert "badnets attacked 0 2.000 0.0123 badnets attacked 1 0.750 0.0123 none benign 1 1.000 0.0123" in words
    assert "alone on sst2 , minilm : AUROC undefined (0 benign, 1 attacked)" in words
    assert "badnets attacked 0 4.000 –" in words


def test_words_that_stand_out_are_shown_and_damaged_ones_refused(tmp_path: Path) -> None:
    made = example(tmp_path, attacks=("badnets",), seeds=(0,))
    made.inspect("share", {"none": [0.5], "badnets": [2.0]})
    attacked = next(row for row in made.rows if row["defense"] == "share" and row["attack"] == "badnets")
    evidence = {"evidence": {"words": "<b>cf</b> (1e-29)"}}
    (tmp_path / attacked["cell"] / "inspection.json").write_text(json.dumps(evidence), encoding="utf-8")
    detector = tmp_path / made.row(attack="badnets", defense="strip")["cell"] / "words.json"
    word = {"word": "<i>mn</i>\x1b", "log10_p": -500.25, "flagged": 9, "texts": 9}
    detector.write_text(json.dumps([word]), encoding="utf-8")
    page = html(made)
    assert page.count("Words that stand out") == 2
    assert "&lt;b&gt;cf&lt;/b&gt; (1e-29)" in page
    assert "of seed 0 (p-value): <bdi>&lt;i&gt;mn&lt;/i&gt;\\x1b (6e-501)</bdi>" in page
    for content in ("[1]", "{", '[{"word": "cf"}]'):
        detector.write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=r"words\.json.* test the victim again"):
            html(made)


def test_columns_without_a_number_are_left_out_of_the_page(tmp_path: Path) -> None:
    made = example(tmp_path, attacks=("badnets",))
    assert "FTR" not in html(made)
    made.row(attack="badnets", defense="none")["ftr"] = 0.25
    page = html(made)
    assert page.count(">FTR<") == 1
    assert "Undefended, FTR" in page


def test_texts_of_a_cell_are_few_of_each_kind_and_the_rest_is_counted(tmp_path: Path) -> None:
    made = example(tmp_path, attacks=("badnets",), defenses={"onion": 1.0}, seeds=(0,), n_texts=20)
    page = html(made)
    assert page.count("<article>") == CLEAN_TEXTS + POISONED_TEXTS + CLEAN_TEXTS  # without an attack none is poisoned
    assert f"{40 - CLEAN_TEXTS - POISONED_TEXTS} more in the cell" in page


@pytest.mark.parametrize(
    "changed", [{"text": None}, {"purified_text": 3}, {"tokens": [[1]]}, {"spans": [[0]]}, {"score": None}, None]
)
def test_a_line_that_is_no_text_is_refused(tmp_path: Path, changed: dict[str, object] | None) -> None:
    made = example(tmp_path, attacks=("badnets",), seeds=(0,))
    path = tmp_path / made.row(attack="badnets", defense="strip")["cell"] / "texts.jsonl"
    whole = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    line = {"poisoned": True, "text": "a"} if changed is None else {**whole, **changed}
    path.write_text(json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"texts\.jsonl: is not a file of texts"):
        report_html("Grid", made.results, "", "")


def test_long_texts_do_not_swell_the_page(tmp_path: Path) -> None:
    made = example(tmp_path, attacks=("badnets",), defenses={"onion": 1.0}, seeds=(0,), n_texts=20)
    for path in tmp_path.glob("*/texts.jsonl"):
        texts = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        long = [{**text, "text": "long " * (TEXT_BUDGET // 20), "tokens": []} for text in texts]
        path.write_text("".join(json.dumps(text) + "\n" for text in long), encoding="utf-8")
    assert html(made).count("long long") < 3 * TEXT_BUDGET // 10


def test_the_page_is_the_same_each_time(made: Example) -> None:
    assert html(made) == html(made)


# the page in a browser


def test_it_opens_quietly_asks_for_nothing_and_draws_its_plots(browser: Browser, path: Path) -> None:
    with opened(browser, path) as page:
        shown = page.locator(".attack[open] .plot")
        assert shown.count() == 4  # ROC, and three detectors
        for plot in (page.locator("#scatter .plot"), *shown.all()):
            plot.scroll_into_view_if_needed()
            plot.locator(".main-svg").first.wait_for()
        # two attacks, four defenses, undefended and the control: a mark and the dot at the true position
        assert page.locator("#scatter .point").count() == 2 * 12
        assert page.locator("#scatter .annotation").count() >= 10
        assert page.locator(".attack:not([open]) .main-svg").count() == 0
        page.locator(".attack:not([open]) > summary").first.click()
        page.locator(".attack .plot >> nth=0").locator(".main-svg").first.wait_for()


def test_plots_are_written_in_the_colours_of_the_page(browser: Browser, path: Path) -> None:
    for scheme in ("light", "dark"):
        with opened(browser, path, color_scheme=scheme) as page:
            page.locator("#scatter").scroll_into_view_if_needed()
            page.locator("#scatter .xtick text").first.wait_for()
            paper, ink = page.evaluate("() => [getComputedStyle(document.body).backgroundColor, "
                "getComputedStyle(document.querySelector('#scatter .xtick text')).fill]")  # fmt: skip
            assert (luminance(paper) < 0.1) == (scheme == "dark")
            assert contrast(paper, ink) > 7
            for cell in page.locator("td.heat:visible span").all()[:20]:
                behind, text = cell.evaluate("e => [getComputedStyle(e.parentElement).backgroundColor, "
                    "getComputedStyle(e).color]")  # fmt: skip
                assert contrast(over(behind, paper), text) > 4.5


def unfold(page: Page) -> None:
    """Opens all folded sections, and waits for all plots."""
    for details in (".attack", "details"):
        page.eval_on_selector_all(details, "all => all.forEach(e => { e.open = true })")
        page.wait_for_function("document.querySelector('.attack > script') === null")
    for plot in page.locator(".plot").all():
        plot.scroll_into_view_if_needed()
        plot.locator(".main-svg").first.wait_for()


def values(page: Page, column: int) -> list[float | str | None]:
    found = page.eval_on_selector_all(
        "#results tbody tr", "(rows, i) => rows.map(row => row.cells[i]?.dataset.value ?? null)", column
    )
    return [value if value is None or column < 2 else float(value) for value in found]


@pytest.mark.parametrize("column", [1, 2, 9, 11])
def test_a_click_and_a_key_sort_the_table_and_say_so(browser: Browser, path: Path, column: int) -> None:
    with opened(browser, path) as page:
        before = values(page, column)
        head = page.locator(f"#results th[data-column='{column}']")
        present = sorted((value for value in before if value is not None), key=lambda value: value or 0)
        absent = [None] * (len(before) - len(present))
        first = "descending" if column == 11 else "ascending"  # the best AUROC is the highest, the best ASR the lowest
        for way in (first, {"descending": "ascending", "ascending": "descending"}[first]):
            if way == first:
                head.locator("button").click()
            else:
                head.locator("button").press("Enter")
            assert head.get_attribute("aria-sort") == way
            assert page.locator("#results th[aria-sort]").count() == 1
            assert values(page, column) == [*(present if way == "ascending" else present[::-1]), *absent]


def test_texts_are_shown_with_their_trigger_outlined_and_their_tokens_shaded(browser: Browser, path: Path) -> None:
    with opened(browser, path) as page:
        texts = page.locator(".attack[open] .texts").first
        assert not texts.locator("article").first.is_visible()
        texts.locator("summary").click()
        article = texts.locator("article").first
        trigger = article.locator(".trigger")
        assert trigger.is_visible()
        assert trigger.text_content() == "cf"
        assert trigger.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
        alpha = [float(colour.split(",")[-1].strip(" )")) for colour in article.locator("i").evaluate_all(
            "all => all.map(e => getComputedStyle(e).backgroundColor)")]  # fmt: skip
        assert max(alpha) == 0.85
        assert len(set(alpha)) > 2
        assert "poisoned · label negative · score " in (article.text_content() or "")


def test_hostile_names_texts_errors_and_files_stay_inert(browser: Browser, tmp_path: Path) -> None:
    made = example(tmp_path, (HOSTILE,), (HOSTILE,), {"none": None, HOSTILE: 2.0, "other": 1.0}, (0,))
    made.inspect(HOSTILE + "!", {HOSTILE: [1.0], "none": [0.5]})
    for row in made.rows:
        row["model"] = HOSTILE
    fail(made.row(attack="none", defense="other"), HOSTILE)
    for path in tmp_path.glob("*/texts.jsonl"):
        texts = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        given = dict.fromkeys(("text", "label", "prediction", "defended_prediction", "purified_text"), HOSTILE)
        path.write_text("".join(json.dumps({**text, **given}) + "\n" for text in texts), encoding="utf-8")
    path = written(made, tmp_path, title=HOSTILE, grid=HOSTILE, command=HOSTILE)
    with opened(browser, path) as page:
        unfold(page)
        for heading in page.locator("th button").all():
            heading.click()
        assert page.evaluate("window.pwned") is None
        assert page.locator("img, textarea, main b, main style, svg a").count() == 0
        links = page.eval_on_selector_all("main a", "all => all.map(a => a.getAttribute('href'))")
        assert all(re.fullmatch(r"cells/[0-9a-f]{16}/|figures/[a-z0-9-]+\.(svg|pdf)", link) for link in links)
        assert page.locator("script").count() == 3  # plotly as text, plotly run, and the page's own
        assert page.title() == re.sub(" +", " ", WRITTEN)
        for place in (
            "h1",
            "#grid",
            "#command",
            "#results tbody td.name",
            ".attack span bdi",
            "article p",
            "#missing .error",
        ):
            assert page.locator(place).first.text_content() == WRITTEN, place
        assert page.locator("#inspections bdi").all_text_contents() == [WRITTEN + "!", WRITTEN, WRITTEN]
        assert {*page.locator("#inspections td:first-child").all_text_contents()} == {WRITTEN, "none"}
        legends = page.locator(".plot .legendtext").all_text_contents()
        assert "".join(HOSTILE.split())[:30] in ["".join(text.split())[:30] for text in legends]


def test_it_is_readable_on_a_phone(browser: Browser, path: Path) -> None:
    with opened(browser, path, width=390) as page:
        unfold(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.locator(".wide").first.evaluate("e => e.scrollWidth > e.clientWidth")
        page.locator(".wide").first.evaluate("e => { e.scrollLeft = 300 }")
        head = page.locator("#results tbody th").first
        assert (head.bounding_box() or {"x": -1})["x"] >= 0  # whose numbers they are stays in view
        assert "badnets" in page.locator("#results tbody th").nth(5).inner_text()
        sizes = page.eval_on_selector_all("main *", "all => all.map(e => parseFloat(getComputedStyle(e).fontSize))")
        assert min(sizes) >= 11


@pytest.mark.parametrize("name", ["latex", "markdown", "grid", "command"])
def test_a_button_copies(browser: Browser, path: Path, made: Example, name: str) -> None:
    wanted = {"grid": GRID, "command": COMMAND}
    table = PaperTable(made.results.summaries, "Grid")
    wanted |= {"latex": table.latex(), "markdown": table.markdown()}
    with opened(browser, path, permissions=["clipboard-read"]) as page:
        button = page.locator(f"[data-copy='{name}']")
        button.click()
        assert button.text_content() == "Copied"
        assert page.evaluate("navigator.clipboard.readText()").rstrip() == wanted[name].rstrip()


def test_two_hundred_cells_open_within_two_seconds_and_ten_megabytes(browser: Browser, tmp_path: Path) -> None:
    detectors = {f"defense {i}": 0.5 * i for i in range(6)}
    made = example(
        *(tmp_path, [f"data {i}" for i in range(6)], [f"attack {i}" for i in range(4)], {"none": None, **detectors}),
        seeds=(0,),
        n_clean=100,
        n_poisoned=50,
        n_texts=20,
    )
    assert len(made.rows) >= 200
    path = written(made, tmp_path)
    assert path.stat().st_size < 10e6
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        with opened(browser, path) as page:
            page.locator("#results tbody tr").last.wait_for()
            page.evaluate("() => new Promise(resolve => requestAnimationFrame(() => setTimeout(resolve)))")
            seconds.append(time.perf_counter() - start)
            page.locator("#scatter").scroll_into_view_if_needed()
            page.locator("#scatter .point").first.wait_for()
    assert min(seconds) < 2
