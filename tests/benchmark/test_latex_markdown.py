"""The table as LaTeX and Markdown, whatever the names in it."""

from __future__ import annotations

import re

import pytest

from lightning_backdoor.benchmark.report.columns import lines
from lightning_backdoor.benchmark.report.latex_markdown import latex_table, markdown_table
from tests.benchmark.example import Example, example, fail


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return example(tmp_path_factory.mktemp("cells"))


def test_latex_escapes_names_and_keeps_its_columns(made: Example) -> None:
    names = r"a_b & 50% #1 $x^2$ ~{\input{x}} <y>|z" + "\n[2] *"
    table = latex_table([{**row, "defense": names} if row["defense"] == "onion" else row for row in made.rows])
    body = table.split("\\midrule\n")[1].split("\n\\bottomrule")[0].splitlines()
    assert len(body) == 5 + 6 + 6
    bare = [re.sub(r"\\(text\w+|ensuremath)\{\\?\w*\}|\\[{}$&#%_]", "?", line) for line in body]
    assert all(line.count("&") == len(body[0].split(" & ")) - 1 == 15 and line.endswith(r" \\") for line in bare)
    assert not any(re.search(r"[$#%_^~<>|]|\\(?!scriptsize|textbf|\\)", line.removesuffix(r"\\")) for line in bare)
    assert r"a\_b \& 50\% \#1 \$x\textasciicircum{}2\$ \textasciitilde{}\{\textbackslash{}input\{x\}\}" in table
    assert table.count(r"\textbf") == sum(e.best for line in lines(made.rows) for e in line.entries if e)


def test_markdown_keeps_its_columns_whatever_the_names(made: Example) -> None:
    names = "a|b `c` <img src=x> *d*\n_e_ [f](g) \\"
    table = markdown_table([{**row, "attack": names} if row["attack"] == "style" else row for row in made.rows])
    unescaped = [re.sub(r"\\.", "?", line) for line in table.splitlines()]
    assert len(unescaped) == 2 + 5 + 6 + 6
    assert {line.count("|") for line in unescaped} == {17}
    assert not any(re.search(r"[`<>_\\\[\]]", line) for line in unescaped)
    assert "**" in table


def test_a_failed_line_says_so(made: Example) -> None:
    rows = [dict(row) for row in made.rows]
    for row in rows:
        if (row["attack"], row["defense"]) == ("badnets", "onion"):
            fail(row, "OSError: gone")
    assert latex_table(rows).count("failed") == markdown_table(rows).count("failed") == 1
