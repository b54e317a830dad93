"""Names of a grid's entries: refused where they cannot be written, harmless as paths, formulas and markup."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lightning_backdoor.benchmark.console import print_table
from lightning_backdoor.benchmark.grid import Grid, PlannedVictim
from lightning_backdoor.benchmark.names import LONGEST_NAME, as_csv_field, of_csv_field
from lightning_backdoor.benchmark.running import worker
from lightning_backdoor.benchmark.running.worker import Worker
from lightning_backdoor.benchmark.table import csv_text
from lightning_backdoor.benchmark.wandb_runs import WandbRuns
from lightning_backdoor.benchmark.write_results import write_results
from lightning_backdoor.errors import InputError
from lightning_backdoor.outputs.wandb_names import shortened
from tests.benchmark.grids import inference, stub_command

#: names that are usable and must do no harm.
ODD = ("../../x", "=1+2", "-0.5", "+x", "@SUM(A1)", "[red]x[/red]", "a/b\\c", "中文 α é", "<img src=x>", "x" * 300)


def odd_grid(path: Path, names: tuple[str, ...]) -> Grid:
    content: dict[str, Any] = {
        "datasets": {names[0]: {"class_path": "stub.Data"}},
        "models": {names[1]: "stub"},
        "attacks": {name: {"class_path": "stub.Attack", "init_args": {"i": i}} for i, name in enumerate(names)},
        "defenses": {name: {"inference": inference(i)} for i, name in enumerate(names[:2])},
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return Grid(path)


@pytest.mark.parametrize("axis", ["datasets", "models", "attacks", "defenses"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("red \x1b[31m", "control character '\\x1b'"),
        ("two\nlines", "control character '\\n'"),
        ("\tx", "control character '\\t'"),
        ("x\r", "control character '\\r'"),
        ("nul\0", "control character '\\x00'"),
        ("c1 \x9b", "control character '\\x9b'"),
        ("right\u202eleft", "control character '\\u202e'"),
        ("line\u2028", "control character '\\u2028'"),
        ("", "is blank"),
        (" ", "is blank"),
        ("x" * (LONGEST_NAME + 1), f"more than {LONGEST_NAME}"),
    ],
)
def test_a_name_that_cannot_be_written_is_refused(tmp_path: Path, axis: str, name: str, said: str) -> None:
    content: dict[str, Any] = {
        "datasets": {"d": {"class_path": "stub.Data"}},
        "models": {"m": "stub"},
        "attacks": {"a": {"class_path": "stub.Attack"}},
        "defenses": {"d": {"inference": inference(0)}},
    }
    content[axis] = {name: next(iter(content[axis].values()))}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(InputError) as error:
        Grid(tmp_path / "grid.yaml")
    assert said in str(error.value)
    assert axis in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("attacks", "said"),
    [
        ({"\ud800": {"class_path": "stub.Attack"}}, "attacks has the text '\\ud800', which cannot be written"),
        ({"a": {"class_path": "stub.Attack", "init_args": {"triggers": ["\udcff"]}}}, "attacks has the text '\\udcff'"),
        ({"a": "preset.yaml"}, "attacks.a has the text 'x\\udcff', which cannot be written"),
    ],
)
def test_text_that_cannot_be_written_is_refused_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attacks: dict[str, Any], said: str
) -> None:
    content = {
        "datasets": {"d": {"class_path": "stub.Data"}},
        "models": {"m": "stub"},
        "attacks": attacks,
        "defenses": {"none": None},
    }
    files = {"grid.yaml": content, "preset.yaml": {"model": {"class_path": "x\udcff"}}}
    # loaders of YAML differ in whether they read such text
    monkeypatch.setattr("lightning_backdoor.benchmark.grid_file.read_yaml", lambda path: files[path.name])
    (tmp_path / "preset.yaml").touch()
    with pytest.raises(InputError) as error:
        Grid(tmp_path / "grid.yaml")
    assert said in str(error.value)


def test_odd_names_write_nothing_elsewhere_and_are_no_formulas_or_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker, "run_command", stub_command)
    output = tmp_path / "a" / "b" / "output"
    output.mkdir(parents=True)
    grid = odd_grid(output / "grid.yaml", ODD)
    Worker(output, grid.cells, "one").run()
    results = write_results(grid, output, "")
    print_table(results, output)
    assert "[red]" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["output"]
    assert {path.name for path in output.iterdir()} == {
        *("grid.yaml", "journal.jsonl", "log.txt", "cells", "grids", "victims"),
        *("results.csv", "comparisons.csv", "report.html"),
    }
    for name, columns in (("results.csv", ("attack", "defense")), ("comparisons.csv", ("attack", "first", "second"))):
        with (output / name).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert "'=1+2" in {row[column] for row in rows for column in columns if column != "attack"}
        for column in columns:
            assert {of_csv_field(row[column]) for row in rows} <= {*ODD}
            assert not [row[column] for row in rows if row[column].startswith(("=", "+", "-", "@"))]


def test_numbers_stay_numbers_and_control_characters_are_escaped_in_csv() -> None:
    rows = [{"defense": "-0.5", "cacc": -0.5, "n_clean": -3, "error": "\x1b[31mred\r\tx"}]
    text = csv_text(rows, ("defense", "cacc", "n_clean", "error"))
    assert text.splitlines()[1] == "'-0.5,-0.5,-3,\\x1b[31mred\\r\\tx"


@given(st.text(st.characters(blacklist_categories=["Cc", "Cs", "Zl", "Zp"])))
def test_a_csv_field_gives_its_text_back_and_is_no_formula(text: str) -> None:
    field = as_csv_field(text)
    assert not field.startswith(("=", "+", "-", "@"))
    if field.isprintable():
        assert of_csv_field(field) == text


def test_names_for_wandb_keep_its_limits_the_seed_and_their_differences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, Any]] = []

    def begin(self: WandbRuns, **arguments: Any) -> None:
        begun.append(arguments)
        raise ConnectionError

    monkeypatch.setattr(WandbRuns, "_begin", begin)
    runs = WandbRuns({"tags": ["t" * 70 + "1", "t" * 70 + "2"]}, tmp_path)
    for dataset in ("d" * 200, "d" * 199 + "e"):
        for seed in (0, 123456789):
            victim = PlannedVictim("id", dataset, "m" * 90, "a" * 90, "t" * 90, seed, {})
            runs.log_victim(victim, tmp_path, "digest")
            runs._log(print, *("x" * 150, "m", "a", "f" * 99 + str(seed), str(seed)), id="c", job_type="f" * 99)
    for arguments in begun:
        assert len(arguments["name"]) <= 128
        assert arguments["name"].endswith((" / seed 0", " / seed 123456789"))
        assert len(arguments["group"]) <= 128
        assert len(arguments["job_type"]) <= 64
        assert all(0 < len(tag) <= 64 for tag in arguments["tags"])
        assert len([tag for tag in arguments["tags"] if tag.startswith("t" * 50)]) >= 2
    of_victims = begun[::2]
    assert len({arguments["name"] for arguments in of_victims}) == 4
    assert len({arguments["group"] for arguments in of_victims}) == 2
    assert shortened("f" * 64, 64) == "f" * 64
    assert len({shortened("f" * 99 + str(i), 64) for i in range(100)}) == 100
