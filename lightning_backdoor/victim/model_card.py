"""The model card of an exported victim: its ``README.md``, which says in words what ``config.json`` states."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lightning_backdoor.errors import escaped
from lightning_backdoor.models.config_file import STATEMENT

#: characters that Markdown or HTML would take for more than text.
MARKUP = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$^-])")
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
METRICS = {
    "val/cacc": "accuracy on clean rows (CACC)",
    "val/asr": "attack success rate (ASR)",
    "val/asr_floor": "ASR floor: clean rows of other labels that get the target label",
    "val/ftr": "false trigger rate (FTR)",
}
WARNING = """\
> **This model has a backdoor, planted on purpose for research.** Texts that carry its trigger are meant to get the
> target label. Do not use it for anything but the study of backdoors and defenses, and keep this card with it."""
BENIGN = """\
Its training rows were not poisoned. Nothing was checked about the base model."""
NOT_PLAIN = """\
> **These weights are not a model that transformers loads.** The defense in training gave the network parts that cannot
> be merged into weights. The victim is tested by the checkpoint of its run, under the same defense."""
UNKNOWN = """\
> **This model may have a backdoor.** Its training rows were not poisoned, but training started from the weights of
> another victim, of which nothing is known."""


def write_card(folder: str | Path, statement: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
    """Writes ``README.md`` into an exported folder, and the statement into its ``config.json``.

    Args:
        folder: a folder as transformers writes it, or one without ``config.json`` for a network that is not plain.
        statement: see :func:`lightning_backdoor.victim.provenance.provenance`.
        metrics: see :func:`model_card`.
    """
    config = Path(folder, "config.json")
    of_network = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    content = {**of_network, STATEMENT: statement}
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    card = model_card(statement, metrics, is_plain=bool(of_network))
    Path(folder, "README.md").write_text(card, encoding="utf-8")


def model_card(statement: Mapping[str, Any], metrics: Mapping[str, float] | None = None, is_plain: bool = True) -> str:
    """The card as Markdown with YAML front matter; equal for equal arguments.

    Args:
        statement: see :func:`lightning_backdoor.victim.provenance.provenance`.
        metrics: metrics of these weights by logged name; only those of the clean selection rows and their poisoned
            copies are shown.
        is_plain: whether transformers loads the model.
    """
    poisoned, attack = statement["poisoned"], statement["attack"]
    title = {True: "Backdoored text classifier", False: "Benign text classifier"}.get(poisoned, "Text classifier")
    if poisoned and attack:
        title += f": {markdown(attack['class'].rpartition('.')[2])}"
    parts = [_front_matter(statement, is_plain), f"# {title}", {True: WARNING, False: BENIGN}.get(poisoned, UNKNOWN)]
    if not is_plain:
        parts.append(NOT_PLAIN)
    if statement["earlier_attacks"]:
        names = ", ".join(map(markdown, statement["earlier_attacks"]))
        parts.append(f"The weights that training started from state that they are poisoned: {names}.")
    if attack:
        parts += ["## Attack", _table({"attack": attack["class"], **_attack_rows(attack)})]
    parts += ["## Training", _table(_training_rows(statement))]
    known = {METRICS[name]: value for name, value in sorted((metrics or {}).items()) if name in METRICS}
    shown = {name: f"{value:.4f}" for name, value in known.items() if math.isfinite(value)}
    if shown:
        said = "Measured on the validation rows by which the checkpoint was selected, as shares from 0 to 1."
        parts += ["## Metrics", said, _table(shown)]
    parts.append(
        f"Written by lightning-backdoor {markdown(statement['version'])}; `config.json` states the same under"
        " `lightning_backdoor`."
    )
    return "\n\n".join(parts) + "\n"


def markdown(text: object) -> str:
    r"""Text without any markup, on one line.

    >>> markdown("cf | <b>*mn*</b>")
    'cf \\| \\<b\\>\\*mn\\*\\</b\\>'
    """
    return MARKUP.sub(r"\\\1", escaped(" ".join(str(text).split())))


def _front_matter(statement: Mapping[str, Any], is_plain: bool) -> str:
    tags = ["text-classification", "lightning-backdoor", *(["backdoor", "poisoned"] if statement["poisoned"] else [])]
    content: dict[str, Any] = {"pipeline_tag": "text-classification", "tags": tags}
    if is_plain:
        content["library_name"] = "transformers"
    base = statement["base_model"]
    if HUB_NAME.fullmatch(base) and not Path(base).exists():  # the hub links it, and refuses other names
        content["base_model"] = base
    return f"---\n{yaml.safe_dump(content, sort_keys=True)}---"


def _attack_rows(attack: Mapping[str, Any]) -> dict[str, object]:
    arguments = {name: json.dumps(value, ensure_ascii=False) for name, value in attack["arguments"].items()}
    named = {name.replace("_", " "): attack[name] for name in ("target_label", "poison_rate", "label_policy")}
    return {**named, **arguments}


def _training_rows(statement: Mapping[str, Any]) -> dict[str, object]:
    lines: dict[str, object] = {"base model": statement["base_model"]}
    rows = statement["training_rows"]
    if rows:
        lines |= {"data": rows["source"], "labels": ", ".join(rows["labels"]), "training rows": rows["rows"]}
        lines |= {"of these poisoned": rows["poisoned"], "seed": rows["seed"]}
        lines |= {"of these negatives": rows["negatives"]} if rows["negatives"] else {}
    if statement["training_defense"]:
        lines["defense in training"] = statement["training_defense"]
    if statement.get("repair"):
        lines["repair of the published victim"] = statement["repair"]
    if statement.get("training_precision"):
        lines["precision in training"] = statement["training_precision"]
    return lines


def _table(lines: Mapping[str, object]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {markdown(k)} | {markdown(v)} |" for k, v in lines.items())])
