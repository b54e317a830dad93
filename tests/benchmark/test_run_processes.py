"""Workers of a grid as processes of this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_backdoor.benchmark.grid import Grid
from lightning_backdoor.benchmark.running.run_grid import Launch, run_processes
from lightning_backdoor.benchmark.running.shares import devices_of, worker_environments
from lightning_backdoor.errors import InputError
from tests.benchmark.grids import SMALL


def test_workers_run_this_package_whatever_the_working_directory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lightning_backdoor", "lightning"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "__main__.py").write_text("import pathlib; pathlib.Path('code has run').touch()")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.yaml").write_text("{}", encoding="utf-8")
    run_processes(Launch(tmp_path / "grid.yaml", tmp_path, [], "launch"), [{**os.environ}], lambda: None)
    assert "error: " in (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()[-1]
    assert not (tmp_path / "code has run").exists()


def test_workers_share_the_cores_and_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    found = worker_environments(3, 1)
    assert [environment["OMP_NUM_THREADS"] for environment in found] == ["4"] * 3
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in found] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert worker_environments(3, 1)[1]["CUDA_VISIBLE_DEVICES"] == "7"


def test_workers_whose_cells_use_several_gpus_have_as_many_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3,5,7,9")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 5)
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in worker_environments(2, 2)] == ["1,3", "5,7"]
    with pytest.raises(
        InputError, match=r"jobs: 3 workers that use 2 GPUs each .* give --jobs 2, or fewer trainer\.dev"
    ):
        worker_environments(3, 2)
    with pytest.raises(InputError, match=r"too many for 5 GPUs; give fewer trainer\.devices"):
        worker_environments(2, 6)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert {environment["CUDA_VISIBLE_DEVICES"] for environment in worker_environments(3, 2)} == {"1,3,5,7,9"}


@pytest.mark.parametrize(
    ("base", "test", "devices"),
    [
        ({}, {}, 1),
        ({"devices": 2}, {}, 2),
        ({"devices": "2", "accelerator": "gpu"}, {"devices": 1}, 2),
        ({}, {"devices": 4}, 4),
        ({"devices": 2, "accelerator": "cpu"}, {}, 1),
        ({"devices": "auto"}, {"devices": -1}, 1),
        ({"devices": [0, 1]}, {}, 1),
    ],
    ids=str,
)
def test_the_gpus_of_a_cell_are_those_of_its_trainers(
    tmp_path: Path, base: dict[str, Any], test: dict[str, Any], devices: int
) -> None:
    content = {**yaml.safe_load(SMALL), "base": {"trainer": base}, "test": {"trainer": test}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert devices_of(Grid(tmp_path / "grid.yaml").cells) == devices
