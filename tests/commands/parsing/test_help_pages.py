"""The help of ``fit`` and its like: two screens, our own options first, and help for each class."""

from __future__ import annotations

import pytest

from lightning_backdoor.cli import main
from lightning_backdoor.commands.parsing.known_options import trainer_options

SECTIONS = ("Options:", "Attacks", "Options of every attack", "Options of BackdoorDataModule", "Defenses", "Callbacks")


def help_of(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(args) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", ["80", "120"])
@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "poison"])
def test_the_help_has_two_screens_and_our_options_first(
    command: str, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    page = help_of([command, "--help"], capsys)
    lines = page.splitlines()
    assert lines[0].startswith(f"usage: lightning-backdoor {command}")
    assert len(lines) <= 100
    assert max(map(len, lines)) <= int(columns)
    sections = [section for section in SECTIONS if command != "poison" or section != "Options:"]
    sections += [] if command == "poison" else ["Options of Lightning's Trainer"]
    places = [page.index(f"\n{section}") for section in sections]
    assert places == sorted(places)
    assert all(f" {name}," in page for name in ("BadNets", "LWS", "BadActs", "Onion", "MuScleLoRA"))
    assert all(f"--{name} " in page for name in ("model.poison_rate", "data.source.path"))
    assert f"{command} --model NAME --help" in " ".join(page.split())


def test_help_all_has_every_option_of_the_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    page = help_of(["fit", "--help=all"], capsys)
    assert all(f"--trainer.{name}" in page for name in trainer_options().by_name)
    short = help_of(["fit", "-h"], capsys)
    assert "--trainer.max_epochs" in short
    assert "--trainer.plugins" not in short
    assert "--help=all" in short


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["fit", "--model", "Syntactic", "--help"], ["--model Syntactic", "--model.template", "--model.target_label"]),
        (["test", "--config", "configs/attack/badnets.yaml", "--help"], ["Options of BadNets", "--model.triggers"]),
        (["poison", "--model", "BadNets", "--help"], ["--output", "--model.triggers"]),
        (["fit", "--model.help", "LWS"], ["Options of LWS", "--model.choices"]),
        (["fit", "--model.help=LWS"], ["Options of LWS"]),
        (["fit", "--trainer.callbacks.help", "MuScleLoRA"], ["--trainer.callbacks.lora_rank"]),
        (["fit", "--data.data_defense.help", "Onion"], ["--data.data_defense.bar"]),
        (
            ["fit", "--trainer.callbacks+=InferenceDefense", "--trainer.callbacks.defense.help", "Strip"],
            ["--trainer.callbacks.defense.copies"],
        ),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_class_has_help(args: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    page = help_of(args, capsys)
    assert all(word in page for word in words)


def test_help_for_a_class_that_does_not_exist_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    for args, words in (["--model.help", "BadNet"], "did you mean BadNets?"), (["--model.help"], "no class is given"):
        assert main(["fit", *args]) == 2
        assert words in capsys.readouterr().err
