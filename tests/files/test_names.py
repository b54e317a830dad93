"""Names that become part of a path: none leads out of its folder; folders and files that cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_backdoor.callbacks import InferenceDefense, InspectionCallback
from lightning_backdoor.cli import main
from lightning_backdoor.defenses import FlaggedShare, GradientAttention
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.names import check_file, check_folder, check_name

BAD = ("../../x", "..", ".", ".hidden", "/etc/x", "a/b", "a\\b", "a\0b", "a\x1b[31m", "a\nb", " ", " a", "a ", "a.")
MORE_BAD = (
    "-rf",
    "=cmd()",
    "+1",
    "@x",
    "x" * 101,
    "é" * 51,
    "\u202ea",
    "\ud800",
    "a:b/c",
    "metrics.json",
    "Outcomes.CSV",
)
GOOD = ("", "onion", "X-GRAAD", "STRIP (5 %)", "v1.5", "_own", "防御", "a=1,b=2", "1", "défense+x@2")


@pytest.mark.parametrize("name", [*BAD, *MORE_BAD], ids=ascii)
def test_a_name_that_is_none_for_a_folder_is_refused(name: str) -> None:
    for made in (lambda: check_name(name), lambda: InferenceDefense(GradientAttention(), name=name)):
        with pytest.raises(InputError, match=r"name: .* is not a name for files") as error:
            made()
        assert str(error.value).isprintable()
    with pytest.raises(InputError, match="is not a name for files"):
        InspectionCallback(FlaggedShare(), name=name)


@pytest.mark.parametrize("name", GOOD)
def test_other_names_are_taken(name: str) -> None:
    assert InferenceDefense(GradientAttention(), name=name).name == name


@pytest.mark.parametrize("argument", ["name", "version", "sub_dir"])
def test_a_logger_does_not_write_outside_of_the_run(
    argument: str, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = "CSVLogger" if argument != "sub_dir" else "TensorBoardLogger"
    for name in ("../../x", "/x", "a/../../../x"):
        options = ["--trainer.logger", f"lightning.pytorch.loggers.{logger}", f"--trainer.logger.{argument}", name]
        assert main(["fit", "-c", "data.yaml", *options, "--trainer.logger.save_dir", "."]) == 2
        assert f"error: trainer.logger.{argument}: '{name}' leads out of the run's folder" in capsys.readouterr().err


def test_folders_that_cannot_be_written_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    check_folder(tmp_path / "new" / "folder", "run_dir")
    check_folder(tmp_path, "run_dir")
    check_file(tmp_path / "file", "output")
    for folder, problem in (
        (tmp_path / "file", "is not a folder"),
        (tmp_path / "file" / "below", "is not a folder"),
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / ("x" * 300) / "below", "File name too long"),
        (Path("a\0b"), "contains control characters"),
        (Path("a\x1b[31m"), "contains control characters"),
    ):
        with pytest.raises(InputError, match=f"run_dir: .*{problem}"):
            check_folder(folder, "run_dir")
    with pytest.raises(InputError, match=r"output: the folder .* does not exist; make it first"):
        check_file(tmp_path / "missing" / "file", "output")
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(InputError, match=f"run_dir: {tmp_path} cannot be written to"):
        check_folder(tmp_path / "new", "run_dir")
