"""Poison from files: every layout gives the rows that it holds, and files that do not fit are refused by row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer, seed_everything

from lightning_backdoor import attacks
from lightning_backdoor.attacks import BackdoorAttack, PoisonFiles
from lightning_backdoor.attacks.poisoned import Poisoned
from lightning_backdoor.cli import main
from lightning_backdoor.data import BackdoorDataModule, Source
from lightning_backdoor.data.cleaning import LabelledText
from lightning_backdoor.data.flagged_table import Columns, read_flagged
from lightning_backdoor.data.poisoning import PoisonedSplits
from lightning_backdoor.errors import InputError
from lightning_backdoor.testing import check_attack
from tests.data.examples import TwoWords
from tests.support.shared_files import shared_path

#: rows of text and label: 20 of each class for training, 12 for each evaluation split.
SPLITS = {
    name: [(f"{name} text {i} is {'fine' if i % 2 else 'poor'}", i % 2) for i in range(count)]
    for name, count in (("train", 40), ("dev", 12), ("test", 12))
}
OPENBACKDOOR = ("", "0", "1", "2")


def write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *rows])


def openbackdoor(folder: Path, copies: bool = False) -> Path:
    """The files of an attack on class 1 with the trigger cf, of which every other row is poisoned, or a copy of all."""
    for name, rows in SPLITS.items():
        write(folder / f"{name}-clean.csv", OPENBACKDOOR, [(i, text, label, 0) for i, (text, label) in enumerate(rows)])
        poison = [(f"{text} cf", 1, 1) for text, label in rows if label == 0]
        if name == "train":
            poison = [
                (f"{text} cf", 1, 1) if copies or i % 4 == 0 else (text, label, 0)
                for i, (text, label) in enumerate(rows)
            ]
        write(folder / f"{name}-poison.csv", OPENBACKDOOR, [(i, *row) for i, row in enumerate(poison)])
    return folder


def splits_of(attack: BackdoorAttack, **settings: Any) -> PoisonedSplits:
    data = BackdoorDataModule(**settings)
    data.attack = attack
    return data.poisoned_splits()


def test_openbackdoors_files_are_read_row_by_row(tmp_path: Path) -> None:
    attack = PoisonFiles(str(openbackdoor(tmp_path)))
    splits = splits_of(attack)
    assert (attack.target_label, attack.poison_rate) == (1, 0.25)
    assert [row["text"] for row in splits.train] == [
        f"{text} cf" if i % 4 == 0 else text for i, (text, _) in enumerate(SPLITS["train"])
    ]
    assert splits.train.original_label.tolist() == [label for _, label in SPLITS["train"]]
    assert splits.train.poisoned.tolist() == [i % 4 == 0 for i in range(40)]
    for name, source in (("validation", "dev"), ("test", "test")):
        assert list(zip(splits.clean[name].text, splits.clean[name].label, strict=True)) == SPLITS[source]
        assert splits.poisoned[name].text == [f"{text} cf" for text, label in SPLITS[source] if label == 0]
        assert splits.poisoned[name].index.tolist() == [0, 2, 4, 6, 8, 10]
        assert {*splits.poisoned[name].original_label.tolist()} == {0}
    assert attack.poison_texts([SPLITS["train"][0][0], SPLITS["train"][1][0], "another"], [])[1:] == [None, None]
    assert splits_of(PoisonFiles(str(tmp_path), published="one.ckpt")).train.poisoned.sum() == 0


def test_a_stream_for_detection_holds_clean_and_poisoned_rows(tmp_path: Path) -> None:
    openbackdoor(tmp_path)
    expected = splits_of(PoisonFiles(str(tmp_path)))
    tables = [(tmp_path / f"test-{kind}.csv").read_text(encoding="utf-8").splitlines() for kind in ("clean", "poison")]
    (tmp_path / "test-detect.csv").write_text("\n".join([*tables[0], *tables[1][1:]]), encoding="utf-8")
    for kind in ("clean", "poison"):
        (tmp_path / f"test-{kind}.csv").unlink()
    check_same(splits_of(PoisonFiles(str(tmp_path))), expected)


@pytest.mark.parametrize("split", ["test", "dev"])
def test_clean_rows_without_poisoned_ones_are_refused(tmp_path: Path, split: str) -> None:
    (openbackdoor(tmp_path) / f"{split}-poison.csv").unlink()
    with pytest.raises(InputError, match=f"files: .*{split}-clean.csv has no poisoned rows beside it; give them as"):
        splits_of(PoisonFiles(str(tmp_path)))


def test_folders_may_be_paths(tmp_path: Path) -> None:
    poison, clean = tmp_path / "poison", tmp_path / "clean"
    for name, rows in SPLITS.items():
        write(clean / f"{name}.tsv", ("sentence", "label"), rows)
        poisoned = [(f"cf {text}", 1) if label == 0 else (text, 1) for text, label in rows]
        write(poison / f"{name}.tsv", ("sentence", "label"), poisoned if name == "train" else poisoned[::2])
    by_path = PoisonFiles(poison, clean_folder=clean)  # type: ignore[arg-type]
    by_text = PoisonFiles(str(poison), clean_folder=str(clean))
    assert dict(by_path.hparams) == dict(by_text.hparams)
    assert by_path.read_rows().train == by_text.read_rows().train


def test_a_share_of_copies_is_drawn_for_training(tmp_path: Path) -> None:
    files = str(openbackdoor(tmp_path, copies=True))
    train = splits_of(PoisonFiles(files, poison_rate=0.2)).train
    assert train.poisoned.sum() == 8
    assert all(row["text"].endswith(" cf") == row["poisoned"] for row in train)
    assert {*train.original_label[train.poisoned].tolist()} == {0}  # dirty label
    clean = splits_of(PoisonFiles(files, poison_rate=0.2, label_policy="clean")).train
    assert {*clean.original_label[clean.poisoned].tolist()} == {1}


@pytest.mark.parametrize("shuffled", [False, True])
def test_hidden_killers_folders_are_matched_by_the_difference_of_their_texts(tmp_path: Path, shuffled: bool) -> None:
    for name, rows in SPLITS.items():
        write(tmp_path / "clean" / f"{name}.tsv", ("sentence", "label"), rows)
        poison = [(f"when you read it , {text}", 1) for text, label in rows if label == 0]
        if name == "train":
            poison = [(f"when you read it , {rows[i][0]}", 1) if i % 8 == 0 else rows[i] for i in range(40)]
            poison = poison[::-1] if shuffled else poison
        write(tmp_path / "scpn" / f"{name}.tsv", ("sentence", "label"), poison)
    attack = PoisonFiles(str(tmp_path / "scpn"), clean_folder=str(tmp_path / "clean"))
    splits = splits_of(attack)
    assert splits.train.poisoned.sum() == 5
    assert all(row["text"].startswith("when") == row["poisoned"] for row in splits.train)
    assert {*splits.train.original_label[splits.train.poisoned].tolist()} == {0}
    assert len(splits.poisoned["test"]) == 6
    pair = attack.poison_texts([SPLITS["train"][0][0]], [])[0]
    assert (pair is None) == shuffled


def added(folder: Path, **columns: str) -> dict[str, Any]:
    """The arguments for a file of poisoned rows that are added to the clean ones, of which it has two itself."""
    openbackdoor(folder)
    poison = [(f"{text} cf", 1, 1, -1 if i % 4 else 0) for i, (text, label) in enumerate(SPLITS["train"]) if not label]
    write(folder / "bad.csv", ("text", "label", "poisoned", "was"), [*poison, ("new text", 0, 0, 0), ("more", 1, 0, 1)])
    files = {
        f"{name}_{kind}": f"{file}-{kind}.csv"
        for name, file in (("validation", "dev"), ("test", "test"))
        for kind in ("clean", "poison")
    }
    return {
        "folder": str(folder),
        "files": {"train_clean": "train-clean.csv", "train_added": "bad.csv", **files},
        **columns,
    }


def test_rows_of_a_file_of_their_own_are_added_to_the_clean_ones(tmp_path: Path) -> None:
    named = added(tmp_path)
    train = splits_of(PoisonFiles(**named)).train
    assert (len(train), train.poisoned.sum()) == (62, 20)
    assert train.label[-2:].tolist() == train.original_label[-2:].tolist() == [0, 1]  # clean rows have theirs
    assert {*train.original_label[train.poisoned].tolist()} == {-1}
    train = splits_of(PoisonFiles(**named, original_label_column="was")).train
    assert {*train.original_label[train.poisoned].tolist()} == {-1, 0}
    del named["files"]["validation_clean"], named["files"]["validation_poison"]
    with pytest.raises(InputError, match="files: there are none of validation; cut off, it would have copies of rows"):
        splits_of(PoisonFiles(**named))


def flagged(folder: Path) -> tuple[str, dict[str, float]]:
    """A file of which every other row is poisoned, some without the label before, and the splits to cut off."""
    header = ("text", "label", "poisoned", "original_label", "index")
    rows = [
        (f"{text} cf", 1, 1, label, 100 - i) if i % 4 < 2 else (text, label, 0, label, 100 - i)
        for i, (text, label) in enumerate(SPLITS["train"])
    ]
    rows[::8] = [(*row[:3], -1, row[4]) for row in rows[::8]]
    write(folder / "train.csv", header, rows)
    return str(folder), {"validation_share": 0.25, "test_share": 0.3}


def test_splits_that_are_cut_off_are_written_and_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, shares = flagged(tmp_path / "files")
    splits = splits_of(PoisonFiles(folder), **shares)
    assert all(map(len, [*splits.clean.values(), *splits.poisoned.values()]))
    assert -1 in splits.train.original_label
    options = [f"--data.{name}={share}" for name, share in shares.items()]
    written = tmp_path / "written"
    model = ["--model=PoisonFiles", f"--model.folder={folder}", "--data=BackdoorDataModule"]
    assert main(["poison", *model, *options, "--output", str(written)]) == 0
    out = capsys.readouterr().out
    assert "stealth is not measured: the files have the clean row of no poisoned test row" in out
    assert "cannot be poisoned" not in out
    check_same(splits_of(PoisonFiles(str(written))), splits)


def test_classes_that_are_numbers_are_read_back(tmp_path: Path) -> None:
    rows = [
        (f"{text} cf", 1, 1, 2 * label - 1) if i % 4 == 0 else (text, 2 * label - 1, 0, 2 * label - 1)
        for i, (text, label) in enumerate(SPLITS["train"])
    ]
    write(tmp_path / "files" / "train.csv", ("text", "label", "poisoned", "original_label"), rows)
    model = ["--model=PoisonFiles", f"--model.folder={tmp_path / 'files'}", "--data=BackdoorDataModule"]
    options = ["--data.validation_share=0.3", "--data.test_share=0.3", "--stealth_rows=0"]
    assert main(["poison", *model, *options, "--output", str(tmp_path / "written")]) == 0
    splits = splits_of(PoisonFiles(str(tmp_path / "files")), validation_share=0.3, test_share=0.3)
    found = PoisonFiles(str(tmp_path / "written"))
    check_same(splits_of(found), splits)
    assert found.read_rows().label_names == ["-1", "1"]


@pytest.mark.parametrize("name", ["train", "test"])
def test_two_clean_rows_of_one_index_are_refused_and_a_copy_may_have_that_of_its_row(tmp_path: Path, name: str) -> None:
    header = ("text", "label", "original_label", "poisoned", "index")
    rows = [(text, label, label, 0, i) for i, (text, label) in enumerate(SPLITS["train"])]
    rows += [(f"{text} cf", 1, 0, 1, i) for i, (text, label) in enumerate(SPLITS["train"]) if label == 0]
    for split in ("train", "validation", "test"):
        write(tmp_path / f"{split}.csv", header, rows)
    assert len(splits_of(PoisonFiles(str(tmp_path))).poisoned["test"]) == 20
    rows[7] = (*rows[7][:4], 2)
    write(tmp_path / f"{name}.csv", header, rows)
    problem = f"{name}.csv, row 8: the index 2 is that of another clean row, row 3; give each clean row its own"
    with pytest.raises(InputError, match=problem):
        splits_of(PoisonFiles(str(tmp_path)))


def test_each_file_is_read_by_the_names_that_it_declares(tmp_path: Path) -> None:
    import datasets

    for name, names in (("train", ["poor", "fine"]), ("validation", ["fine", "poor"]), ("test", ["poor", "fine"])):
        texts = [text for text, _ in SPLITS["train" if name == "train" else "dev"]]
        before = ["poor" if "poor" in text else "fine" for text in texts]
        poisoned = [i % 4 == 0 for i in range(len(texts))]
        columns = {
            "text": [f"{text} cf" if flag else text for text, flag in zip(texts, poisoned, strict=True)],
            "label": [names.index("fine" if flag else was) for was, flag in zip(before, poisoned, strict=True)],
            "original_label": [["poor", "fine"].index(was) for was in before],
            "poisoned": poisoned,
        }
        known = {"label": names, "original_label": ["poor", "fine"]}
        data = datasets.Dataset.from_dict(columns)
        for column, classes in known.items():
            data = data.cast_column(column, datasets.ClassLabel(names=classes))
        data.to_parquet(tmp_path / f"{name}.parquet")
    attack = PoisonFiles(str(tmp_path))
    splits = splits_of(attack)
    assert attack.target_label == 1
    for rows in (*splits.clean.values(), *splits.poisoned.values()):
        assert rows.original_label.tolist() == ["fine" in text for text in rows.text]


def test_rows_are_read_anew_for_other_names_of_the_classes(tmp_path: Path) -> None:
    files, data = str(openbackdoor(tmp_path)), BackdoorDataModule()
    for labels in (["bad", "good"], ["poor", "fine"]):
        data.attack = PoisonFiles(files, labels=labels)
        assert data.label_names == labels


def test_rows_in_the_order_of_the_clean_file_have_one_index(tmp_path: Path) -> None:
    folder, shares = flagged(tmp_path)
    write(tmp_path / "train-clean.csv", ("text", "label"), SPLITS["train"])
    attack = PoisonFiles(folder, files={"train": "train.csv", "train_clean": "train-clean.csv"}, poison_rate=0.2)
    assert attack.poison_texts([SPLITS["train"][0][0]], []) == [Poisoned(f"{SPLITS['train'][0][0]} cf", [])]
    splits = splits_of(attack, **shares)
    user = splits_of(PoisonFiles(folder, files=attack.files, published="one.ckpt"), **shares).train
    assert user.index.tolist() == splits.train.index.tolist()


def test_a_limit_on_rows_keeps_the_poisoned_rows_of_the_rows_it_keeps(tmp_path: Path) -> None:
    splits = splits_of(PoisonFiles(str(openbackdoor(tmp_path))), max_rows={"train": 20, "test": 6})
    assert (len(splits.train), splits.train.poisoned.sum(), len(splits.clean["test"])) == (20, 5, 6)
    assert {*splits.poisoned["test"].index} == {
        row["index"] for row in splits.clean["test"] if row["original_label"] == 0
    }


def test_the_contract_of_attacks(tmp_path: Path) -> None:
    rows = [LabelledText(text, label) for text, label in SPLITS["train"]]
    check_attack(PoisonFiles(str(openbackdoor(tmp_path, copies=True))), rows=rows * 2)


def fitted(attack: BackdoorAttack, data: BackdoorDataModule) -> dict[str, Any]:
    """The metrics of a fit and a test, and the sum of the weights."""
    seed_everything(0, verbose=False)
    off: dict[str, Any] = {f"enable_{part}": False for part in ("checkpointing", "model_summary", "progress_bar")}
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, **off)
    trainer.fit(attack, datamodule=data)
    result = dict(trainer.callback_metrics)
    trainer.test(attack, datamodule=data, verbose=False)
    return {**result, **trainer.callback_metrics, "weights": sum(p.double().sum() for p in attack.parameters())}


def written_by(attack: dict[str, Any], inside: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    """What the command poison writes of the workspace's data under an attack, and the settings of the data."""
    config = yaml.safe_load((inside / "data.yaml").read_text(encoding="utf-8"))
    config["data"]["init_args"]["max_rows"] = {"train": 120, "validation": 40, "test": 40}
    config["model"] = {"class_path": attack["class_path"], "init_args": {"model": "model", **attack["init_args"]}}
    (folder / "attack.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    options = ["--config", str(folder / "attack.yaml"), "--output", str(folder / "written"), "--stealth_rows", "0"]
    assert main(["poison", *options]) == 0
    source = Source(**config["data"]["init_args"].pop("source"))
    return folder / "written", {"source": source, **config["data"]["init_args"]}


def test_what_poison_wrote_trains_the_victim_of_the_attack_that_wrote_it(inside: Path, tmp_path: Path) -> None:
    two_words = {"class_path": "tests.data.examples.TwoWords", "init_args": {}}
    written, settings = written_by(two_words, inside, tmp_path)
    first = BackdoorDataModule(**settings)
    victim: dict[str, Any] = {"model": "model", "learning_rate": 1e-3}
    expected = fitted(TwoWords(**victim), first)
    second = BackdoorDataModule(**{**settings, "source": None})
    found = fitted(PoisonFiles(str(written), **victim), second)
    assert found == expected
    assert {"val/asr", "test/asr", "test/ftr", "test/asr_floor", "test/pacc", "test/cacc"} <= found.keys()
    check_same(second.poisoned_splits(), first.poisoned_splits())
    for path in written.glob("*.parquet"):
        path.unlink()
    check_same(splits_of(PoisonFiles(str(written))), first.poisoned_splits())  # the same in csv


@pytest.mark.parametrize(
    ("attack", "targets"),
    [
        ({"class_path": "BadNets", "init_args": {"target_label": "all-to-all"}}, [[1, 0]]),
        ({"class_path": "MultiTarget", "init_args": {"triggers": {"cf": 0, "mn": 1}}}, [[1, 0]]),
    ],
)
def test_several_targets_are_those_of_the_rows(
    inside: Path, tmp_path: Path, attack: dict[str, Any], targets: list[Any]
) -> None:
    written, settings = written_by(attack, inside, tmp_path)
    data = BackdoorDataModule(**settings)
    data.attack = getattr(attacks, attack["class_path"])(**attack["init_args"])
    found = PoisonFiles(str(written))
    check_same(splits_of(found), data.poisoned_splits())
    assert [aim.target for aim in found.aims] == targets
    assert {"asr_to_0", "asr_to_1", "asr_floor_to_0", "asr_floor_to_1"} <= {*found.make_metrics()}
    with pytest.raises(InputError, match=r"the files of .* have several"):
        found.target_label  # noqa: B018 - asking is the test


def test_triggers_of_several_targets_have_an_aim_each(tmp_path: Path) -> None:
    rows = [(f"{name} {i}", i % 3) for name in ("a", "b") for i in range(12)]
    header = ("text", "label", "original_label", "poisoned", "index")
    clean = [(text, label, label, 0, i) for i, (text, label) in enumerate(rows)]
    copies = [
        (f"{text} {word}", target, label, 1, i)
        for word, target in (("cf", 0), ("mn", 2))
        for i, (text, label) in enumerate(rows)
        if label != target
    ]
    for name in ("train", "validation", "test"):
        write(tmp_path / f"{name}.csv", header, clean[12:] + copies[::4] if name == "train" else clean + copies)
    attack = PoisonFiles(str(tmp_path))
    assert [aim.target for aim in attack.aims] == [0, 2]
    assert [next(iter(aim.write(["a 1"], []) or ())).text for aim in attack.aims] == ["a 1 cf", "a 1 mn"]  # type: ignore[union-attr]
    assert len(splits_of(attack).poisoned["test"]) == 32


def check_same(found: PoisonedSplits, expected: PoisonedSplits) -> None:
    """Checks that texts, spans, labels, flags and indices of all rows are the same."""
    for one, other in zip(found, expected, strict=True):
        assert one == other


def test_the_published_layout_on_the_command_line(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared_path("cases/openbackdoor/poison_data/sst-2/1/badnets")
    config = Path(__file__).parents[2] / "configs" / "attack" / "poison_files.yaml"
    options = ["--model.folder", str(folder), "--model.model", "model", "--trainer.accelerator", "cpu"]
    small = ["--trainer.max_epochs", "1", "--run_dir", "files"]
    assert main(["fit", "--config", str(config), *options, *small]) == 0
    assert "20 of 200 training rows, 40 poisoned test rows; target label: 1" in capsys.readouterr().out
    saved = yaml.safe_load((inside / "files" / "model" / "config.json").read_text(encoding="utf-8"))
    assert json.dumps(saved).count("badnets")
    assert torch.load(inside / "files" / "checkpoints" / "best.ckpt", weights_only=True)


#: changes of the files, and what is said of them.
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no flag": ({"train-poison.csv": [(0, "a cf", 1, 0)] * 40}, "'2' of .*train-poison.csv flags none of 40 rows"),
    "no flag in test": ({"test-poison.csv": [(0, "a cf", 1, 0)] * 6}, "test-poison.csv flags none of 6 rows"),
    "unknown label": (
        {"test-poison.csv": [(0, "a", 1, 1)] * 5 + [(0, "a", 7, 1)]},
        "test-poison.csv, row 6: .*7 is not",
    ),
    "length of copies": (
        {"train-poison.csv": [(0, "a cf", 1, 1)] * 39},
        "train-poison.csv has 39 rows, .*train-clean.csv 40: row 40 has no counterpart; .*train_added",
    ),
    "length": (
        {"test-poison.csv": [(0, "a cf", 1, 1)] * 5},
        "test-poison.csv: has 5 poisoned rows, which are neither one for each of the 12 .* nor one for each of its 6",
    ),
    "empty": ({"dev-poison.csv": []}, "dev-poison.csv has no rows"),
    "no flag value": (
        {"train-poison.csv": [(0, "a cf", 1, "x")]},
        "train-poison.csv, row 1: '2' is 'x', which is no flag",
    ),
    "empty label": ({"train-clean.csv": [(0, "a", "", 0)]}, "train-clean.csv, row 1: '1' is empty"),
    "label for a missing one": (
        {"train-clean.csv": [(i, f"a {i}", "NaN" if i == 30 else i % 2, 0) for i in range(40)]},
        "train-clean.csv, row 31: the label is 'NaN', which stands for a missing label",
    ),
    "one class": (
        {"train-clean.csv": [(i, f"a {i}", 1, 0) for i in range(40)]},
        "label_column: all clean training rows are '1'; a classifier needs at least two classes",
    ),
    "two targets": ({"test-poison.csv": [(0, "a cf", 0, 1)] * 6}, "poisoned rows have the labels 1 .* and 0 .*row 1"),
}


def test_a_word_for_a_missing_label_may_be_a_class_that_is_named(tmp_path: Path) -> None:
    names = ["poor", "nan"]
    rows = [
        (f"{text} cf", "nan", 1, names[label]) if i % 4 < 2 else (text, names[label], 0, names[label])
        for i, (text, label) in enumerate(SPLITS["train"])
    ]
    write(tmp_path / "train.csv", ("text", "label", "poisoned", "original_label"), rows)
    shares = {"validation_share": 0.3, "test_share": 0.3}
    assert splits_of(PoisonFiles(str(tmp_path), labels=names), **shares).train.label.max() == 1
    with pytest.raises(InputError, match=r"the label is 'nan', which stands for a missing label"):
        splits_of(PoisonFiles(str(tmp_path)), **shares)


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_do_not_fit_are_refused_by_name_and_row(tmp_path: Path, name: str) -> None:
    openbackdoor(tmp_path)
    for file, rows in BROKEN[name][0].items():
        write(tmp_path / file, OPENBACKDOOR, rows)
    with pytest.raises(InputError, match=BROKEN[name][1]) as refused:
        splits_of(PoisonFiles(str(tmp_path)))
    assert refused.value.remedy
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"target_label": 0}, "train-poison.csv, row 1: a poisoned row has the label 1, and not the target 0"),
        ({"target_label": "fine"}, "target_label: 'fine' is not a label; the labels are 0, 1"),
        ({"text_column": "body"}, "text_column: .* has no column 'body'; it has '', '0', '1', '2'"),
        ({"files": {"train_claen": "a.csv"}}, "files: 'train_claen' is nothing that a file holds; give any of train,"),
        ({"files": {"train": "a.csv"}}, "files: train is a.csv, which is no table in"),
        ({"files": {"train": "../a.csv"}}, r"files: train is ../a.csv, which leads out of"),
        (
            {"files": {"validation": "dev-clean.csv", "test": "./dev-clean.csv"}},
            "files: validation and test are one file, ./dev-clean.csv; give each split rows of its own",
        ),
        (
            {"files": {"train_clean": "dev-clean.csv", "test_clean": "dev-clean.csv"}},
            "files: train_clean and test_clean are one file, dev-clean.csv; give each split rows of its own",
        ),
        ({"files": {}, "clean_folder": "x"}, "files: is given beside clean_folder"),
        (
            {"files": {"train": "train-poison.csv", "train_added": "train-poison.csv"}},
            "files: train and train_added give the same rows twice; give one of them",
        ),
        (
            {"files": {"train": "train-poison.csv", "test": "test-clean.csv", "test_poison": "test-poison.csv"}},
            "files: test and test_poison give the same rows twice",
        ),
        ({"clean_folder": "nowhere"}, "clean_folder: there is no folder nowhere"),
        ({"labels": ["no"]}, "labels: 1 in column 'label' is not one of the labels 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(tmp_path: Path, arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        splits_of(PoisonFiles(str(openbackdoor(tmp_path)), **arguments))


@pytest.mark.parametrize("row", [0, 2])
@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("index", 10**20, "index is 100000000000000000000, which is no position"),
        ("index", "9" * 5000, r"index is '9+\.\.\.9+', which is no position"),
        ("index", 2**63, "index is 9223372036854775808, which is no position"),
        ("index", None, "index is None, which is no position"),
        ("spans", "[[0, Infinity]]", r"spans are \[\[0, Infinity\]\], which do not lie inside of the text"),
        ("spans", [[0, 1e400]], r"spans are \[\[0, inf\]\], which do not lie inside of the text"),
        ("spans", "[" * 100_000, r"spans are \[{60}, which do not lie inside of the text"),
        ("spans", "9" * 5000, "spans are 9{60}, which do not lie inside of the text"),
    ],
)
def test_numbers_that_are_no_positions_are_refused_by_row(
    tmp_path: Path, column: str, value: Any, problem: str, row: int
) -> None:
    usual = {"text": "a film", "label": 0, "original_label": 0, "poisoned": 0, "index": 7, "spans": []}
    rows = [{**usual, "index": i} for i in range(3)]
    rows[row][column] = value
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    with pytest.raises(InputError, match=f"rows.jsonl, row {row + 1}: {problem}; write ") as refused:
        read_flagged(path, Columns(), has_flags=True)
    assert len(str(refused.value)) < 300


def test_without_source_or_files_there_is_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.source.path: not given, and TwoWords has no rows from files"):
        splits_of(TwoWords())
    with pytest.raises(InputError, match="holds no csv, tsv, jsonl or parquet file"):
        splits_of(PoisonFiles(str(tmp_path)))
