"""``benchmark`` as a user meets it: the same numbers wherever it runs, one line for a mistake, nothing done twice."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_backdoor.benchmark import wandb_runs
from lightning_backdoor.benchmark.running.run_command import CommandError, run_command
from lightning_backdoor.benchmark.table import COLUMNS, NUMBERS, TIMINGS
from lightning_backdoor.cli import main
from lightning_backdoor.files.model_size import KEPT_COPIES, TEMPORARY_COPIES, size_text
from lightning_backdoor.outputs.outcomes import read_outcomes
from tests.benchmark.grids import SMALL
from tests.support.forked import forked
from tests.support.wandb_files import runs


def write_grid(folder: Path, name: str = "grid.yaml", **changes: Any) -> str:
    """A grid in the workspace; ``changes`` replace its keys."""
    content = {**yaml.safe_load(SMALL), **changes}
    (folder / name).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return name


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbers(output: Path) -> list[dict[str, str]]:
    """The rows without what differs between two runs of the same grid."""
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows(output)]


@pytest.fixture(scope="module")
def one_process(workspace: Path) -> Path:
    """The small grid's output of one process."""
    output = workspace / "one-process"
    result = forked("benchmark", "--config", write_grid(workspace), "--output", str(output), cwd=workspace)
    assert result.returncode == 0, result.stderr
    return output


def test_every_cell_is_filled_and_the_files_are_there(one_process: Path) -> None:
    table = rows(one_process)
    assert [(row["attack"], row["defense"]) for row in table] == [
        ("none", "none"),
        ("none", "gradient attention"),
        ("BadNets", "clean training"),
        ("BadNets", "none"),
        ("BadNets", "gradient attention"),
    ]
    assert list(table[0]) == list(COLUMNS)
    for row in table:
        assert row["error"] == ""
        assert float(row["cacc_defended_low"]) <= float(row["cacc_defended"]) <= float(row["cacc_defended_high"])
        assert (row["asr"] != "") == (row["attack"] == "BadNets")
        assert (row["overhead"] != "") == (row["defense"] == "gradient attention")
    attacked = table[3]
    assert (attacked["n_clean"], attacked["n_poisoned"]) == ("40", "20")
    assert float(attacked["asr"]) > float(table[2]["asr"])
    page = (one_process / "report.html").read_text(encoding="utf-8")
    assert "gradient attention" in page
    assert {path.suffix for path in (one_process / "figures").iterdir()} == {".svg", ".pdf"}
    assert {path.name for path in one_process.glob("victims/*/checkpoints/*")} == {"best.ckpt"}
    with (one_process / "comparisons.csv").open(encoding="utf-8", newline="") as file:
        compared = list(csv.DictReader(file))
    assert {(line["first"], line["second"]) for line in compared if line["attack"] == "BadNets"} == {
        ("clean training", "none"),
        ("clean training", "gradient attention"),
        ("none", "gradient attention"),
    }


def test_the_table_is_what_test_wrote(one_process: Path) -> None:
    for row in rows(one_process):
        metrics = json.loads((one_process / "cells" / row["cell"] / "metrics.json").read_text(encoding="utf-8"))
        assert float(row["cacc"]) == metrics["test/cacc"]
        if row["defense"] == "gradient attention":
            assert float(row["cacc_defended"]) == metrics["test/cacc_defended"]


