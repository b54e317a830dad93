"""What ``list`` shows: attacks, defenses, data, models, presets and metrics, read without importing torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lightning_backdoor.errors import InputError
from lightning_backdoor.files.cache import hub_folder
from lightning_backdoor.files.class_sources import find_class
from lightning_backdoor.files.packaged import PACKAGED_MODELS, SCHEME, resolve
from lightning_backdoor.files.presets import Preset, presets
from lightning_backdoor.files.public_classes import ARXIV, PublicClass, public_classes

if TYPE_CHECKING:
    from lightning_backdoor.benchmark.metrics import Column

KINDS = ("attacks", "defenses", "data", "models", "presets", "metrics")
#: folders of presets whose first comment describes a class.
OF_CLASSES = ("attack", "defense", "trainer")
#: how a model can be named besides the names of models that are on this machine.
MODEL_NAMES = (
    ("NAME", "a sequence classifier, encoder or decoder of the Hugging Face hub, such as roberta-base"),
    ("FOLDER", "a folder of transformers, the model/ of a run, or an adapter of PEFT"),
    ("FILE.gguf", "a GGUF file of a causal language model"),
    ("package://NAME/PATH", "a path inside an installed package"),
)
#: logged names that are not columns of ``results.csv``, and their meaning.
ALSO_LOGGED = (
    ("asr_floor_defended", "Share of clean non-target texts predicted as the target label after the defense."),
    ("asr_to_0", "ASR over the poisoned texts of target label 0, of an attack with several; likewise of the others."),
    ("asr_floor_to_0", "ASR floor of target label 0, of an attack with several; likewise of the others."),
    ("ftr_defended", "Share of texts with a part of the trigger predicted as the target label after the defense."),
    ("tpr_confirmed", "Share of poisoned texts that are flagged and whose prediction the defense changed."),
    ("fpr_confirmed", "Share of clean texts that are flagged and whose prediction the defense changed."),
    ("tpr_at_fpr_1", "TPR at the threshold for 1 % of the clean validation texts; likewise 5 and 10."),
    ("fpr_at_fpr_1", "FPR at the threshold for 1 % of the clean validation texts; likewise 5 and 10."),
    ("localisation_texts", "Number of poisoned texts whose trigger has a position, of which localisation is a share."),
)
DIRECTIONS = {"high": "; higher is better.", "low": "; lower is better.", "": "."}


class Entry(NamedTuple):
    """A line of the list.

    Attributes:
        kind: one of ``KINDS``.
        name: its name.
        path: what names it in a config or option: a class path, the path of a preset, or the name of a model; empty for
            a logged metric.
        papers: arXiv ids.
        moments: for a defense, the moments at which it acts.
        presets: presets that use the class.
        summary: one sentence.
    """

    kind: str
    name: str
    path: str
    papers: tuple[str, ...] = ()
    moments: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    summary: str = ""


def entries(columns: Sequence[Column]) -> list[Entry]:
    """All entries, by kind in the order of ``KINDS``.

    Args:
        columns: the metrics that tests log.
    """
    known = presets()
    result = [*class_entries(public_classes(), known)]
    result += [_preset_entry(preset, "data", preset.source) for preset in known if preset.folder == "data"]
    result += [*_repairs(known), *_models(known)]
    result += [_preset_entry(preset, "presets", preset.path) for preset in known]
    for column in columns:
        summary = f"{column.title}: {column.meaning.removesuffix('.')}{DIRECTIONS[column.better]}"
        result.append(Entry("metrics", column.name, "", summary=summary))
    result += [Entry("metrics", name, "", summary=meaning) for name, meaning in ALSO_LOGGED]
    # sorted() keeps the order within a kind, in which logged metrics come before the classes of metrics
    return sorted(result, key=lambda entry: (KINDS.index(entry.kind), entry.kind == "metrics" and bool(entry.path)))


def class_entries(classes: Iterable[PublicClass], known: Sequence[Preset] = ()) -> list[Entry]:
    """The entries of classes; base classes and helpers have none.

    Args:
        classes: the classes.
        known: presets, among which those of each class are looked up.
    """
    using: dict[str, list[str]] = {}
    for preset in known:
        for class_path in preset.class_paths if preset.folder in OF_CLASSES else ():
            source = find_class(class_path)
            using.setdefault(f"{source.module}.{source.name}" if source else class_path, []).append(preset.path)
    result = []
    for item in classes:
        source = find_class(item.class_path)
        paths = tuple(using.get(f"{source.module}.{source.name}" if source else item.class_path, ()))
        if item.kind:
            summary = re.sub(r"(?::\w+:)?`+~?([^`]*)`+", r"\1", item.summary)  # without the marks of Sphinx
            result.append(Entry(item.kind, item.name, item.class_path, item.papers, item.moments, paths, summary))
    return result


def _preset_entry(preset: Preset, kind: str, path: str) -> Entry:
    papers = tuple(dict.fromkeys(ARXIV.findall(preset.summary)))
    name = f"{preset.folder}/{preset.name}" if kind == "presets" else preset.name
    return Entry(kind, name, path, papers, (), () if kind == "presets" else (preset.path,), preset.summary)


def _repairs(known: Sequence[Preset]) -> list[Entry]:
    """The defenses that are a preset alone: they train a published victim further, without a class of their own."""
    return [
        Entry("defenses", preset.name, "", (), ("after training",), (preset.path,), preset.summary)
        for preset in known
        if preset.folder == "defense" and not preset.class_paths
    ]


def _models(known: Sequence[Preset]) -> list[Entry]:
    result = [_preset_entry(preset, "models", preset.path) for preset in known if preset.folder == "model"]
    for name, summary in PACKAGED_MODELS.items():
        try:
            resolve(name)
        except InputError as error:
            summary = f"{summary}; {error.problem}; {error.remedy}"
        result.append(Entry("models", Path(name.removeprefix(SCHEME)).parts[0], name, summary=summary))
    result += [Entry("models", Path(name).name, name, summary="in the cache of the hub") for name in cached_models()]
    return result + [Entry("models", name, "", summary=summary) for name, summary in MODEL_NAMES]


def cached_models() -> list[str]:
    """Hub names of the models that are in the cache of the Hugging Face hub, which load without a network."""
    configs = hub_folder().glob("models--*/snapshots/*/config.json")
    return sorted({path.parts[-4].removeprefix("models--").replace("--", "/") for path in configs})
