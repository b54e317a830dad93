"""The table of ``docs/results.md``: attacks against defenses on SST-2, with floors and controls.

Run ``python -m tests.measurements.results --runs runs/results --write docs/results.md``. Every run is a command of
``lightning-backdoor`` in a folder of its own; what is done with the same options is never done again, so that an
interrupted table goes on with the same command and loses at most the run in progress. ``--part 0/2`` and ``--part 1/2``
share the victims between two processes; a last call without it writes the table.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_backdoor.callbacks.muscle_lora import reference_rows
from lightning_backdoor.data import BackdoorDataModule, Source
from tests.measurements.cost import SST2
from tests.measurements.marked import replace_marked

SEEDS = (0, 1, 2)
#: of the clean validation rows: selection, reference, threshold.
PARTS = (0.3, 0.4, 0.3)
REFERENCE = 96
DATA = {
    "data": "lightning_backdoor.data.BackdoorDataModule",
    "data.source.path": str(SST2),
    "data.source.labels": "[negative,positive]",
    "data.max_rows": "{train: 2500}",
    "data.validation_parts": str(list(PARTS)),
}
TRAINER = {"trainer.accelerator": "cpu", "trainer.enable_progress_bar": "false", "trainer.logger": "false"}
#: bf16 halves the time on processors that have it; testing is in float32.
FINE_TUNING = {"trainer.max_epochs": "3", "model.learning_rate": "1e-4", "trainer.precision": "bf16-mixed"}
MUSCLE_LORA = {
    "trainer.max_epochs": "4",
    "trainer.precision": "bf16-mixed",
    "trainer.gradient_clip_val": "1.0",
    "model.learning_rate": "1e-3",
    "model.weight_decay": "0",
    "model.warmup": "0",
    "trainer.callbacks+": "lightning_backdoor.callbacks.MuScleLoRA",
    "trainer.callbacks.reference_size": str(REFERENCE),
    "trainer.callbacks.radial_scalings": "[1,4,8,12,16,20,24,28]",
    "trainer.callbacks.min_reference_loss": "0",
    "trainer.callbacks.max_raw_gradient_ratio": "0",
}
ATTACKS = {
    "BadNets": {"model": "lightning_backdoor.attacks.BadNets", "model.triggers": "[cf]", "model.label_policy": "dirty"},
    "BadNets, clean label": {
        "model": "lightning_backdoor.attacks.BadNets",
        "model.triggers": "[cf,mn,bb,tq]",
        "model.insertions": "4",
        "model.label_policy": "clean",
    },
    "InsertSent": {
        "model": "lightning_backdoor.attacks.InsertSent",
        "model.sentence": "I watch this 3D movie",
        "model.label_policy": "mixed",
    },
}
PUBLISHED = {
    "model.paraphraser": "lightning_backdoor.language.FileParaphraser",
    "model.paraphraser.skip_missing": "true",
    "model.poison_rate": "0.2",
}
#: attacks against which defenses are measured for the first seed alone.
MORE_ATTACKS = {
    "syntactic, published paraphrases": {
        "model": "lightning_backdoor.attacks.Syntactic",
        **PUBLISHED,
        "model.paraphraser.path": str(SST2 / "paraphrases_syntactic.parquet"),
    },
    "style (Bible), published paraphrases": {
        "model": "lightning_backdoor.attacks.StyleTransfer",
        **PUBLISHED,
        "model.paraphraser.path": str(SST2 / "paraphrases_style_bible.parquet"),
    },
    "RIPPLES": {"model": "lightning_backdoor.attacks.Ripples"},
}
#: how an attack trains that has epochs of its own; MuScleLoRA would defend those of the attacker too.
TRAINING_OF = {"RIPPLES": {"trainer.max_epochs": "5"}}
#: RIPPLES as two runs: the attacker's, and the user's under MuScleLoRA.
PUBLISHING = {"trainer.max_epochs": "2", "model.attack_epochs": "2"}
LWS = {
    "model": "lightning_backdoor.attacks.lws.LWS",
    "model.substitutes": "lightning_backdoor.language.synonyms.NearestWords",
    "model.substitutes.floor": "0.5",
    "model.choices": "8",
    "model.warmup_epochs": "1",
    "model.trigger_learning_rate": "0.05",
    "model.temperature": "0.2",
    "model.min_temperature": "0.05",
    "model.poison_rate": "0.3",
}
LWS_TRAINING = {**FINE_TUNING, "model.learning_rate": "1.5e-4", "trainer.max_epochs": "9"}
BENIGN = {"model": "lightning_backdoor.victim.TextClassifier"}
#: inference defenses by the name they log under.
DEFENSES = {
    "gradient_attention": {"trainer.callbacks+": "lightning_backdoor.callbacks.GradientAttentionDefense"},
    "strip": {
        "trainer.callbacks+": "lightning_backdoor.callbacks.InferenceDefense",
        "trainer.callbacks.defense": "lightning_backdoor.defenses.strip.Strip",
    },
}
ONION = {
    "data.max_rows": "{train: 2500, test: 400}",
    "trainer.callbacks+": "lightning_backdoor.callbacks.InferenceDefense",
    "trainer.callbacks.defense": "lightning_backdoor.defenses.onion.Onion",
    "trainer.callbacks.name": "onion",
}
#: MuScleLoRA's parts, for the ablation.
ABLATION = {
    "low rank": ("lora",),
    "multi-scale": ("multi_scale",),
    "alignment": ("alignment",),
    "low rank, multi-scale": ("lora", "multi_scale"),
    "low rank, alignment": ("lora", "alignment"),
    "multi-scale, alignment": ("multi_scale", "alignment"),
}
PARTS_OF_MUSCLE_LORA = ("lora", "multi_scale", "alignment")


class Victim(NamedTuple):
    """A victim to be trained, and how it is tested: by the tests' names, the options that each adds."""

    name: str
    fit: list[str]
    tests: dict[str, list[str]]


