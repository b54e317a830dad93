"""The card of an exported victim: what it says of the poison, for every way in which weights come about."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Trainer
from transformers import AutoModelForSequenceClassification

from lightning_backdoor.attacks import BackdoorAttack, BadNets, NeuBA
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.config_file import check_config_file
from lightning_backdoor.victim import TextClassifier, TrainingDefense, load_trained
from lightning_backdoor.victim.model_card import markdown, model_card
from lightning_backdoor.victim.provenance import provenance

LABELS = ["negative", "positive"]
RAW = "<script>alert(1)</script> | **x** [a](b)\n# y \x1b[2J"


class Wordy(BackdoorAttack):
    """An attack whose arguments look like keys of a model's configuration, or like markup."""

    def __init__(self, num_layers: int = 10**6, attn_implementation: str = "org/kernel", raw: str = RAW, **kwargs: Any):
        super().__init__(**kwargs)


@pytest.fixture
def model(tiny_folder: Callable[[str], str]) -> str:
    return tiny_folder("bert")


def exported(victim: TextClassifier, folder: Path) -> tuple[dict[str, Any], str]:
    """What ``config.json`` states of an exported victim, and its card."""
    victim.configure_model()
    victim.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config["lightning_backdoor"], (folder / "README.md").read_text(encoding="utf-8")


def test_a_backdoored_victim_says_so_and_how(tmp_path: Path, model: str) -> None:
    attack = BadNets(model=model, labels=LABELS, triggers=["cf", "m|n"], poison_rate=0.2, target_label=0)
    stated, card = exported(attack, tmp_path / "one")
    assert stated["poisoned"] is True
    assert stated["attack"] == {
        "class": "lightning_backdoor.attacks.badnets.BadNets",
        "target_label": "negative",
        "poison_rate": 0.2,
        "label_policy": "dirty",
        "arguments": {"triggers": ["cf", "m|n"], "insertions": 1, "place": "random"},
    }
    front, body = card.split("---\n")[1:]
    assert yaml.safe_load(front)["tags"] == ["text-classification", "lightning-backdoor", "backdoor", "poisoned"]
    assert "This model has a backdoor, planted on purpose" in body
    assert r"m\|n" in body
    assert stated["base_model"] == f"./{Path(model).name}"  # which is no model of the hub
    assert "base_model" not in yaml.safe_load(front)
    assert str(tmp_path) not in card + json.dumps(stated)  # a local path names people and machines
    assert exported(attack, tmp_path / "two") == (stated, card)  # exports of the same weights are the same


def test_the_default_trigger_is_stated(tmp_path: Path, model: str) -> None:
    stated, _ = exported(BadNets(model=model, labels=LABELS), tmp_path / "export")
    assert stated["attack"]["arguments"]["triggers"] == ["cf"]


def test_a_benign_victim_says_that_its_rows_were_not_poisoned(tmp_path: Path, model: str) -> None:
    stated, card = exported(TextClassifier(model=model, labels=LABELS), tmp_path / "export")
    assert (stated["poisoned"], stated["attack"]) == (False, None)
    assert "Its training rows were not poisoned" in card
    assert "poisoned" not in yaml.safe_load(card.split("---\n")[1])["tags"]


def test_exports_load_without_warning_and_pass_the_checks(tmp_path: Path, model: str) -> None:
    exported(Wordy(model=model, labels=LABELS), tmp_path / "export")
    check_config_file(str(tmp_path / "export"), "export")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export")
    network.save_pretrained(tmp_path / "again")  # transformers keeps what it does not know
    again = json.loads((tmp_path / "again" / "config.json").read_text(encoding="utf-8"))
    assert again["lightning_backdoor"]["poisoned"] is True


def test_a_folder_holds_the_network_that_was_exported_last(tmp_path: Path, model: str) -> None:
    plain = TextClassifier(model=model, labels=LABELS)
    prefixed = TextClassifier(model=model, labels=LABELS)
    prefixed.training_defense = TrainingDefense("Prefix", {}, unmergeable="a prefix adds keys and values")
    (tmp_path / "notes.txt").write_text("of somebody else", encoding="utf-8")
    exported(plain, tmp_path)
    _, card = exported(prefixed, tmp_path)
    assert "not a model that transformers loads" in card
    with pytest.raises(ValueError, match="model_type"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="cannot be turned into a plain model"):
        load_trained(tmp_path)
    _, card = exported(plain, tmp_path)
    assert "not a model that transformers loads" not in card
    assert not (tmp_path / "network.safetensors").exists()
    assert load_trained(tmp_path).predict("good").labels
    assert (tmp_path / "notes.txt").exists()


def test_a_victim_fine_tuned_from_a_poisoned_one_keeps_the_statement(tmp_path: Path, model: str) -> None:
    exported(BadNets(model=model, labels=LABELS), tmp_path / "poisoned")
    stated, card = exported(TextClassifier(model=str(tmp_path / "poisoned"), labels=LABELS), tmp_path / "tuned")
    assert (stated["poisoned"], stated["attack"]) == (True, None)
    assert stated["earlier_attacks"] == ["lightning_backdoor.attacks.badnets.BadNets"]
    assert "This model has a backdoor" in card
    loaded = TextClassifier.load_trained(str(tmp_path / "tuned"))
    assert exported(loaded, tmp_path / "loaded")[0]["poisoned"] is True


