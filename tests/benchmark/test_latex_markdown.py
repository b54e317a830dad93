"""The table as LaTeX and Markdown, whatever the names in it."""

from __future__ import annotations

import re

import pytest

from lightning_backdoor.benchmark.report.latex_markdown import latex_table, markdown_table
from lightning_backdoor.benchmark.results import collect_results
from lightning_backdoor.benchmark.summaries import over_seeds
from tests.benchmark.example import Example, example, fail


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return example(tmp_path_factory.mktemp("cells"))


def test_latex_escapes_names_and_keeps_its_columns(made: Example) -> None:
    names = r"a_b & 50% #1 $x^2$ ~{\input{x}} <y>|z" + "\n[2] *"
    rows = [{**row, "defense": names} if row["defense"] == "onion" else row for row in made.rows]
    marked = collect_results(rows, "none", made.cells).summaries
    table = latex_table(marked)
    body = table.split("\\midrule\n")[1].split("\n\\bottomrule")[0].splitlines()
    assert len(body) == 5 + 6 + 6
    bare = [re.sub(r"\\(text\w+|ensuremath)\{\\?\w*\}|\\[{}$&#%_]", "?", line) for line in body]
    assert all(line.count("&") == len(body[0].split(" & ")) - 1 == 16 and line.endswith(r" \\") for line in bare)
    assert not any(
        re.search(r"[$#%_^~<>|]|\\(?!scriptsize|textbf|underline|\\)", line.removesuffix(r"\\")) for line in bare
    )
    assert r"a\_b \& 50\% \#1 \$x\textasciicircum{}2\$ \textasciitilde{}\{\textbackslash{}input\{x\}\}" in table
    numbers = [number for line in marked for number in line.numbers.values()]
    assert table.count(r"\textbf") == sum(number.best for number in numbers) > 0
    assert table.count(r"\underline") == sum(number.tied for number in numbers) > 0


def test_markdown_keeps_its_columns_whatever_the_names(made: Example) -> None:
    names = "a|b `c` <img src=x> *d*\n_e_ [f](g) \\"
    rows = [{**row, "attack": names} if row["attack"] == "style" else row for row in made.rows]
    table = markdown_table(collect_results(rows, "none", made.cells).summaries)
    unescaped = [re.sub(r"\\.", "?", line) for line in table.splitlines()]
    assert len(unescaped) == 2 + 5 + 6 + 6
    assert {line.count("|") for line in unescaped} == {18}
    assert not any(re.search(r"[`<>_\\\[\]]", line) for line in unescaped)
    assert "**" in table


def test_a_failed_line_says_so(made: Example) -> None:
    rows = [dict(row) for row in made.rows]
    for row in rows:
        if (row["attack"], row["defense"]) == ("badnets", "onion"):
            fail(row, "OSError: gone")
    lines = over_seeds(rows)
    assert latex_table(lines).count("failed") == markdown_table(lines).count("failed") == 1


def test_columns_are_those_with_numbers(made: Example) -> None:
    rows = [{**row, "ftr": 0.125, "cleaning_precision": 0.5} for row in made.rows if row["defense"] == "none"]
    lines = over_seeds(rows)
    head = "| Dataset | Model | Attack | Defense | CACC | ASR | PACC | Floor | FTR | Excess ASR |"
    head = f"{head} CACC defended | ASR defended | PACC defended | Cleaning precision |"
    assert markdown_table(lines).splitlines()[0] == head
    table = latex_table(lines).splitlines()
    parts = (
        r"\multicolumn{6}{c}{Undefended}",
        r"\multicolumn{3}{c}{After the defense}",
        r"\multicolumn{1}{c}{Cleaning}",
    )
    assert table[3] == " &  &  &  & " + " & ".join(parts) + r" \\"
    assert table[4] == r"\cmidrule(lr){5-10} \cmidrule(lr){11-13} \cmidrule(lr){14-14}"
