"""Names that Weights & Biases does not take are refused before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest
from jsonargparse import Namespace

from lightning_backdoor.cli import main
from lightning_backdoor.commands.wandb_names import check_wandb_names
from lightning_backdoor.errors import InputError
from tests.support.workspace import inside, workspace

__all__ = ["inside", "workspace"]

LONG = "é" * 129


@pytest.mark.parametrize("part", ["init_args", "dict_kwargs"])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("project", LONG, "has 129 characters; give at most 128"),
        ("project", "a/b", "is 'a/b'; give none of"),
        ("name", LONG, "has 129 characters; give at most 128"),
        ("group", LONG, "has 129 characters; give at most 128"),
        ("job_type", LONG[:65], "has 65 characters; give at most 64"),
        ("tags", ["a", LONG[:65]], "has 65 characters; give 1 to 64"),
        ("tags", [""], "'' has 0 characters; give 1 to 64"),
    ],
)
def test_what_wandb_does_not_take_is_refused(part: str, name: str, value: Any, message: str) -> None:
    given = {name: value} if part == "dict_kwargs" else Namespace({name: value})  # type: ignore[no-untyped-call]
    with pytest.raises(InputError) as caught:
        check_wandb_names(Namespace({part: given}))  # type: ignore[no-untyped-call]
    assert caught.value.field == f"trainer.logger.{name}"
    assert message in str(caught.value)


def test_names_within_the_limits_pass() -> None:
    names = {"project": LONG[:128], "name": LONG[:128], "group": None, "job_type": LONG[:64], "tags": [LONG[:64]]}
    check_wandb_names(Namespace(init_args=Namespace(names)))  # type: ignore[no-untyped-call]


def test_a_fit_ends_before_it_begins(inside: object, capsys: pytest.CaptureFixture[str]) -> None:
    logger = ("--trainer.logger", "WandbLogger", "--trainer.logger.offline", "true", "--trainer.logger.project", LONG)
    assert main(["fit", "-c", "data.yaml", "--run_dir", "no_wandb", *logger]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: trainer.logger.project: ")
