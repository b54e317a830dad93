"""The set pass of a scan: the same sums however texts are read, kept directions, and passes that are continued."""

from __future__ import annotations

import io
import json
import math
import random
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.multiprocessing.spawn import start_processes

from lightning_backdoor.cli import main
from lightning_backdoor.commands.scan.directions import ENTRY
from lightning_backdoor.commands.scan.processes import Processes, SeveralProcesses
from lightning_backdoor.commands.scan.study import study_group
from lightning_backdoor.files.locking import lock
from tests.support.scanning import CLEAN, TEXTS, Lines, lines, model

__all__ = ["model"]

SURPRISE = '''
import torch
from lightning_backdoor.defenses.defense import Defense, Scores, threshold_at_fpr
from lightning_backdoor.models.captures import plain_logits


class Surprise(Defense):
    """Scores a text by how far its logits are from the mean of the set."""

    learns_from = "trusted"

    def __init__(self, fpr=0.3, factor=1.0):
        super().__init__(fpr)
        self.factor = factor
        self.register_buffer("mean", torch.zeros(2))

    def logits(self, victim, batch):
        assert (batch["label"] == -1).all()
        return plain_logits(victim.network, batch["input_ids"], batch["attention_mask"]).detach()

    def score(self, victim, batch):
        logits = self.logits(victim, batch)
        return Scores(self.factor * (logits - self.mean).norm(dim=1), logits=logits)

    def calibrate(self, victim, clean_batches):
        self.clean = torch.cat([self.logits(victim, batch) for batch in clean_batches])
        self.adopt(torch.tensor([0.0, 0.0, 1.0]))

    def study(self, victim, batches):
        sums = torch.zeros(3, dtype=torch.float64)
        for batch in batches:
            assert (batch["index"] == -1).all()
            logits = self.logits(victim, batch).double()
            sums += torch.tensor([*logits.sum(dim=0).tolist(), len(logits)])
        return sums

    def adopt(self, sums):
        self.mean.copy_(sums[:2] / sums[2])
        self.threshold.copy_(threshold_at_fpr(self.factor * (self.clean - self.mean).norm(dim=1), self.fpr))


class ByItself(Surprise):
    study = Defense.study
'''
#: number of texts that are studied together, here one batch.
GROUP = 8
STUDIED = TEXTS[:20]