def options(*groups: dict[str, str]) -> list[str]:
    """``--name=value`` for each, in order: a callback's options follow the callback."""
    return [f"--{name}={value}" for group in groups for name, value in group.items()]


def beside() -> list[str]:
    """Options that attach all fast inference defenses under their names."""
    return [o for name, group in DEFENSES.items() for o in options(group, {"trainer.callbacks.name": name})]


def plan(runs: Path) -> Iterator[Victim]:
    for seed in SEEDS:
        common = options(TRAINER, {"seed_everything": str(seed)})
        for attack, model in ATTACKS.items():
            data = options(DATA, model)
            name = f"{attack} {seed}"
            yield Victim(name, [*data, *common, *options(FINE_TUNING)], {"": beside(), "onion": options(ONION)})
            yield Victim(f"{name} MuScleLoRA", [*data, *common, *options(MUSCLE_LORA)], {"": []})
        poisoned = {f"on {attack}": options(model) for attack, model in {**ATTACKS, **MORE_ATTACKS}.items()}
        defended = {"": beside(), "onion": options(ONION), **poisoned}
        yield Victim(f"benign {seed}", [*options(DATA, BENIGN), *common, *options(FINE_TUNING)], defended)
        yield Victim(f"benign {seed} MuScleLoRA", [*options(DATA, BENIGN), *common, *options(MUSCLE_LORA)], {"": []})
        yield reference_only(runs, seed, common, poisoned)
        for attack, model in MORE_ATTACKS.items():
            data, first = options(DATA, model), seed == SEEDS[0]
            tests = {"": beside(), "onion": options(ONION)} if first else {"": []}
            own = options(FINE_TUNING, TRAINING_OF.get(attack, {}))
            yield Victim(f"{attack} {seed}", [*data, *common, *own], tests)
            if attack == "RIPPLES" and first:
                published = runs / f"{attack} {seed} published"
                yield Victim(published.name, [*data, *common, *options(FINE_TUNING, PUBLISHING)], {})
                data += options({"model.model": str(published / "model"), "model.attack_epochs": "0"})
            if first:
                yield Victim(f"{attack} {seed} MuScleLoRA", [*data, *common, *options(MUSCLE_LORA)], {"": []})
        data, tests = options(DATA, LWS), {"": beside(), "onion": options(ONION)}
        yield Victim(f"LWS {seed}", [*data, *common, *options(LWS_TRAINING)], tests if seed == SEEDS[0] else {"": []})
        if seed == SEEDS[0]:
            yield Victim(f"LWS {seed} MuScleLoRA", [*data, *common, *options(MUSCLE_LORA)], {"": []})
    for parts, chosen in ABLATION.items():
        switches = {f"trainer.callbacks.{part}": str(part in chosen).lower() for part in PARTS_OF_MUSCLE_LORA}
        rate = {} if "lora" in chosen else {"model.learning_rate": FINE_TUNING["model.learning_rate"]}
        groups = (DATA, ATTACKS["BadNets, clean label"], TRAINER, {"seed_everything": "0"}, MUSCLE_LORA, switches, rate)
        fit = options(*groups)
        yield Victim(f"ablation {parts}", fit, {"": []})


