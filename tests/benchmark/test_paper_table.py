"""The table for a paper as LaTeX and Markdown, whatever the names in it and whatever is chosen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_backdoor.benchmark.report.markup import latex_text, needed_packages
from lightning_backdoor.benchmark.report.paper_table import Choice, PaperTable
from lightning_backdoor.benchmark.summaries import Summary, over_seeds
from lightning_backdoor.errors import InputError
from tests.benchmark.example import Example, example, fail

NAMES = r"a_b & 50% #1 $x^2$ ~{\input{x}} <y>|z α--β " + '"q"' + "\n[2] *"
#: commands that LaTeX has without packages, and those of booktabs.
COMMANDS = (
    *("begin", "end", "centering", "small", "scriptsize", "setlength", "tabcolsep", "caption", "label", "multicolumn"),
    *(
        "textbf",
        "underline",
        "ensuremath",
        "pm",
        "alpha",
        "beta",
        "char",
        "toprule",
        "midrule",
        "bottomrule",
        "cmidrule",
    ),
    *("textbackslash", "textasciicircum", "textasciitilde", "textless", "textgreater", "textbar"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return example(tmp_path_factory.mktemp("cells"))


def lines_of(made: Example, changed: str = "", **changes: object) -> list[Summary]:
    return over_seeds({**row, **changes} if row["defense"] == changed else row for row in made.rows)


def check_latex(table: str) -> list[list[str]]:
    """Checks that LaTeX has a meaning for everything; returns the cells of each line."""
    comment, *lines = table.split("\n")
    assert {*re.findall(r"(?<!\\)\\([A-Za-z]+)", "\n".join(lines))} <= {*COMMANDS}
    assert comment.startswith(r"% needs \usepackage{booktabs}")
    text = "\n".join(lines)
    bare = re.sub(r"\\[\\{}$&#%_]", lambda found: r"\\" if found[0] == r"\\" else "?", text)
    assert not re.search(r"[%#$^~<>|\"]|_", re.sub(r"\\label\{.*\}", "", bare))
    assert bare.isascii()
    depth = 0
    for brace in re.findall(r"[{}]", bare):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0
    opened: list[str] = []
    for kind, environment in re.findall(r"\\(begin|end)\{(\w+)\}", bare):
        if kind == "begin":
            opened.append(environment)
        else:
            assert environment == opened.pop()
    assert not opened
    columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", bare)[1])  # type: ignore[index]
    rows = [line for line in bare.splitlines() if line.endswith(r" \\")]
    for row in rows:
        assert (
            sum(int(width) - 1 for width in re.findall(r"\\multicolumn\{(\d+)\}", row)) + row.count("&") + 1 == columns
        )
        assert not re.match(r"[\[*]", row)  # after \\ these would be its arguments
    for start, end in re.findall(r"\\cmidrule\(lr\)\{(\d+)-(\d+)\}", bare):
        assert 1 <= int(start) <= int(end) <= columns
    return [row.removesuffix(r" \\").split(" & ") for row in rows]


def test_latex_has_a_caption_a_label_and_rules_between_attacks(made: Example) -> None:
    table = PaperTable(made.results.summaries, "My grid: 2").latex()
    check_latex(table)
    assert r"\label{tab:my-grid-2}" in table
    caption = r"\caption{Backdoor attacks and defenses on sst2 with minilm. \ensuremath{\pm} is the standard deviation"
    assert caption in table
    body = table.split("\\midrule\n", 1)[1].split("\n\\bottomrule")[0].splitlines()
    assert [i for i, line in enumerate(body) if line == r"\midrule"] == [5, 12]  # none, badnets, style
    assert [line.partition(" &")[0] for line in body if line != r"\midrule"] == [
        *("none", "", "", "", ""),
        *("badnets", "", "", "", "", ""),
        *("style (not valid)", "", "", "", "", ""),
    ]


@pytest.mark.parametrize("choice", [Choice(), Choice(percent=True), Choice(columns=["tpr"]), Choice(attacks=["style"])])
def test_latex_is_sound_whatever_the_names_and_the_choice(made: Example, choice: Choice) -> None:
    for changed, changes in (("onion", {"defense": NAMES}), ("none", {"dataset": NAMES, "model": "x" + NAMES})):
        check_latex(PaperTable(lines_of(made, changed, **changes), NAMES, choice).latex())
    check_latex(PaperTable([], "", choice._replace(columns=None, attacks=None)).latex())
    check_latex(PaperTable(lines_of(made), "", choice._replace(caption=NAMES)).latex())


def test_every_character_is_escaped_as_latexs_default_encoding_takes_it() -> None:
    escaped = r"a\_b \& 50\% \#1 \$x\textasciicircum{}2\$ \textasciitilde{}\{\textbackslash{}input\{x\}\} \textless{}y"
    assert latex_text(NAMES).startswith(escaped)
    assert latex_text(NAMES).endswith(r"\ensuremath{\alpha}-{}-\ensuremath{\beta} {\char34}q{\char34} {[}2] {*}")
    assert (
        needed_packages(latex_text("Müller"))
        == r"% needs \usepackage{booktabs} and \usepackage[T1]{fontenc} in the preamble"
    )
    assert "XeLaTeX or LuaLaTeX" in needed_packages(latex_text("影评"))
    assert latex_text("a\u202eb\u200bc") == "abc"


def test_columns_attacks_and_percent_are_chosen(made: Example) -> None:
    lines = made.results.summaries
    table = PaperTable(lines, "", Choice(["asr_defended", "tpr"], ["badnets"], percent=True))
    head = "| Attack | Defense | ASR defended | TPR |"
    rows = table.markdown().splitlines()
    assert rows[2] == head
    assert len(rows) == 4 + 6
    numbers = next(
        line for line in lines if (line.names["attack"], line.names["defense"]) == ("badnets", "onion")
    ).numbers
    asr, tpr = numbers["asr_defended"], numbers["tpr"]
    shown = [f"{100 * n.mean:.1f} ±{100 * (n.spread or 0):.1f}" for n in (asr, tpr)]
    assert f"| badnets | onion | {shown[0]} | {shown[1]} |" in rows
    assert "Shares are in percent." in rows[0]
    assert [row[:3] for row in check_latex(table.latex())][2][0] == "badnets"
    assert "| 2.410 " in PaperTable(lines, "", Choice(["overhead"], percent=True)).markdown()


def test_dataset_and_model_are_columns_only_if_there_are_several(made: Example, tmp_path: Path) -> None:
    two = example(tmp_path, datasets=("sst2", "imdb"), attacks=("badnets",), seeds=(0,), n_clean=10, n_poisoned=5)
    table = PaperTable(two.results.summaries)
    assert table.markdown().splitlines()[2].startswith("| Dataset | Attack | Defense |")
    assert "with minilm" in table.markdown()
    assert "on sst2" not in table.markdown()
    assert "sst2 & badnets & none" in table.latex()


def test_every_number_has_a_spread_or_an_interval(made: Example) -> None:
    one_seed = over_seeds(row for row in made.rows if row["seed"] == 0)
    for lines in (made.results.summaries, one_seed):
        for line in lines:
            alone = {name for name, number in line.numbers.items() if not number.around}
            assert alone <= {"overhead"}, line.names  # the ratio of two times of one run
    assert "Ranges are 95 % intervals over texts." in PaperTable(one_seed).markdown()


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (Choice(columns=["asrr"]), "columns: there is no 'asrr'; give any of cacc, asr"),
        (Choice(attacks=["x"]), "attacks: there is no 'x'; give any of none, badnets, style"),
        (Choice(label="{x}"), "label: '{x}' is not a label of LaTeX"),
    ],
)
def test_a_choice_of_what_there_is_not_is_refused(made: Example, choice: Choice, words: str) -> None:
    with pytest.raises(InputError) as refused:
        PaperTable(made.results.summaries, "", choice)
    assert str(refused.value).startswith(words)


def test_best_and_tied_values_are_marked(made: Example) -> None:
    numbers = {name: n._replace(best=True) for name, n in made.results.summaries[6].numbers.items()}
    tied = {name: n._replace(tied=True) for name, n in made.results.summaries[7].numbers.items()}
    lines = [made.results.summaries[6]._replace(numbers=numbers), made.results.summaries[7]._replace(numbers=tied)]
    table = PaperTable(lines)
    assert table.latex().count(r"\textbf") == table.latex().count(r"\underline") == len(table.chosen)
    assert "Bold: better than every other defense" in table.latex()
    assert "Underlined: not distinguishable" in table.latex()
    assert len(re.findall(r"\*\*[\d.]+\*\*", table.markdown())) == len(table.chosen)
    assert len(re.findall(r" \*[\d.]+\* ", table.markdown())) == len(table.chosen)
    assert "Italic: not distinguishable" in table.markdown()
    assert "Underlined" not in table.markdown()


def test_markdown_keeps_its_columns_whatever_the_names(made: Example) -> None:
    names = "a|b `c` <img src=x> *d*\n_e_ [f](g) \\"
    rows = [{**row, "attack": names} if row["attack"] == "style" else row for row in made.rows]
    table = PaperTable(over_seeds(rows)).markdown()
    unescaped = [re.sub(r"\\.", "?", line) for line in table.splitlines()[2:]]
    assert len(unescaped) == 2 + 5 + 6 + 6
    assert {line.count("|") for line in unescaped} == {9}
    assert not any(re.search(r"[`<>_\\\[\]]", line) for line in unescaped)


def test_a_failed_line_says_so(made: Example) -> None:
    rows = [dict(row) for row in made.rows]
    for row in rows:
        if (row["attack"], row["defense"]) == ("badnets", "onion"):
            fail(row, "OSError: gone")
    table = PaperTable(over_seeds(rows))
    check_latex(table.latex())
    assert table.latex().count("failed") == table.markdown().count("failed") == 1


def test_columns_are_those_with_numbers_by_part(made: Example) -> None:
    rows = [{**row, "ftr": 0.125, "cleaning_precision": 0.5} for row in made.rows if row["defense"] == "none"]
    table = PaperTable(over_seeds(rows), "", Choice(["ftr", "cacc", "cleaning_precision", "asr_defended"]))
    assert table.markdown().splitlines()[2] == "| Attack | Defense | CACC | FTR | ASR defended | Cleaning precision |"
    lines = table.latex().splitlines()
    parts = (
        r"\multicolumn{2}{c}{Undefended}",
        r"\multicolumn{1}{c}{After the defense}",
        r"\multicolumn{1}{c}{Cleaning}",
    )
    assert lines[8] == " &  & " + " & ".join(parts) + r" \\"
    assert lines[9] == r"\cmidrule(lr){3-4} \cmidrule(lr){5-5} \cmidrule(lr){6-6}"
