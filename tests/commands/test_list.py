"""``list``: what there is, one line each, from sources, without importing torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lightning_backdoor as lb
from lightning_backdoor.cli import main
from lightning_backdoor.commands.list import module_classes, table_text
from lightning_backdoor.commands.listing import ALSO_LOGGED, KINDS, Entry
from lightning_backdoor.files.presets import preset_path
from lightning_backdoor.files.public_classes import classes_of, imported_class, public_classes

SHOUT = '''\
"""My attacks (arXiv 2301.00001)."""
import lightning_backdoor as lb
from lightning_backdoor import defenses
from lightning_backdoor.attacks import BackdoorAttack, BadNets
from lightning_backdoor.defenses import *

raise SystemExit("it was executed")


class Helper(BackdoorAttack):
    """Not an attack yet."""


class Shout(Helper):
    """Ends in a \\x1b[31mshout."""

    def poison_text(self, text, rng): ...


class Louder(lb.Ripples): ...


class Length(defenses.Defense):
    """Rejects long texts."""

    def score(self, victim, batch): ...


class Both(Length, DataDefense):
    def clean(self, rows, trusted, victim=None): ...


class Trained(lb.callbacks.Callback):
    def setup(self, trainer, pl_module, stage):
        pl_module.training_defense = None


class _Hidden(BadNets): ...
'''


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))


def read_entries(text: str) -> list[Entry]:
    entries: list[dict[str, Any]] = json.loads(text)
    for entry in entries:
        entry |= {name: tuple(value) for name, value in entry.items() if isinstance(value, list)}
    return [Entry(**entry) for entry in entries]


def listed(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Entry]:
    assert main(["list", *args, "--json"]) == 0
    entries = read_entries(capsys.readouterr().out)
    return {entry.name: entry for entry in entries}


def test_attacks_have_paper_class_path_preset_and_summary_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "attacks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "BITE",
        "BadNets",
        "BadPre",
        "Composite",
        "EP",
        "InsertSent",
        "LLMBkd",
        "LWP",
        "LWS",
        "MultiTarget",
        "NeuBA",
        "POR",
        "PoisonFiles",
        "Ripples",
        "SOS",
        "StyleTransfer",
        "Syntactic",
        "TrojanLM",
    ]
    path, preset = "lightning_backdoor.attacks.Ripples", "configs/attack/ripples.yaml"
    ripples = next(line for line in lines if line.startswith("Ripples"))
    assert ripples.split()[1:4] == ["arXiv:2004.06660", path, preset]


def test_defenses_have_the_moments_at_which_they_act(capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(capsys, "defenses")
    assert {item.name for item in public_classes() if item.kind == "defenses"} <= found.keys()
    expected = {
        "Dan": ("at inference",),
        "DBS": ("on the trained model",),
        "GradientAttentionDefense": ("at inference",),
        "ModerateFitting": ("in training",),
        "MuScleLoRA": ("in training",),
        "Onion": ("before training", "at inference"),
        "Pure": ("after training",),
        "ZDef": ("before training",),
        "fine_tuning": ("after training",),
    }
    assert {name: found[name].moments for name in expected} == expected
    assert found["Onion"].presets == ("configs/defense/onion.yaml", "configs/defense/onion_data.yaml")


def test_everything_is_listed_and_every_path_exists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    entries = read_entries(capsys.readouterr().out)
    assert {entry.kind for entry in entries} == {*KINDS}
    classes = {item.class_path for item in public_classes() if item.kind}
    assert classes <= {entry.path for entry in entries}
    for entry in entries:
        assert entry.summary, entry
        assert all(preset_path(path).is_file() for path in entry.presets)
        assert preset_path(entry.path).is_file() or not entry.path.startswith("configs/")
    assert not {"BackdoorAttack", "Poisoned", "Verdict", "Defense", "InferenceDefense"} & {e.name for e in entries}


def test_kinds_that_are_read_agree_with_the_classes_themselves() -> None:
    for item in public_classes():
        kind = imported_class(getattr(lb, item.name), item.module).kind
        assert kind == item.kind or item.moments == ("in training",)


def test_models_are_those_on_this_machine_and_how_others_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "hub/hub/models--org--tiny-bert/snapshots/abc/config.json"
    config.parent.mkdir(parents=True)
    config.touch()
    found = listed(capsys, "models")
    assert found["tiny-bert"].path == "org/tiny-bert"
    assert found["TextClassifier"].presets == ("configs/attack/none.yaml",)
    assert lb.TextClassifier().hparams["model"] in {entry.path for entry in found.values()}
    assert "roberta-base" in found["NAME"].summary


def test_a_preset_that_the_working_directory_replaces_is_read_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "configs" / "attack" / "badnets.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# of my own\nmodel: {class_path: lightning_backdoor.attacks.BadNets}\n", encoding="utf-8")
    assert listed(capsys, "presets")["attack/badnets"].summary == "of my own"


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_all_metrics_that_a_defense_logs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    from lightning_backdoor.callbacks.detection_metrics import DetectionMetrics

    class Parts(lb.BadNets):
        def negative_texts(self, texts: object, rngs: object) -> None:
            return None

    attack = Parts()
    logged = {*DetectionMetrics(attack).compute(), *attack.make_metrics()}
    logged |= {name for name in lb.MultiTarget().make_metrics() if name.endswith("_to_0")}
    found = listed(capsys, "metrics")
    assert {name.replace("_at_fpr_5", "_at_fpr_1").replace("_at_fpr_10", "_at_fpr_1") for name in logged} <= {*found}
    assert {name for name, _ in ALSO_LOGGED} <= logged
    assert found["asr_defended"].summary.endswith("lower is better.")


def test_a_module_is_read_as_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, name in (("one", "First"), ("two", "Second"), ("two", "Third")):
        (tmp_path / folder).mkdir(exist_ok=True)
        source = f"from lightning_backdoor.attacks import BadNets\n\n\nclass {name}(BadNets): ...\n"
        (tmp_path / folder / "mine.py").write_text(source, encoding="utf-8")
        monkeypatch.chdir(tmp_path / folder)
        monkeypatch.setattr(sys, "path", [*filter(os.path.isabs, sys.path)])
        assert listed(capsys, "--module", "mine").keys() == {name}


def test_a_module_of_the_user_is_read_and_not_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shout.py").write_text(SHOUT, encoding="utf-8")
    for name in ("shout", "shout.py"):
        found = listed(capsys, "--module", name)
        assert {key: (entry.kind, entry.path, entry.moments) for key, entry in found.items()} == {
            "Shout": ("attacks", "shout.Shout", ()),
            "Louder": ("attacks", "shout.Louder", ()),
            "Length": ("defenses", "shout.Length", ("at inference",)),
            "Both": ("defenses", "shout.Both", ("before training", "at inference")),
            "Trained": ("defenses", "shout.Trained", ("in training",)),
        }
        assert found["Shout"].papers == ("2301.00001",)
    assert "shout" not in sys.modules
    assert main(["list", "attacks", "--module", "shout"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 2
    assert "\\x1b[31mshout" in out


def test_a_package_lists_what_it_takes_from_its_modules(tmp_path: Path) -> None:
    inner = tmp_path / "lab" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "lab" / "__init__.py").write_text("from .inner.deep import Deep\nfrom lab.other import *\n")
    (inner / "__init__.py").write_text("raise SystemExit('it was executed')\n")
    (inner / "deep.py").write_text("from ..other import Other\n\n\nclass Deep(Other): ...\n")
    (tmp_path / "lab" / "other.py").write_text("import lightning_backdoor as lb\n\n\nclass Other(lb.Strip): ...\n")
    sys.path.append(str(tmp_path))
    assert [item.name for item in module_classes("lab/")] == ["Deep", "Other"]
    assert [(item.class_path, item.kind) for item in classes_of("lab")] == [
        ("lab.Deep", "defenses"),
        ("lab.Other", "defenses"),
    ]


def test_a_module_whose_source_shows_no_class_is_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = "from lightning_backdoor.attacks import BadNets\n"
    made += "Made = type('Made', (BadNets,), {'__doc__': 'Made (arXiv 2301.00002).', '__module__': __name__})\n"
    (tmp_path / "made_at_run_time.py").write_text(made)
    (entry,) = listed(capsys, "--module", "made_at_run_time").values()
    assert entry == Entry(
        "attacks", "Made", "made_at_run_time.Made", ("2301.00002",), (), (), "Made (arXiv 2301.00002)."
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["atacks"], "list: 'atacks' is unknown; did you mean attacks? give one of attacks, defenses"),
        (["zebras"], "list: 'zebras' is unknown; give one of attacks"),
        (["--module", "shuot"], "module: there is no module 'shuot'; did you mean shout?"),
        (["--module", "nowhere.at.all"], "module: there is no module 'nowhere.at.all'; give a module of"),
        (["--module", "../shout.py"], "module: '../shout.py' is not the name of a module"),
        (["--module", "broken"], "module: broken cannot be read (broken.py, line 1: '(' was never closed"),
        (["--module", "needs"], "module: needs cannot be imported (No module named 'nothing_there')"),
        (["--module", "ends"], "module: ends cannot be imported (it was executed)"),
        (["--module", "ends.Length"], "module: there is no module 'ends.Length'; did you mean ends?"),
        (["--module", "plain"], "module: plain defines none of attacks, defenses"),
        (["data", "--module", "shout"], "module: shout defines none of data"),
    ],
)
def test_what_cannot_be_listed_is_said_in_one_line(
    args: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = {"shout": SHOUT, "broken": "x = (", "needs": "import nothing_there", "plain": "x = 1"}
    for name, source in {**sources, "ends": "raise SystemExit('it was executed')"}.items():
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
    for name in sources:
        sys.modules.pop(name, None)
    assert main(["list", *args]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {words}")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_narrow_terminals_fold_lines_between_words() -> None:
    entry = Entry("attacks", "Shout", "a.long.class.path.that.is.not.cut.Shout", summary="Ends every text in a shout.")
    lines = table_text([entry], 30).splitlines()
    assert lines[0] == "Shout"
    assert lines[1].strip() == entry.path
    assert " ".join(line.strip() for line in lines[2:]) == entry.summary
    assert table_text([entry], 200).count("\n") == 1


def test_the_list_imports_nothing_large_and_is_fast(tmp_path: Path) -> None:
    (tmp_path / "shout.py").write_text(SHOUT, encoding="utf-8")
    code = (
        "import sys, time\nfrom lightning_backdoor.cli import main\n"
        "main(['list']), main(['list', '--module', 'shout'])\n"
        "large = {'torch', 'lightning', 'transformers', 'numpy', 'pandas', 'rich'} & {*sys.modules}\n"
        "sys.stderr.write(f'{sorted(large)} {time.process_time() < 1}')"
    )
    for _ in range(3):  # the fastest of three, since other processes may slow one down
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
        if result.stderr == "[] True":
            break
    assert result.stderr == "[] True"