def reference_only(runs: Path, seed: int, common: list[str], tests: dict[str, list[str]]) -> Victim:
    """The control of defenses that are given clean rows: a victim fine-tuned on MuScleLoRA's reference rows alone."""
    folder = runs / f"reference rows {seed}"
    if not (folder / "train.tsv").exists():
        folder.mkdir(parents=True, exist_ok=True)
        source = Source(str(SST2), labels=["negative", "positive"])
        data = BackdoorDataModule(source, max_rows={"train": 2500}, validation_parts=PARTS, seed=seed)
        for name in ("validation", "test"):
            shutil.copy(SST2 / f"{name}.tsv", folder)
        partial = folder / f"partial-{os.getpid()}"
        with partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)
            writer.writerow(["text", "label"])
            writer.writerows([row["text"], row["label"]] for row in reference_rows(data, REFERENCE, seed))
        partial.replace(folder / "train.tsv")
    data_options = options({**DATA, "data.source.path": str(folder)}, BENIGN)
    epochs = {**FINE_TUNING, "trainer.max_epochs": "20"}
    return Victim(f"reference rows only {seed}", [*data_options, *common, *options(epochs)], {"": [], **tests})


def run(victim: Victim, runs: Path) -> None:
    folder = runs / victim.name
    best = folder / "checkpoints" / "best.ckpt"
    if not done_with(folder / "fit.options", victim.fit):
        shutil.rmtree(folder, ignore_errors=True)  # a run cut off, or of other options, begins again
        command("fit", *victim.fit, f"--run_dir={folder}")
        (folder / "fit.options").write_text("\n".join(victim.fit), encoding="utf-8")
    for name, extra in victim.tests.items():
        name = name or "plain"
        if not done_with(folder / f"{name}.options", extra):
            shutil.rmtree(folder / "test", ignore_errors=True)
            config = ["--config", str(folder / "config.yaml"), "--ckpt_path", str(best)]
            command("test", *config, *extra, "--trainer.precision=32-true", f"--run_dir={folder}")
            shutil.move(folder / "test" / "metrics.json", folder / f"{name}.json")
            (folder / f"{name}.options").write_text("\n".join(extra), encoding="utf-8")


def done_with(stamp: Path, options: Sequence[str]) -> bool:
    """Whether a run is finished and was of these options: its stamp is written last."""
    return stamp.exists() and stamp.read_text(encoding="utf-8") == "\n".join(options)


def command(*args: str) -> None:
    print(" ".join(args[:1]), args[-1].removeprefix("--run_dir="), flush=True)
    subprocess.run([sys.executable, "-m", "lightning_backdoor", *args], check=True, stdout=subprocess.DEVNULL)


def numbers(runs: Path, victim: str, test: str = "plain") -> dict[str, float]:
    """Logged numbers of a test by name without their stage; empty where it was not run."""
    path = runs / victim / f"{test}.json"
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return {
        name.removeprefix("test/"): math.nan if value is None else value
        for name, value in found.items()
        if name.startswith("test/")
    }


