"""The defenses of a scan: how they are named on the command line, and several in one scan."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from lightning_backdoor.batch import Batch, Victim
from lightning_backdoor.cli import main
from lightning_backdoor.commands.scan.calibration import Guard, calibrate
from lightning_backdoor.commands.scan.defense_options import DefenseOption, defense_options
from lightning_backdoor.commands.scan.defenses import create, defense_class
from lightning_backdoor.defenses.onion import Onion
from lightning_backdoor.defenses.strip import Strip
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim import load_trained
from tests.language.conftest import language_model
from tests.support.scanning import CLEAN, LABELS, TEXTS, lines, model, scan

__all__ = ["language_model", "model", "scan"]

LENGTH = """
import torch
from lightning_backdoor.defenses import Defense, Scores


class Length(Defense):
    def __init__(self, factor: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def score(self, victim, batch):
        return Scores(self.factor * batch["attention_mask"].sum(dim=1).float())
"""
ONION = "lightning_backdoor.defenses.Onion"
STRIP = "lightning_backdoor.defenses.Strip"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], [("GradientAttention", "lightning_backdoor.defenses.GradientAttention", {})]),
        (["--defense", "Onion", "--defense.bar", "0"], [("Onion", ONION, {"bar": "0"})]),
        (["--defense=onion", "--defense.bar=0"], [("Onion", ONION, {"bar": "0"})]),
        (
            ["--defence", "Onion(bar=0, language_model='gpt2')"],
            [("Onion", ONION, {"bar": "0", "language_model": '"gpt2"'})],
        ),
        (
            ["--defense", "one=Strip(copies=1)", "--defense", "two=STRIP"],
            [("one", STRIP, {"copies": "1"}), ("two", STRIP, {})],
        ),
        (["--defense", "mine.Length"], [("Length", "mine.Length", {})]),
        (["--defense", "a/mine.py:Length(factor=2.5)"], [("Length", "a/mine.py:Length", {"factor": "2.5"})]),
        (
            ["--defense", "gradient_attention"],
            [("GradientAttention", "lightning_backdoor.defenses.GradientAttention", {})],
        ),
        (
            ["--defense", "GradientAttentionDefense"],
            [("GradientAttention", "lightning_backdoor.defenses.GradientAttention", {})],
        ),
    ],
)
def test_a_defense_is_named_as_users_guess(args: list[str], expected: list[DefenseOption]) -> None:
    options, others = defense_options([*args, "--fpr", "0.1"])
    assert [tuple(option) for option in options] == expected
    assert others == ["--fpr", "0.1"]


def test_presets_name_defenses_too() -> None:
    for name, target in (
        ("strip", "lightning_backdoor.defenses.strip.Strip"),
        ("onion", "lightning_backdoor.defenses.onion.Onion"),
    ):
        ((option,), _) = defense_options(["--defense", f"configs/defense/{name}.yaml"])
        assert option.target == target
        assert option.arguments
    ((option,), _) = defense_options(["--defense", "configs/defense/gradient_attention.yaml"])
    assert option.arguments == {"fpr": "0.1"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--defense", "Onoin"], "did you mean Onion?"),
        (
            ["--defense", "FlaggedShare"],
            "'FlaggedShare' does not score texts; give one of BadActs, Dan, ",
        ),
        (["--defense", "lightning_backdoor.defenses.FlaggedShare"], "is not an inference-time defense"),
        (["--defense", "Strip(5)"], "is not a defense; write it as in"),
        (["--defense", "Strip(copies=open('x'))"], "is not a defense; write it as in"),
        (["--defense", "Strip", "--defense", "Strip"], "2 defenses are named Strip; name them: --defense one=Strip"),
        (["--defense", "text=Strip"], "cannot be named 'text'"),
        (["--defense.bar", "0", "--defense", "Onion"], "defense.bar: stands before the defense"),
        (["--defense"], "expected one argument"),
        (["--defense", "Strip", "--defense.cops", "3"], "defense.cops: Strip has no such argument; it has copies, "),
        (["--defense", "Strip", "--defense.copies", "many"], "defense.copies: "),
        (["--defense", "Strip", "--defense.copies", "0"], "defense.copies: 0 copies leave nothing to score"),
        (
            ["--defense", "length.Length"],
            "scan imports nothing from the working directory by itself; give length.py:Length",
        ),
        (["--defense", "nowhere.py:Length"], "there is no file nowhere.py"),
        (["--defense", "length.py:Width"], "has no class Width"),
        (["--defense", "configs/defense/muscle_lora.yaml"], "is not the preset of one inference-time defense"),
        (["--defense", "configs/defense/flagged_share.yaml"], "is not the preset of one inference-time defense"),
    ],
)
def test_a_wrong_defense_is_refused_in_one_line(
    args: list[str],
    message: str,
    scan: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "length.py").write_text(LENGTH, encoding="utf-8")
    assert main([*scan(), *args]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "found.jsonl").exists()


def test_defenses_of_several_sorts_in_one_scan(
    scan: Callable[..., list[str]],
    language_model: Callable[[str], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "length.py").write_text(LENGTH, encoding="utf-8")
    onion = ["--defense", "Onion", f"--defense.language_model={language_model('llama')}"]
    length = ["--defense", f"{tmp_path / 'length.py'}:Length(factor=2)"]
    args = [*onion, f"--defense.cache_dir={tmp_path}", "--defense", "Strip(copies=2)", *length]
    page = tmp_path / "view.html"
    assert main(scan(*args, "--html", str(page))) == 0
    results = lines(tmp_path / "found.jsonl")
    names = ["Onion", "Strip", "Length"]
    for line in results:
        assert list(line) == ["text", "prediction", "logits", "flagged", *names]
        assert line["flagged"] is any(line[name]["flagged"] for name in names)
        assert set(line["Onion"]) == {"anomaly_score", "flagged", "purified_text", "purified_prediction", "tokens"}
        assert line["Onion"]["tokens"]
        assert line["Strip"]["tokens"] == line["Length"]["tokens"] == []
        assert line["Length"]["purified_prediction"] is None  # it rejects
        assert (line["Onion"]["purified_prediction"] in LABELS) is line["Onion"]["flagged"]
    said = capsys.readouterr().err
    for name in names:
        assert f"{name}: threshold " in said
        assert (
            f"verdict by {name}: {sum(line[name]['flagged'] for line in results)} of {len(TEXTS)} texts flagged" in said
        )
    assert "Strip: threshold" in said
    assert f"set on {len(CLEAN) // 2} clean texts" in said  # it learns from the others
    html = page.read_text(encoding="utf-8")
    assert html.count("<article>") == len(names) * len(TEXTS)
    assert "poisoned" not in html
    assert "· label" not in html
    assert f"the first {sum(line['flagged'] for line in results)} of" in said


def test_a_fixed_bar_is_judged_by_what_it_flags_of_the_clean_texts(
    model: str, language_model: Callable[[str], str], tmp_path: Path
) -> None:
    onion = Onion(bar=0.0, language_model=language_model("llama"), cache_dir=str(tmp_path))
    facts = calibrate(Guard("Onion", onion), load_trained(model), CLEAN[:10], 32)
    assert facts.budget is None
    assert 0 < facts.allowed <= facts.texts == 10
    assert not facts.too_few


class Learning(Strip):
    """Keeps the texts from which it learns, and those that set its threshold."""

    def learn(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        batches = list(clean_batches)
        self.learned = sorted(text for batch in batches for text in batch["text"])
        super().learn(victim, batches)

    def calibrate(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        batches = list(clean_batches)
        self.calibrated = sorted(text for batch in batches for text in batch["text"])
        super().calibrate(victim, batches)


@pytest.mark.parametrize(
    ("texts", "learned", "calibrated"),
    [
        ("abcde", "ace", "bd"),
        ("aabb", "aa", "bb"),
        ("abab", "aa", "bb"),
        ("abcacb", "aacc", "bb"),
    ],
)
def test_no_threshold_is_set_on_texts_that_were_learned(texts: str, learned: str, calibrated: str, model: str) -> None:
    defense = Learning(copies=1)
    facts = calibrate(Guard("Learning", defense), load_trained(model), [f"film {text}" for text in texts], 32)
    assert defense.learned == [f"film {text}" for text in learned]
    assert defense.calibrated == [f"film {text}" for text in calibrated]
    assert facts.texts == len(calibrated)


@pytest.mark.parametrize(("texts", "message"), [(1, "1 text is too few"), (3, "3 copies of one text are too few")])
def test_too_few_texts_to_learn_from_and_to_set_a_threshold_are_refused(
    texts: int, message: str, scan: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "few.txt").write_text("a fine film\n" * texts, encoding="utf-8")
    assert main(scan("--defense", "Strip", calibration=tmp_path / "few.txt")) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith(f"error: calibration: {message} for Strip, which learns from half")


def test_the_token_view_escapes_texts_and_shows_flagged_ones_first(
    scan: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_backdoor.commands.scan.page.TEXTS", 20)
    (tmp_path / "hostile.txt").write_text("\n".join(["<script>alert(1)</script> & film", *TEXTS]), encoding="utf-8")
    assert main(scan("--html", str(tmp_path / "view.html"), input=tmp_path / "hostile.txt")) == 0
    html = (tmp_path / "view.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert html.count("<article>") == 20
    flags = [" flagged ·" in article and "not flagged" not in article for article in html.split("<article>")[1:]]
    assert flags == sorted(flags, reverse=True)
    flagged = sum(line["flagged"] for line in lines(tmp_path / "found.jsonl"))
    assert sum(flags) == min(20, flagged)


def test_an_own_seed_and_budget_are_kept() -> None:
    ((option,), _) = defense_options(["--defense", "Strip(fpr=0.02, seed=7)"])
    defense = create(option, defense_class(option), fpr=0.3, seed=1)
    assert (defense.fpr, defense.seed) == (0.02, 7)
    ((option,), _) = defense_options(["--defense", "Strip"])
    defense = create(option, defense_class(option), fpr=0.3, seed=1)
    assert (defense.fpr, defense.seed) == (0.3, 1)
    with pytest.raises(InputError, match=r"fpr: 1\.5 is not a share"):
        create(option, defense_class(option), fpr=1.5, seed=1)
