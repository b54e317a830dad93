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
from lightning_backdoor.commands.scan.texts import read_texts
from lightning_backdoor.data import Source
from lightning_backdoor.data.source import Loaded, load_source
from lightning_backdoor.errors import InputError
from lightning_backdoor.language import FileParaphraser
from tests.support.reviews import write_reviews
from tests.support.shared_files import shared_path
from tests.support.tiny import tiny_victim
from tests.support.workspace import settings

Capture = pytest.CaptureFixture[str]


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


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with ``reviews.csv`` and a tiny model."""
    write_reviews(tmp_path / "reviews.csv")
    tiny_victim("bert", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, value in settings(tmp_path).items():
        monkeypatch.setenv(name, value)
    return tmp_path


def benchmark(path: Path, *options: str) -> int:
    """Runs a grid in the working directory, with its output below it; returns the exit status."""
    text = path.read_text(encoding="utf-8").replace("TINY_MODEL_FOLDER", "model")
    Path(path.name).write_text(text, encoding="utf-8")
    return main(["benchmark", "--config", path.name, "--output", "output", *options])


def grid_refused(path: Path, capsys: Capture) -> None:
    started = time.process_time()
    assert benchmark(path) == 2
    assert time.process_time() - started < 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert path.name in error
    assert error.isascii()
    assert not Path("output").exists()


def grid_dot(path: Path, capsys: Capture) -> None:
    assert benchmark(path) == 0
    journal = Path("output", "journal.jsonl").read_bytes()
    capsys.readouterr()
    assert benchmark(path, "--dry-run") == 0
    assert "nothing is left to run" in capsys.readouterr().out
    assert benchmark(path) == 0
    assert "5 of 5 cells are done already" in capsys.readouterr().out
    assert Path("output", "journal.jsonl").read_bytes() == journal
    assert len(grid_rows()) == 5


def grid_nan(path: Path, capsys: Capture) -> None:
    assert benchmark(path) == 1
    assert "5 of 5 cells failed" in capsys.readouterr().out
    for row in grid_rows():
        assert "diverged" in row["error"]
        assert not [name for name in NUMBERS if row[name]]


def grid_rows() -> list[dict[str, str]]:
    with Path("output", "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


#: for each grid, what checks it.
GRIDS: dict[str, Callable[[Path, Capture], None]] = {
    "reliability/grid_dot.yaml": grid_dot,
    "reliability/grid_nan.yaml": grid_nan,
    "reliability/grid_surrogate.yaml": grid_refused,
    "reliability/alias_bomb.yaml": grid_refused,
}
#: for each other input, what checks it.
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


@pytest.mark.parametrize("name", [*CASES, *GRIDS])
def test_an_input_reads_or_is_refused_as_it_should(name: str, inside: Path, capsys: Capture) -> None:
    path = shared_path(f"cases/{name}")
    if name in GRIDS:
        GRIDS[name](path, capsys)
    else:
        CASES[name](path)


def test_every_input_is_tested() -> None:
    folder = shared_path("cases")
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - {"README.md"}
    names = [*CASES, *GRIDS]
    assert {file for file in files if not any(file == name or file.startswith(f"{name}/") for name in names)} == set()