def spread(values: Sequence[float | None]) -> str:
    """Mean and spread (standard deviation) over seeds."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return "–"
    if len(known) == 1:
        return f"{known[0]:.3f} (1 seed)"
    return f"{statistics.mean(known):.3f} ± {statistics.stdev(known):.3f}"


def invalid(attacked: dict[str, float], clean: dict[str, float]) -> bool:
    """Whether an attack failed or cost accuracy, so that nothing can be said of its defenses (ASR 0.9, 3 points)."""
    return bool(attacked and clean) and (attacked["asr"] < 0.9 or attacked["cacc"] < clean["cacc"] - 0.03)


def row(title: str, found: Sequence[dict[str, float]], names: Sequence[str | None]) -> str:
    cells = ["" if name is None else spread([metrics.get(name) for metrics in found]) for name in names]
    return f"| {' | '.join([title, *cells])} |"


UNDEFENDED = ("cacc", "asr", "asr_floor", None, None, None, None, None)


def defended(prefix: str) -> list[str | None]:
    names = ("cacc_defended", "asr_defended", "auroc", "fpr", "overhead")
    own = [None if (prefix, name) == ("onion", "overhead") else f"{prefix}/{name}" for name in names]
    return ["cacc", "asr", "asr_floor", *own]  # ONION's time is that of what its cache lacked


HEAD = "| | CACC | ASR | ASR floor | CACC defended | ASR defended | AUROC | FPR | overhead |\n|---|" + "---|" * 8


def table(runs: Path) -> str:
    lines = [HEAD]
    for attack in (*ATTACKS, *MORE_ATTACKS, "LWS"):
        plain = [numbers(runs, f"{attack} {seed}") for seed in SEEDS]
        onion = [numbers(runs, f"{attack} {seed}", "onion") for seed in SEEDS]
        muscle = [numbers(runs, f"{attack} {seed} MuScleLoRA") for seed in SEEDS]
        # LWS has no poison but that which its own victim has learned
        on_rows = "plain" if attack == "LWS" else f"on {attack}"
        clean = [numbers(runs, f"benign {seed}", on_rows) for seed in SEEDS]
        failed = sum(invalid(*pair) for pair in zip(plain, clean, strict=True))
        mark = f" ({failed} of {len(SEEDS)} seeds invalid)" if failed else ""
        lines += [
            row(f"**{attack}**{mark}", plain, UNDEFENDED),
            row("gradient attention", plain, defended("gradient_attention")),
            row("STRIP", plain, defended("strip")),
            row("ONION (400 clean, their poisoned rows)", onion, defended("onion")),
            row("MuScleLoRA", muscle, UNDEFENDED),
        ]
        if attack != "LWS":
            reference = [numbers(runs, f"reference rows only {seed}", f"on {attack}") for seed in SEEDS]
            lines.append(row("*cleanly trained, same rows*", clean, UNDEFENDED))
            lines.append(row("*reference rows only, same rows*", reference, UNDEFENDED))
    benign = [numbers(runs, f"benign {seed}") for seed in SEEDS]
    lines += [
        row("**no attack**", benign, ("cacc", *[None] * 7)),
        row("gradient attention", benign, defended("gradient_attention")),
        row("STRIP", benign, defended("strip")),
        row("ONION", [numbers(runs, f"benign {seed}", "onion") for seed in SEEDS], defended("onion")),
        row("MuScleLoRA", [numbers(runs, f"benign {seed} MuScleLoRA") for seed in SEEDS], ("cacc", *[None] * 7)),
    ]
    return "\n".join(lines)


def bar(runs: Path) -> str:
    lines = ["| | seed | excess ASR | CACC above the control | reaches the bar |", "|---|---|---|---|---|"]
    reached = []
    for attack in ATTACKS:
        for seed in SEEDS:
            muscle = numbers(runs, f"{attack} {seed} MuScleLoRA")
            control = numbers(runs, f"reference rows only {seed}")
            if not muscle or not control:
                continue
            excess, above = muscle["asr"] - muscle["asr_floor"], muscle["cacc"] - control["cacc"]
            reached.append(excess <= 0.05 and above >= 0.03)
            lines.append(f"| {attack} | {seed} | {excess:+.3f} | {above:+.3f} | {'yes' if reached[-1] else 'no'} |")
    return "\n".join([*lines, "", f"{sum(reached)} of {len(reached)} runs reach the bar."])


def ablation(runs: Path) -> str:
    lines = ["| trained with | CACC | ASR | ASR floor | excess ASR |", "|---|---|---|---|---|"]
    runs_of = {"no defense": "BadNets, clean label 0", **{parts: f"ablation {parts}" for parts in ABLATION}}
    for parts, run_name in {**runs_of, "all": "BadNets, clean label 0 MuScleLoRA"}.items():
        found = numbers(runs, run_name)
        cells = [found.get(name) for name in ("cacc", "asr", "asr_floor")]
        cells.append(found["asr"] - found["asr_floor"] if found else None)
        lines.append(f"| {parts} | " + " | ".join("–" if cell is None else f"{cell:.3f}" for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Attacks against defenses on SST-2, with floors and controls.")
    parser.add_argument("--runs", type=Path, default=Path("runs/results"), help="where the runs are and are kept")
    parser.add_argument("--part", default="0/1", help="which share of the victims to run, such as 0/2")
    parser.add_argument("--only", default="", help="run victims whose name has this in it")
    parser.add_argument("--write", type=Path, help="file whose marked parts are replaced by the tables")
    args = parser.parse_args()
    if not (SST2 / "test.tsv").exists():
        parser.error(f"{SST2} holds no test.tsv")
    args.runs = args.runs.resolve()  # commands are told apart by their options, this path among them
    os.environ.setdefault("LIGHTNING_BACKDOOR_CACHE", str(args.runs / "cache"))
    part, parts = (int(number) for number in args.part.split("/"))
    victims = [victim for victim in plan(args.runs) if args.only in victim.name]
    for victim in victims[part::parts]:
        run(victim, args.runs)
    made = {"table": table(args.runs), "bar": bar(args.runs), "ablation": ablation(args.runs)}
    if args.write:
        replace_marked(args.write, made)
    else:
        print("\n\n".join(made.values()))


if __name__ == "__main__":
    main()
