"""Checkpoints of strangers: whatever their metadata and tensors are, one line refuses them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_backdoor.cli import main
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim import load_trained
from lightning_backdoor.victim.checkpoint_content import is_flat, shown
from lightning_backdoor.victim.checkpoints import described, read_checkpoint
from lightning_backdoor.victim.published import read_published
from tests.support.tiny import loaded

WEIGHT = "network.classifier.weight"
Content = dict[str, Any]


def nested(levels: int) -> list[Any]:
    """A list that is small in a file, and has two to the power of ``levels`` parts when it is shown."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value, value]
    return value


def numbered(rows: list[tuple[str, object, str]]) -> list[str]:
    """Names of test cases; pytest cannot write some of the values."""
    return [f"{name} {number}" for number, (name, _, _) in enumerate(rows)]


@pytest.fixture
def content(tiny_folder: Callable[[str], str]) -> Content:
    """A checkpoint of a tiny BERT."""
    folder = tiny_folder("bert")
    hyperparameters = {"model": folder, "labels": ["negative", "positive"], "max_length": 64, "lora_rank": None}
    return {"state_dict": dict(loaded(folder).state_dict()), "hyper_parameters": hyperparameters}


def refusal(content: Content, path: Path) -> str:
    torch.save(content, path)
    with pytest.raises(InputError) as error:
        load_trained(str(path))
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 1000
    return message


HYPERPARAMETERS: list[tuple[str, object, str]] = [
    ("labels", 5, "records 5 as its labels"),
    ("labels", "ab", "records 'ab' as its labels"),
    ("labels", ["a"], "2 to 100000"),
    ("labels", ["a", "a"], "distinct"),
    ("labels", ["a", 5], "records 5 as its labels"),
    ("labels", [["a"], ["b"]], "records ['a'] as its labels"),
    ("labels", ["a\x1b[31m", "b"], r"'a\x1b[31m'"),
    ("labels", ["a\n", "b"], r"'a\n'"),
    ("labels", ["\ud800", "b"], r"'\ud800'"),
    ("labels", [str(i) for i in range(100_001)], "2 to 100000"),
    ("labels", torch.tensor([1, 2]), "a Tensor as its labels"),
    ("labels", ["a", "b", "c"], "does not fit the network"),
    ("labels", nested(60), "a list as its labels"),
    ("model", 5, "records 5 as its model"),
    ("model", "", "records '' as its model"),
    ("model", ["x"], "records ['x'] as its model"),
    ("model", "a\x1bb", r"'a\x1bb'"),
    ("model", "x" * 10**6, "xxx' as its model"),
    ("model", "../../etc/passwd", "'../../etc/passwd' cannot be loaded"),
    ("model", "package://../x", "not installed"),
    ("model", "package://lightning_backdoor/../..", "there is no '../..'"),
    ("model", "/dev/zero.gguf", "is not a GGUF file"),
    ("model", "http://127.0.0.1/x", "cannot be loaded"),
    ("max_length", -1, "records -1 as its max_length"),
    ("max_length", 10**300, "a int as its max_length"),
    ("max_length", "64", "records '64' as its max_length"),
    ("max_length", True, "records True as its max_length"),
    ("max_length", 200, "beyond the 136 positions"),
    ("lora_rank", 10**9, "records 1000000000 as its lora_rank"),
    ("lora_rank", 1.5, "records 1.5 as its lora_rank"),
    ("lora_rank", 4, "does not fit the network"),
]

PARTS: list[tuple[str, object, str]] = [
    ("hyper_parameters", [1], "a list as hyper_parameters"),
    ("callbacks", 5, "a int as callbacks"),
    ("BackdoorDataModule", {"source": nested(60), "cut": [0, 0.1, 0.1]}, "a BackdoorDataModule that is not one"),
    ("BackdoorDataModule", {"cut": []}, "a BackdoorDataModule that is not one"),
    ("BackdoorDataModule", {}, "a BackdoorDataModule that is not one"),
    ("training_defense", 5, "a int as training_defense"),
    ("training_defense", {"name": nested(60), "settings": 5}, "trained under a list()"),
    ("training_defense", "x\x1b[31m", r"trained under x\x1b[31m"),
    ("pytorch-lightning_version", "\x1b[31m", "the Lightning version"),
    ("state_dict", {5: torch.ones(1)}, "named by a int"),
    ("state_dict", {}, "does not fit the network"),
]

TENSORS: list[tuple[Callable[[Tensor], object], str]] = [
    (lambda weight: 5, "is a int"),
    (lambda weight: weight.to_sparse(), "sparse_coo"),
    (lambda weight: weight.to("meta"), "on the device meta"),
    (lambda weight: torch.ones(1).expand(10**12), "the file holds fewer numbers"),
    (lambda weight: weight.long(), "of torch.int64, not of torch.float32"),
    (lambda weight: weight.bool(), "of torch.bool, not of torch.float32"),
    (lambda weight: weight.to(torch.complex64), "complex64"),
    (lambda weight: weight.T, "does not fit the network"),
    (lambda weight: weight * torch.nan, "not numbers"),
    (lambda weight: weight * torch.inf, "not numbers"),
]


