"""Completion by the tab key, by running the script in bash."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lightning_backdoor.cli import COMMANDS, main

BASH = shutil.which("bash")
#: completes the last of some words as bash does, and writes what it finds.
COMPLETE = """\
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 ))
"$(complete -p lightning-backdoor | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("shtab")
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("completion") / "lightning-backdoor.bash"
        with path.open("w", encoding="utf-8") as file:
            patch.setattr("sys.stdout", file)
            assert main(["completion", "bash"]) == 0
    return path


@pytest.mark.skipif(BASH is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ([""], {*COMMANDS}),
        (["be"], {"benchmark"}),
        (["fit", "--model.poison_r"], {"--model.poison_rate"}),
        (["fit", "--model.trigger_l"], {"--model.trigger_learning_rate"}),
        (["fit", "--model", "Bad"], {"BadNets", "BadPre"}),
        (["fit", "--model", "BadNets", "--trainer.max_ep"], {"--trainer.max_epochs"}),
        (["test", "--data.source.pa"], {"--data.source.path"}),
        (["fit", "--config", "configs/attack/bad"], {"configs/attack/badnets.yaml", "configs/attack/badpre.yaml"}),
        (["fit", "--config", "mi"], {"mine.yaml"}),
        (["benchmark", "--dry"], {"--dry-run"}),
        (["scan", "--calib"], {"--calibration"}),
        (["list", "--js"], {"--json"}),
        (["report", "--perc"], {"--percent"}),
        (["poison", "--out"], {"--output"}),
        (["poison", "--model.poison_r"], {"--model.poison_rate"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bash_completes(words: list[str], completed: set[str], script: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    result = subprocess.run(
        [str(BASH), "--norc", "-c", COMPLETE, "bash", str(script), "lightning-backdoor", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {*result.stdout.split()} == completed


def test_zsh_has_a_script_too(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef lightning-backdoor")


def test_without_shtab_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'lightning-backdoor[completion]'" in capsys.readouterr().err
