"""The journal as disks, kills and other programs may leave it: a line that is not an event is named and skipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_backdoor.benchmark.running import worker
from lightning_backdoor.benchmark.running.journal import LONGEST_LINE, Journal
from lightning_backdoor.benchmark.running.worker import Worker
from lightning_backdoor.benchmark.write_results import write_results
from tests.benchmark.grids import stub_command, stub_grid

GOOD = b'{"kind": "cell", "id": "one", "launch": "a", "seconds": 1.5}'


def read(path: Path) -> tuple[list[str], list[str]]:
    """The ids of the events in a journal, and the messages about its other lines."""
    said: list[str] = []
    return [event["id"] for event in Journal(path, said.append).refresh()], said


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (GOOD[:30], "not JSON"),
        (GOOD[5:], "not JSON"),
        (GOOD + GOOD, "not JSON"),
        (b"\xff\xfe\x00\x01", "not JSON"),
        (GOOD.decode().encode("utf-16"), "not JSON"),
        (b"\0" * 100, "not JSON"),
        (b"[" * 60_000, "not JSON"),
        (b'{"a":' * 10_000, "not JSON"),
        (b"[1]", "not a mapping"),
        (b"null", "not a mapping"),
        (b'"cell"', "not a mapping"),
        (b'{"id": "one"}', "without kind"),
        (b'{"kind": "cell"}', "without id"),
        (b'{"kind": "cell", "id": "one", "error": "x"}', "without launch"),
        (b'{"kind": "cel", "id": "one"}', "of an unknown kind"),
        (b'{"kind": ["cell"], "id": "one"}', "of an unknown kind"),
        (b'{"kind": "cell", "id": ["one"]}', "id is not text"),
        (b'{"kind": "cell", "id": "one", "launch": 3, "error": "x"}', "launch is not text"),
        (b'{"kind": "cell", "id": "one", "launch": "a", "error": null}', "error is not text"),
        (b'{"kind": "victim", "id": "one", "digest": 3}', "digest is not text"),
        (b'{"kind": "cell", "id": "one", "seconds": "1"}', "seconds is not a number"),
        (b'{"kind": "cell", "id": "one", "seconds": true}', "seconds is not a number"),
        (b'{"kind": "cell", "id": "one", "seconds": 1e999}', "seconds is not a number"),
        (b'{"kind": "cell", "id": "one", "seconds": NaN}', "not JSON"),
        (b'{"kind": "cell", "id": "one", "seconds": 1' + b"0" * 5000 + b"}", "not JSON"),
        (b'{"kind": "cell", "id": "one", "seconds": 1' + b"0" * 400 + b"}", "not JSON"),
        (b'{"kind": "cell", "id": "one", "row": {"cacc": NaN}}', "not JSON"),
        (b'{"kind": "cell", "id": "one", "row": {"cacc": 1e999}}', "files or row is malformed"),
        (b'{"kind": "cell", "id": "one", "row": {"cacc": "1"}}', "files or row is malformed"),
        (b'{"kind": "cell", "id": "one", "row": [1]}', "files or row is malformed"),
        (b'{"kind": "cell", "id": "one", "files": {"outcomes.csv": 1}}', "files or row is malformed"),
        (b'{"kind": "cell", "id": "' + b"x" * LONGEST_LINE + b'"}', "too long"),
        (b"x" * (3 * LONGEST_LINE), "too long"),
    ],
)
def test_a_line_that_is_no_event_is_named_and_skipped(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(GOOD + b"\n\r\n" + line + b"\n" + GOOD.replace(b"one", b"two") + b"\r\n")
    ids, said = read(path)
    assert ids == ["one", "two"]
    (message,) = said
    assert message == f"{path}, line 3, is not an event of a grid ({problem}) and is skipped"


def test_lines_keep_their_numbers_over_several_reads(tmp_path: Path) -> None:
    path, said = tmp_path / "journal.jsonl", list[str]()
    journal = Journal(path, said.append)
    for number in range(3):
        with path.open("ab") as file:
            file.write(GOOD + b"\nnot ours\n{")
        assert len(journal.refresh()) == 1
        journal.append("cell", str(number), seconds=1)
        assert [event["id"] for event in journal.refresh()] == [str(number)]
    assert [message.split(", ")[1] for message in said] == ["line 2", "line 5", "line 8"]


@pytest.mark.parametrize("end", [b'{"kind": "cell", "id": "tw', b"\0" * 3, b"x" * (3 * LONGEST_LINE)])
def test_what_is_appended_after_an_unfinished_line_is_read(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(GOOD + b"\n" + end)
    Journal(path).append("cell", "three", seconds=2)
    ids, said = read(path)
    assert ids == ["one", "three"]
    assert len(said) == (len(end) > LONGEST_LINE)


@settings(max_examples=100)
@given(
    lines=st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.recursive(
                st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(
                        st.sampled_from(["kind", "id", "launch", "error", "seconds", "row", "files", "digest"]),
                        inner,
                        max_size=8,
                    )
                ),
            ).map(lambda value: json.dumps(value).encode()),
        ),
        max_size=5,
    )
)
def test_any_bytes_are_read(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in [*lines, GOOD]))
    ids, _ = read(path)
    assert ids[-1] == "one"


def test_a_cell_whose_line_is_damaged_is_tested_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "run_command", stub_command)
    grid = stub_grid(tmp_path / "grid.yaml", attacks=1, defenses=2, seeds=1)
    Worker(tmp_path, grid.cells, "one").run()
    before = write_results(grid, tmp_path, "").rows
    path = tmp_path / "journal.jsonl"
    lines = path.read_bytes().split(b"\n")
    line = next(i for i, text in enumerate(lines) if b'"kind": "cell"' in text)
    path.write_bytes(b"\n".join([*lines[:line], lines[line][:-40], *lines[line + 1 :]]))
    assert [row["cell"] for row in write_results(grid, tmp_path, "").rows] == [grid.cells[1].id]
    Worker(tmp_path, grid.cells, "two").run()
    after = write_results(grid, tmp_path, "").rows
    assert [{**row, "seconds": None} for row in after] == [{**row, "seconds": None} for row in before]


def test_an_event_that_was_changed_is_named_and_skipped(tmp_path: Path) -> None:
    path, said = tmp_path / "journal.jsonl", list[str]()
    Journal(path).append("cell", "one", seconds=1.5, row={"asr": 0.125, "cell": 1})
    Journal(path).append("cell", "two", seconds=0.1 + 0.2, row={"asr": 1e-9, "cacc": None})
    whole = Journal(path)
    assert whole.refresh()[1] == {"kind": "cell", "id": "two", "seconds": 0.1 + 0.2, "row": {"asr": 1e-9, "cacc": None}}
    path.write_text(path.read_text(encoding="utf-8").replace("0.125", "0.925"), encoding="utf-8")
    changed = Journal(path, said.append)
    assert [event["id"] for event in changed.refresh()] == ["two"]
    assert changed.is_open("cell", "one")
    assert said == [f"{path}, line 1, is not an event of a grid (changed since it was written) and is skipped"]
