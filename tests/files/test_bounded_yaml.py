"""YAML within bounds: small files that would stall or kill their reader are refused, ordinary ones are read."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lightning_backdoor.benchmark.fragments import read_yaml
from lightning_backdoor.cli import main
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.bounded_yaml import LONGEST, out_of_bounds, read_bounded
from tests.support.shared_files import shared_path

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 8)
)
REFUSED = {
    "alias bomb": (BOMB, "values, each alias counted as a copy"),
    "bomb of merge keys": (BOMB.replace("a7: &a7 [", "a7: {<<: [") + "}", "values, each alias counted as a copy"),
    "contains itself": ("a: &a [1, *a]", "contains itself: 'a'"),
    "mapping that contains itself": ("&a {b: {c: *a}}", "contains itself: 'a'"),
    "as its own name": ("&a {*a : 1}", "contains itself: 'a'"),
    "brackets": ("[" * 200_000, "is nested deeper than 50 levels"),
    "braces": ("a: " + "{b: " * 100, "is nested deeper than 50 levels"),
    "JSON": ('{"a": ' + "[" * 60 + "]" * 60 + "}", "is nested deeper than 50 levels"),
    "lists of lists": ("- " * 60 + "x", "is nested deeper than 50 levels"),
    "names of names": ("? " * 60 + "x", "is nested deeper than 50 levels"),
    "depth through aliases": (
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 60)),
        "is nested deeper than 50 levels",
    ),
    "many values": ("[" + "1, " * 120_000 + "1]", "values, each alias counted as a copy"),
    "long": ("a: " + "x" * LONGEST, "is longer than"),
    "twice": ("data: {}\nmodel: {}\ndata: {}\n", "the name data is given twice"),
    "twice below": ("data: {a: 1, b: [{c: 1, 'c': 2}]}\n", "the name c is given twice"),
}
#: what Python's constructors of values raise anything for.
MALFORMED = ("a: !!timestamp x", "a: !!int x", "a: !!float x", f"a: {'9' * 5000}", "a: 2001-99-99", "a: !!int ''")
READ = (
    "base: &base {a: 1, b: [1, 2]}\none: *base\ntwo: {<<: *base, a: 2}\n",
    "a: {a: {a: 1}}\nb: [{a: 1}, {a: 1}]",
    "? [a, b]\n: 1\n? {a: 1}\n: 2",
    "a: " + "[" * 45 + "]" * 45,
    "not: [closed",
    "",
)


@pytest.mark.parametrize(("text", "problem"), REFUSED.values(), ids=REFUSED)
def test_configs_and_grids_are_refused_within_a_second_in_one_line(
    text: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    for args in (
        ["fit", "-c"],
        ["poison", "--output", "never", "--config"],
        ["benchmark", "--output", "x", "--config"],
    ):
        started = time.process_time()
        assert main([*args, str(path)]) == 2
        assert time.process_time() - started < 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: config: {path} ")
        assert problem in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("text", READ, ids=range(len(READ)))
def test_ordinary_yaml_is_within_the_bounds(text: str) -> None:
    assert out_of_bounds(text) is None


@pytest.mark.parametrize("text", MALFORMED, ids=lambda text: text[:20])
def test_malformed_values_are_refused_in_configs_and_grids(
    text: str, inside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=f"config: {path} (is not YAML|has an unusable value)"):
        read_yaml(path)
    assert main(["fit", "-c", "data.yaml", "-c", str(path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_set_in_a_grid_is_refused_and_a_date_becomes_text(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text("a: !!set {b, c}", encoding="utf-8")
    with pytest.raises(InputError, match=r"has an unusable value \(a set\)"):
        read_yaml(path)
    path.write_text("a: 2026-01-02\n1: b", encoding="utf-8")
    assert read_yaml(path) == {"a": "2026-01-02", "1": "b"}


@pytest.mark.parametrize("nested", ["[" * 10_000, '{"a":' * 10_000, "[" * 60 + "]" * 60], ids=len)
def test_a_nested_option_value_is_refused(nested: str, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in ([f"--model.labels={nested}"], ["--model.labels", nested], ["--model", nested]):
        assert main(["fit", "-c", "data.yaml", *options]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {options[0].partition('=')[0].lstrip('-')}: ")
        assert error.endswith("is nested deeper than 50 levels; give a file or a shorter value\n")
        assert len(error) < 300


def test_a_nested_string_in_a_config_is_refused(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "model: {class_path: lightning_backdoor.attacks.BadNets, init_args: {triggers: '%s'}}" % ("[" * 10_000)
    (inside / "string.yaml").write_text(text, encoding="utf-8")
    assert main(["fit", "-c", "data.yaml", "-c", "string.yaml"]) == 2
    assert "is nested deeper than 50 levels" in capsys.readouterr().err


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"a: caf\xe9")
    with pytest.raises(InputError, match=r"is not YAML .* save it as UTF-8"):
        read_bounded(path)
    for missing in (tmp_path, tmp_path / "nowhere.yaml", Path("a\0b")):
        with pytest.raises(InputError, match="cannot be read; give a YAML file"):
            read_bounded(missing)


def test_the_shared_alias_bomb_is_refused() -> None:
    problem = out_of_bounds(shared_path("cases/reliability/alias_bomb.yaml").read_text(encoding="utf-8"))
    assert problem == "has more than 20000 values, each alias counted as a copy"
