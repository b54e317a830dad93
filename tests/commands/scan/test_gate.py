"""The gate of a scan, and the words of flagged texts in its verdict and page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_backdoor.cli import main
from lightning_backdoor.commands.scan.output import Output
from tests.support.scanning import TEXTS, lines, model, scan

__all__ = ["model", "scan"]

#: a defense that flags texts with a trigger, and others by chance, and answers the first class.
DEFENSE = """
from zlib import crc32
import torch
from lightning_backdoor.defenses import Defense, Scores

class OfTrigger(Defense):
    def score(self, victim, batch):
        by_chance = torch.tensor([crc32(text.encode()) / 2**32 for text in batch["text"]])
        return Scores(by_chance + torch.tensor(["<b>cf</b>" in text for text in batch["text"]]))

    def purify(self, victim, batch, flagged, scores):
        return ["repaired" if flag else None for flag in flagged.tolist()]

    def explain(self, victim, batch):
        mask = batch["attention_mask"]
        return Scores(torch.ones(len(mask)), mask.float().log())
"""


#: the same, which studies the set and then flags every other text.
STUDYING = (
    DEFENSE.replace("OfTrigger", "Studying")
    + """
    def study(self, victim, batches):
        return torch.tensor([len(batch["text"]) for batch in batches]).sum().double()[None]

    def adopt(self, sums):
        self.alone, _ = self.threshold.clone(), self.threshold.fill_(0.5)

    def score(self, victim, batch):
        scores = torch.tensor([crc32(text.encode()) / 2**32 for text in batch["text"]])
        return Scores(scores, flagged_alone=scores >= self.alone if hasattr(self, "alone") else None)
