"""Options read before torch is there: they agree with the parser, in every spelling, and in configs too."""

from __future__ import annotations

import pydoc
from pathlib import Path

import pytest
from jsonargparse import Namespace

from lightning_backdoor.commands.parsing.early_checks import load_plain, one_line_yaml, settled
from lightning_backdoor.commands.parsing.known_options import ALIASES, root_options, trainer_options
from lightning_backdoor.commands.parsing.option_parser import OptionParser
from lightning_backdoor.commands.parsing.run_parser import RunParser, parse, run_parser
from lightning_backdoor.commands.parsing.spelling import one_spelling
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.class_sources import class_arguments, find_class
from lightning_backdoor.files.public_classes import public_classes

GIVEN = ["--model", "BadNets", "--data", "BackdoorDataModule", "--data.source.path", "data.csv"]
SHOUT = """\
from dataclasses import dataclass

from lightning_backdoor.attacks import BackdoorAttack, BadNets


@dataclass
class Size:
    depth: int = 1


@dataclass
class WideSize(Size):
    width: int = 1


class Louder(BadNets):
    def __init__(self, *args, words: list[str] | None = None, size: WideSize = WideSize(), **kwargs):
        super().__init__(*args, **kwargs)


class Shout(BackdoorAttack):
    def __init__(self, words: list[str] | None = None, neighbors: int = 3, **kwargs):
        super().__init__(**kwargs)
"""


def parsed(args: list[str], command: str = "fit") -> Namespace:
    return parse(run_parser(command), args)


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_the_options_known_early_are_those_of_the_parser(command: str) -> None:
    names = {action.dest for action in run_parser(command)._actions} - {"help", "print_config", "print_shtab"}
    trainer = {name.removeprefix("trainer.") for name in names if name.startswith("trainer.")}
    names = {name for name in names if "." not in name}
    assert set(root_options(command)) == {name for name in names if not name.startswith("print_")} | {"trainer"}
    assert {name for name in trainer if not name.endswith(".help")} == set(trainer_options().by_name)


