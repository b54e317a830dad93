"""The files that a config names: those behind links and in installed packages count, and nothing hangs."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import util
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from lightning_backdoor.files import packaged
from tests.benchmark.test_identity import BADNETS, id_of, of_class


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("splits", [None, {"train": "data/train.csv"}], ids=str)
def test_a_subfolder_that_is_a_link_counts(inside: Path, splits: dict[str, str] | None) -> None:
    for folder in ("corpus", "one", "two"):
        (inside / folder).mkdir()
    config = {"data": {"init_args": {"source": {"path": "corpus", "splits": splits}}}}
    ids = {id_of(config)}
    for target in ("one", "two"):
        (inside / target / "train.csv").write_text(target, encoding="utf-8")
        (inside / "corpus" / "data").unlink(missing_ok=True)
        (inside / "corpus" / "data").symlink_to(inside / target)
        ids.add(id_of(config))
    (inside / "two" / "train.csv").write_text("3", encoding="utf-8")
    assert len({*ids, id_of(config)}) == 4


def test_a_link_within_a_folder_changes_an_id_only_if_a_split_goes_through_it(inside: Path) -> None:
    def ids() -> tuple[str, str]:
        sources = ({"path": "corpus"}, {"path": "corpus", "splits": {"train": "current/train.csv"}})
        one, other = (id_of({"data": {"init_args": {"source": source}}}) for source in sources)
        return one, other

    for folder in ("v1", "v2"):
        (inside / "corpus" / folder).mkdir(parents=True)
        (inside / "corpus" / folder / "train.csv").write_text(folder, encoding="utf-8")
    seen = [ids()]
    for target in ("v1", "v2"):
        (inside / "corpus" / "current").unlink(missing_ok=True)
        (inside / "corpus" / "current").symlink_to(target)
        seen.append(ids())
    (inside / "corpus" / "around").symlink_to("..")
    (inside / "corpus" / "v1" / "__pycache__").mkdir()
    (inside / "corpus" / "v1" / "__pycache__" / "x.pyc").touch()
    seen.append(ids())
    assert [len({*of_source}) for of_source in zip(*seen, strict=True)] == [1, 3]


def test_what_is_around_a_folder_or_a_link_in_it_does_not_count(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("run", "store/corpus", "far/deep"):
        (inside / folder).mkdir(parents=True)
    monkeypatch.chdir(inside / "run")
    for link, target in (("all", "store"), ("itself", "store/corpus"), ("far", "far/deep")):
        (inside / "store" / "corpus" / link).symlink_to(inside / target)
    for link in ("far", "store"):
        (inside / "far" / "deep" / link).symlink_to(inside / link)
    config = of_class(BADNETS, model="../store/corpus")
    ids = [id_of(config)]
    for name in ("store/log.txt", "far/log.txt", "store/corpus/x.txt", "far/deep/x.txt"):
        (inside / name).touch()
        ids.append(id_of(config))
    assert ids[0] == ids[1] == ids[2]
    assert len({*ids}) == 3


@pytest.fixture
def package(inside: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a file ``data/rows.csv``."""
    folder = inside / "site" / "packaged_by_a_test"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "rows.csv").write_text("0", encoding="utf-8")
    monkeypatch.syspath_prepend(str(inside / "site"))
    return folder


@pytest.mark.parametrize(
    "config",
    [
        {"data": {"init_args": {"source": {"path": "package://packaged_by_a_test/data/rows.csv"}}}},
        {"data": {"init_args": {"source": {"path": "package://packaged_by_a_test"}}}},
        {"source": {"path": "package://packaged_by_a_test/data/no", "splits": {"train": "../rows.csv"}}},
        of_class(BADNETS, model="package://packaged_by_a_test/data"),
        of_class("mine.Attack", words="package://packaged_by_a_test/data/rows.csv"),
    ],
    ids=str,
)
def test_what_is_read_in_an_installed_package_counts(package: Path, config: dict[str, Any]) -> None:
    (package / "data" / "no").mkdir()
    before = id_of(config)
    (package / "data" / "rows.csv").write_text("1", encoding="utf-8")
    assert id_of(config) != before


@pytest.mark.parametrize(
    "named",
    [
        lambda file: {"source": {"path": "package://packaged_by_a_test/data", "splits": {"test": file}}},
        lambda file: of_class(BADNETS, folder="package://packaged_by_a_test/data", files={"train": file}),
    ],
    ids=["splits", "files"],
)
def test_a_file_elsewhere_that_is_named_beside_a_packaged_folder_counts(
    package: Path, inside: Path, named: Callable[[str], dict[str, Any]]
) -> None:
    config = named(str(inside / "test.csv"))
    before = id_of(config)
    (inside / "test.csv").touch()
    assert id_of(config) != before


def test_packages_with_published_hashes_are_looked_up_once_for_all_files(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[str] = []

    def find_spec(name: str) -> ModuleSpec | None:
        looked_up.append(name)
        return util.find_spec(name)

    monkeypatch.setattr(packaged, "find_spec", find_spec)
    counts = []
    for name in ("rows.csv", "other.csv"):
        (package / "data" / name).touch()
        looked_up.clear()
        id_of(of_class(BADNETS, model="package://packaged_by_a_test/data"))
        counts.append(len(looked_up))
    assert counts[0] == counts[1] > 0


def test_of_a_packaged_file_with_a_published_hash_the_hash_counts_and_it_is_not_read(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = of_class(BADNETS, model="package://packaged_by_a_test/data")
    of_content = id_of(config)
    monkeypatch.setattr(packaged, "PUBLISHED_SHA256", {"package://packaged_by_a_test/data/rows.csv": "1234"})
    of_hash = id_of(config)
    (package / "data" / "rows.csv").write_text("1", encoding="utf-8")
    assert of_content != of_hash == id_of(config)
    (package / "data" / "other.csv").touch()
    assert id_of(config) != of_hash


def test_special_files_do_not_hang(inside: Path) -> None:
    folder = inside / "files"
    folder.mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    (folder / "around").symlink_to(folder)
    (folder / "zero").symlink_to("/dev/zero")
    names = ("fifo", "dangling", "loop", "around", "zero")
    paths = ["files", *(f"files/{name}" for name in names), "/dev/zero", "x" * 5000, "nul\0", "~nobody/x"]
    paths += ["package://nowhere/x", "package://pytest/nul\0", "package:///"]
    for name in (BADNETS, "mine.Attack"):
        for path in paths:
            id_of(of_class(name, model=path, words=path, file=path))
