"""Ids of victims and cells: what a run reads counts, what is only a text or an output does not, and nothing hangs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_backdoor.benchmark.grid import Grid
from lightning_backdoor.benchmark.identity import forget_files, identity
from lightning_backdoor.benchmark.named_files import located
from lightning_backdoor.files.class_sources import find_class
from lightning_backdoor.files.public_classes import ROOMS
from lightning_backdoor.language import NotCached, TextCache
from tests.benchmark.grids import REPAIRED, stub_grid
from tests.support.shared_files import shared_path


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def id_of(content: Any, output: Path | None = None) -> str:
    forget_files()
    return identity(content, "1", output)


def of_class(name: str, /, **arguments: Any) -> dict[str, Any]:
    return {"model": {"class_path": name, "init_args": arguments}}


BADNETS = "lightning_backdoor.attacks.BadNets"


@pytest.mark.parametrize("trigger", [".", "..", "/", "data.csv", "folder", "folder/", "./folder/x.txt", "~", "*"])
@pytest.mark.parametrize("key", ["triggers", "trigger", "sentence", "labels", "name"])
def test_a_text_is_no_path(inside: Path, trigger: str, key: str) -> None:
    (inside / "folder").mkdir()
    (inside / "data.csv").write_text("1", encoding="utf-8")
    config = of_class(BADNETS, **{key: [trigger]})
    before = id_of(config)
    for name in ("data.csv", "folder/x.txt", "new.txt"):
        (inside / name).write_text("2", encoding="utf-8")
    assert id_of(config) == before


@pytest.mark.parametrize(
    "config",
    [
        {"data": {"init_args": {"source": {"path": "files/one.csv"}}}},
        {"data": {"init_args": {"source": {"path": "files"}}}},
        {"data": {"init_args": {"source": {"path": "other", "splits": {"test": "../files/one.csv"}}}}},
        {"data": {"init_args": {"victim": "files/one.csv"}}},
        of_class(BADNETS, model="files"),
        of_class(BADNETS, published="files/one.csv"),
        of_class(BADNETS, paraphraser={"class_path": "lightning_backdoor.language.X", "init_args": {"path": "files"}}),
        of_class(BADNETS, text_path="files/one.csv"),
        of_class(BADNETS, language_model="files"),
        of_class(BADNETS, sentence_encoder="files"),
        of_class("lightning_backdoor.attacks.LLMBkd", selector="files"),
        of_class("lightning_backdoor.callbacks.FineMixing", pretrained="files"),
        of_class("lightning_backdoor.callbacks.FineMixing", corpus="files/one.csv"),
        of_class("mine.Attack", words="files/one.csv"),
        of_class("mine.Attack", nested={"tables": ["files/one.csv"]}),
        of_class("files.one.Attack"),
        of_class(BADNETS, triggers=[{"class_path": "files.one.Trigger"}]),
        of_class("package.one.Attack"),
        of_class("package.Attack"),
        of_class("around.package.Attack"),
    ],
    ids=str,
)
def test_what_a_run_reads_counts(inside: Path, config: dict[str, Any]) -> None:
    (inside / "files").mkdir()
    (inside / "other").mkdir()
    for package in ("package", "around/package"):
        (inside / package).mkdir(parents=True)
    seen = set()
    for content in ("", "1", "2"):
        for name in ("one.csv", "one.py"):
            if content:
                (inside / "files" / name).write_text(content, encoding="utf-8")
        for package in ("package", "around/package"):
            (inside / package / "__init__.py").write_text(content, encoding="utf-8")
        seen.add(id_of(config))
    assert len(seen) == 3


#: arguments of the library's classes that are texts, or name columns, options or what is written, but nothing to read.
TEXT_ARGUMENTS = {
    *(
        "cache_dir",
        "freeze",
        "lora_targets",
        "manner",
        "max_rows",
        "name",
        "precision",
        "splits",
        "targets",
        "template",
    ),
    *("flag_column", "label_column", "original_label_column", "paraphrase_column", "pretraining_column", "text_column"),
    *("joined_by", "labels", "protected_label", "target_label"),
    *("description", "keywords", "partial_sentences", "prompt", "sentence", "style"),
    *("trigger_words", "triggers", "word", "words"),
}


def test_every_argument_that_names_what_is_read_is_a_path_field(inside: Path) -> None:
    found = set()
    for room in (*ROOMS, "language"):
        module = import_module(f"lightning_backdoor.{room}")
        for exported in (getattr(module, name) for name in module.__all__):
            if not inspect.isclass(exported) or exported in (NotCached, TextCache):  # which no config names
                continue
            for cls in exported.__mro__:
                if cls.__module__.startswith("lightning_backdoor.") and "__init__" in vars(cls):
                    arguments = inspect.signature(vars(cls)["__init__"]).parameters.values()
                    found |= {a.name for a in arguments if re.search(r"\b(str|Path)\b", str(a.annotation))}
    before = {name: id_of(of_class(BADNETS, **{name: "read"})) for name in found}
    (inside / "read").write_text("1", encoding="utf-8")
    read = {name for name in found if id_of(of_class(BADNETS, **{name: "read"})) != before[name]}
    assert read >= {"selector", "pretrained", "corpus", "path", "files"}
    assert found - read == TEXT_ARGUMENTS, "add to _PATH_FIELD what names files, and to TEXT_ARGUMENTS what does not"


def test_a_package_without_code_of_its_own_keeps_the_ids(inside: Path) -> None:
    (inside / "package").mkdir()
    (inside / "package" / "one.py").write_text("1", encoding="utf-8")
    config = of_class("package.one.Attack")
    before = id_of(config)
    (inside / "package" / "__init__.py").touch()
    assert id_of(config) == before


@pytest.mark.parametrize("name", ["own_package.attack.Shout", "own_package.Shout", "own_module.Shout"])
def test_an_own_class_counts_wherever_it_is_imported_from(
    inside: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    package = inside / "src" / "own_package"  # as pip install -e has it
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from own_package.attack import Shout", encoding="utf-8")
    own = inside / "src" / "own_module.py" if name.startswith("own_module") else package / "attack.py"
    (package / "not_named.py").touch()
    monkeypatch.syspath_prepend(str(inside / "src"))
    ids = []
    for content in ("class Shout: pass", "class Shout: word = 1"):
        own.write_text(content, encoding="utf-8")
        ids.append(id_of(of_class(BADNETS, trigger=name)))
    assert ids[0] != ids[1]
    (package / "not_named.py").write_text("word = 1", encoding="utf-8")
    assert id_of(of_class(BADNETS, trigger=name)) == ids[1]
    monkeypatch.chdir(inside / "src")  # where the same modules count once
    assert id_of(of_class(BADNETS, trigger=name)) == ids[1]


def test_a_file_that_is_named_like_an_installed_package_is_no_class(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = inside / "src" / "own_data"
    package.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(inside / "src"))
    config = of_class(BADNETS, path="own_data.csv", word=f"own_data.{'x' * 300}.y")
    ids = set()
    for content in ("class Source: pass", "class Source: rows = 1"):
        (package / "__init__.py").write_text(content, encoding="utf-8")
        ids.add(id_of(config))
    assert len(ids) == 1


def test_a_word_is_a_word_in_a_users_own_class_too(inside: Path) -> None:
    config = of_class("mine.Attack", words=["cf", "."], mark="done", path_length=3)
    before = id_of(config)
    (inside / "done").touch()
    (inside / "cf").touch()
    assert id_of(config) == before


@pytest.mark.parametrize("folder", [".", ".."])
def test_files_in_a_folder_around_the_run_count(inside: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    (inside / "run" / "deep").mkdir(parents=True)
    monkeypatch.chdir(inside / "run")
    name = "deep/bad.csv" if folder == "." else "run/deep/bad.csv"
    config = of_class("lightning_backdoor.attacks.PoisonFiles", folder=folder, files={"train": name})
    ids = {id_of(config)}
    for content in ("1", "2"):
        (inside / "run" / "deep" / "bad.csv").write_text(content, encoding="utf-8")
        ids.add(id_of(config))
    assert len(ids) == 3


@pytest.mark.parametrize("path", [".", "..", "absolute"])
def test_splits_in_subfolders_of_a_folder_around_the_run_count(
    inside: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (inside / "run" / "data").mkdir(parents=True)
    monkeypatch.chdir(inside / "run")
    names = {"train": "data/one.csv"} if path != ".." else {"train": "run/data/one.csv"}
    source = {"path": str(inside / "run") if path == "absolute" else path, "splits": names}
    ids = {id_of({"data": {"init_args": {"source": source}}})}
    for content in ("1", "2"):
        (inside / "run" / "data" / "one.csv").write_text(content, encoding="utf-8")
        ids.add(id_of({"data": {"init_args": {"source": source}}}))
    assert len(ids) == 3


@pytest.mark.parametrize("path", [".", "..", "absolute"])
@pytest.mark.parametrize(
    ("splits", "read"),
    [
        ({"train": "rows.csv", "test": "train"}, ("rows.csv", "train.csv")),
        (None, ("train.csv", "dev.jsonl", "test-0.parquet")),
        (None, ("data/train.csv", "data/valid.csv.gz")),
        ({"train": "train", "test": "dev"}, ("data/train.csv", "data/dev.tsv")),
        (None, ("data/train-00000-of-00001.parquet",)),
        (None, ("reviews.csv",)),
    ],
    ids=str,
)
def test_of_a_folder_around_the_run_a_source_reads_its_tables_alone(
    inside: Path, monkeypatch: pytest.MonkeyPatch, path: str, splits: dict[str, str] | None, read: tuple[str, ...]
) -> None:
    around = inside / "around"
    (around / "data").mkdir(parents=True)
    (around / "run").mkdir()
    monkeypatch.chdir(around / "run" if path == ".." else around)
    source = {"path": str(around) if path == "absolute" else path, "splits": splits}
    config = {"data": {"init_args": {"source": source}}}
    for name in read:
        (around / name).write_text("1", encoding="utf-8")
    ids = [id_of(config)]
    for name in ("grid.log", "grid.yaml", "slurm-1.out", "data/notes.txt"):
        (around / name).write_text("2", encoding="utf-8")
    if splits or "train.csv" in read:  # all splits are found, so that no other table is read
        (around / "other.csv").write_text("2", encoding="utf-8")
    assert id_of(config) == ids[0]
    for name in read:
        (around / name).write_text("2", encoding="utf-8")
        ids.append(id_of(config))
    assert len({*ids}) == len(read) + 1


@pytest.mark.parametrize("key", ["cache_dir", "save_dir", "dirpath", "device"])
def test_a_folder_that_is_written_to_does_not_count(inside: Path, key: str) -> None:
    config = of_class(BADNETS, **{key: "./written"})
    before = id_of(config)
    (inside / "written").mkdir()
    (inside / "written" / "x").touch()
    assert id_of(config) == before


@pytest.mark.parametrize("path", ["data", "./data", "data/.", "../data"])
def test_the_output_folder_never_counts(inside: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    (inside / "elsewhere").mkdir()
    (inside / "data" / "out").mkdir(parents=True)
    (inside / "data" / "train.csv").write_text("1", encoding="utf-8")
    if path.startswith(".."):
        monkeypatch.chdir(inside / "elsewhere")
    output = (inside / "data" / "out").resolve()
    config = {"data": {"init_args": {"source": {"path": path}}}}
    before = id_of(config, output)
    (output / "victims").mkdir()
    (output / "victims" / "log.txt").write_text("more", encoding="utf-8")
    assert id_of(config, output) == before
    assert id_of(config) != before
    (inside / "data" / "train.csv").write_text("2", encoding="utf-8")
    assert id_of(config, output) != before


@pytest.mark.parametrize("path", ["data.csv", "./data.csv", "folder", "."])
def test_data_beside_what_a_grid_writes_counts(inside: Path, path: str) -> None:
    output = inside.resolve()  # as with --output .
    (inside / "folder").mkdir()
    config = {"data": {"init_args": {"source": {"path": path}}}}
    seen = []
    for content in ("1", "2"):
        for name in ("data.csv", "folder/train.csv"):
            (inside / name).write_text(content, encoding="utf-8")
        seen.append(id_of(config, output))
        for name in ("results.csv", "journal.jsonl", "log.txt"):
            (inside / name).write_text(content, encoding="utf-8")
        assert id_of(config, output) == seen[-1]
    assert seen[0] != seen[1]


@pytest.mark.parametrize(
    "name", ["figures/roc.svg", ".results.csv.partial", ".comparisons.csv.partial", ".report.html.partial"]
)
def test_of_data_in_the_output_folder_nothing_counts_that_a_grid_writes(inside: Path, name: str) -> None:
    output = (inside / "folder").resolve()
    output.mkdir()
    (output / "train.csv").write_text("1", encoding="utf-8")
    config = {"data": {"init_args": {"source": {"path": "folder"}}}}
    before = id_of(config, output)
    (output / name).parent.mkdir(exist_ok=True)
    (output / name).write_text("written", encoding="utf-8")
    assert id_of(config, output) == before


@pytest.mark.parametrize("path", [".", "..", "/"])
def test_of_a_folder_around_the_run_only_its_own_files_count(inside: Path, path: str) -> None:
    config = of_class(BADNETS, model=path)
    before = id_of(config)
    (inside / "runs" / "deep").mkdir(parents=True)
    (inside / "runs" / "deep" / "log.txt").touch()
    assert id_of(config) == before
    (inside / "config.json").write_text("{}", encoding="utf-8")
    assert (id_of(config) != before) == (path == ".")


@pytest.mark.parametrize(
    "test",
    [
        {"data": {"init_args": {"source": {"splits": {"test": "../other/words.txt"}}}}},
        {"model": {"init_args": {"words": "other/words.txt"}}},
    ],
    ids=str,
)
def test_what_a_test_names_together_with_the_victims_config_counts(inside: Path, test: dict[str, Any]) -> None:
    for folder in ("corpus", "other"):
        (inside / folder).mkdir()
    (inside / "other" / "words.txt").write_text("1", encoding="utf-8")
    stub_grid(inside / "grid.yaml")
    content = yaml.safe_load((inside / "grid.yaml").read_text(encoding="utf-8")) | {"test": test}
    content["datasets"] = {"texts": {"class_path": "stub.Data", "init_args": {"source": {"path": "corpus"}}}}
    (inside / "grid.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    before = Grid(inside / "grid.yaml").cells[0]
    (inside / "other" / "words.txt").write_text("2", encoding="utf-8")
    after = Grid(inside / "grid.yaml").cells[0]
    assert after.id != before.id
    assert after.victim.id == before.victim.id


def test_each_text_is_looked_up_once_for_all_cells(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up = []

    def counted(look_up: Callable[[str], Any], text: str) -> Any:
        looked_up.append(text)
        return look_up(text)

    for name, look_up in (("find_class", find_class), ("located", located)):
        monkeypatch.setattr(f"lightning_backdoor.benchmark.identity.{name}", partial(counted, look_up))
    source = {"path": "corpus", "splits": {"test": "test.csv"}}
    forget_files()
    for seed in range(3):
        identity({"seed": seed, "source": source, "text": source}, "1")
    assert sorted(looked_up) == ["corpus", "test.csv"]


def test_todays_grids_keep_their_ids(inside: Path) -> None:
    grid = stub_grid(inside / "grid.yaml", 3, 3, 2, **REPAIRED)
    assert (grid.cells[0].id, grid.cells[-1].id) == ("19cf022854d70602", "7de99e37995312cd")


def test_a_trigger_that_is_the_working_directory_changes_no_id(inside: Path) -> None:
    text = shared_path("cases/reliability/grid_dot.yaml").read_text(encoding="utf-8")
    ids = []
    for trigger in (".", ".."):
        content = yaml.safe_load(text)
        content["attacks"]["bad"]["init_args"]["triggers"] = [trigger]
        (inside / "grid.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        for _ in range(2):
            ids.append([cell.id for cell in Grid(inside / "grid.yaml", inside / "output").cells])
            (inside / "output" / "cells").mkdir(parents=True, exist_ok=True)
            (inside / "output" / "cells" / "log.txt").write_text("done", encoding="utf-8")
    assert ids[0] == ids[1] != ids[2] == ids[3]
