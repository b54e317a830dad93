"""The notebooks of the documentation run from the first cell to the last, offline, and are kept without outputs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

from tests.support.workspace import settings

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
#: text that the outputs of a notebook must have.
SAID = {
    "compare_defenses": ("Poisoned(text='a cf good film'", "['negative', 'positive']", "gradient attention", "[[cf]]"),
    "your_own_attack_and_defense": ("Poisoned(text='a good film WOW'", "LastWord", "[[WOW]]"),
}


def test_there_are_two_notebooks_without_outputs() -> None:
    assert set(NOTEBOOKS) == set(SAID)
    for name in NOTEBOOKS:
        cells = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = tmp_path / "kernels" / "python3"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "Python 3", "language": "python"}))
    for variable, value in {**settings(tmp_path), "JUPYTER_PATH": str(tmp_path), "TQDM_DISABLE": "1"}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(KernelSpecManager, "ensure_native_kernel", False)
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    working = tmp_path / "work"
    working.mkdir()
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": working}}).execute()
    outputs = "".join(
        output.get("text", "") + "".join(output.get("data", {}).get("text/plain", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", ())
    )
    assert all(text in outputs for text in SAID[name])
    print(outputs)
