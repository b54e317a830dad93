"""Workers of a grid as processes of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_backdoor.benchmark.running.run_grid import Launch, run_processes


def test_workers_run_this_package_whatever_the_working_directory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lightning_backdoor", "lightning"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "__main__.py").write_text("import pathlib; pathlib.Path('code has run').touch()")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.yaml").write_text("{}", encoding="utf-8")
    run_processes(Launch(tmp_path / "grid.yaml", tmp_path, [], "launch"), 1, lambda: None)
    assert "error: " in (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()[-1]
    assert not (tmp_path / "code has run").exists()