def write_texts(path: Path, texts: Sequence[str]) -> None:
    path.write_text("\n".join(texts), encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def small_groups() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lightning_backdoor.commands.scan.run.BATCHES_AHEAD", 1)
        yield


@pytest.fixture(scope="module")
def studied(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the texts, and the output of a scan of them, ``whole.jsonl``."""
    folder = tmp_path_factory.mktemp("studied")
    write_texts(folder / "clean.txt", CLEAN[:12])
    write_texts(folder / "texts.txt", STUDIED)
    (folder / "surprise.py").write_text(SURPRISE, encoding="utf-8")
    with redirect_stderr(io.StringIO()) as said:
        assert main(scan_of(folder, model, output="whole.jsonl")) == 0
    (folder / "said.txt").write_text(said.getvalue(), encoding="utf-8")
    return folder


def scan_of(folder: Path, model: str, *more: str, **changed: object) -> list[str]:
    """The arguments of a scan by a defense that studies, whose groups have ``GROUP`` texts."""
    chosen: dict[str, object] = {"model": model, "calibration": "clean.txt", "input": "texts.txt", **changed}
    flags = [(f"--{name.replace('_', '-')}", value) for name, value in {"output": "found.jsonl", **chosen}.items()]
    files = {"--calibration", "--input", "--output", "--directions"}
    pairs = [(flag, folder / str(value) if flag in files and value != "-" else value) for flag, value in flags]
    options = [str(part) for flag, value in pairs for part in ([flag] if value is True else [flag, value])]
    sizes = [] if "batch_size" in changed else ["--batch-size", str(GROUP)]
    return ["scan", "--defense", f"{folder / 'surprise.py'}:Surprise", *options, *sizes, *more]


@pytest.fixture
def folder(studied: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be changed."""
    return shutil.copytree(studied, tmp_path / "copy")


@pytest.fixture
def study(folder: Path, model: str) -> Callable[..., list[str]]:
    """The arguments of a scan of that copy."""
    return partial(scan_of, folder, model)


def directions(output: Path) -> Path:
    return output.with_name(f"{output.name}.directions.safetensors")


def entry(path: Path) -> dict[str, Any]:
    """What a file of directions says of itself."""
    header = path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")]
    content: dict[str, Any] = json.loads(json.loads(header)["__metadata__"][ENTRY])
    return content


def assert_same(results: Lines, others: Lines) -> None:
    """The same flags, and scores to 1e-6, in whatever order the texts are."""
    by_text = {line["text"]: line for line in others}
    assert len(results) == len(others)
    for line in results:
        other = by_text[line["text"]]
        assert line["flagged"] is other["flagged"]
        assert line["anomaly_score"] == pytest.approx(other["anomaly_score"], abs=1e-6)


def test_texts_are_judged_by_what_the_whole_input_says(studied: Path) -> None:
    results = lines(studied / "whole.jsonl")
    logits = torch.tensor([line["logits"] for line in results], dtype=torch.float64)
    expected = (logits - logits.mean(dim=0)).norm(dim=1)
    assert [line["text"] for line in results] == STUDIED
    assert [line["anomaly_score"] for line in results] == pytest.approx(expected.tolist(), abs=1e-6)
    threshold, _, _, kept, _ = (studied / "said.txt").read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(r"threshold [0-9.]+, set on 12 clean texts for a budget of 30 % of them", threshold)
    at = float(threshold.split()[1].rstrip(","))
    flags = [line["flagged"] for line in results]
    assert 0 < sum(flags) < len(flags)
    assert flags == [line["anomaly_score"] >= at for line in results]
    path = directions(studied / "whole.jsonl")
    assert kept == f"directions: {path}, of {len(STUDIED)} texts"
    assert entry(path)["texts"] == len(STUDIED)
    assert load_file(path)["Surprise"].tolist() == pytest.approx([*logits.sum(dim=0).tolist(), len(STUDIED)], abs=1e-4)


def test_order_and_batches_do_not_matter(study: Callable[..., list[str]], folder: Path) -> None:
    write_texts(folder / "shuffled.txt", random.Random(0).sample(STUDIED, len(STUDIED)))
    for size in (1, 64):
        assert main(study(batch_size=size, input="shuffled.txt", output=f"{size}.jsonl")) == 0
        assert_same(lines(folder / f"{size}.jsonl"), lines(folder / "whole.jsonl"))


def as_one_of(rank: int, count: int, args: list[str], store: str) -> None:
    """Runs a scan as one of several processes."""

    @contextmanager
    def several(*options: object) -> Iterator[Processes]:
        patience = timedelta(minutes=2)
        torch.distributed.init_process_group("gloo", store, patience, rank=rank, world_size=count)
        yield SeveralProcesses(rank, count, torch.device("cpu"))
        torch.distributed.destroy_process_group()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lightning_backdoor.commands.scan.processes.processes", several)
        assert main(args) == 0


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_write_the_bytes_of_one(count: int, study: Callable[..., list[str]], folder: Path) -> None:
    args = (count, study(), f"file://{folder}/store")
    start_processes(as_one_of, args, count, start_method="fork")  # type: ignore[no-untyped-call]
    assert (folder / "found.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert directions(folder / "found.jsonl").read_bytes() == directions(folder / "whole.jsonl").read_bytes()


def test_each_of_several_defenses_judges_as_if_it_were_alone(study: Callable[..., list[str]], folder: Path) -> None:
    surprise = f"other={folder / 'surprise.py'}:Surprise(factor=2)"
    plain = f"plain={folder / 'surprise.py'}:ByItself"
    assert main(study("--defense", surprise, "--defense", plain)) == 0
    together, alone = lines(folder / "found.jsonl"), lines(folder / "whole.jsonl")
    for line, expected in zip(together, alone, strict=True):
        assert line["Surprise"] == {name: expected[name] for name in line["Surprise"]}
        assert line["other"]["flagged"] is expected["flagged"]
        assert line["other"]["anomaly_score"] == pytest.approx(2 * expected["anomaly_score"])
        assert line["plain"]["anomaly_score"] == pytest.approx(math.hypot(*line["logits"]))
    assert sorted(load_file(directions(folder / "found.jsonl"))) == ["Surprise", "other"]


def test_shards_are_judged_by_the_whole_input(study: Callable[..., list[str]], folder: Path) -> None:
    assert main(study(output="1.jsonl", shard="1/2", directions="kept")) == 0
    assert main(study(output="2.jsonl", shard="2/2")) == 0
    whole = directions(folder / "whole.jsonl").read_bytes()
    assert (folder / "kept").read_bytes() == directions(folder / "2.jsonl").read_bytes() == whole
    parts = [str(folder / f"{number}.jsonl") for number in (1, 2)]
    assert main(["scan", "--join", *parts, "--output", str(folder / "joined.jsonl")]) == 0
    assert (folder / "joined.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()


def test_kept_directions_judge_texts_one_by_one(
    study: Callable[..., list[str]], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = directions(folder / "whole.jsonl")
    before = kept.read_bytes()
    write_texts(folder / "few.txt", STUDIED[:5])
    with (folder / "few.txt").open(encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(study(directions=kept, input="-", output="few.jsonl")) == 0
    assert capsys.readouterr().err.splitlines()[3] == f"directions: {kept}, of {len(STUDIED)} texts"
    assert_same(lines(folder / "few.jsonl"), lines(folder / "whole.jsonl")[:5])
    assert kept.read_bytes() == before
    assert not directions(folder / "few.jsonl").exists()


def test_the_texts_of_another_input_are_added(
    study: Callable[..., list[str]], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, output = folder / "kept.safetensors", folder / "b.jsonl"
    write_texts(folder / "a.txt", STUDIED[:12])
    write_texts(folder / "b.txt", STUDIED[12:])
    for name in "ab":
        assert main(study(study=True, directions=kept, input=f"{name}.txt", output=f"{name}.jsonl")) == 0
    assert entry(kept)["texts"] == len(STUDIED)
    whole = load_file(directions(folder / "whole.jsonl"))["Surprise"]
    assert load_file(kept)["Surprise"].tolist() == pytest.approx(whole.tolist(), rel=1e-6)  # batches differ
    assert_same(lines(output), lines(folder / "whole.jsonl")[12:])
    before, judged = kept.read_bytes(), output.read_bytes()
    output.write_bytes(judged[:500])
    again = study(study=True, directions=kept, input="b.txt", output="b.jsonl")
    assert main([*again, "--resume"]) == 0  # the texts are not added again
    assert (kept.read_bytes(), output.read_bytes()) == (before, judged)
    output.unlink()
    capsys.readouterr()
    assert main(again) == 2
    assert capsys.readouterr().err == f"error: study: {kept} has the sums of this input already; leave out --study\n"


@pytest.mark.parametrize(
    ("number", "kept"), [(signal.SIGINT, "kept"), (signal.SIGTERM, None), (signal.SIGKILL, None)], ids=str
)
def test_an_interrupted_pass_is_continued_to_the_same_sums(
    number: signal.Signals,
    kept: str | None,
    study: Callable[..., list[str]],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = folder / "found.jsonl"
    file = directions(output) if kept is None else folder / kept
    unfinished = file.with_name(f"{file.name}.unfinished")
    args = study() if kept is None else study(directions=kept)
    sizes: list[int] = []

    def interrupted(*of_group: Any, **settings: Any) -> Any:
        sizes.append(len(of_group[2]))
        if len(sizes) == 4:  # the first has no texts
            if number == signal.SIGKILL:  # after which there is what was written before
                shutil.copy(unfinished, folder / "left")
            signal.raise_signal(signal.SIGINT if number == signal.SIGKILL else number)
        return study_group(*of_group, **settings)

    with monkeypatch.context() as patched:
        patched.setattr("lightning_backdoor.commands.scan.run.study_group", interrupted)
        patched.setattr("lightning_backdoor.commands.scan.set_pass.KEPT_SECONDS", 0 if number == signal.SIGKILL else 60)
        assert main(args) > 128
    if number == signal.SIGKILL:
        shutil.move(folder / "left", unfinished)
    error = capsys.readouterr().err
    left = (
        f"the sums of {2 * GROUP} of {len(STUDIED)} texts are kept in {unfinished}; continue with: lightning-backdoor "
    )
    assert left in error
    assert not file.exists()
    assert not output.exists()
    assert main(args) == 2
    assert capsys.readouterr().err.endswith(f"{unfinished} exists; add --resume to continue it, or delete it\n")
    with monkeypatch.context() as patched:
        sizes[:] = [0] * 4
        patched.setattr("lightning_backdoor.commands.scan.run.study_group", interrupted)
        assert main(shlex.split(error.partition("lightning-backdoor ")[2])) == 0
    assert sum(sizes) == len(STUDIED) - 2 * GROUP
    assert output.read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert file.read_bytes() == directions(folder / "whole.jsonl").read_bytes()
    assert not unfinished.exists()
    assert not list(folder.glob(".*"))  # no lock is left


def test_an_interrupted_pass_to_standard_output_is_continued(
    study: Callable[..., list[str]], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    groups: list[int] = []

    def interrupted(*of_group: Any, **settings: Any) -> Any:
        groups.append(len(of_group[2]))
        if len(groups) == 4:  # the first has no texts
            signal.raise_signal(signal.SIGINT)
        return study_group(*of_group, **settings)

    with monkeypatch.context() as patched:
        patched.setattr("lightning_backdoor.commands.scan.run.study_group", interrupted)
        assert main(study(output="-", directions="kept")) > 128
        stopped = capsys.readouterr()
        assert stopped.out == ""
        assert main(shlex.split(stopped.err.partition("lightning-backdoor ")[2])) == 0
    assert sum(groups[4:]) == len(STUDIED) - 2 * GROUP
    assert capsys.readouterr().out.encode() == (folder / "whole.jsonl").read_bytes()
    assert (folder / "kept").read_bytes() == directions(folder / "whole.jsonl").read_bytes()


def test_a_scan_that_was_interrupted_after_its_pass_studies_no_more(
    study: Callable[..., list[str]], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = folder / "whole.jsonl"
    whole = output.read_bytes()
    output.write_bytes(whole[: len(whole) // 2])
    with monkeypatch.context() as patched:
        patched.setattr("lightning_backdoor.commands.scan.set_pass.write_directions", None)
        assert main(study(output="whole.jsonl", resume=True)) == 0
    assert output.read_bytes() == whole
    write_texts(folder / "texts.txt", [*STUDIED, "one more film"])
    capsys.readouterr()
    assert main(study(output="whole.jsonl", resume=True)) == 2
    assert capsys.readouterr().err.startswith("error: directions: '")
    assert output.read_bytes() == whole


def test_a_pass_is_not_continued_on_other_texts(
    study: Callable[..., list[str]], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = directions(folder / "whole.jsonl")
    unfinished = folder / "found.jsonl.directions.safetensors.unfinished"
    save_file(load_file(kept), unfinished, {ENTRY: json.dumps({**entry(kept), "whole": False, "last": "0" * 64})})
    assert main(study(resume=True)) == 2
    assert capsys.readouterr().err == f"error: input: {unfinished} was begun on other texts; give these, or delete it\n"


def test_an_input_that_changes_while_it_is_studied_is_refused(
    study: Callable[..., list[str]], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def changing(*of_group: Any, **settings: Any) -> Any:
        write_texts(folder / "texts.txt", [*STUDIED, "one more film"])
        return study_group(*of_group, **settings)

    monkeypatch.setattr("lightning_backdoor.commands.scan.run.study_group", changing)
    assert main(study()) == 2
    problem = f"it had {len(STUDIED)} texts when it was read first, and {len(STUDIED) + 1} now"
    assert capsys.readouterr().err == f"error: input: {problem}; scan it when it is complete\n"
    assert not directions(folder / "found.jsonl").exists()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("cut", "does not hold directions: it cannot be read"),
        ("empty", "does not hold directions: it cannot be read"),
        ("weights", "does not hold directions: it cannot be read"),
        ("float32", "does not hold directions: the sums of Surprise are not finite float64"),
        ("nan", "does not hold directions: the sums of Surprise are not finite float64"),
        ("types", "does not hold directions: its entries have other types"),
        ("names", "does not hold directions: it has the sums of other defenses than it says"),
        ("unfinished", "is of a set that was not read to its end"),
        ("shape", "have the shape (4,), not (3,); name another file of directions"),
        ("model", "error: model: '"),
        ("arguments", "error: Surprise.arguments: {'factor': '2'} now, {} when "),
        ("source", "error: Surprise.source: '"),
        ("defenses", "error: defense: ['other'] now, ['Surprise'] when "),
        ("fpr", "error: fpr: 0.2 now, None when "),
    ],
)
def test_directions_that_are_damaged_or_of_something_else_are_refused(
    fault: str,
    message: str,
    study: Callable[..., list[str]],
    folder: Path,
    model: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = directions(folder / "whole.jsonl")
    sums, content = load_file(kept)["Surprise"], entry(kept)
    args = study(directions=kept)
    if fault in ("cut", "empty"):
        kept.write_bytes(kept.read_bytes()[: -8 if fault == "cut" else 0])
    elif fault == "weights":
        shutil.copy(next(Path(model).glob("*.safetensors")), kept)
    elif fault == "model":
        other = shutil.copytree(model, folder / "other")
        (other / "config.json").write_text((other / "config.json").read_text() + " ")
        args += ["--model", str(other)]
    elif fault == "arguments":
        args[3:3] = ["--defense.factor", "2"]
    elif fault == "source":
        (folder / "surprise.py").write_text(SURPRISE + "\n", encoding="utf-8")
    elif fault == "defenses":
        args[2] = f"other={args[2]}"
    elif fault == "fpr":
        args += ["--fpr", "0.2"]
    else:
        sums = {"float32": sums.float(), "nan": sums * math.nan, "shape": torch.zeros(4).double()}.get(fault, sums)
        changed: dict[str, dict[str, Any]] = {"types": {"texts": "many"}, "unfinished": {"whole": False}}
        content |= changed.get(fault, {})
        save_file({"other" if fault == "names" else "Surprise": sums}, kept, {ENTRY: json.dumps(content)})
    before = kept.read_bytes()
    assert main(args) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(kept) in error
    assert error.count("\n") == 1
    assert kept.read_bytes() == before
    assert not (folder / "found.jsonl").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input": "-"}, "input: standard input and pipes can be read only once, but Surprise studies all texts first"),
        ({"study": True}, "study: there is no file to which this input is added; give --directions FILE"),
        ({"study": True, "directions": "kept", "shard": "1/2"}, "study: each shard would add the whole input"),
        ({"directions": "missing/kept"}, "directions: the folder {}/missing does not exist; make it first"),
        ({"directions": "."}, "directions: {} does not hold directions: it cannot be read"),
        ({"directions": "locked"}, "directions: another scan writes {}/locked; wait for it, or name another file"),
        ({"input": "bad.txt"}, "{}/bad.txt, line 2: is not valid UTF-8; correct or convert it"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_studied_is_refused_at_once(
    changed: dict[str, Any],
    message: str,
    study: Callable[..., list[str]],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "bad.txt").write_bytes(b"a film\ncaf\xe9\n")
    with (folder / ".locked.lock").open("wb") as other:
        lock(other)
        assert main(study(**changed)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message.format(folder)}")
    assert error.count("\n") == 1
    assert not (folder / "found.jsonl").exists()


def test_directions_of_a_defense_that_studies_nothing_are_refused(
    study: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    args = study(directions="kept")
    args[2] = "GradientAttention"
    assert main(args) == 2
    problem = "GradientAttention studies no set, but judges each text by itself; leave it out"
    assert capsys.readouterr().err == f"error: directions: {problem}\n"


def test_an_input_without_texts_teaches_nothing(
    study: Callable[..., list[str]], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "none.txt").touch()
    assert main(study(input="none.txt")) == 0
    assert capsys.readouterr().err.endswith("verdict: no texts\n")
    assert entry(directions(folder / "found.jsonl"))["texts"] == 0
