"""Typical mistakes of new users: each ends in one line on standard error that says what to do, and in status 2."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from lightning_backdoor.cli import main
from lightning_backdoor.commands.run_folder import VARIABLE

FIT = ["fit", "--config", "data.yaml", "--run_dir", "never"]
DEFENSE = [*FIT, "--trainer.callbacks+=InferenceDefense", "--trainer.callbacks.defense"]
#: what Lightning says where a mistake is found only after its trainer is there.
OF_LIGHTNING = ("Seed set", "GPU available", "TPU available", "💡 Tip")
#: modules that cannot be imported, by name.
MODULES = {
    "garbled.py": "class Shout(:",
    "failing.py": "class Shout(shouted):\n    pass",
    "lacking.py": "import no_such_module",
}
#: configs with one mistake each, by name.
CONFIGS = {
    "top.yaml": "trainr: {max_epochs: 1}",
    "trainer.yaml": "trainer: {max_epoch: 1}",
    "attack.yaml": "model: {class_path: BadNets, init_args: {poison_rat: 0.1}}",
    "class.yaml": "model: {class_path: BadNet}",
    "beside.yaml": "model: {class_path: BadNets, poison_rate: 0.1}",
    "source.yaml": "data: {class_path: BackdoorDataModule, init_args: {source: {pth: data.csv}}}",
    "callback.yaml": "trainer: {callbacks: [{class_path: GradientAttentionDefense, init_args: {fprr: 0.1}}]}",
    "empty.yaml": "# nothing",
    "broken.yaml": "model: {class_path: [",
    "grid.yaml": "datasets: {mine: {}}\nattacks: {none: {}}",
    "sweep.yaml": "method: grid\nparameters: {}",
    "shout.py": "from lightning_backdoor.attacks import BackdoorAttack\n\n\n"
    "class Shout(BackdoorAttack):\n    def __init__(self, word: str = 'WOW', **kwargs):\n"
    "        super().__init__(**kwargs)",
}

#: per mistake: the command, and what its line must say.
MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "too few clean rows for a defense": (
        [*DEFENSE, "Dan", "--data.validation_parts", "[0.49,0.02,0.49]"],
        ["reference rows: 2 clean rows are fewer than the 5 that 2 classes need", "give more clean validation rows"],
    ),
    "too few clean rows for an inspection": (
        [
            *[*FIT, "--trainer.callbacks+=lightning_backdoor.callbacks.InspectionCallback"],
            *["--trainer.callbacks.inspection", "lightning_backdoor.defenses.FlaggedShare"],
            *["--trainer.callbacks.inspection.init_args.defense", "lightning_backdoor.defenses.Dan"],
            *["--data.validation_parts", "[0.49,0.02,0.49]"],
        ],
        ["reference rows: 2 clean rows are fewer than the 5 that 2 classes need", "give more clean validation rows"],
    ),
    "penalty beside an attack that poisons no training row": (  # before the attack's stage on plain texts
        [*FIT, "--model", "NeuBA", "--trainer.callbacks+=Flattening"],
        ["callbacks: Flattening hides poisoned rows, and NeuBA trains on none", "give an attack that poisons"],
    ),
    # commands
    "command": (["tset"], ["'tset' is unknown", "did you mean test?"]),
    "command of another program": (["train"], ["'train' is unknown", "fit, validate, test"]),
    # options
    "option": (["fit", "--modle", "BadNets"], ["--modle: there is no such option", "did you mean --model?", "--help"]),
    "one dash": ([*FIT, "-seed", "3"], ["'-seed'", "did you mean --seed?"]),
    "one dash before config": (["fit", "-config", "data.yaml"], ["'-config'", "did you mean --config?"]),
    "switch": ([*FIT, "--trainer.fast_dev_run"], ["--trainer.fast_dev_run: no value", "--trainer.fast_dev_run true"]),
    "abbreviation": ([*FIT, "--see", "3"], ["--see", "did you mean --seed?"]),
    "no trainer before it": ([*FIT, "--max_epochs", "1"], ["--max_epochs", "did you mean --trainer.max_epochs?"]),
    "no model before it": ([*FIT, "--poison-rate", "1"], ["did you mean --model.poison_rate?"]),
    "abbreviation of the trainer's": (
        [*FIT, "--trainer.max_epoch", "1"],
        ["trainer.max_epoch", "did you mean max_epochs?"],
    ),
    "attack": ([*FIT, "--attack", "BadNets"], ["--attack", "did you mean --model?"]),
    "group": ([*FIT, "--trainr.max_epochs", "1"], ["--trainr.max_epochs", "did you mean --trainer?"]),
    "argument of the attack": (
        [*FIT, "--model.poison_rat", "0.1"],
        ["model.poison_rat: BadNets has no poison_rat", "did you mean poison_rate?", "--model.help BadNets"],
    ),
    "argument of another attack": (
        [*FIT, "--model.sentence", "x"],
        ["BadNets has no sentence", "--model.help BadNets"],
    ),
    "argument of the data": ([*FIT, "--data.batchsize", "8"], ["data.batchsize", "did you mean batch_size?"]),
    "argument of the source": ([*FIT, "--data.text_column", "x"], ["did you mean source.text_column?"]),
    "argument of a callback": (
        [*FIT, "--trainer.callbacks+=MuScleLoRA", "--trainer.callbacks.lora_rnk", "4"],
        ["trainer.callbacks.lora_rnk", "did you mean lora_rank?"],
    ),
    "argument of a defense": ([*DEFENSE, "Onion", "--trainer.callbacks.defense.fp=1"], ["Onion has no fp", "fpr?"]),
    "argument of a user's class": (
        [*FIT, "--model", "shout.Shout", "--model.wrd", "x"],
        ["model.wrd: Shout has no wrd", "did you mean word?"],
    ),
    "argument before the class": (
        ["fit", "--model.poison_rate", "0.1", "--config", "data.yaml"],
        ["model.poison_rate: no model is given before it", "--model BadNets"],
    ),
    "without a value": ([*FIT, "--ckpt_path"], ["--ckpt_path: no value is given"]),
    "without a value, in between": (["fit", "--config", "--model", "BadNets"], ["--config: no value is given"]),
    "config without its option": (["fit", "data.yaml"], ["'data.yaml'", "did you mean --config data.yaml?"]),
    "seed of the data": ([*FIT, "--data.seed", "3"], ["data.seed", "give --seed"]),
    # classes
    "class": (
        ["fit", "--model", "BadNet", "--config", "data.yaml"],
        ["no class BadNet;", "did you mean BadNets?", "lightning-backdoor list attacks"],
    ),
    "class in lower case": (["fit", "--model", "badnets"], ["no class badnets;", "did you mean BadNets?"]),
    "class path": (["fit", "--model", "lightning_backdoor.attacks.BadNet"], ["did you mean BadNets?"]),
    "module of a class": (["fit", "--model", "lightning_backdoor.attack.BadNets"], ["did you mean BadNets?"]),
    "data class": (["fit", "--data", "BackdoorData"], ["did you mean BackdoorDataModule?", "list data"]),
    "callback": ([*FIT, "--trainer.callbacks+=EarlyStoping"], ["did you mean EarlyStopping?"]),
    "defense": ([*DEFENSE, "Onio"], ["trainer.callbacks.defense", "did you mean Onion?", "list defenses"]),
    "defense as a model": (
        ["fit", "--model", "Onion"],
        ["Onion is not a LightningModule", "--trainer.callbacks.defense"],
    ),
    "defense as a callback": (
        [*FIT, "--trainer.callbacks+=Onion"],
        ["not a Callback", "--trainer.callbacks+=InferenceDefense --trainer.callbacks.defense Onion"],
    ),
    "defense of another moment": ([*FIT, "--data.data_defense", "Strip"], ["Strip is not a DataDefense"]),
    "logger": ([*FIT, "--trainer.logger", "WandbLoger"], ["did you mean WandbLogger?"]),
    "user's class": ([*FIT, "--model", "shout.Shot"], ["model: module 'shout' has no", "did you mean Shout?"]),
    "user's module": ([*FIT, "--model", "shot.Shout"], ["No module named 'shot'", "working directory"]),
    "preset as a class": ([*FIT, "--model", "configs/attack/badnets.yaml"], ["--config configs/attack/badnets.yaml?"]),
    "user's broken module": (
        [*FIT, "--model", "garbled.Shout"],
        ["model: garbled.Shout cannot be imported (garbled.py, line 1: ", "); correct it"],
    ),
    "user's failing module": (
        [*FIT, "--data.data_defense", "failing.Shout"],
        ["data.data_defense: failing.Shout cannot be imported (name 'shouted' is not defined); correct it"],
    ),
    "user's module that lacks another": (
        [*FIT, "--model", "lacking.Shout"],
        ["model: lacking.Shout cannot be imported (No module named 'no_such_module'); install what it needs"],
    ),
    "module to list": (["list", "--module", "garbled"], ["garbled cannot be read (garbled.py, line 1: "]),
    "file of a class": ([*FIT, "--model", "shout.py:Shout"], ["shout.py:Shout is not a class", "give shout.Shout"]),
    "class path by itself": ([*FIT, "--model.class_path", "InsertSen"], ["did you mean InsertSent?"]),
    "no model": (["fit", "--data", "BackdoorDataModule"], ["model: not given", "--model"]),
    "no data": (["fit", "--model", "BadNets"], ["data: not given", "such as BackdoorDataModule"]),
    "no source": (
        ["fit", "--model", "BadNets", "--data", "BackdoorDataModule"],
        ["data.source.path: not given", "--data.source.path"],
    ),
    # values
    "number": ([*FIT, "--trainer.max_epochs", "three"], ["trainer.max_epochs: 'three' is not a whole number"]),
    "fraction": ([*FIT, "--trainer.max_epochs", "1.5"], ["trainer.max_epochs: '1.5' is not a whole number"]),
    "share": ([*FIT, "--model.poison_rate", "ten"], ["model.poison_rate: 'ten' is not a number"]),
    "out of range": ([*FIT, "--model.poison_rate", "10"], ["poison_rate: 10.0 is out of range", "up to 1"]),
    "choice": ([*FIT, "--model.place", "midle"], ["model.place: 'midle'", "give one of start, end, random"]),
    "choice with a near one": ([*FIT, "--model.label_policy", "drity"], ["did you mean dirty?"]),
    "list of Python": ([*FIT, "--model.triggers", "(cf, mn)"], ["model.triggers: '(cf, mn)' is not a list", "[a, b]"]),
    "nothing": ([*FIT, "--trainer.max_epochs="], ["trainer.max_epochs: '' is not a whole number"]),
    "seed": ([*FIT, "--seed", "-1"], ["seed_everything: -1 is not a seed", "from 0"]),
    "text in a list": ([*FIT, "--model.triggers", "[1, 2]"], ["'1' is not text", "quote it"]),
    "file for a source": ([*FIT, "--data.source", "data.csv"], ["did you mean --data.source.path data.csv?"]),
    "mapping": ([*FIT, "--data.max_rows", "200"], ["data.max_rows: '200' is not names", "train=200 or {train: 200"]),
    "another mapping": ([*FIT, "--data.source.splits", "200"], ["'200' is not names and values", "{name: value"]),
    "short list": (
        [*FIT, "--data.validation_parts", "[0.5, 0.5]"],
        ["data.validation_parts: [0.5, 0.5] has 2 values, and 3 are needed; write it as [a, b, c]"],
    ),
    "short list or nothing": (
        [*FIT, "--data.source.rating_cut", "[1]"],
        ["data.source.rating_cut: [1] has 1 value, and 2 are needed; write it as [a, b]"],
    ),
    "label": ([*FIT, "--model.target_label", "postive"], ["did you mean positive?", "labels are negative, positive"]),
    "bool": ([*FIT, "--trainer.deterministic", "maybe"], ["trainer.deterministic: 'maybe'", "true or false"]),
    # configs
    "preset": (
        ["fit", "--config", "configs/attack/badnet.yaml"],
        ["no file configs/attack/badnet.yaml", "did you mean configs/attack/badnets.yaml?", "list presets"],
    ),
    "preset by its name": (["fit", "--config", "badnets"], ["did you mean configs/attack/badnets.yaml?"]),
    "file": (["fit", "--config", "dta.yaml"], ["no file dta.yaml", "did you mean data.yaml?"]),
    "folder": (["fit", "--config", "model"], ["model is a folder"]),
    "empty": ([*FIT, "--config", "empty.yaml"], ["empty.yaml is empty"]),
    "no file": ([*FIT, "--config="], ["config: no value is given"]),
    "not YAML": ([*FIT, "--config", "broken.yaml"], ["broken.yaml is not YAML", "line 2"]),
    "key of a config": ([*FIT, "--config", "top.yaml"], ["top.yaml: trainr", "did you mean trainer?"]),
    "key of the trainer": ([*FIT, "--config", "trainer.yaml"], ["trainer.yaml: trainer.max_epoch", "max_epochs?"]),
    "key of a class": ([*FIT, "--config", "attack.yaml"], ["attack.yaml: model.init_args.poison_rat", "poison_rate?"]),
    "key beside a class": ([*FIT, "--config", "beside.yaml"], ["model.poison_rate", "write it under init_args"]),
    "key of the source": ([*FIT, "--config", "source.yaml"], ["data.init_args.source.pth", "did you mean path?"]),
    "key of a callback": ([*FIT, "--config", "callback.yaml"], ["trainer.callbacks.init_args.fprr", "fpr?"]),
    "class of a config": (
        [*FIT, "--config", "class.yaml"],
        ["class.yaml: model: there is no class BadNet", "BadNets?"],
    ),
    "grid for fit": (["fit", "--config", "grid.yaml"], ["grid.yaml is a grid", "benchmark --config grid.yaml"]),
    "sweep for fit": (["fit", "--config", "sweep.yaml"], ["is a W&B sweep", "wandb sweep sweep.yaml"]),
    # the other commands
    "config for benchmark": (
        ["benchmark", "--config", "data.yaml", "--output", "never"],
        ["data.yaml is the config of one run, not a grid", "fit --config data.yaml"],
    ),
    "grid that is missing": (["benchmark", "--config", "demo", "--output", "x"], ["configs/benchmark/demo.yaml?"]),
    "option of benchmark": (["benchmark", "--dry"], ["--config, --output"]),
    "another option of benchmark": (
        ["benchmark", "--config", "grid.yaml", "--output", "x", "--onyl", "seed=1"],
        ["--onyl: there is no such option", "did you mean --only?"],
    ),
    "choice of benchmark": (
        ["benchmark", "--config", "grid.yaml", "--output", "x", "--cluster", "slrum"],
        ["--cluster: 'slrum'", "did you mean slurm?"],
    ),
    "number of benchmark": (
        ["benchmark", "--config", "grid.yaml", "--output", "x", "--jobs", "two"],
        ["--jobs: 'two' is not a whole number"],
    ),
    "option of poison": (
        ["poison", "--config", "data.yaml", "--output", "never", "--model.trigers", "cf"],
        ["model.trigers", "did you mean triggers?", "lightning-backdoor poison --model.help BadNets"],
    ),
    "option of scan": (
        ["scan", "--model", "model", "--calibration", "a", "--input", "b", "--colum", "x"],
        ["--colum: there is no such option", "did you mean --column?"],
    ),
    "shell": (["completion", "bsh"], ["did you mean bash?"]),
}


@pytest.fixture(scope="module")
def wrong_configs(workspace: Path) -> Path:
    for name, text in (CONFIGS | MODULES).items():
        (workspace / name).write_text(f"{text}\n", encoding="utf-8")
    return workspace


@pytest.mark.parametrize(("args", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_ends_in_one_line(
    args: list[str],
    words: list[str],
    wrong_configs: Path,
    inside: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delenv(VARIABLE)
    assert main(args) == 2
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if not line.startswith(OF_LIGHTNING)]
    assert line.startswith("error: ")
    assert all(word in line for word in words), line
    assert printed.out == ""
    assert not (inside / "never").exists()
    assert os.environ.get(VARIABLE) is None
    assert "shout" not in sys.modules or sys.modules.pop("shout")


def test_there_are_many() -> None:
    assert len(MISTAKES) >= 40