def test_the_arguments_of_classes_known_early_are_those_of_the_parser() -> None:
    checked = 0
    for item in public_classes():
        source = find_class(item.class_path)
        assert source is not None
        arguments = class_arguments(source)
        if item.room in ("attacks", "callbacks", "data", "victim", "defenses") and arguments.complete:
            parser = RunParser(exit_on_error=False)
            parser.add_class_arguments(pydoc.locate(item.class_path), "x", fail_untyped=False)
            names = {action.dest.split(".")[1] for action in parser._actions if action.dest.startswith("x.")}
            assert {*arguments.by_name} == names, item.name
            checked += 1
    assert checked > 20


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        (["--seed", "3"], "seed_everything", 3),
        (["--seed-everything", "3"], "seed_everything", 3),
        (["--model.poison-rate", "0.2"], "model.init_args.poison_rate", 0.2),
        (["--model.init-args.poison_rate=0.2"], "model.init_args.poison_rate", 0.2),
        (["--trainer.max-epochs=2"], "trainer.max_epochs", 2),
        (["--data.max-rows", "train=200,test=100"], "data.init_args.max_rows", {"train": 200, "test": 100}),
        (["--data.max_rows.train", "200"], "data.init_args.max_rows", {"train": 200}),
        (["--model.triggers", "cf,mn"], "model.init_args.triggers", ["cf", "mn"]),
        (["--model.triggers", "cf"], "model.init_args.triggers", ["cf"]),
        (["--model.triggers", "[cf, mn]"], "model.init_args.triggers", ["cf", "mn"]),
        (["--model.triggers", "12,13"], "model.init_args.triggers", ["12", "13"]),
        (["--data.source.labels", "no,yes"], "data.init_args.source.labels", ["no", "yes"]),
        (["--data.validation-parts", "0.5,0.3,0.2"], "data.init_args.validation_parts", (0.5, 0.3, 0.2)),
        (["--model.target_label", "positive"], "model.init_args.target_label", "positive"),
        (["--model.target_label", "0"], "model.init_args.target_label", 0),
        (
            ["--data.data-defence", "Onion"],
            "data.init_args.data_defense.class_path",
            "lightning_backdoor.defenses.Onion",
        ),
        (
            ["--data.data-defence=Onion", "--data.data-defence.fpr", "0.2"],
            "data.init_args.data_defense.init_args.fpr",
            0.2,
        ),
        (["--model", "spelled.Shout", "--model.neighbours", "4"], "model.init_args.neighbors", 4),
        (["--model", "spelled.Shout", "--model.words", "a,b"], "model.init_args.words", ["a", "b"]),
        (["--config", "{model: {init_args: {poison-rate: 0.3}}}"], "model.init_args.poison_rate", 0.3),
        (["--config", "british.yaml"], "data.init_args.data_defense.init_args.fpr", 0.01),
        (["--config", "british.yaml"], "seed_everything", 7),
        (["--config", "trainer: {max_epochs: 7}"], "trainer.max_epochs", 7),
        (
            ["--model", "spelled.Louder", "--model.words", "a", "--model.triggers", "b"],
            "model.init_args.triggers",
            ["b"],
        ),
        (["--model.class_path", "InsertSent", "--model.init_args.sentence", "x"], "model.init_args.sentence", "x"),
        (
            ["--trainer.logger.class_path=CSVLogger", "--trainer.logger.init_args.save_dir=x"],
            "trainer.logger.init_args.save_dir",
            "x",
        ),
        (["--config", "{model: {class-path: BadNets, init-args: {place: end}}}"], "model.init_args.place", "end"),
        (["--model", "InsertSent", "--model.sentence", "Note: good 😀"], "model.init_args.sentence", "Note: good 😀"),
        (["--model", "InsertSent", "--model.sentence", "null"], "model.init_args.sentence", "null"),
        (["--model", "spelled.Louder", "--model.size.depth", "3"], "model.init_args.size.depth", 3),
        (["--config", "british.yaml"], "model.init_args.triggers", ["mn", "bb"]),
        (["--config", "british.yaml"], "model.init_args.learning_rate", 1e-3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_spelling_arrives(
    options: list[str], key: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "spelled.py").write_text(SHOUT, encoding="utf-8")
    (tmp_path / "british.yaml").write_text(
        "seed: 7\n"
        "model: {class_path: BadNets, init_args: {triggers: 'mn,bb', learning-rate: 1e-3}}\n"
        "data: {init_args: {data_defence: {class_path: Onion, init_args: {fpr: 1e-2}}}}\n",
        encoding="utf-8",
    )
    assert parsed([*GIVEN, *options]).get(key) == value


SOURCE = "{class_path: BackdoorDataModule, init_args: {source: {path: %s}}}"
CORRECTED = {
    "date": ("--data", SOURCE % "2020-01-01", "data.init_args.source.path", "2020-01-01"),
    "characters": ("--data", SOURCE % "'😀\u2028.csv'", "data.init_args.source.path", "😀\u2028.csv"),
    "infinity": ("--model", "{class_path: BadNets, init_args: {learning_rate: .inf}}", "learning_rate", float("inf")),
    "number": ("--model", "{class_path: BadNets, init_args: {triggers: ['1e-3']}}", "triggers", ["1e-3"]),
}


@pytest.mark.parametrize(("option", "text", "key", "value"), CORRECTED.values(), ids=CORRECTED)
def test_a_corrected_mapping_holds_the_values_that_were_given(option: str, text: str, key: str, value: object) -> None:
    """Corrected here is the name of the class."""
    key = key if "." in key else f"model.init_args.{key}"
    for given in ([option, text], ["--config", f"{{{option.removeprefix('--')}: {text}}}"]):
        assert settled("fit", [*GIVEN[:4], *given]).args[-1] != given[-1]  # as the command line reads it first
        assert parsed([*GIVEN[:4], *given]).get(key) == value


def test_a_value_of_any_type_of_yaml_is_read_back_from_one_line() -> None:
    text = """{date: 2020-01-01, time: 2020-01-01 10:00:00, set: !!set {a, 3}, bytes: !!binary aGk=,
        numbers: [.inf, 1.0e+20], texts: ["no", "1e-3", "a: b", "", "\\x7f\\n\\u2028"], null: ~, long: [%s],
        list: &list [1, {a: 2}], same: *list}"""
    value = load_plain(text % ", ".join(["some words"] * 100))
    written = one_line_yaml(value)
    assert len(written.splitlines()) == 1
    assert load_plain(written) == value


def test_callbacks_and_defenses_are_given_by_name() -> None:
    inference = ["--trainer.callbacks+=InferenceDefense", "--trainer.callbacks.defense", "Onion"]
    options = parsed([*GIVEN, "--trainer.callbacks+=GradientAttentionDefense", *inference])
    first, second = options.trainer.callbacks
    assert first.class_path == "lightning_backdoor.callbacks.GradientAttentionDefense"
    assert second.init_args.defense.class_path == "lightning_backdoor.defenses.Onion"


def test_no_option_is_abbreviated() -> None:
    for options in (
        ["--trainer.max_epoch", "1"],
        ["--model.poison_rat", "1"],
        ["--see", "1"],
        ["--data.source.pat", "x"],
    ):
        with pytest.raises(InputError):
            settled("fit", [*GIVEN, *options])
    assert not run_parser("fit").allow_abbrev


def test_what_cannot_be_known_is_left_to_the_parser() -> None:
    for options in (
        ["--model", "no_such.Class", "--model.anything", "1"],
        ["--trainer.logger", "WandbLogger", "--trainer.logger.mode", "offline"],
        ["--trainer.strategy.x", "1"],
    ):
        assert settled("fit", [*GIVEN, *options]).args[-1] == f"{options[-2]}={options[-1]}"


def test_options_of_the_other_commands_have_every_spelling_and_no_abbreviation() -> None:
    parser = OptionParser("x")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--colour")
    given = parser.parse_args(["--dry_run", "--batch-size=3", "--seed_everything", "4", "--color", "red"])
    assert vars(given) == {"dry_run": True, "batch_size": 3, "seed": 4, "colour": "red"}
    with pytest.raises(InputError, match=r"--dry: there is no such option; did you mean --dry-run\?"):
        parser.parse_args(["--dry"])
    assert ALIASES["seed"] == "seed_everything"


@pytest.mark.parametrize(
    ("british", "american"),
    [
        ("neighbours", "neighbors"),
        ("localisation", "localization"),
        ("tokeniser", "tokenizer"),
        ("normalise", "normalize"),
        ("defence", "defense"),
        ("colour", "color"),
        ("centre", "center"),
        ("labelled_rows", "labeled_rows"),
        ("analyse", "analyze"),
        ("max-rows", "max_rows"),
    ],
)
def test_british_and_american_spellings_are_one(british: str, american: str) -> None:
    assert one_spelling(british) == one_spelling(american)
