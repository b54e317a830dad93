"""Small inputs as people bring them: each reads as it should, or is refused in one line that names the cause."""

from __future__ import annotations

import csv
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_backdoor.attacks import Syntactic
from lightning_backdoor.benchmark.table import NUMBERS
from lightning_backdoor.cli import main
from lightning_backdoor.commands.scan_input import read_texts
from lightning_backdoor.data import Source
from lightning_backdoor.data.source import Loaded, load_source
from lightning_backdoor.errors import InputError
from lightning_backdoor.language import FileParaphraser
from tests.support.reviews import write_reviews
from tests.support.shared_files import SHARED, shared_path
from tests.support.tiny import tiny_victim
from tests.support.workspace import settings


def refused(problem: str, read: Callable[[], object]) -> None:
    """Checks that reading fails in one printable line that contains ``problem``."""
    with pytest.raises(InputError) as caught:
        read()
    message = str(caught.value)
    assert problem in message
    assert message.isprintable()


def source_refused(problem: str, path: Path, **options: Any) -> None:
    refused(problem, lambda: load_source(Source(str(path), **options)))


def halves(path: Path, **options: Any) -> Loaded:
    """What a source of 200 rows holds, which are of two classes in turn."""
    loaded = load_source(Source(str(path), **options))
    assert Counter(loaded.splits["train"].labels) == {0: 100, 1: 100}
    return loaded


def glue(path: Path) -> None:
    column = {"text_column": "sentence"}
    source_refused("-1 is not a label of the training rows (0, 1), but row 1 of test has it", path, **column)
    labels: tuple[Any, ...] = (["negative", "positive"], {"negative": ["0"], "positive": [1.0]})
    for given in labels:
        source_refused("-1 is not a label of the training rows", path, labels=given, **column)
    loaded = load_source(Source(str(path), splits={"train": "train", "test": "dev"}, text_column="sentence"))
    assert loaded.label_names == ["0", "1"]
    assert loaded.splits.keys() == {"train", "test"}


def openbackdoor(path: Path) -> None:
    folder = path / "poison_data" / "sst-2" / "1" / "badnets"
    options = {"text_column": 0, "label_column": 1}
    source_refused("train-clean.csv and train-poison.csv may both be train", folder, **options)
    source_refused("train-clean.csv", path, **options)
    chosen = {"train": "train-clean.csv", "validation": "dev-clean.csv", "test": "test-clean.csv"}
    loaded = load_source(Source(str(folder), splits=chosen, text_column=0, label_column=1))
    assert loaded.splits["train"].texts[:2] == ["bad cast and a weak script number 0", "a warm and funny film number 1"]


def quoted_fields(path: Path) -> None:
    loaded = halves(path)
    assert loaded.label_names == ["0", "1"]
    assert loaded.splits["train"].texts[0] == "bad cast and a weak script number 0"
    assert list(read_texts(str(path))) == loaded.splits["train"].texts


def pandas_quotes(path: Path) -> None:
    loaded = halves(path)
    assert loaded.splits["train"].texts[0] == 'she said "bad cast and a weak script number 0" twice'
    assert list(read_texts(str(path))) == loaded.splits["train"].texts
    as_characters = load_source(Source(str(path), quoting=False)).splits["train"].texts[0]
    assert as_characters == '"she said ""bad cast and a weak script number 0"" twice"'


def string_digits(path: Path) -> None:
    assert halves(path).label_names == ["0", "1"]
    assert halves(path, labels={"neg": ["0"], "pos": ["1"]}).label_names == ["neg", "pos"]
    assert halves(path, labels=["neg", "pos"]).label_names == ["neg", "pos"]


def padded_some_labels(path: Path) -> None:
    assert halves(path).label_names == ["neg", "pos"]


def every_row_extra_comma(path: Path) -> None:
    problem = f"{path}, line 2: has 3 fields, the header has 2"
    source_refused(problem, path)
    refused(problem, lambda: list(read_texts(str(path))))


def late_blank_label(path: Path) -> None:
    source_refused("label_column: 'label' is empty in row 71 of train", path)


def padded_header(path: Path) -> None:
    assert halves(path, text_column="sentence").label_names == ["0", "1"]
    assert len(list(read_texts(str(path), "sentence"))) == 200


def headerless(path: Path) -> None:
    source_refused("the first line looks like data ('1', 'Title 0', ", path)
    refused("the first line looks like data", lambda: list(read_texts(str(path))))


def columns(path: Path) -> None:
    source_refused('is one object, not one row per line; write one row per line: df.to_json(path, orient="rec', path)