@pytest.mark.parametrize(("name", "value", "said"), HYPERPARAMETERS, ids=numbered(HYPERPARAMETERS))
def test_hyperparameters(name: str, value: object, said: str, content: Content, tmp_path: Path) -> None:
    content["hyper_parameters"][name] = value
    assert said in refusal(content, tmp_path / "a.ckpt")


@pytest.mark.parametrize(("name", "value", "said"), PARTS, ids=numbered(PARTS))
def test_parts(name: str, value: object, said: str, content: Content, tmp_path: Path) -> None:
    assert said in refusal({**content, name: value}, tmp_path / "a.ckpt")


@pytest.mark.parametrize(("change", "said"), TENSORS)
def test_tensors(change: Callable[[Tensor], object], said: str, content: Content, tmp_path: Path) -> None:
    content["state_dict"][WEIGHT] = change(content["state_dict"][WEIGHT])
    assert said in refusal(content, tmp_path / "a.ckpt")


def test_other_precisions_are_read(content: Content, tmp_path: Path) -> None:
    content["state_dict"] = {name: tensor.half() for name, tensor in content["state_dict"].items()}
    torch.save(content, tmp_path / "a.ckpt")
    assert load_trained(str(tmp_path / "a.ckpt")).network.dtype == torch.float32


def test_archives_that_grow_in_memory_are_refused(content: Content, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "a.ckpt") as whole,
        zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name) + b"\0" * 10**7 * name.endswith("pkl"))
    with pytest.raises(InputError, match="is compressed"):
        load_trained(str(tmp_path / "bomb.ckpt"))
    content["hyper_parameters"]["labels"] = ["x" * 2**25]
    assert "bytes besides its tensors" in refusal(content, tmp_path / "long.ckpt")


def test_a_description_does_not_follow_nested_values() -> None:
    assert described({"name": "A", "settings": {"a": nested(60), "b": [1, 2.5]}}) == "A(a=a list, b=[1, 2.5])"
    assert described(nested(60)) == "a list"
    assert shown("\x1b" * 100).isprintable()
    assert not is_flat(10**5000)


@pytest.mark.parametrize("command", ["test", "fit"])
@pytest.mark.parametrize(
    ("name", "value"), [("callbacks", []), ("loops", 5), ("random_states", {"cpu": torch.ones(3)}), ("state_dict", {})]
)
def test_a_run_refuses_a_checkpoint_in_one_line(
    command: str,
    name: str,
    value: object,
    inside: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    training: dict[str, object] = {
        "optimizer_states": [],
        "lr_schedulers": [],
    }  # without them a fit does not go on from a checkpoint
    torch.save({**whole, **training, name: value}, tmp_path / "a.ckpt")
    args = ["-c", "data.yaml", "--ckpt_path", str(tmp_path / "a.ckpt"), "--run_dir", str(tmp_path / "run")]
    args += ["--trainer.max_epochs", "2"]  # one more than the checkpoint has
    rows = ["--data.init_args.max_rows", '{"train": 32, "validation": 60, "test": 8}']
    status = main([command, *args, *rows])
    if (command, name) == ("test", "random_states"):  # which a test does not read
        assert status == 0
    else:
        assert status == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("error: checkpoint: ")


def said_by(load: Callable[[], object]) -> str:
    """The message of an ``InputError``, empty without one; every other error fails the test."""
    try:
        load()
    except InputError as error:
        return str(error)
    return ""


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.builds(torch.ones, st.integers(0, 3)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["model", "labels", "max_length", "lora_rank"])
parts = st.sampled_from(["state_dict", "hyper_parameters", "training_defense", "callbacks", "BackdoorDataModule"])


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changed=st.dictionaries(names, anything, max_size=3), replaced=st.dictionaries(parts, anything, max_size=1))
def test_any_metadata_is_read_or_refused_in_one_line(
    changed: Content, replaced: Content, content: Content, tmp_path: Path
) -> None:
    whole = {**content, "hyper_parameters": {**content["hyper_parameters"], **changed}, **replaced}
    torch.save(whole, tmp_path / "a.ckpt")
    assert said_by(lambda: load_trained(str(tmp_path / "a.ckpt"))).isprintable()
    assert said_by(lambda: read_published(str(tmp_path / "a.ckpt"), None)).isprintable()


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_refused_in_one_line(data: st.DataObject, content: Content, tmp_path: Path) -> None:
    torch.save({**content, "state_dict": {}}, tmp_path / "a.ckpt")
    damaged = bytearray((tmp_path / "a.ckpt").read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=5)):
        damaged[place] = data.draw(st.integers(0, 255))
    (tmp_path / "b.ckpt").write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    assert said_by(lambda: read_checkpoint(tmp_path / "b.ckpt")).isprintable()
