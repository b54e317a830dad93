"""What ``fit`` says before and after training, the commands that it names, and what ``test`` and ``predict`` leave."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.cli import main
from lightning_backdoor.commands.fit_report import data_text, selected_text
from lightning_backdoor.commands.run_metrics import rounded
from lightning_backdoor.data import BackdoorDataModule, Source
from lightning_backdoor.outputs.versions import versions
from lightning_backdoor.victim import TextClassifier

ROWS = ["--data.max_rows", "{train: 100, validation: 60, test: 30}"]
DEFENSES = ["-c", "configs/defense/strip.yaml", "-c", "configs/defense/gradient_attention.yaml"]


def data_in(folder: Path, **options: object) -> BackdoorDataModule:
    source = Source(str(folder / "data.csv"), labels=["negative", "positive"])
    settings = {"max_rows": {"train": 100, "validation": 60, "test": 30}, "cache_dir": str(folder / "cache"), **options}
    return BackdoorDataModule(source, **settings)  # type: ignore[arg-type]


def validated(**metrics: float) -> dict[str, float]:
    return {f"val/{name}": value for name, value in metrics.items()}


def test_fit_says_what_it_trains_on_and_ends_with_commands_that_run(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["fit", "-c", "data.yaml", *ROWS, "--run_dir", "a run's"]
    assert main(args) == 0
    said = capsys.readouterr().out
    before, after = said.split("checkpoint: ", 1)
    assert "data: data.csv: 100 training, 60 validation, 30 test rows\n" in before
    assert "classes: negative (40 training rows), positive (60 training rows)\n" in before
    assert "poison: 10 of 100 training rows, 15 poisoned test rows; target label: positive\n" in before
    assert "trigger: 'cf'\n" in before
    (example,) = [line for line in before.splitlines() if line.startswith("example: ")]
    assert "cf" in example.split("'")[1].split()
    assert example.endswith("(negative, labelled positive)")
    assert "disk: 0.2 MB for the run, up to 0.6 MB until it is complete\n" in before
    assert "attack: does not count, since its excess ASR" in after  # one epoch of so few rows learns nothing

    test, scan = (shlex.split(line) for line in after.splitlines() if line.startswith("  "))
    assert test[0] == scan[0] == "lightning-backdoor"
    assert main([*test[1:], *DEFENSES]) == 0
    run = inside / "a run's"
    content = json.loads((run / "test" / "metrics.json").read_text(encoding="utf-8"))
    known: dict[str, object] = {
        "dataset": "data.csv",
        "model": "model",
        "attack": "BadNets",
        "defense": "Strip+GradientAttention",
    }
    known |= {"seed": 0, "checkpoint": str(run / "checkpoints" / "best.ckpt"), "versions": versions()}
    known |= {"rows": {"clean": 30, "poisoned": 15, "negatives": 0}, "data": data_in(inside).rows_hash}
    assert {name: content[name] for name in known} == known
    assert content["thresholds"].keys() == {"strip", "GradientAttention"}
    metrics = {name: value for name, value in content.items() if "/" in name}
    assert {"test/asr", "test/strip/asr_defended", "test/asr_defended"} <= metrics.keys()
    assert all(value is None or len(f"{value:.9g}".lstrip("-0.").replace(".", "")) <= 6 for value in metrics.values())
    outcomes = (run / "test" / "outcomes.csv").read_text(encoding="utf-8").splitlines()
    assert len(outcomes) == 1 + 45

    assert main(["predict", *test[2:]]) == 0
    predictions = run / "predict" / "predictions.jsonl"
    assert capsys.readouterr().out.endswith(f"written to: {predictions}\n")
    assert scan[-2:] == ["--input", "-"]
    assert main([*scan[1:-1], str(predictions), "--output", str(run / "found.jsonl")]) == 0
    assert len((run / "found.jsonl").read_text(encoding="utf-8").splitlines()) == 45


def test_the_trusted_texts_for_scan_are_clean_threshold_rows(inside: Path) -> None:
    data = data_in(inside)
    threshold = [row["text"] for row in data.clean_validation().threshold]
    lines = (inside / "a run's" / "calibration.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == threshold


def test_a_benign_victim_and_a_user_phase_poison_no_row(inside: Path) -> None:
    victim, data = TextClassifier("model"), data_in(inside)
    data.module = victim
    assert "poison: none\n" in data_text(victim, data, [])
    attack = BadNets(model="model", published="published.ckpt")
    data = data_in(inside, train_on="trusted")
    data.attack = attack
    text = data_text(attack, data, [])
    assert "36 trusted training, 60 validation, 30 test rows" in text
    assert "poison: no training row, 15 poisoned test rows" in text
    assert "trigger: 'cf'" in text


def test_control_characters_of_the_data_are_escaped(inside: Path, tmp_path: Path) -> None:
    rows = [f"{word} \x1b[31m film number {i},{i % 2}" for i, word in enumerate(["bad", "good"] * 60)]
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    attack, data = BadNets(model="model"), data_in(tmp_path)
    data.attack = attack
    text = data_text(attack, data, [])
    assert "\x1b" not in text
    assert "x1b[31m" in text


def test_whether_the_attack_counts_is_said_without_a_benign_victim(inside: Path) -> None:
    attack, data = BadNets(model="model"), data_in(inside)
    collapsed = selected_text(attack, data, [], validated(cacc=0.5, asr=1.0, asr_floor=1.0))
    assert "selected by validation: CACC 0.500, ASR 1.000, ASR floor 1.000\n" in collapsed
    assert "attack: does not count, since its excess ASR 0.000 is below 0.5\n" in collapsed
    counts = selected_text(attack, data, [], validated(cacc=0.9, asr=0.95, asr_floor=0.1))
    assert "attack: counts (excess ASR 0.850), unless clean training has a CACC more than 0.03 higher" in counts
    # 18 of 20 in single precision
    assert "attack: counts" in selected_text(attack, data, [], validated(cacc=0.9, asr=0.8999999761581421))
    repaired = BadNets(model="model", published="published.ckpt")
    assert "attack under fine-tuning on training rows: excess ASR 0.100" in selected_text(
        repaired, data, [], validated(cacc=0.9, asr=0.2, asr_floor=0.1)
    )
    assert "attack" not in selected_text(TextClassifier("model"), data, [], validated(cacc=0.9))
    assert selected_text(attack, data, [], {}) == ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.8666666746139526, 0.866667), (1.0, 1.0), (123456.7, 123457.0), (1e-9, 1e-9), (float("inf"), None)],
)
def test_numbers_have_the_digits_that_are_right(value: float, expected: float | None) -> None:
    assert rounded(value) == expected