def test_the_same_command_again_does_nothing_and_gives_the_same_files(
    one_process: Path, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: (one_process / name).read_bytes() for name in ("results.csv", "comparisons.csv", "journal.jsonl")}
    assert main(["benchmark", "--config", "grid.yaml", "--output", str(one_process)]) == 0
    assert "5 of 5 cells are done already" in capsys.readouterr().out
    assert {name: (one_process / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("options", [["--jobs", "2"], ["--cluster", "local"]], ids=["two workers", "submitit"])
def test_workers_elsewhere_give_the_same_numbers(workspace: Path, one_process: Path, options: list[str]) -> None:
    output = workspace / options[0].strip("-")
    args = ["--config", write_grid(workspace, cluster={"timeout_min": 10}), "--output", str(output)]
    result = forked("benchmark", *args, *options, cwd=workspace)  # its workers are new processes
    assert result.returncode == 0, result.stdout + result.stderr
    assert numbers(output) == numbers(one_process)
    assert "[5/5]" in result.stdout


def test_two_processes_a_cell_give_the_numbers_of_one(inside: Path) -> None:
    # without dropout, two batches at once are two batches in turn
    shutil.copytree(inside / "model", inside / "no-dropout", dirs_exist_ok=True)
    path = inside / "no-dropout" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    path.write_text(json.dumps(config), encoding="utf-8")
    models = {"tiny": {"model": {"init_args": {"model": "no-dropout", "learning_rate": 1e-3}}}}
    small = yaml.safe_load(SMALL)
    axes = {
        "models": models,
        "attacks": {"BadNets": small["attacks"]["BadNets"]},
        "defenses": {"gradient attention": small["defenses"]["gradient attention"]},
    }
    found = []
    for name, trainer in (("one", {"accumulate_grad_batches": 2}), ("ddp", {"devices": 2, "strategy": "ddp"})):
        base = yaml.safe_load(SMALL)["base"]
        base["data"]["init_args"]["max_rows"]["train"] = 128  # 8 batches: none is left out for two processes
        base["trainer"] |= trainer
        grid = write_grid(inside, f"{name}.yaml", base=base, **axes)
        assert main(["benchmark", "--config", grid, "--output", f"{name}-out"]) == 0
        found += rows(inside / f"{name}-out")
    one, two = found
    assert one["cell"] != two["cell"]
    outcomes = [
        [outcome._replace(score=None) for outcome in read_outcomes(inside / out / "cells" / cell / "outcomes.csv")]
        for out, cell in (("one-out", one["cell"]), ("ddp-out", two["cell"]))
    ]
    assert outcomes[0] == outcomes[1]
    for column in NUMBERS:
        if column not in TIMINGS and one[column]:
            assert float(one[column]) == pytest.approx(float(two[column]), abs=1e-6), column


def test_without_a_wandb_server_the_grid_finishes_and_its_runs_are_kept(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_runs, "BEGIN", 2.0)  # seconds to wait for a server
    grid = write_grid(workspace, "wandb.yaml", wandb={"project": "tests"})
    nowhere = {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    only = ["--only", "attack=BadNets", "--only", "defense=none,gradient attention"]
    result = forked("benchmark", "--config", grid, "--output", "tracked", *only, cwd=workspace, env=nowhere)
    assert result.returncode == 0, result.stderr
    assert "[2/2]" in result.stdout
    assert result.stderr.count("warning: W&B:") == 1
    kept = runs(workspace / "tracked")
    assert [run.record.job_type for run in kept] == ["train", "none", "gradient attention", "summary"]
    for run, row in zip(kept[1:3], rows(workspace / "tracked"), strict=True):
        assert run.config["cell"] == row["cell"]
        assert run.record.run_group == "reviews/tiny/BadNets"
        assert run.config["victim"] == row["victim"]
        for name in ("cacc", "asr", "cacc_defended", "asr_defended", "n_poisoned"):
            assert (run.summary | run.config)[name] == pytest.approx(float(row[name])), name
    assert "texts" in kept[2].logged
    again = forked("benchmark", "--config", grid, "--output", "tracked", *only, cwd=workspace)
    assert again.returncode == 0, again.stderr
    assert [run.record.job_type for run in runs(workspace / "tracked")][4:] == ["summary"]


def test_a_victim_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(workspace: Path) -> None:
    (workspace / "killer.py").write_text(
        "import os, signal\nfrom pathlib import Path\nfrom lightning.pytorch import Callback\n\n\n"
        "class Killer(Callback):\n"
        "    def __init__(self, mark: str):\n"
        "        self.mark = Path(mark)\n\n"
        "    def on_train_batch_end(self, trainer, *args):\n"
        "        if trainer.current_epoch == 1 and not self.mark.exists():\n"
        "            self.mark.touch()\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n",
        encoding="utf-8",
    )
    models = []
    for mark in ("kept-alive", "killed"):
        base = yaml.safe_load(SMALL)["base"]
        base["trainer"] |= {
            "max_epochs": 3,
            "callbacks": [{"class_path": "killer.Killer", "init_args": {"mark": mark}}],
        }
        if mark == "kept-alive":
            (workspace / mark).touch()
        grid = write_grid(workspace, f"{mark}.yaml", base=base)
        line = (
            "benchmark",
            "--config",
            grid,
            "--output",
            f"{mark}-out",
            "--only",
            "attack=BadNets",
            "--only",
            "defense=none",
        )
        first = forked(*line, cwd=workspace)
        if mark == "killed":
            assert first.returncode == -9
            second = forked(*line, cwd=workspace)
            assert second.returncode == 0, second.stderr
        (log,) = (workspace / f"{mark}-out" / "victims").glob("*/log.txt")
        assert ("last.ckpt" in log.read_text(encoding="utf-8")) == (mark == "killed")
        (model,) = (workspace / f"{mark}-out" / "victims").glob("*/model/model.safetensors")
        models.append(model.read_bytes())
    assert models[0] == models[1]


def test_a_victim_trained_under_a_defense_is_tested_under_another(inside: Path) -> None:
    muscle = {"class_path": "lightning_backdoor.callbacks.MuScleLoRA", "init_args": {"reference_size": 8}}
    strip = {"class_path": "lightning_backdoor.defenses.strip.Strip"}
    attacks = {"BadNets": yaml.safe_load(SMALL)["attacks"]["BadNets"]}
    grid = write_grid(inside, "both.yaml", attacks=attacks, defenses={"both": {"training": muscle, "inference": strip}})
    assert main(["benchmark", "--config", grid, "--output", "both"]) == 0
    (row,) = rows(inside / "both")
    assert float(row["auroc"]) > 0
    assert float(row["overhead"]) > 1


def test_a_cell_on_several_nodes_is_started_by_srun(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (inside / "srun").write_text("#!/bin/sh\necho srun $*\nexit 1\n", encoding="utf-8")
    (inside / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{inside}:{os.environ['PATH']}")
    with (inside / "srun.txt").open("w+b") as log, pytest.raises(CommandError) as error:
        run_command("fit", ["--config", "data.yaml"], inside, log.fileno(), {"devices": 4, "num_nodes": 2})
    assert str(error.value).startswith("srun --overlap --nodes=2 --ntasks-per-node=4 ")
    assert str(error.value).endswith("-m lightning_backdoor fit --config data.yaml")


def test_a_plan_trains_nothing(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["benchmark", "--config", write_grid(inside), "--output", "never_planned", "--only", "attack=BadNets"]
    assert main([*args, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("3 cells, 2 victims\n  reviews · tiny · BadNets · clean training · seed 0: to run\n")
    assert "time: not known" in said
    weights = (inside / "model" / "model.safetensors").stat().st_size
    kept, more = size_text(2 * KEPT_COPIES * weights), size_text(TEMPORARY_COPIES * weights)
    assert f"disk: about {kept} for 2 victims to be trained; up to {more} more meanwhile\n" in said
    assert not (inside / "never_planned").exists()


def test_an_estimate_comes_from_what_has_run(
    one_process: Path, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = write_grid(inside, "seeds.yaml", seeds=[0, 1])
    assert main(["benchmark", "--config", grid, "--output", str(one_process), "--dry-run", "--jobs", "2"]) == 0
    said = capsys.readouterr().out
    assert said.count(": done") == 5
    assert said.count(": to run") == 5
    assert "time: about" in said
    assert "with 2 at work" in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"attacks": {"BadNets": {"class_path": "lightning_backdoor.attacks.BadNets", "init_args": {"rate": 1}}}},
            "rate",
        ),
        (
            {
                "attacks": {
                    "BadNets": {"class_path": "lightning_backdoor.attacks.BadNets", "init_args": {"poison_rate": 2}}
                }
            },
            "poison_rate: 2",
        ),
        ({"defenses": {"mine": {"inference": {"class_path": "no.Such"}}}}, "no.Such"),
        ({"models": {"none": "./not/there"}}, "./not/there"),
        ({"wandb": {"projekt": "x"}}, "projekt"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(
    inside: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    grid = write_grid(inside, "wrong.yaml", **changes)
    assert main(["benchmark", "--config", grid, "--output", "wrong"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert not (inside / "wrong").exists()


def test_a_folder_with_results_is_refused_where_that_is_asked_for(
    one_process: Path, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", "--config", "grid.yaml", "--output", str(one_process), "--no-resume"]) == 2
    assert "holds results already" in capsys.readouterr().err


def test_a_command_in_processes_of_its_own_that_fails_says_why(inside: Path) -> None:
    with (inside / "several.txt").open("w+b") as log, pytest.raises(CommandError) as error:
        run_command("fit", ["--config", "data.yaml", "--model.poison_rate", "2"], inside, log.fileno(), {"devices": 2})
    assert str(error.value) == "poison_rate: 2.0 is out of range; give a share above 0 and up to 1"


def test_a_failing_cell_tells_by_the_exit_status(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (inside / "failing.py").write_text(
        "from lightning_backdoor.defenses.defense import Defense\n\n\n"
        "class Failing(Defense):\n"
        "    def score(self, victim, batch):\n"
        "        raise RuntimeError('not <b>today</b>')\n",
        encoding="utf-8",
    )
    defenses = {"failing": {"inference": {"class_path": "failing.Failing"}}, "none": None}
    attacks = {"BadNets": yaml.safe_load(SMALL)["attacks"]["BadNets"]}
    grid = write_grid(inside, "failing.yaml", defenses=defenses, attacks=attacks)
    assert main(["benchmark", "--config", grid, "--output", "failed"]) == 1
    assert "1 of 2 cells failed" in capsys.readouterr().out
    failed, done = rows(inside / "failed")
    assert failed["error"] == "RuntimeError: not <b>today</b>"
    assert done["error"] == ""
    assert "not <b>today" not in (inside / "failed" / "report.html").read_text(encoding="utf-8")
    log = inside / "failed" / "cells" / failed["cell"] / "log.txt"
    assert "Traceback" in log.read_text(encoding="utf-8")
    sys.modules.pop("failing", None)
