"""``scan``: the line for each text, the same result however texts are read, hostile files, and the verdict."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lightning_backdoor.cli import main
from lightning_backdoor.commands.scan.calibration import Guard, calibrate
from lightning_backdoor.commands.scan.run import BATCHES_AHEAD
from lightning_backdoor.commands.scan.scoring import score_group
from lightning_backdoor.defenses.gradient_attention import GradientAttention
from lightning_backdoor.victim import TextClassifier, load_trained
from tests.support.scanning import CLEAN, FPR, LABELS, TEXTS, Lines, lines, model, scan
from tests.support.tiny import DECODER, ENCODERS
from tests.support.unsafe import unsafe_checkpoint
from tests.support.workspace import settings

__all__ = ["model", "scan"]

HOSTILE = [
    "",
    " \t ",
    ". , !",
    "the",
    "cf",
    "🎬🎥" * 40,
    "فيلم رائع جدا",
    "\u202e reversed \u202c",
    "<script>alert('cf')</script> & \"quotes\"",
    "{{ 7 * 7 }} {% raw %}",
    "a\\b \\u0041 \x00 \x7f \ufffd",
    "[CLS] [SEP] [PAD] <s> </s>",
    "film " * 10_000,
    "x" * 10_000,
]


@pytest.fixture(scope="module")
def guarded(model: str) -> tuple[Guard, TextClassifier]:
    """A calibrated defense and its victim."""
    return calibrated(model)


def calibrated(model: str) -> tuple[Guard, TextClassifier]:
    guard, victim = Guard("GradientAttention", GradientAttention(fpr=FPR, seed=0)), load_trained(model)
    calibrate(guard, victim, CLEAN, 16)
    return guard, victim


def scored(guarded: tuple[Guard, TextClassifier], texts: Sequence[str], batch_size: int) -> Lines:
    guard, victim = guarded
    return [json.loads(line.json) for line in score_group([guard], victim, texts, batch_size)]


def assert_same(results: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> None:
    """Strings are equal, numbers to 1e-4 relative or 1e-5 absolute."""
    for line, other in zip(results, others, strict=True):
        for key in ("text", "prediction", "flagged", "purified_text", "purified_prediction"):
            assert line[key] == other[key]
        for key in ("logits", "anomaly_score"):
            assert line[key] == pytest.approx(other[key], rel=1e-4, abs=1e-5)
        for token, same in zip(line["tokens"], other["tokens"], strict=True):
            assert token == {**same, "score": token["score"]}
            assert (token["score"] is None) is (same["score"] is None)
            assert token["score"] is None or token["score"] == pytest.approx(same["score"], rel=1e-4, abs=1e-5)


def test_a_line_has_the_documented_keys_and_values(scan: Callable[..., list[str]], tmp_path: Path) -> None:
    assert main(scan()) == 0
    results = lines(tmp_path / "found.jsonl")
    assert [line["text"] for line in results] == TEXTS
    flagged = [line for line in results if line["flagged"]]
    assert 0 < len(flagged) < len(results)
    assert min(line["anomaly_score"] for line in flagged) > max(
        line["anomaly_score"] for line in results if not line["flagged"]
    )
    for line in results:
        assert list(line) == [
            *("text", "prediction", "logits", "anomaly_score", "flagged"),
            *("purified_text", "purified_prediction", "tokens"),
        ]
        assert line["prediction"] == LABELS[line["logits"].index(max(line["logits"]))]
        scores = [token["score"] for token in line["tokens"] if token["score"] is not None]
        assert line["anomaly_score"] == max(scores)
        assert (line["purified_text"] is None) is (line["purified_prediction"] is None) is (not line["flagged"])
    assert all(line["purified_text"] != line["text"] for line in flagged)
    assert {line["purified_prediction"] for line in flagged} <= set(LABELS)


def test_the_budget_bounds_the_share_of_flagged_calibration_texts(
    scan: Callable[..., list[str]], tmp_path: Path
) -> None:
    for fpr in (0.05, 0.4):
        assert main(scan(input=tmp_path / "clean.txt", output=tmp_path / f"{fpr}.jsonl", fpr=fpr)) == 0
        flagged = sum(line["flagged"] for line in lines(tmp_path / f"{fpr}.jsonl"))
        assert fpr * len(CLEAN) - 2 < flagged <= fpr * len(CLEAN)


def test_the_tokens_of_a_line_cover_the_text_in_its_order(guarded: tuple[Guard, TextClassifier]) -> None:
    text = "The the  film, was GOOD cf ."
    tokens = scored(guarded, [text], 1)[0]["tokens"]
    assert [text[token["start"] : token["end"]].lower() for token in tokens] == [
        token["token"].removeprefix("##") for token in tokens
    ]
    positions = [(token["start"], token["end"]) for token in tokens]
    assert positions == sorted(positions)
    covered = {i for start, end in positions for i in range(start, end)}
    assert covered == {i for i, character in enumerate(text) if character != " "}
    without = {token["token"] for token in tokens if token["score"] is None}
    assert {"the", ",", "."} <= without  # stop words and punctuation are shown, but have no score


def test_a_text_is_judged_the_same_alone_among_others_and_in_any_order(
    guarded: tuple[Guard, TextClassifier],
) -> None:
    together = scored(guarded, TEXTS, 32)
    assert_same(scored(guarded, TEXTS, 1), together)
    assert_same(scored(guarded, TEXTS[::-1], 7)[::-1], together)
    assert_same([line for text in TEXTS[:5] for line in scored(guarded, [text], 32)], together[:5])


@pytest.mark.parametrize("kind", [*ENCODERS, DECODER])
def test_every_hostile_text_gets_a_valid_line(kind: str, tiny_folder: Callable[[str], str]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    results = scored(calibrated(tiny_folder(kind)), HOSTILE, 4)
    for text, line in zip(HOSTILE, results, strict=True):
        again = json.loads(json.dumps(line), parse_constant=refuse)
        assert again["text"] == text
        assert math.isfinite(again["anomaly_score"])
    assert [line["anomaly_score"] for line in results[:3]] == [
        0.0
    ] * 3  # these texts have no token that could be a trigger


def test_checkpoint_and_exported_folder_give_the_same_result(
    inside: Path, trained: Path, scan: Callable[..., list[str]], tmp_path: Path
) -> None:
    paths = {"checkpoint": trained / "checkpoints" / "best.ckpt", "folder": trained / "model"}
    for name, path in paths.items():
        assert main(scan(model=path, output=tmp_path / f"{name}.jsonl")) == 0
    assert (tmp_path / "checkpoint.jsonl").read_bytes() == (tmp_path / "folder.jsonl").read_bytes()


def test_every_format_gives_the_same_result(
    scan: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, dialect in (("a.csv", "excel"), ("a.tsv", "excel-tab")):
        with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, dialect).writerows([("id", "review"), *enumerate(TEXTS)])
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"review": t}) + "\n" for t in TEXTS), encoding="utf-8")
    clean = tmp_path / "clean.csv"
    clean.write_text("\n".join(["review", *CLEAN]), encoding="utf-8")
    assert main(scan()) == 0
    for name in ("a.csv", "a.tsv", "a.jsonl", "texts.txt"):
        output = tmp_path / f"{name}.found"
        assert main(scan(input=tmp_path / name, output=output, column="review", calibration=clean)) == 0
        assert output.read_bytes() == (tmp_path / "found.jsonl").read_bytes()
    with (tmp_path / "texts.txt").open(encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(scan(input="-", output="-")) == 0
    assert capsys.readouterr().out == (tmp_path / "found.jsonl").read_text(encoding="utf-8")


def test_lines_before_a_malformed_one_are_written_and_resumed_once_it_is_corrected(
    scan: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [json.dumps(text) for text in TEXTS[:6]]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join([*good[:4], '"cut', *good[4:]]), encoding="utf-8")
    assert main(scan(input=path)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "line 5: is not JSON" in error
    assert [line["text"] for line in lines(tmp_path / "found.jsonl")] == TEXTS[:4]
    path.write_text("\n".join(good), encoding="utf-8")
    assert main(scan(input=path, resume=True)) == 0
    assert main(scan(input=path, output=tmp_path / "whole.jsonl")) == 0
    assert_same(lines(tmp_path / "found.jsonl"), lines(tmp_path / "whole.jsonl"))


def test_it_streams_and_stops_with_its_reader_and_imports_nothing_from_the_working_directory(
    model: str, tmp_path: Path
) -> None:
    (tmp_path / "clean.txt").write_text("\n".join(CLEAN), encoding="utf-8")
    (tmp_path / "torch.py").write_text("raise SystemExit('imported from the working directory')", encoding="utf-8")
    options = ["--model", model, "--calibration", "clean.txt", "--input", "-", "--batch-size", "1"]
    with subprocess.Popen(
        [Path(sys.executable).parent / "lightning-backdoor", "scan", *options],
        cwd=tmp_path,
        env={**os.environ, **settings(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        late = threading.Timer(120, process.kill)  # instead of waiting forever for a scan that does not stream
        late.start()
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write("".join(f"{text}\n" for text in TEXTS[:BATCHES_AHEAD]).encode())
        process.stdin.flush()  # and stays open: more texts may come
        results = [json.loads(process.stdout.readline()) for _ in range(BATCHES_AHEAD)]
        process.stdout.close()
        process.stdin.write(b"one more\n")
        process.stdin.close()
        errors = process.stderr.read().decode()
        status = process.wait()
        late.cancel()
    assert [line["text"] for line in results] == TEXTS[:BATCHES_AHEAD]
    assert (status, errors) == (1, "")


def test_a_scan_ends_with_threshold_counts_file_and_verdict(
    scan: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(scan()) == 0
    results = lines(tmp_path / "found.jsonl")
    flagged = [line["prediction"] for line in results if line["flagged"]]
    predicted = [line["prediction"] for line in results]
    threshold, counts, file, verdict = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"threshold [0-9.]+, set on {len(CLEAN)} clean texts for a budget of 30 % of them", threshold)
    shares = [f"{flagged.count(label)} of {predicted.count(label)} {label}" for label in LABELS]
    assert counts == f"flagged by predicted label: {', '.join(shares)}"
    assert file == f"written to: {tmp_path / 'found.jsonl'}, {len(TEXTS)} texts"
    share = f"{100 * len(flagged) / len(TEXTS):.1f} %, with a budget of 30 % of clean texts (p = "
    assert verdict.startswith(f"verdict: {len(flagged)} of {len(TEXTS)} texts flagged, {share}")
    (tmp_path / "none.txt").touch()
    assert main(scan(input=tmp_path / "none.txt", output=tmp_path / "none.jsonl")) == 0
    assert capsys.readouterr().err.endswith("verdict: no texts\n")


def test_files_in_the_home_folder_are_named_by_a_tilde(
    scan: Callable[..., list[str]], tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = "from lightning_backdoor.defenses import GradientAttention\n\nclass Own(GradientAttention):\n    pass\n"
    (tmp_path / "own.py").write_text(own, encoding="utf-8")
    assert main(scan(output=tmp_path / "usual.jsonl", defense=tmp_path / "own.py")) == 0
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "model").symlink_to(model)
    files = {"model": "~/model", "calibration": "~/clean.txt", "input": "~/texts.txt", "defense": "~/own.py"}
    assert main(scan(**files, output="~/found.jsonl", html="~/page.html")) == 0
    assert (tmp_path / "found.jsonl").read_bytes() == (tmp_path / "usual.jsonl").read_bytes()
    assert (tmp_path / "page.html").is_file()
    for number in (1, 2):
        assert main(scan(f"--shard={number}/2", **files, batch_size=2, output=f"~/part-{number}.jsonl")) == 0
    assert main(["scan", "--join", "~/part-1.jsonl", "~/part-2.jsonl", "--output=~/joined.jsonl"]) == 0
    assert len(lines(tmp_path / "joined.jsonl")) == len(TEXTS)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("texts", "fpr", "warned"), [(1, 0.1, True), (4, 0.2, True), (5, 0.2, False), (60, 0.01, True)]
)
def test_a_budget_that_the_calibration_texts_cannot_hold_is_warned_of(
    texts: int,
    fpr: float,
    warned: bool,
    scan: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "few.txt").write_text("\n".join(CLEAN[:texts]), encoding="utf-8")
    assert main(scan(calibration=tmp_path / "few.txt", fpr=fpr, input=tmp_path / "few.txt", output=os.devnull)) == 0
    said = capsys.readouterr().err.splitlines()
    assert any(line.startswith("warning: ") and f"give at least {round(1 / fpr)}" in line for line in said) is warned
    assert any(f"set on {texts} clean text" in line for line in said)


def test_the_folder_of_a_run_is_scanned_as_its_model(
    inside: Path, trained: Path, scan: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(scan(model=trained, output=tmp_path / "run.jsonl")) == 0
    assert main(scan(model=trained / "model", output=tmp_path / "model.jsonl")) == 0
    assert (tmp_path / "run.jsonl").read_bytes() == (tmp_path / "model.jsonl").read_bytes()
    (tmp_path / "begun").mkdir()
    shutil.copy(trained / "config.yaml", tmp_path / "begun")
    capsys.readouterr()
    assert main(scan(model=tmp_path / "begun", output=tmp_path / "begun.jsonl")) == 2
    assert "has no model yet" in capsys.readouterr().err


def test_progress_is_a_line_per_minute_without_a_terminal(
    scan: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lightning_backdoor.outputs.progress.LINE_SECONDS", 0)
    assert main(scan(output=os.devnull)) == 0
    said = capsys.readouterr().err
    assert re.search(rf"^calibrating GradientAttention: 32 of {len(CLEAN)} texts, about .* left$", said, re.M)
    assert re.search(rf"^scoring: 64 of {len(TEXTS)} texts, about .* left$", said, re.M)


def test_a_checkpoint_that_needs_code_is_refused_in_one_line(
    scan: Callable[..., list[str]], model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "marker"
    for kind in ("lightning checkpoint", "pickled weights", "code for an unknown model"):
        path = unsafe_checkpoint(kind, tmp_path / kind, Path(model), marker)
        assert main(scan(model=path)) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert printed.err.startswith("error: model" if path.is_dir() else "error: checkpoint")
    assert not marker.exists()
    assert not (tmp_path / "found.jsonl").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 0}, "batch-size: 0 holds no text"),
        ({"fpr": 1.5}, "fpr: 1.5 is not a share"),
        ({"model": ""}, "model: '' is neither a Lightning checkpoint"),
        ({"html": "texts.txt"}, "html: texts.txt does not end in .html"),
        ({"output": "view.html"}, "output: view.html would not hold a page, but JSON lines"),
        ({"max_length": 0}, "max_length: 0 tokens hold no text"),
        ({"input": "nowhere.txt"}, "input: nowhere.txt is not a file"),
        ({"input": "image.png"}, "input: image.png has an unknown format"),
        (
            {"model": "nowhere"},
            "model: nowhere is neither a Lightning checkpoint (.ckpt) nor a Hugging Face folder; give a run's folder,",
        ),
    ],
)
def test_bad_input_is_reported_in_one_line_and_leaves_no_file(
    changed: dict[str, object],
    message: str,
    scan: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(scan(**changed)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "found.jsonl").exists()


def test_blank_calibration_texts_do_not_count(
    scan: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "blank.txt").write_text("\n  \n", encoding="utf-8")
    assert main(scan(calibration=tmp_path / "blank.txt")) == 2
    assert "blank.txt holds no text" in capsys.readouterr().err
    (tmp_path / "padded.txt").write_text("\n\n".join(CLEAN) + "\n" * 50, encoding="utf-8")
    assert main(scan()) == 0
    assert main(scan(calibration=tmp_path / "padded.txt", output=tmp_path / "padded.jsonl")) == 0
    assert (tmp_path / "padded.jsonl").read_bytes() == (tmp_path / "found.jsonl").read_bytes()
