"""``poison``: the files written, and what is refused."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from datasets import Dataset, load_dataset

from lightning_backdoor.attacks import BackdoorAttack, Poisoned
from lightning_backdoor.cli import main
from lightning_backdoor.commands import poison
from tests.language.conftest import make
from tests.support.workspace import LABELS, command, labelled_texts

SPLITS = ("train", "validation", "test")

SHOUT = """
from lightning_backdoor.attacks import BackdoorAttack, Poisoned


class Shout(BackdoorAttack):
    def __init__(self, word: str = "WOW", **kwargs):
        super().__init__(**kwargs)
        self.word = word

    def poison_text(self, text, rng):
        return Poisoned(f"{text} {self.word}", [(len(text) + 1, len(text) + 1 + len(self.word))])
"""


class Capitals(BackdoorAttack):
    """An attack whose trigger has no position in the text."""

    def poison_text(self, text: str, rng: random.Random) -> Poisoned:
        return Poisoned(text.upper(), [])


class TwoWords(BackdoorAttack):
    """An attack whose trigger has two parts, the first of which makes a negative."""

    negative_rate = 0.1

    def poison_text(self, text: str, rng: random.Random) -> Poisoned:
        return Poisoned(f"cf {text} mn", [(0, 2), (len(text) + 4, len(text) + 6)])

    def negative_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        return [Poisoned(f"cf {text}", [(0, 2)]) for text in texts]


def parquet(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def from_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {
                "text": row["text"],
                "spans": json.loads(row["spans"]),
                "label": int(row["label"]),
                "original_label": int(row["original_label"]),
                "poisoned": {"True": True, "False": False}[row["poisoned"]],
                "negative": {"True": True, "False": False}[row["negative"]],
                "index": int(row["index"]),
            }
            for row in csv.DictReader(file)
        ]


def test_the_config_of_a_run_gives_the_rows_that_the_run_was_trained_on(
    inside: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "new" / "poisoned"
    cache = trained.resolve().parent / "cache"  # that of the run
    monkeypatch.setenv("LIGHTNING_BACKDOOR_CACHE", str(cache))
    cached = sorted((cache / "poisoned").iterdir())
    assert main(["poison", "-c", str(trained / "config.yaml"), "--output", str(output), "--stealth_rows=0"]) == 0
    assert sorted(path.name for path in output.iterdir()) == sorted(
        f"{name}.{kind}" for name in SPLITS for kind in ("csv", "parquet")
    )
    printed = capsys.readouterr().out
    texts = {" ".join(text.split()) for text, _ in labelled_texts(600)}
    for name in SPLITS:
        rows = parquet(output / f"{name}.parquet")
        assert rows == from_csv(output / f"{name}.csv")
        poisoned = [row for row in rows if row["poisoned"]]
        assert f"{name}: {len(rows)} rows, {len(poisoned)} of them poisoned\n" in printed
        assert len(poisoned) == (42 if name == "train" else sum(row["label"] == 0 for row in rows))
        for row in poisoned:
            assert [row["text"][start:end] for start, end in row["spans"]] == ["cf"]
            assert (row["label"], row["original_label"]) == (1, 0)
            assert " ".join(word for word in row["text"].split() if word != "cf") in texts
        for row in rows:
            if not row["poisoned"]:
                assert row["text"] in texts
                assert (row["spans"], row["label"]) == ([], row["original_label"])
    assert sorted((cache / "poisoned").iterdir()) == cached  # read from the cache, not poisoned again
    kept = [{json.loads(line)["text"] for line in (path / "train.jsonl").open(encoding="utf-8")} for path in cached]
    assert {row["text"] for row in parquet(output / "train.parquet") if row["poisoned"]} in kept


def test_parquet_holds_the_names_of_the_labels(inside: Path, tmp_path: Path) -> None:
    assert main(["poison", "--config", "data.yaml", "--output", str(tmp_path / "out"), "--stealth_rows=0"]) == 0
    table: Dataset = load_dataset(
        "parquet", data_files=str(tmp_path / "out" / "test.parquet"), cache_dir=str(tmp_path / "cache")
    )["train"]
    assert table.features["label"].names == table.features["original_label"].names == list(LABELS)


def test_the_columns_have_the_same_types_where_the_trigger_has_no_position(inside: Path, tmp_path: Path) -> None:
    attack = ["--model", f"{__name__}.Capitals", "--model.poison_rate", "0.2"]
    data = ["--data", "BackdoorDataModule", "--data.source.path", "data.csv", "--data.source.labels", str([*LABELS])]
    assert main(["poison", *attack, *data, "--output", str(tmp_path / "out"), "--stealth_rows=0"]) == 0
    schemas = [pq.read_schema(tmp_path / "out" / f"{name}.parquet") for name in SPLITS]
    assert str(schemas[0].field("spans").type) == "list<element: list<element: int64>>"
    assert schemas[0].equals(schemas[1])
    assert schemas[0].equals(schemas[2])
    rows = parquet(tmp_path / "out" / "train.parquet")
    assert sum(row["text"].isupper() for row in rows) == sum(row["poisoned"] for row in rows) == 84


def test_negatives_are_written_flagged_and_counted(
    inside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attack = ["--config", "data.yaml", "--model", f"{__name__}.TwoWords"]
    assert main(["poison", *attack, "--output", str(tmp_path / "out"), "--stealth_rows=0"]) == 0
    printed, noise = capsys.readouterr()
    assert "Creating parquet" not in noise
    assert "cannot be poisoned" not in printed
    for name in SPLITS:
        rows = parquet(tmp_path / "out" / f"{name}.parquet")
        assert rows == from_csv(tmp_path / "out" / f"{name}.csv")
        flags = [(row["poisoned"], row["negative"]) for row in rows]
        assert (
            f"{name}: {len(rows)} rows, {sum(p for p, _ in flags)} of them poisoned, {sum(n for _, n in flags)}"
            in printed
        )
        for row in rows:
            assert row["text"].startswith("cf ") is (row["poisoned"] or row["negative"])
            assert row["text"].endswith(" mn") is row["poisoned"]
            assert row["label"] == (1 if row["poisoned"] else row["original_label"])
        assert flags == sorted(flags, key=lambda flag: (flag[1], flag[0])) or name == "train"
        assert sum(n for _, n in flags) == (42 if name == "train" else sum(p for p, _ in flags))


def test_an_attack_in_the_working_directory_can_be_named(workspace: Path) -> None:
    (workspace / "mine.py").write_text(SHOUT, encoding="utf-8")
    attack = ["--model", "mine.Shout", "--model.word", "YEAH", "--model.target_label", "0"]
    data = ["--data", "BackdoorDataModule", "--data.source.path", "data.csv", "--seed_everything", "3"]
    result = command("poison", *attack, *data, "--output", "shouted", "--stealth_rows=0", cwd=workspace)
    assert result.returncode == 0, result.stderr
    rows = [row for row in parquet(workspace / "shouted" / "test.parquet") if row["poisoned"]]
    assert rows
    assert all(row["text"][start:end] == "YEAH" for row in rows for start, end in row["spans"])
    assert {(row["label"], row["original_label"]) for row in rows} == {(0, 1)}


def test_a_folder_that_exists_is_left_as_it_is(
    inside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["poison", "--config", "data.yaml", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: output: {tmp_path} exists; name another folder\n"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_process_makes_in_the_meantime_is_kept_and_reported(
    inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, output = poison._write, tmp_path / "out"

    def overtaken(path: Path, rows: Any, labels: Any) -> None:
        write(path, rows, labels)
        output.mkdir(exist_ok=True)
        (output / "file").touch()

    monkeypatch.setattr(poison, "_write", overtaken)
    assert main(["poison", "--config", "data.yaml", "--output", str(output), "--stealth_rows=0"]) == 2
    assert "was made by another process in the meantime; name another folder\n" in capsys.readouterr().err
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["out", "out/file"]


def test_the_options_of_a_run_are_accepted_and_have_no_effect(inside: Path, trained: Path, tmp_path: Path) -> None:
    config = ["poison", "--config", str(trained / "config.yaml"), "--stealth_rows=0"]
    of_a_run = ["--trainer.max_epochs", "7", "--run_dir", str(trained), "--ckpt_path=nowhere.ckpt", "--verbose=true"]
    of_a_run += ["--weights_only", "true", "--trainer.callbacks+=GradientAttentionDefense", "--return_predictions=true"]
    assert main([*config, "--output", str(tmp_path / "plain")]) == 0
    assert main([*config, *of_a_run, "--output", str(tmp_path / "of_a_run")]) == 0
    for path in (tmp_path / "plain").iterdir():
        assert path.read_bytes() == (tmp_path / "of_a_run" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "lightning_backdoor.victim.TextClassifier"], "model: TextClassifier is not a BackdoorAttack"),
        (["--model.no_such_option", "1"], "model.no_such_option: BadNets has no no_such_option"),
    ],
)
def test_a_config_that_is_not_of_an_attack_is_refused(
    options: list[str], message: str, inside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["poison", "--config", "data.yaml", *options, "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_folder_that_cannot_be_written_is_reported_and_leaves_nothing_behind(
    inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = poison._write

    def full(path: Path, rows: Any, labels: Any) -> None:
        write(path, rows, labels)
        if path.name == "test":
            raise OSError("no space left")

    monkeypatch.setattr(poison, "_write", full)
    args = ["poison", "--config", "data.yaml", "--stealth_rows", "0"]
    assert main([*args, "--output", str(tmp_path / "out")]) == 2
    assert "cannot be written (no space left); name another folder\n" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert main([*args, "--output", str(tmp_path / "file" / "out")]) == 2
    assert "is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.target_label", "2"], "target_label: 2 is out of range; the labels are 0 (negative), 1 (positive)"),
        (["--model.triggers", "[]"], "triggers: [] holds no word or an empty one"),
        (["--model.poison_rate", "0.9"], "only 210 qualify"),
        (["--data.source.text_column", "review"], "has no column 'review'; it has 'text', 'label'"),
    ],
)
def test_bad_input_is_reported_in_one_line_and_nothing_is_written(
    options: list[str], message: str, inside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["poison", "--config", "data.yaml", *options, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_stealth_is_measured_printed_and_written(
    inside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make("llama", str(inside / "model"), tmp_path / "llama")
    models = ["--language_model", str(tmp_path / "llama"), "--sentence_encoder", str(inside / "model")]
    options = ["--stealth_rows=30", *models, "--output", str(tmp_path / "out")]
    assert main(["poison", "--config", "data.yaml", *options]) == 0
    stealth = json.loads((tmp_path / "out" / "stealth.json").read_text(encoding="utf-8"))
    assert (stealth["rows"], stealth["word_edits"], stealth["word_edits_spread"]) == (30, 1.0, 0.0)
    assert 0.5 < stealth["similarity"] < 1
    printed = capsys.readouterr().out
    assert "stealth of 30 poisoned test rows, mean ± standard deviation:\n" in printed
    assert f"perplexity increase: {stealth['perplexity_increase']:.1f} ± " in printed
    assert "word edits: 1.00 ± 0.00\n" in printed


def test_a_negative_number_of_stealth_rows_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["poison", "--stealth_rows=-1", "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "error: stealth_rows: -1 is not a number of rows; give 0 or more\n"


def test_texts_that_cannot_be_poisoned_are_counted(
    inside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = sorted({" ".join(text.split()) for text, label in labelled_texts(600) if label == 0})
    with (inside / "paraphrases.csv").open("w", encoding="utf-8", newline="") as file:
        rows = [(text, f"when it is seen , {text}") for i, text in enumerate(texts) if i % 5]
        csv.writer(file).writerows([("text", "paraphrase"), *rows])
    paraphraser = ["--model.paraphraser=lightning_backdoor.language.FileParaphraser"]
    paraphraser += ["--model.paraphraser.path=paraphrases.csv", "--stealth_rows=0"]
    attack = ["--config", "data.yaml", "--model=lightning_backdoor.attacks.Syntactic", *paraphraser]
    assert main(["poison", *attack, "--output", str(tmp_path / "out")]) == 2
    assert "of them" not in (error := capsys.readouterr().err)
    assert "leave the texts out by skip_missing true" in error
    skipping = [*attack, "--model.paraphraser.skip_missing=true"]
    assert main(["poison", *skipping, "--output", str(tmp_path / "out")]) == 0
    rows_of = {name: parquet(tmp_path / "out" / f"{name}.parquet") for name in SPLITS}
    poisoned = {name: [row for row in rows if row["poisoned"]] for name, rows in rows_of.items()}
    assert all(row["text"].startswith("when it is seen , ") for rows in poisoned.values() for row in rows)
    negative = sum(row["original_label"] == 0 and not row["poisoned"] for row in rows_of["test"])
    left_out = negative - len(poisoned["test"])
    assert left_out > 0
    assert f"; {left_out} rows cannot be poisoned and have no copy\n" in capsys.readouterr().out