"""
)


class Killed(BaseException):
    """Ends a command as a kill does, after which nothing more is written."""


def killed(*args: object) -> None:
    raise Killed


@pytest.fixture
def gated(scan: Callable[..., list[str]], tmp_path: Path) -> Callable[..., list[str]]:
    """Arguments of a scan by the defense above."""
    (tmp_path / "own.py").write_text(DEFENSE, encoding="utf-8")
    attacked = [*TEXTS, *(f"<b>CF</b> {text}".lower() for text in TEXTS[:20])]
    (tmp_path / "attacked.txt").write_text("\n".join(attacked), encoding="utf-8")

    def options(*more: str, **changed: object) -> list[str]:
        return scan("--defense", f"{tmp_path / 'own.py'}", *more, fpr=0.1, **changed)

    return options


@pytest.mark.parametrize("output", ["found.jsonl", "found.parquet"])
def test_a_shut_gate_leaves_no_repair(
    gated: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    page = tmp_path / "page.html"
    assert main(gated(output=tmp_path / "plain.jsonl")) == 0
    assert main(gated("--gate", "--html", str(page), output=tmp_path / output)) == 0
    assert capsys.readouterr().err.endswith("no more than clean texts explain; the gate is shut: nothing is repaired\n")
    if output.endswith("parquet"):
        import pyarrow.parquet  # type: ignore[import-untyped]

        found = pyarrow.parquet.read_table(tmp_path / output).to_pylist()
    else:
        found = lines(tmp_path / output)
    plain = lines(tmp_path / "plain.jsonl")
    assert any(line["flagged"] for line in plain)
    for line, usual in zip(found, plain, strict=True):
        if usual["flagged"]:
            assert usual["purified_text"] == "repaired"
            assert usual["tokens"]
            usual |= {"purified_text": None, "purified_prediction": usual["prediction"]}
        else:
            assert usual["tokens"] == []
        assert line == usual
    assert "repaired" not in page.read_text(encoding="utf-8")
    assert main(gated("--gate", "--resume", output=tmp_path / output)) == 2
    assert "its gate was shut, so that it has no repairs" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["found.jsonl", "found.parquet"])
@pytest.mark.parametrize("step", ["rewrite", "finish"])
def test_what_interrupts_a_shut_gate_leaves_no_repair_in_a_resumed_output(
    gated: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: str,
    output: str,
) -> None:
    found, beside = tmp_path / output, tmp_path / f"{output}.scan.json"
    assert main(gated("--gate", output=found)) == 0
    whole, settings, said = found.read_bytes(), beside.read_text(), capsys.readouterr().err
    for path in (found, beside):
        path.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(Output, step, killed)
        with pytest.raises(Killed):
            main(gated("--gate", output=found))
    unfinished = found if found.exists() else tmp_path / f"{output}.jsonl"
    before = unfinished.read_bytes()
    assert any(line["purified_text"] for line in lines(unfinished)) == (step == "rewrite")
    capsys.readouterr()
    assert main(gated("--resume", output=found)) == 2
    assert "was shut, and its repairs were being held back; add --gate, or name" in capsys.readouterr().err
    assert main(gated("--gate", output=found)) == 2
    assert "exists; add --resume to continue it" in capsys.readouterr().err
    texts = tmp_path / "texts.txt"
    more = tmp_path / "more.txt"
    more.write_text(f"{texts.read_text(encoding='utf-8')}\none more film", encoding="utf-8")
    assert main(gated("--gate", "--resume", output=found, input=more)) == 2
    assert "and its gate was shut, but the input has more texts; name another file" in capsys.readouterr().err
    assert unfinished.read_bytes() == before
    assert main(gated("--gate", "--resume", output=found)) == 0
    assert capsys.readouterr().err == said
    assert (found.read_bytes(), beside.read_text()) == (whole, settings)
    assert main(gated("--gate", "--resume", output=found)) == 2
    assert "its gate was shut, so that it has no repairs; name another file" in capsys.readouterr().err


def test_an_open_gate_changes_nothing_and_words_are_named(
    gated: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, attacked = tmp_path / "page.html", tmp_path / "attacked.txt"
    assert main(gated(output=tmp_path / "plain.jsonl", input=attacked)) == 0
    assert "; words that stand out in flagged texts: <b>cf</b> (" in capsys.readouterr().err
    assert main(gated("--gate", "--html", str(page), input=attacked)) == 0
    assert capsys.readouterr().err.endswith("; the gate is open\n")
    assert (tmp_path / "found.jsonl").read_bytes() == (tmp_path / "plain.jsonl").read_bytes()
    assert "(p-value): &lt;b&gt;cf&lt;/b&gt; (" in page.read_text(encoding="utf-8")


def test_the_gate_of_shards_is_decided_when_they_are_joined(
    gated: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [tmp_path / f"part-{number}.jsonl" for number in (1, 2)]
    for number, part in enumerate(parts, start=1):
        assert main(gated(f"--shard={number}/2", "--batch-size=2", output=part)) == 0
    assert main(gated("--gate", "--batch-size=2")) == 0
    joined = tmp_path / "joined.jsonl"
    with monkeypatch.context() as patched:
        patched.setattr(Output, "rewrite", killed)
        with pytest.raises(Killed):
            main(["scan", "--gate", "--join", *map(str, parts), "--output", str(joined)])
    assert not joined.exists()
    assert main(["scan", "--gate", "--join", *map(str, parts), "--output", str(joined)]) == 0
    assert joined.read_bytes() == (tmp_path / "found.jsonl").read_bytes()
    settings = [json.loads(Path(f"{path}.scan.json").read_text()) for path in (joined, tmp_path / "found.jsonl")]
    assert settings[0] == settings[1]


@pytest.mark.parametrize("output", ["found.jsonl", "found.parquet"])
def test_the_verdict_counts_flags_that_do_not_depend_on_the_set(
    scan: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    (tmp_path / "studying.py").write_text(STUDYING, encoding="utf-8")
    arguments = scan("--defense", f"{tmp_path / 'studying.py'}:Studying", fpr=0.1, output=tmp_path / output)
    assert main(arguments) == 0
    said = capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0  # from the lines alone
    assert capsys.readouterr().err.splitlines()[-1] == said.splitlines()[-1]
    if output.endswith("jsonl"):
        found = lines(tmp_path / output)
        flagged, alone = (sum(line[name] for line in found) for name in ("flagged", "flagged_alone"))
        assert flagged > len(TEXTS) / 4 > alone
        assert f"verdict: {alone} of {len(TEXTS)} texts flagged by themselves, " in said
        assert "no more than clean texts explain" in said


@pytest.mark.parametrize(
    ("more", "changed", "problem"),
    [
        ((), {"output": "-"}, "gate: it changes lines when all are written; give a file as --output"),
        (("--shard", "1/2"), {}, "gate: a shard is not the whole set; give --gate with --join instead"),
    ],
)
def test_where_there_can_be_no_gate(
    gated: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    changed: dict[str, object],
    problem: str,
) -> None:
    assert main(gated("--gate", *more, **changed)) == 2
    assert problem in capsys.readouterr().err