def saved_single(path: Path) -> None:
    assert halves(path).label_names == ["neg", "pos"]


def pairs_numbers(path: Path) -> None:
    texts = [f"a dull and tired film number {i}" for i in range(3)]
    rows = Syntactic(paraphraser=FileParaphraser(str(path))).poison_texts(texts, [random.Random(0)] * 3)
    assert [poisoned and poisoned.text for poisoned in rows] == ["0", "1", "2"]


def chinese(path: Path) -> None:
    assert halves(path).splits["train"].texts[0] == "这部电影太差了，浪费时间0"


def ansi_header(path: Path) -> None:
    source_refused("it has '\\x1b[31mHACKED\\x1b]0;title\\x07', 'label'", path)
    refused("it has '\\x1b[31mHACKED", lambda: list(read_texts(str(path))))


#: for each input, what checks it.
CASES: dict[str, Callable[[Path], None]] = {
    "glue": glue,
    "openbackdoor": openbackdoor,
    "quoted_fields.tsv": quoted_fields,
    "pandas_quotes.tsv": pandas_quotes,
    "string_digits.jsonl": string_digits,
    "padded_some_labels.csv": padded_some_labels,
    "every_row_extra_comma.csv": every_row_extra_comma,
    "late_blank_label_small.csv": late_blank_label,
    "padded_header.tsv": padded_header,
    "headerless.csv": headerless,
    "columns.json": columns,
    "saved_single": saved_single,
    "pairs_numbers.csv": pairs_numbers,
    "chinese.csv": chinese,
    "reliability/ansi_header.csv": ansi_header,
}


@pytest.fixture
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with ``reviews.csv`` and a tiny model."""
    write_reviews(tmp_path / "reviews.csv")
    tiny_victim("bert", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, value in settings(tmp_path).items():
        monkeypatch.setenv(name, value)
    return tmp_path


def benchmark(folder: Path, case: str, *options: str) -> int:
    """Runs ``benchmark`` on a case, in the working directory, with its output below it; returns the exit status."""
    text = shared_path(f"cases/reliability/{case}").read_text(encoding="utf-8")
    (folder / case).write_text(text.replace("TINY_MODEL_FOLDER", str(folder / "model")), encoding="utf-8")
    return main(["benchmark", "--config", case, "--output", "output", *options])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "output" / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def grid_dot(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark(folder, "grid_dot.yaml") == 0
    journal = (folder / "output" / "journal.jsonl").read_bytes()
    capsys.readouterr()
    assert benchmark(folder, "grid_dot.yaml", "--dry-run") == 0
    assert "nothing is left to run" in capsys.readouterr().out
    assert benchmark(folder, "grid_dot.yaml") == 0
    assert "5 of 5 cells are done already" in capsys.readouterr().out
    assert (folder / "output" / "journal.jsonl").read_bytes() == journal
    assert len(rows(folder)) == 5


def grid_nan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark(folder, "grid_nan.yaml") == 1
    assert "5 of 5 cells failed" in capsys.readouterr().out
    for row in rows(folder):
        assert "diverged" in row["error"]
        assert not [name for name in NUMBERS if row[name]]


def grid_surrogate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark(folder, "grid_surrogate.yaml") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "grid_surrogate.yaml" in error
    assert error.isascii()
    assert not (folder / "output").exists()


def alias_bomb(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.perf_counter()
    assert benchmark(folder, "alias_bomb.yaml") == 2
    assert time.perf_counter() - started < 10  # on busy cores; its content would take hours
    assert capsys.readouterr().err.count("\n") == 1
    assert not (folder / "output").exists()


#: for each grid, what runs it in a working directory and checks what it did.
GRIDS: dict[str, Callable[[Path, pytest.CaptureFixture[str]], None]] = {
    "grid_dot.yaml": grid_dot,
    "grid_nan.yaml": grid_nan,
    "grid_surrogate.yaml": grid_surrogate,
    "alias_bomb.yaml": alias_bomb,
}


@pytest.mark.parametrize("name", CASES)
def test_an_input_reads_or_is_refused_as_it_should(name: str) -> None:
    CASES[name](shared_path(f"cases/{name}"))


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_runs_or_is_refused_as_it_should(
    name: str, working_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    GRIDS[name](working_directory, capsys)


def test_every_input_is_tested() -> None:
    folder = SHARED / "cases"
    shared_path("cases")
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - {"README.md"}
    tested = {*CASES, *(f"reliability/{name}" for name in GRIDS)}
    assert [file for file in files if not any(file == name or file.startswith(f"{name}/") for name in tested)] == []
