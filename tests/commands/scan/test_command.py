"""``scan``: the line for each text, the same result however texts are read, hostile files, and the verdict."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lightning_backdoor.cli import main
from lightning_backdoor.commands.scan import BATCHES_AHEAD, _calibrate, scan_texts
from lightning_backdoor.commands.scan_progress import Tally
from lightning_backdoor.defenses.defense import Defense
from lightning_backdoor.defenses.gradient_attention import GradientAttention
from lightning_backdoor.files.locking import lock
from lightning_backdoor.victim import TextClassifier, load_trained
from tests.support.tiny import DECODER, ENCODERS, SENTENCES
from tests.support.unsafe import unsafe_checkpoint
from tests.support.workspace import inside, labelled_texts, settings, trained, workspace

__all__ = ["inside", "trained", "workspace"]

CLEAN = [text for text, _ in labelled_texts(60, seed=1)]
TEXTS = [text for text, _ in labelled_texts(70, seed=2)] + list(SENTENCES)
LABELS = ("LABEL_0", "LABEL_1")  # the names of a model that has none of its own
FPR = 0.3  # so that some texts are flagged
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

Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def model(workspace: Path) -> str:
    return str(workspace / "model")


@pytest.fixture(scope="module")
def guard(model: str) -> tuple[Defense, TextClassifier]:
    """A calibrated defense and its victim."""
    defense, victim = GradientAttention(fpr=FPR, seed=0), load_trained(model)
    _calibrate(defense, victim, CLEAN, 16)
    return defense, victim


@pytest.fixture
def scan(tmp_path: Path, model: str) -> Callable[..., list[str]]:
    """Writes files of ``CLEAN`` and ``TEXTS``; returns the arguments of a scan of them, some options changed."""
    (tmp_path / "clean.txt").write_text("\n".join(CLEAN), encoding="utf-8")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")

    def options(**changed: object) -> list[str]:
        chosen: dict[str, object] = {
            "model": model,
            "calibration": tmp_path / "clean.txt",
            "input": tmp_path / "texts.txt",
            "output": tmp_path / "found.jsonl",
            "fpr": FPR,
            **changed,
        }
        flags = [f"--{name.replace('_', '-')}" for name in chosen]
        pairs = zip(flags, chosen.values(), strict=True)
        return ["scan", *(str(part) for flag, value in pairs for part in ([flag] if value is True else [flag, value]))]

    return options


def lines(path: Path) -> Lines:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def assert_same(results: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> None:
    """Strings are equal, numbers to 1e-4 relative or 1e-5 absolute."""
    for line, other in zip(results, others, strict=True):
        for key in ("text", "prediction", "flagged", "purified_text", "purified_prediction"):
            assert line[key] == other[key]
        for key in ("logits", "anomaly_score"):
            assert line[key] == pytest.approx(other[key], rel=1e-4, abs=1e-5)
        scores = [{token["token"]: token["score"] for token in either["tokens"]} for either in (line, other)]
        assert scores[0] == pytest.approx(scores[1], rel=1e-4, abs=1e-5)


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
        scores = [token["score"] for token in line["tokens"]]
        assert scores == sorted(scores, reverse=True)
        assert line["anomaly_score"] == scores[0]
        assert len({token["token"] for token in line["tokens"]}) == len(scores)
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


def test_a_text_is_judged_the_same_alone_among_others_and_in_any_order(guard: tuple[Defense, TextClassifier]) -> None:
    together = list(scan_texts(*guard, TEXTS, 32))
    assert_same(list(scan_texts(*guard, TEXTS, 1)), together)
    assert_same(list(scan_texts(*guard, TEXTS[::-1], 7))[::-1], together)
    assert_same([line for text in TEXTS[:5] for line in scan_texts(*guard, [text], 32)], together[:5])


@pytest.mark.parametrize("kind", [*ENCODERS, DECODER])
def test_every_hostile_text_gets_a_valid_line(kind: str, tiny_folder: Callable[[str], str]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    defense, victim = GradientAttention(fpr=FPR, seed=0), load_trained(tiny_folder(kind))
    _calibrate(defense, victim, CLEAN, 16)
    results = list(scan_texts(defense, victim, HOSTILE, 4))
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


@pytest.mark.parametrize("kept", [0, 3, 2 * BATCHES_AHEAD, 2 * BATCHES_AHEAD + 5, len(TEXTS)])
def test_a_killed_scan_resumes_to_the_same_file_and_verdict(
    kept: int, scan: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "found.jsonl"
    assert main(scan(batch_size=2)) == 0
    whole, verdict = output.read_bytes(), capsys.readouterr().err
    written = whole.splitlines(keepends=True)
    cut = b"".join(written[:kept]) + (written[kept][:40] if kept < len(written) else b"")
    output.write_bytes(cut)
    assert main(scan(batch_size=2)) == 2
    assert "exists; add --resume" in capsys.readouterr().err
    assert output.read_bytes() == cut
    assert main(scan(batch_size=2, resume=True)) == 0
    assert output.read_bytes() == whole
    assert capsys.readouterr().err == verdict


@pytest.fixture
def begun(scan: Callable[..., list[str]], tmp_path: Path) -> Path:
    """The output of a scan, with the settings beside it."""
    assert main(scan()) == 0
    return tmp_path / "found.jsonl"


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('{"text": "of another input"}\n{"te', TEXTS),
        ("my only copy\nof a poem", TEXTS),
        ("my only copy of a poem of one line", TEXTS),
        (json.dumps({"text": TEXTS[0], "flagged": True, "prediction": {}}) + "\n", TEXTS),
        (json.dumps({"text": TEXTS[0], "prediction": "a", "logits": [], "flagged": True}) + "\n{", TEXTS[:1]),
        (json.dumps({"text": TEXTS[0]}) + "\n", []),
        ("\0" * 100, TEXTS),
    ],
    ids=["another input", "not a scan", "one line", "other values", "one line too many", "no input", "zeros"],
)
def test_resuming_cuts_nothing_that_is_not_the_beginning_of_its_own_line(
    content: str,
    texts: list[str],
    scan: Callable[..., list[str]],
    begun: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    begun.write_text(content, encoding="utf-8")
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    capsys.readouterr()
    assert main(scan(resume=True)) == 2
    assert "is not the result of that text of" in capsys.readouterr().err
    assert begun.read_text(encoding="utf-8") == content


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fpr": 0.2}, "fpr: 0.2 now, 0.3 when "),
        ({"seed": 1}, "seed: 1 now, 0 when "),
        ({"batch_size": 4}, "batch-size: 4 now, 32 when "),
        ({"max_length": 20}, "max-length: 20 now, None when "),
        ({"column": "body"}, "column: 'body' now, 'text' when "),
        ({"calibration": "texts.txt"}, "calibration: '"),
        ({"model": "other"}, "model: '"),
    ],
    ids=lambda value: str(value)[:15],
)
def test_resuming_with_another_setting_is_refused(
    changed: dict[str, Any],
    message: str,
    scan: Callable[..., list[str]],
    begun: Path,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if "model" in changed:
        other = shutil.copytree(model, tmp_path / "other")
        (other / "config.json").write_text((other / "config.json").read_text() + " ")
    before = begun.read_bytes()
    capsys.readouterr()
    assert main(scan(resume=True, **changed)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.endswith("give the same, or name another output\n")
    assert begun.read_bytes() == before


def test_resuming_an_output_of_unknown_settings_is_refused(
    scan: Callable[..., list[str]], begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, beside = begun.read_bytes(), tmp_path / "found.jsonl.scan.json"
    for content in ("", "[]", "[" * 100_000, None):
        beside.unlink() if content is None else beside.write_text(content)
        capsys.readouterr()
        assert main(scan(resume=True)) == 2
        assert "found.jsonl.scan.json beside it does not say how its lines were made" in capsys.readouterr().err
    assert begun.read_bytes() == before


def test_two_scans_never_write_one_file(
    scan: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "found.jsonl"
    with output.open("wb") as file:
        assert lock(file, wait=False)
        assert main(scan()) == 2
        assert "output: another scan writes " in capsys.readouterr().err
    output.unlink()

    def meanwhile(*args: object) -> None:
        output.touch()  # by a scan that started at the same moment

    monkeypatch.setattr("lightning_backdoor.commands.scan._calibrate", meanwhile)
    assert main(scan()) == 2
    assert "output: another scan writes " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("missing/found.jsonl", "output: the folder missing does not exist; make it first"),
        ("clean.txt/found.jsonl", "output: "),
        (".", "output: . is a folder"),
        ("x" * 300, "output: " + "x" * 200 + " cannot be written ([Errno 36] File name too long"),
        ("y" * 300 + "/found.jsonl", "output: "),
    ],
    ids=lambda value: value[:20],
)
def test_an_output_that_cannot_be_written_is_refused_at_once(
    output: str,
    message: str,
    scan: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = scan(output=output)
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_a_device_is_written_to_and_a_full_one_is_reported(
    scan: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(scan(output="/dev/null")) == 0
    assert not Path("/dev/null.scan.json").exists()
    capsys.readouterr()
    assert main(scan(output="/dev/full")) == 1
    assert capsys.readouterr().err.endswith("error: No space left on device\n")


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


def test_the_last_line_on_standard_error_is_the_verdict(
    scan: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(scan()) == 0
    flagged = sum(line["flagged"] for line in lines(tmp_path / "found.jsonl"))
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(
        f"verdict: {flagged} of {len(TEXTS)} texts flagged, {100 * flagged / len(TEXTS):.1f} %, with a"
    )
    assert "a budget of 30 % of clean texts (p = " in last
    (tmp_path / "none.txt").touch()
    assert main(scan(input=tmp_path / "none.txt", output=tmp_path / "none.jsonl")) == 0
    assert capsys.readouterr().err == "verdict: no texts\n"


def test_the_verdict_says_whether_clean_texts_explain_the_flags() -> None:
    def verdict(flagged: int, prediction: str = "good") -> str:
        tally = Tally()
        for i in range(100):
            tally.add({"flagged": i < flagged, "prediction": prediction})
        return tally.verdict(0.1, ["bad", "good"])

    as_expected = "10 of 100 texts flagged, 10.0 %, with a budget of 10 % of clean texts (p = 0.55)"
    assert verdict(10) == f"verdict: {as_expected}; no more than clean texts explain"
    assert "0 of 100 texts flagged, 0.0 %, " in verdict(0)
    assert verdict(0).endswith(" (p = 1); no more than clean texts explain")
    assert verdict(40).endswith("; more than clean texts explain, most of them predicted as 'good'")
    assert "(p = 2.9e-15)" in verdict(40)
    assert verdict(40, "of another model").endswith("predicted as 'of another model'")


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
        ({"max_length": 0}, "max_length: 0 tokens hold no text"),
        ({"input": "nowhere.txt"}, "input: nowhere.txt is not a file"),
        ({"input": "image.png"}, "input: image.png has an unknown format"),
        ({"model": "nowhere"}, "model: nowhere is neither"),
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
