"""``package://`` names: found without importing the package, kept inside it, checked against published hashes."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from lightning_backdoor.errors import InputError
from lightning_backdoor.files import packaged
from lightning_backdoor.files.packaged import resolve


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that cannot be imported, with a file in it and a file beside it."""
    root = tmp_path / "packaged_by_a_test"
    (root / "data").mkdir(parents=True)
    (root / "__init__.py").write_text("raise ImportError('this package must not be imported')")
    (root / "data" / "rows.csv").write_text("text,label\n")
    (tmp_path / "beside.csv").write_text("text,label\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return root


def publish(monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    """Declares the sha256 of ``content`` as the one that the package's authors published for ``rows.csv``."""
    digest = hashlib.sha256(content.encode()).hexdigest()
    monkeypatch.setattr(packaged, "PUBLISHED_SHA256", {"package://packaged_by_a_test/data/rows.csv": digest})


def test_a_file_or_folder_of_a_package_is_found_without_importing_it(installed: Path) -> None:
    assert resolve("package://packaged_by_a_test/data/rows.csv") == str(installed / "data" / "rows.csv")
    assert resolve("package://packaged_by_a_test/data/") == str(installed / "data")
    assert "packaged_by_a_test" not in sys.modules


def test_a_file_that_the_installer_linked_from_a_store_is_found(installed: Path, tmp_path: Path) -> None:
    link = installed / "data" / "linked.csv"
    link.symlink_to(tmp_path / "beside.csv")
    assert resolve("package://packaged_by_a_test/data/linked.csv") == str(link)


@pytest.mark.parametrize("name", ["stanfordnlp/sst2", "rows.csv", "/tmp/rows.csv", ""])
def test_other_names_are_returned_unchanged(name: str) -> None:
    assert resolve(name) == name


def test_a_home_folder_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/model") == str(tmp_path / "model")
    assert [resolve(name) for name in ("~nobody-of-this-name/x", "~\0/x", "a~/x")] == [
        "~nobody-of-this-name/x",
        "~\0/x",
        "a~/x",
    ]


def test_a_missing_package_names_the_command_that_installs_it() -> None:
    with pytest.raises(InputError) as caught:
        resolve("package://not_installed_here/model")
    assert str(caught.value) == (
        "package://not_installed_here/model: the package 'not_installed_here' is not installed;"
        " run: pip install --no-deps not-installed-here"
    )


@pytest.mark.parametrize("package", ["", "packaged.by", "..", "__main__"])
def test_a_name_that_is_not_of_a_package_is_an_input_error(package: str) -> None:
    with pytest.raises(InputError, match="is not installed"):
        resolve(f"package://{package}/model")


def test_a_missing_file_is_named(installed: Path) -> None:
    with pytest.raises(InputError, match=r"there is no 'data/none\.csv' in the installed package"):
        resolve("package://packaged_by_a_test/data/none.csv")


def test_a_name_cannot_lead_out_of_its_package(installed: Path, tmp_path: Path) -> None:
    outside = tmp_path / "beside.csv"
    for inner in ("../beside.csv", "data/../../beside.csv", str(outside)):
        with pytest.raises(InputError, match="in the installed package 'packaged_by_a_test'"):
            resolve(f"package://packaged_by_a_test/{inner}")


@pytest.mark.parametrize("inner", ["data/rows.csv", "data", "data/", "", "./data", "data/../data/rows.csv"])
def test_a_file_that_differs_from_the_published_one_is_an_error_under_any_name(
    installed: Path, monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    publish(monkeypatch, "other rows")
    with pytest.raises(InputError, match=r"rows\.csv: sha256 is [0-9a-f]{64}, its authors published [0-9a-f]{64}"):
        resolve(f"package://packaged_by_a_test/{inner}")


def test_a_file_that_equals_the_published_one_is_found(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, "text,label\n")
    assert resolve("package://packaged_by_a_test/data") == str(installed / "data")


def test_a_published_file_that_is_missing_is_an_error(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, "text,label\n")
    (installed / "data" / "rows.csv").unlink()
    with pytest.raises(InputError, match=r"rows\.csv: the file is missing; reinstall the package$"):
        resolve("package://packaged_by_a_test/data")


def test_a_file_without_a_published_digest_is_not_read(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, "other rows")
    assert resolve("package://packaged_by_a_test/__init__.py")