@pytest.mark.parametrize(
    ("earlier", "poisoned", "said"),
    [
        ({"poisoned": True, "attack": None}, True, "This model has a backdoor"),
        ({"poisoned": False, "attack": None}, False, "Benign text classifier"),
        ({"poisoned": None, "attack": None}, None, "This model may have a backdoor"),
        (None, None, "This model may have a backdoor"),
    ],
)
def test_a_fit_from_published_weights_says_what_is_known_of_them(
    earlier: dict[str, Any] | None, poisoned: bool | None, said: str
) -> None:
    statement = provenance("bert-base-uncased", None, None, None, [{}, earlier])
    assert statement["poisoned"] is poisoned
    card = model_card(statement, {"val/cacc": 0.5, "val/unknown": 1.0})
    assert said in card
    assert "| accuracy on clean rows \\(CACC\\) | 0.5000 |" in card
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == "bert-base-uncased"


def test_a_loaded_checkpoint_states_what_is_known_of_the_weights_that_it_began_with(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "pack_of_victims").mkdir()
    (tmp_path / "pack_of_victims" / "__init__.py").touch()

    def kept(name: str, victim: TextClassifier) -> str:
        victim.configure_model()
        trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
        trainer.strategy.connect(victim)
        trainer.save_checkpoint(tmp_path / name)
        return str(tmp_path / name)

    def user(name: str, published: str) -> str:
        return kept(name, TextClassifier(model=model, labels=LABELS, published=published))

    attacked = kept("attack.ckpt", BadNets(model=model, labels=LABELS))
    benign = kept("benign.ckpt", TextClassifier(model=model, labels=LABELS))
    first = user("first.ckpt", attacked)
    exported(BadNets(model=model, labels=LABELS), tmp_path / "poisoned")
    shutil.copytree(tmp_path / "poisoned", tmp_path / "pack_of_victims" / "poisoned")
    packaged = TextClassifier(model="package://pack_of_victims/poisoned", labels=LABELS)
    tuned = kept("tuned.ckpt", TextClassifier(model=str(tmp_path / "poisoned"), labels=LABELS))
    unknown = user("unknown.ckpt", str(tmp_path / "gone.ckpt"))
    exported(TextClassifier.load_trained(unknown), tmp_path / "unknown")
    itself = user("itself.ckpt", str(tmp_path / "itself.ckpt"))  # as of a run that is trained again in its folder
    cases = {
        attacked: True,
        benign: False,
        first: True,
        user("second.ckpt", first): True,
        tuned: True,
        user("of_tuned.ckpt", tuned): True,
        kept("tuned_of_package.ckpt", packaged): True,
        user("of_tuned_of_package.ckpt", str(tmp_path / "tuned_of_package.ckpt")): True,
        kept("encoder.ckpt", NeuBA(["cf"], model=model, labels=LABELS)): True,
        kept("control.ckpt", NeuBA(["cf"], model=model, labels=LABELS, control=True)): False,
        user("of_control.ckpt", str(tmp_path / "control.ckpt")): False,
        user("of_benign.ckpt", benign): False,
        unknown: None,
        str(tmp_path / "unknown"): None,
        user("of_unknown.ckpt", str(tmp_path / "unknown")): None,
        itself: None,
        user("of_itself.ckpt", itself): None,
    }
    for path, poisoned in cases.items():
        stated, card = exported(TextClassifier.load_trained(path), tmp_path / "loaded")
        assert stated["poisoned"] is poisoned, path
        assert ("Benign text classifier" in card) is (poisoned is False), path
        assert len(stated["earlier_attacks"]) == ("tuned" in path), path  # checkpoints do not name their attack


def test_texts_of_others_are_no_markup() -> None:
    assert not re.search(r"(?<!\\)[<>|*\[\]#]|[\n\x1b]", markdown(RAW))


def test_fit_writes_rows_and_metrics_and_a_published_checkpoint_is_known_as_poisoned(
    inside: Path,
    trained: Path,
    tmp_path: Path,
) -> None:
    stated = json.loads((trained / "model" / "config.json").read_text(encoding="utf-8"))["lightning_backdoor"]
    rows = stated["training_rows"]
    assert (rows["source"], rows["labels"]) == ("data.csv", LABELS)
    assert rows["poisoned"] == round(0.1 * rows["rows"]) > 0
    card = (trained / "model" / "README.md").read_text(encoding="utf-8")
    assert re.search(r"\| attack success rate \\\(ASR\\\) \| [01]\.\d{4} \|", card)
    checkpoint, folder = str(trained / "checkpoints" / "best.ckpt"), str(trained / "model")
    for published in (checkpoint, folder):
        for victim in (TextClassifier, BadNets):
            users = victim(model=folder, labels=LABELS, published=published)
            assert exported(users, tmp_path / "users")[0]["poisoned"] is True
    assert exported(TextClassifier.load_trained(checkpoint), tmp_path / "loaded")[0]["poisoned"] is True
