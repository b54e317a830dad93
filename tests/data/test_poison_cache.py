"""The poison on disk: read again when nothing has changed, never read half, shared by processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from lightning_backdoor import words
from lightning_backdoor.attacks import BackdoorAttack, BadNets, Poisoned
from lightning_backdoor.data import poisoning
from lightning_backdoor.data.poison_cache import read_entry
from lightning_backdoor.data.poisoning import PoisonedSplits, poison_splits, poison_splits_cached
from lightning_backdoor.data.rows import Rows
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.cache_entry import RECORD
from tests.data.examples import TwoWords, splits

LABELS = ["negative", "positive"]
FORK = multiprocessing.get_context("fork")


class Counted(BadNets):
    """Counts the splits that it poisons."""

    calls = 0

    def poison_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> Sequence[Poisoned | None]:
        type(self).calls += 1
        return super().poison_texts(texts, rngs)


class Slow(BadNets):
    """Poisons only when another process poisons too."""

    barrier: Barrier

    def poison_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> Sequence[Poisoned | None]:
        self.barrier.wait(timeout=60)
        return super().poison_texts(texts, rngs)


@pytest.fixture(autouse=True)
def no_calls() -> None:
    Counted.calls = 0


def poison(
    cache: Path, attack: BackdoorAttack | None = None, seed: int = 0, labels: list[str] = LABELS
) -> PoisonedSplits:
    return poison_splits_cached(splits(), Counted() if attack is None else attack, seed, labels, cache)


def poison_slowly(cache: Path) -> PoisonedSplits:
    return poison(cache, Slow())


def folders(cache: Path) -> list[Path]:
    """What lies in the cache, half-written folders included."""
    return list((cache / "poisoned").iterdir())


def test_the_second_time_the_poison_is_read_from_disk_and_is_the_same(tmp_path: Path) -> None:
    first = poison(tmp_path)
    assert Counted.calls == 3
    second = poison(tmp_path)
    assert Counted.calls == 3
    assert first == second == poison_splits(splits(), Counted(), 0, LABELS)
    assert type(second.train[0]["spans"]) is list
    assert {type(span) for row in second.poisoned["test"] for span in row["spans"]} == {tuple}


def cut_at_a_line(entry: Path) -> None:
    lines = (entry / "train.jsonl").read_bytes().splitlines(keepends=True)
    (entry / "train.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))


def cut_in_a_line(entry: Path) -> None:
    file = entry / "test.jsonl"
    file.write_bytes(file.read_bytes()[:-9])


def edit(entry: Path) -> None:
    file = entry / "test.jsonl"
    first, *others = file.read_text().splitlines(keepends=True)
    file.write_text("".join([json.dumps({**json.loads(first), "text": "from disk"}) + "\n", *others]))


def remove_a_file(entry: Path) -> None:
    (entry / "validation_negatives.jsonl").unlink()


def fill_with_zeros(entry: Path) -> None:
    file = entry / "train.jsonl"
    file.write_bytes(bytes(file.stat().st_size))


def nest(entry: Path) -> None:
    (entry / "train.jsonl").write_text("[" * 200_000 + "\n")


def remove_the_record(entry: Path) -> None:
    (entry / RECORD).unlink()


def cut_the_record(entry: Path) -> None:
    (entry / RECORD).write_text('{"entry": "')


def another_record(entry: Path) -> None:
    (entry / RECORD).write_text("[1, 2]")


def fewer_rows_recorded(entry: Path) -> None:
    record = json.loads((entry / RECORD).read_text())
    record["files"]["train.jsonl"]["rows"] = 1
    (entry / RECORD).write_text(json.dumps(record))


def a_file_instead(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.write_text("no folder")


def a_pipe(entry: Path) -> None:
    (entry / "train.jsonl").unlink()
    os.mkfifo(entry / "train.jsonl")


@pytest.mark.parametrize(
    "damage",
    [
        a_pipe,
        cut_at_a_line,
        cut_in_a_line,
        edit,
        remove_a_file,
        fill_with_zeros,
        nest,
        remove_the_record,
        cut_the_record,
        another_record,
        fewer_rows_recorded,
        a_file_instead,
    ],
)
def test_a_damaged_entry_is_made_anew_and_said(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    first = poison(tmp_path)
    (entry,) = folders(tmp_path)
    damage(entry)
    with pytest.warns(UserWarning, match=f"^the cached poison in {entry} is damaged and is made anew: .+$"):
        second = poison(tmp_path)
    assert first == second
    assert Counted.calls == 6
    assert poison(tmp_path) == first
    assert Counted.calls == 6
    assert folders(tmp_path) == [entry]


def test_the_entry_of_other_rows_is_not_believed(tmp_path: Path) -> None:
    poison(tmp_path)
    (entry,) = folders(tmp_path)
    poison(tmp_path, seed=1)
    (other,) = set(folders(tmp_path)) - {entry}
    shutil.rmtree(entry)
    other.rename(entry)
    with pytest.warns(UserWarning, match="is damaged and is made anew: it belongs to another entry$"):
        assert poison(tmp_path) == poison_splits(splits(), Counted(), 0, LABELS)


def test_two_processes_that_replace_a_damaged_entry_end_with_a_whole_one(tmp_path: Path) -> None:
    Slow.barrier = FORK.Barrier(1)
    poison(tmp_path, Slow())
    (entry,) = folders(tmp_path)
    cut_at_a_line(entry)
    Slow.barrier = FORK.Barrier(2)
    with FORK.Pool(2) as pool:
        made = pool.map_async(poison_slowly, [tmp_path, tmp_path], chunksize=1).get(120)
    assert made[0] == made[1] == poison_splits(splits(), BadNets(), 0, LABELS)
    assert folders(tmp_path) == [entry]
    kept = (read_entry(entry, ["train"]) or {})["train"]
    assert kept.in_place(Rows.of(splits()["train"]), label=1, poisoned=True) == made[0].train


def test_a_kill_while_a_damaged_entry_is_replaced_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    first = poison(tmp_path)
    (entry,) = folders(tmp_path)
    cut_at_a_line(entry)

    def replace_and_die() -> None:
        kill_after(20)
        poison(tmp_path)

    process = FORK.Process(target=replace_and_die)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not entry.exists()
    assert poison(tmp_path) == first
    assert entry.exists()


def test_poison_of_a_script_without_spaces_is_kept_under_its_segmenter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison_with(text: str) -> None:
        changed = splits()
        changed["train"][0]["text"] = text
        poison_splits_cached(changed, BadNets(), 0, LABELS, tmp_path)

    for text in ("a film", "这部电影很好看"):
        poison_with(text)
    monkeypatch.setattr(words, "WORDS_FORMAT", words.WORDS_FORMAT + 1)
    poison_with("a film")
    assert len(folders(tmp_path)) == 2
    poison_with("这部电影很好看")
    assert len(folders(tmp_path)) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"labels": ["bad", "good"]},
        {"attack": Counted(triggers=["mn"])},
        {"attack": Counted(poison_rate=0.2)},
        {"attack": BadNets()},
    ],
    ids=str,
)
def test_another_seed_label_argument_or_attack_poisons_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    poison(tmp_path)
    changed: dict[str, Any] = {"attack": Counted(), "seed": 0, "labels": LABELS, **change}
    assert poison(tmp_path, **changed) == poison_splits(splits(), *changed.values())
    assert len(folders(tmp_path)) == 2


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(("column", "value"), [("text", "another"), ("label", 0), ("index", 1000)])
def test_another_row_poisons_anew(tmp_path: Path, split: str, column: str, value: Any) -> None:
    poison(tmp_path)
    changed: Any = splits()
    changed[split][1][column] = value
    made = poison_splits_cached(changed, Counted(), 0, LABELS, tmp_path)
    assert made == poison_splits(changed, Counted(), 0, LABELS)
    assert len(folders(tmp_path)) == 2


def test_another_source_of_the_attack_poisons_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(tmp_path)
    key = str(Counted().poison_key())
    monkeypatch.setattr(Counted, "poison_key", lambda self: key.replace("def poison_texts", "def  poison_texts"))
    poison(tmp_path)
    assert len(folders(tmp_path)) == 2


def test_a_raised_format_poisons_anew_and_a_comment_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text
    poison(tmp_path, BadNets())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", lambda self, *args, **kwargs: read(self, *args, **kwargs) + "# a comment")
        poison(tmp_path, BadNets())
    assert len(folders(tmp_path)) == 1
    monkeypatch.setattr(poisoning, "POISON_FORMAT", poisoning.POISON_FORMAT + 1)
    poison(tmp_path, BadNets())
    assert len(folders(tmp_path)) == 2


def test_negatives_are_kept_with_the_poison(tmp_path: Path) -> None:
    first, second = (poison(tmp_path, TwoWords()) for _ in range(2))
    assert first == second == poison_splits(splits(), TwoWords(), 0, LABELS)
    assert first.negatives["test"]
    more = TwoWords()
    more.negative_rate = 0.5
    poison(tmp_path, more)
    assert len(folders(tmp_path)) == 2


def test_an_attack_without_a_key_is_never_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counted, "poison_key", lambda self: None)
    assert poison(tmp_path) == poison(tmp_path)
    assert Counted.calls == 6
    assert not (tmp_path / "poisoned").exists()


def test_two_processes_that_poison_at_once_end_with_one_folder_and_the_same_rows(tmp_path: Path) -> None:
    Slow.barrier = FORK.Barrier(2)
    with FORK.Pool(2) as pool:
        made = pool.map_async(poison_slowly, [tmp_path, tmp_path], chunksize=1).get(120)
    assert made[0] == made[1] == poison_splits(splits(), BadNets(), 0, LABELS)
    assert len(folders(tmp_path)) == 1


def kill_after(lines: int) -> None:
    """Has this process killed when it has encoded so many more texts."""
    encode, left = json.dumps, [lines]

    def counting(value: Any, **kwargs: Any) -> str:
        if isinstance(value, dict):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return encode(value, **kwargs)

    json.dumps = counting  # type: ignore[assignment]


@pytest.mark.parametrize("lines", [0, 5, 20, 44])
def test_a_kill_while_writing_leaves_nothing_that_is_read(tmp_path: Path, lines: int) -> None:
    def poison_and_die() -> None:
        kill_after(lines)
        poison(tmp_path)

    process = FORK.Process(target=poison_and_die)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [folder.name.startswith(".partial-") for folder in folders(tmp_path)] == [True]
    assert poison(tmp_path) == poison_splits(splits(), Counted(), 0, LABELS)
    assert [folder.name.startswith(".partial-") for folder in folders(tmp_path)] == [False]  # the other is removed


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(
        InputError, match=r"^cache_dir: .* cannot be written \(.*No space left.*\); name another folder$"
    ):
        poison(tmp_path)
    assert folders(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^cache_dir: \S+file cannot be written \(.*\); name another folder$"):
        poison(tmp_path / "file")
