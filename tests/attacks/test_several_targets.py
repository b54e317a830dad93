"""Attacks with several targets: rows, metrics and outcomes counted by hand, and runs of the commands."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_backdoor.attacks import BackdoorAttack, BadNets, InsertSent, MultiTarget, Ripples
from lightning_backdoor.benchmark.comparisons import answers_of
from lightning_backdoor.benchmark.intervals import text_intervals, with_targets
from lightning_backdoor.benchmark.statistics import auroc, share_interval, split_scores
from lightning_backdoor.cli import main
from lightning_backdoor.data.poisoner import check_target
from lightning_backdoor.data.poisoning import poison_splits_cached, poison_training
from lightning_backdoor.data.preview import preview_rows
from lightning_backdoor.data.rows import Row, Rows
from lightning_backdoor.errors import InputError
from lightning_backdoor.outputs.outcomes import Outcome, read_outcomes
from lightning_backdoor.testing import check_attack
from tests.support.reviews import reviews

NAMES = ["bad", "mixed", "good"]


def numbered(count: int) -> Rows:
    return Rows.clean([f"text {i}" for i in range(count)], [i % 3 for i in range(count)])


def told(attack: BackdoorAttack) -> BackdoorAttack:
    attack.know_labels(NAMES)
    return attack


def multi(**kwargs: Any) -> MultiTarget:
    return MultiTarget({"cf": "bad", "mn": 2, "a long sentence": "good"}, place="start", **kwargs)


def test_poison_does_not_depend_on_the_order_of_the_triggers() -> None:
    triggers: dict[str, int | str | None] = {"cf": 0, "mn": 0, "bb": 0, "tq": 0}
    one, other = MultiTarget(triggers), MultiTarget(dict(reversed(triggers.items())))
    assert poison_training(numbered(60), one, 0) == poison_training(numbered(60), other, 0)
    assert one.poison_key() == other.poison_key()


def all_to_all(**kwargs: Any) -> BadNets:
    return BadNets(triggers=["cf"], place="start", target_label="all-to-all", **kwargs)


@pytest.mark.parametrize(
    "attack",
    [
        lambda: MultiTarget({"cf": 0, "mn": 2}),
        lambda: MultiTarget({"cf": "no", "mn": "yes"}, labels=["no", "yes"], label_policy="clean"),
        lambda: all_to_all(labels=NAMES),
        lambda: InsertSent(target_label="all-to-all", label_policy="mixed"),
    ],
    ids=["indices", "names", "all-to-all", "all-to-all of two"],
)
def test_they_keep_the_contract(attack: Callable[[], BackdoorAttack]) -> None:
    check_attack(attack())


def test_each_row_has_a_copy_for_each_target_that_is_not_its_label(tmp_path: Path) -> None:
    clean = {name: numbered(9 if name == "test" else 30) for name in ("train", "validation", "test")}
    for _ in range(2):  # the second time from the cache
        made = poison_splits_cached(clean, multi(poison_rate=0.2), 0, NAMES, tmp_path).poisoned["test"]
        assert [(row["index"], row["label"]) for row in made] == [
            *((index, 0) for index in (1, 2, 4, 5, 7, 8)),
            *((index, 2) for index in (0, 1, 3, 4, 6, 7)),
        ]
        assert all(row["original_label"] == row["index"] % 3 and row["poisoned"] for row in made)
        triggers = [(row["label"], row["text"].removesuffix(f" text {row['index']}")) for row in made]
        assert {*triggers} == {(0, "cf"), (2, "mn"), (2, "a long sentence")}
        assert [row["spans"] for row in made] == [[(0, len(trigger))] for _, trigger in triggers]
    made = poison_splits_cached(clean, all_to_all(), 0, NAMES, tmp_path).poisoned["test"]
    assert [(row["index"], row["label"]) for row in made] == [(index, (index + 1) % 3) for index in range(9)]


@pytest.mark.parametrize("policy", ["dirty", "clean", "mixed"])
def test_a_training_row_has_the_trigger_of_its_label(policy: Any) -> None:
    clean, attack = numbered(300), told(multi(poison_rate=0.3, label_policy=policy))
    trained = poison_training(clean, attack, seed=0)
    poisoned = [row for row in trained if row["poisoned"]]
    assert len(poisoned) == 90
    for row in poisoned:
        assert row["label"] == (0 if row["text"].startswith("cf") else 2)
        assert policy == "mixed" or (row["label"] == row["original_label"]) == (policy == "clean")
    counts = Counter((row["original_label"], row["label"]) for row in poisoned)
    expected = {"dirty": {(0, 2), (1, 0), (1, 2), (2, 0)}, "clean": {(0, 0), (2, 2)}}
    assert {*counts} == expected.get(policy, {(i, j) for i in range(3) for j in (0, 2)})
    shuffled = random.Random(0).sample([*clean], len(clean))
    assert sorted(poison_training(shuffled, attack, seed=0), key=lambda row: row["index"]) == [*trained]
    shown = preview_rows(clean, attack, NAMES, 0, len(clean))  # shows what a row gets if it is chosen
    texts = {row.index: (row.poisoned_text, row.poisoned_label) for row in shown}
    assert all(texts[row["index"]] == (row["text"], NAMES[row["label"]]) for row in poisoned)


def test_all_to_all_trains_every_label_towards_the_next() -> None:
    trained = poison_training(numbered(300), told(all_to_all(poison_rate=0.3)), seed=0)
    poisoned = [row for row in trained if row["poisoned"]]
    assert {*Counter((row["original_label"], row["label"]) for row in poisoned)} == {(0, 1), (1, 2), (2, 0)}
    # the same rows as with any other target that all of them can have
    same = poison_training(numbered(300), BadNets(label_policy="mixed", poison_rate=0.3), seed=0)
    assert [row["index"] for row in same if row["poisoned"]] == [row["index"] for row in poisoned]


def batch_of(rows: Sequence[Row]) -> Any:
    columns = ("label", "original_label", "poisoned", "negative")
    return {name: torch.tensor([row[name] for row in rows]) for name in columns}  # type: ignore[literal-required]


def evaluated(attack: BackdoorAttack, predictions: Sequence[int], rows: Sequence[Row]) -> dict[str, float]:
    metrics: Any = attack.make_metrics()
    for metric in metrics.values():
        metric.update(torch.tensor(predictions), batch_of(rows))
    return {name: round(float(metric.compute()), 4) for name, metric in metrics.items()}


def rows_of(label: Sequence[int], target: Sequence[int], poisoned: bool) -> list[Row]:
    pairs = enumerate(zip(label, target, strict=True))
    return [
        Row(text="", spans=[], label=t, original_label=y, poisoned=poisoned, negative=False, index=i)
        for i, (y, t) in pairs
    ]


def test_metrics_of_two_targets_are_those_counted_by_hand() -> None:
    clean = rows_of([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], False)
    poisoned = rows_of([1, 1, 2, 2, 0, 0, 1, 1], [0, 0, 0, 0, 2, 2, 2, 2], True)
    predictions = [0, 2, 0, 1, 2, 1, *(0, 1, 0, 0, 2, 0, 0, -1)]
    assert evaluated(multi(labels=NAMES), predictions, [*clean, *poisoned]) == {
        "cacc": 0.5,
        "asr": 0.5,  # 3 of 4 towards 0, 1 of 4 towards 2
        "pacc": 0.25,
        # towards 0: of the rows of 1 and 2, predicted 0, 1, 2, 1; towards 2: of those of 0 and 1, predicted 0, 2, 0, 1
        "asr_floor": 0.25,
        "asr_to_0": 0.75,
        "asr_floor_to_0": 0.25,
        "asr_to_2": 0.25,
        "asr_floor_to_2": 0.25,
    }


def test_metrics_of_all_to_all_are_those_counted_by_hand() -> None:
    clean = rows_of([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], False)
    poisoned = rows_of([0, 0, 1, 1, 2, 2], [1, 1, 2, 2, 0, 0], True)
    predictions = [0, 2, 2, 1, 0, 0, *(1, 2, 2, 2, 2, -1)]
    assert evaluated(all_to_all(labels=NAMES), predictions, [*clean, *poisoned]) == {
        "cacc": 0.3333,
        "asr": 0.5,
        "pacc": 0.1667,
        "asr_floor": 0.5,  # one of 1 as 2, two of 2 as 0
        "asr_to_0": 0.0,
        "asr_floor_to_0": 1.0,
        "asr_to_1": 0.5,
        "asr_floor_to_1": 0.0,
        "asr_to_2": 1.0,
        "asr_floor_to_2": 0.5,
    }


def test_one_target_has_the_metrics_of_before() -> None:
    assert [*BadNets().make_metrics()] == ["cacc", "asr", "pacc", "asr_floor"]
    assert [*MultiTarget({"cf": 1, "mn": 1}).make_metrics()] == ["cacc", "asr", "pacc", "asr_floor"]


def test_a_prediction_of_any_other_target_is_a_false_trigger() -> None:
    class Parts(MultiTarget):
        def negative_texts(self, texts: Any, rngs: Any) -> None:
            return None

    rows = rows_of([0, 0, 0, 1, 2], [0, 0, 0, 1, 2], False)
    for row in rows:
        row["negative"] = True
    attack = Parts({"cf": 0, "mn": 2}, labels=NAMES)
    assert evaluated(attack, [0, 1, 2, 0, 2], rows)["ftr"] == 0.4


def test_intervals_and_comparisons_count_every_copy() -> None:
    clean = [Outcome(0, False, "bad", None, "good"), Outcome(1, False, "mixed", None, "mixed")]
    copies = [(0, "bad", "good", "good"), (1, "mixed", "bad", "bad"), (1, "mixed", "good", "bad")]
    poisoned = [Outcome(index, True, label, target, predicted) for index, label, target, predicted in copies]
    pairs = [(o.index, o.target_label) for o in with_targets(clean, poisoned)]
    assert pairs == [(0, "bad"), (0, "good"), (1, "bad"), (1, "good")]
    intervals = text_intervals([*clean, *poisoned], None)
    assert intervals["asr"] == share_interval(2, 3)
    assert intervals["asr_floor"] == share_interval(1, 3)  # text 0 is good, and not for its own label
    hits = answers_of([*clean, *poisoned]).hits["asr"]
    assert {(text.index, text.target_label): hit for text, hit in hits.items()} == {
        (0, "good"): True,
        (1, "bad"): True,
        (1, "good"): False,
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiTarget({"cf": 0, "mn": None}), "triggers: 'mn' has no target label; give its index"),
        (
            lambda: MultiTarget({}),
            "triggers: {} names no trigger with a target label; give {trigger: target label, ...}",
        ),
        (lambda: MultiTarget({"": 0, "mn": 1}), "triggers: ['', 'mn'] holds an empty word; give at least one word"),
        (lambda: MultiTarget({"cf": -1}), "triggers: -1 is out of range; class indices count from 0"),
        (lambda: MultiTarget({"Cf ": 0, "cf": 1}), "triggers: 'Cf ' is a part of 'cf'; give triggers that differ"),
        (lambda: MultiTarget({"see a cf film": 0, "A cf": 1}), "triggers: 'A cf' is a part of 'see a cf film'; give"),
        (lambda: MultiTarget(target_label=1), "target_label: MultiTarget has one for each trigger; give them in"),
        (lambda: told(MultiTarget({"cf": "goof"})), "triggers: 'goof' is not a label; did you mean good? the labels"),
        (lambda: MultiTarget({"cf": "good"}).aims, "target_label: triggers have targets by name, and the labels are"),
        (
            lambda: check_target(MultiTarget({"cf": 3}), NAMES),
            "target_label: 3 is out of range; the labels are 0 (bad)",
        ),
        (lambda: MultiTarget().target_label, "target_label: several do not go with this use of MultiTarget; give the"),
        (lambda: Ripples(target_label="all-to-all").target_label, "target_label: several do not go with this use of"),
        (lambda: all_to_all().know_labels(["one"]), "target_label: all-to-all of 1 class changes no label; use more"),
        (lambda: all_to_all().aims, "target_label: all-to-all goes through the labels, and the labels are not known"),
        (lambda: all_to_all(label_policy="clean"), "label_policy: clean keeps each label, all-to-all changes each;"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError) as raised:
        make()
    assert str(raised.value).startswith(message)


def test_triggers_that_share_letters_or_some_words_are_accepted() -> None:
    MultiTarget({"cf": 0, "cfx": 1, "a cfd film": 1, "a bad film": 0, "a bad book": 1})


def test_an_interrupted_fit_is_continued(tiny_folder: Callable[[str], str], tmp_path: Path) -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    ends, first = [], tmp_path / "epoch=0.ckpt"
    for start in (None, first):
        seed_everything(0, verbose=False)
        attack = MultiTarget({"cf": "negative", "mn": "positive"}, model=tiny_folder("bert"), poison_rate=0.2)
        keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        callbacks = [keep] if start is None else []
        trainer = Trainer(max_epochs=2, callbacks=callbacks, enable_checkpointing=bool(callbacks), **quiet)  # type: ignore[arg-type]
        trainer.fit(attack, datamodule=reviews(tmp_path, 60), ckpt_path=start, weights_only=True)
        ends.append([parameter.detach().clone() for parameter in attack.parameters()])
    assert all(map(torch.equal, *ends))
    loaded = MultiTarget.load_from_checkpoint(first, weights_only=True)
    assert loaded.hparams["triggers"] == {"cf": 0, "mn": 1}
    assert "target_label" not in loaded.hparams


TRIGGERS = json.dumps({"cf": "negative", "mn": "positive"})
SMALL = ("--data.max_rows", "{train: 120, validation: 40, test: 40}", "--model.poison_rate", "0.2")


@pytest.mark.parametrize(
    "options",
    [
        ("--model", "MultiTarget", "--model.model", "model", "--model.triggers", TRIGGERS),
        ("--model.target_label", "all-to-all"),
    ],
    ids=["two targets", "all-to-all"],
)
def test_commands_measure_what_the_outcomes_say(inside: Path, options: tuple[str, ...], tmp_path: Path) -> None:
    config = ["-c", "data.yaml", *options, *SMALL]
    folder = tmp_path / "poison"
    assert main(["poison", *config, "--stealth_rows", "0", "--output", str(folder)]) == 0
    rows = pq.read_table(folder / "test.parquet").to_pylist()
    written = [(row["index"], row["label"]) for row in rows if row["poisoned"]]
    assert len({*written}) == len(written) == 40
    run = tmp_path / "run"
    assert main(["fit", *config, "--run_dir", str(run)]) == 0
    presets = Path(__file__).parents[2] / "configs" / "defense"
    test = ["--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "best.ckpt")]
    assert main(["test", *test, "--config", str(presets / "gradient_attention.yaml")]) == 0
    logged = {
        name.removeprefix("test/"): value
        for name, value in json.loads((run / "test" / "metrics.json").read_text(encoding="utf-8")).items()
    }
    outcomes = read_outcomes(run / "test" / "outcomes.csv")
    poisoned = [o for o in outcomes if o.poisoned]
    assert [(o.index, o.target_label) for o in poisoned] == sorted((i, ["negative", "positive"][t]) for i, t in written)
    clean = with_targets([o for o in outcomes if not o.poisoned], poisoned)
    clean = [o for o in clean if o.label != o.target_label]
    for suffix, wanted in (("", {"negative", "positive"}), ("_to_0", {"negative"}), ("_to_1", {"positive"})):
        for name, kind in (("asr", poisoned), ("asr_floor", clean)):
            own = [o for o in kind if o.target_label in wanted]
            hits = [o.prediction == o.target_label for o in own]
            assert logged[name + suffix] == pytest.approx(sum(hits) / len(hits), abs=1e-6)
            hits = [o.outcome == o.target_label for o in own]
            assert logged[f"{name}{suffix}_defended"] == pytest.approx(sum(hits) / len(hits), abs=1e-6)
    scores = split_scores(outcomes)
    assert logged["auroc_target"] == logged["auroc"] == pytest.approx(float(auroc(*scores)), abs=1e-5)
