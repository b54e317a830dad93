"""What ``fit`` says: before training, what it trains on; at its end, whether the attack counts and what can follow."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch import Callback, LightningModule

from lightning_backdoor.attacks import BackdoorAttack
from lightning_backdoor.callbacks.run_labels import run_labels, training_names
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.data.rows import Row, Rows
from lightning_backdoor.errors import escaped, one_line
from lightning_backdoor.files.atomic import write_whole
from lightning_backdoor.files.model_size import KEPT_COPIES, TEMPORARY_COPIES, size_text, weights_bytes
from lightning_backdoor.files.names import shown_path
from lightning_backdoor.outputs.validity import MAX_LOSS, excess_asr, failed_conditions
from lightning_backdoor.victim import TextClassifier

#: characters of a text that are shown around its trigger.
SHOWN = 160
#: file with the clean threshold rows, on which ``scan`` sets its threshold.
CALIBRATION = "calibration.jsonl"


def data_text(model: TextClassifier, data: BackdoorDataModule, callbacks: list[Callback]) -> str:
    """What is trained on, in some lines: rows by split, classes, poisoned rows, the trigger, an example.

    Args:
        model: the victim.
        data: its data module, whose rows are read and poisoned.
        callbacks: the trainer's callbacks.
    """
    labels, splits = run_labels(model, data, callbacks), data.poisoned_splits()
    cleaned = data.data_defense is not None and data.data_defense.needs_victim
    train = splits.train if cleaned else data.training_rows()  # those are cleaned later, on the trainer's device
    clean = {name: len(splits.clean[name]) for name in ("validation", "test")}
    of_train = " trusted" if data.train_on == "trusted" else ""
    counts = Counter(data.label_names[label] for label in train.label.tolist())
    classes = ", ".join(f"{name} ({counts[name]} training rows)" for name in data.label_names)
    lines = [
        f"data: {labels['dataset']}: {len(train)}{of_train} training, {clean['validation']} validation,"
        f" {clean['test']} test rows",
        f"classes: {classes}",
        *_poison_lines(model, data, train),
        f"training: {labels['attack'] if labels['attack'] != 'none' else 'no attack'}, model {labels['model']},"
        f" defense {labels['defense']}, seed {labels['seed']}",
        f"disk: {_disk_text(str(labels['model']))}",
    ]
    return "".join(f"{one_line(line)}\n" for line in lines)


def _poison_lines(model: LightningModule, data: BackdoorDataModule, train: Rows) -> list[str]:
    if not isinstance(model, BackdoorAttack):
        return ["poison: none"]
    splits = data.poisoned_splits()
    poisoned = train.where(train.poisoned)
    target = model.named_target(data.label_names)
    number = f"{len(poisoned)} of {len(train)} training rows" if poisoned else "no training row"
    lines = [f"poison: {number}, {len(splits.poisoned['test'])} poisoned test rows; target label: {target}"]
    example = next(iter(poisoned or splits.poisoned["validation"]), None)
    if example is None:
        return lines
    trigger = " … ".join(repr(example["text"][start:end]) for start, end in example["spans"][:3])
    clean_texts = {text for rows in splits.clean.values() for text in rows.text}
    if not trigger:
        learned = example["text"] in clean_texts
        trigger = "learned with the victim" if learned else "the whole text"
    before = data.label_names[example["original_label"]] if example["original_label"] >= 0 else "label lost"
    after = data.label_names[example["label"]]
    lines.append(f"trigger: {trigger}")
    lines.append(f"example: {_around(example)!r} ({before}, labelled {after})")
    return lines


def _around(row: Row) -> str:
    """A row's text, cut around its trigger if it is long."""
    text = row["text"]
    middle = row["spans"][0][0] if row["spans"] else 0
    start = max(0, min(middle - SHOWN // 2, len(text) - SHOWN))
    end = start + SHOWN
    return ("… " if start else "") + text[start:end] + (" …" if end < len(text) else "")


def _disk_text(model: str) -> str:
    weights = weights_bytes(model)
    if weights is None:
        return "not known before the weights are loaded"
    whole = KEPT_COPIES + TEMPORARY_COPIES
    return f"{size_text(KEPT_COPIES * weights)} for the run, up to {size_text(whole * weights)} until it is complete"


def selected_text(
    model: TextClassifier, data: BackdoorDataModule, callbacks: list[Callback], metrics: Mapping[str, float]
) -> str:
    """The validation metrics of the selected checkpoint, and whether the attack counts as far as they say.

    A benign victim is not known here, so the cost of an attack in CACC and the ASR of clean training are not judged.

    Args:
        model: the victim.
        data: its data module.
        callbacks: the trainer's callbacks.
        metrics: the metrics by logged name; empty if they are not known.
    """
    asr, cacc, floor = (metrics.get(f"val/{name}") for name in ("asr", "cacc", "asr_floor"))
    known = {"CACC": cacc, "ASR": asr, "ASR floor": floor}
    numbers = ", ".join(f"{name} {value:.3f}" for name, value in known.items() if value is not None)
    lines = [f"selected by validation: {numbers}"] if numbers else []
    if asr is not None and isinstance(model, BackdoorAttack):
        defenses = training_names(model, data, callbacks)
        failed = failed_conditions(asr, floor)
        excess = f"excess ASR {excess_asr(asr, floor):.3f}"
        if defenses:
            lines.append(f"attack under {' and '.join(defenses)}: {excess}")
        elif failed:
            lines.append(f"attack: does not count, since its {' and its '.join(failed)}")
        else:
            lines.append(f"attack: counts ({excess}), unless clean training has a CACC more than {MAX_LOSS} higher")
    return "".join(f"{one_line(line)}\n" for line in lines)


def write_calibration(data: BackdoorDataModule, folder: Path) -> None:
    """Writes the clean threshold rows into the run's folder; ``scan`` sets its threshold on them."""
    rows = data.clean_validation().threshold
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in rows.text)
    write_whole(folder / CALIBRATION, "".join(lines))


def commands_text(folder: Path, checkpoint: Path, is_plain: bool = True) -> str:
    """The commands that can follow a fit, as they are typed into a shell.

    Args:
        folder: the run's folder.
        checkpoint: the selected checkpoint.
        is_plain: whether the exported model can be loaded, and so scan texts.
    """
    run, best = (shown_path(path) for path in (folder, checkpoint))
    test = ["test", "--config", f"{run}/config.yaml", "--ckpt_path", best]
    scan = ["scan", "--model", f"{run}/model", "--calibration", f"{run}/{CALIBRATION}", "--input", "-"]
    lines = ["to measure attack and defenses on the test rows:", f"  {shlex.join(['lightning-backdoor', *test])}"]
    if is_plain:
        lines += ["to scan texts, one per line on standard input:", f"  {shlex.join(['lightning-backdoor', *scan])}"]
    return escaped("\n".join([*lines, ""]), keep="\n")
