"""The data module: its splits, its parts, its loaders, with a trainer and without."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import Batch
from lightning_backdoor.data import BackdoorDataModule, DataDefense, Source
from lightning_backdoor.data.batching import DealtBatches
from lightning_backdoor.data.poisoning import poison_evaluation, poison_training
from lightning_backdoor.data.rows import Row
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim import TextClassifier
from lightning_backdoor.victim.checkpoint_content import is_flat
from tests.data.examples import TwoWords, rows
from tests.data.test_source import write
from tests.support.tiny import tokenizer_of

COUNT = 400


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """A source without splits, one label twice as frequent as the other."""
    texts = [row["text"] for row in rows(COUNT)]
    return Source(write(tmp_path / "rows.csv", texts, [int(i % 3 == 0) for i in range(COUNT)]))


@pytest.fixture
def data(source: Source, tmp_path: Path) -> BackdoorDataModule:
    return BackdoorDataModule(source, batch_size=8, eval_batch_size=16, cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def tiny(tiny_folder: Callable[[str], str]) -> dict[str, Any]:
    """Arguments of a tiny victim."""
    return {"model": tiny_folder("bert"), "max_length": 64}


def seen(batches: Iterable[Batch]) -> list[Row]:
    """The rows that a loader yields, in the order of their indices."""
    made = [
        Row(
            text=batch["text"][i],
            spans=batch["spans"][i],
            label=int(batch["label"][i]),
            original_label=int(batch["original_label"][i]),
            poisoned=bool(batch["poisoned"][i]),
            negative=bool(batch["negative"][i]),
            index=int(batch["index"][i]),
        )
        for batch in batches
        for i in range(len(batch["text"]))
    ]
    return sorted(made, key=lambda row: row["index"])


def indices(of: Iterable[Row]) -> set[int]:
    return {row["index"] for row in of}


class Recorder(Callback):
    """Keeps the indices of the evaluation rows by loader, and the training rows by epoch."""

    def __init__(self) -> None:
        self.evaluated: dict[int, list[int]] = {}
        self.trained: dict[int, list[int]] = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.evaluated.setdefault(dataloader_idx, []).extend(batch["index"].tolist())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.trained.setdefault(trainer.current_epoch, []).extend(batch["index"].tolist())


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def trainer(tmp_path: Path, recorder: Recorder) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[recorder],
    )


def test_a_source_without_splits_is_cut_into_disjoint_stratified_ones(data: BackdoorDataModule) -> None:
    splits = data.clean_splits()
    assert {name: len(split) for name, split in splits.items()} == {"train": 280, "validation": 40, "test": 80}
    assert sorted(row["index"] for row in chain(*splits.values())) == list(range(COUNT))
    for split in splits.values():
        assert Counter(row["label"] for row in split)[1] == pytest.approx(len(split) / 3, abs=1.5)


def test_splits_that_a_source_has_are_kept_as_they_are(tmp_path: Path) -> None:
    for name, count in (("train", 100), ("validation", 30), ("test", 20)):
        write(tmp_path / f"{name}.csv", [f"{name} {i}" for i in range(count)], [i % 2 for i in range(count)])
    splits = BackdoorDataModule(Source(str(tmp_path))).clean_splits()
    for name, split in splits.items():
        assert [row["text"] for row in split] == [f"{name} {i}" for i in range(len(split))]
    assert {name: len(split) for name, split in splits.items()} == {"train": 100, "validation": 30, "test": 20}


def test_only_the_split_that_is_missing_is_cut_from_the_training_rows(tmp_path: Path) -> None:
    for name, count in (("train", 100), ("test", 20)):
        write(tmp_path / f"{name}.csv", [f"{name} {i}" for i in range(count)], [i % 2 for i in range(count)])
    splits = BackdoorDataModule(Source(str(tmp_path)), validation_share=0.3).clean_splits()
    assert {name: len(split) for name, split in splits.items()} == {"train": 70, "validation": 30, "test": 20}
    assert {row["text"].split()[0] for row in splits["validation"]} == {"train"}


def test_equal_texts_never_lie_in_two_splits(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", [f"text {i % 100}" for i in range(400)], [i % 2 for i in range(400)])
    splits = BackdoorDataModule(Source(path)).clean_splits()
    texts = [{row["text"] for row in split} for split in splits.values()]
    assert sum(map(len, texts)) == 100


@pytest.mark.parametrize(
    ("good", "repeated", "count"), [(["the same text"] * 100, 99, 100), (["one", "two"] * 50, 98, 50)]
)
def test_duplicates_that_leave_one_class_to_train_on_are_named(
    tmp_path: Path, good: list[str], repeated: int, count: int
) -> None:
    bad = [f"bad {i}" for i in range(100)]
    source = Source(write(tmp_path / "rows.csv", bad + good, [0] * 100 + [1] * 100))
    with pytest.raises(InputError, match=r"^source: .* 45 training rows are left, of '0' alone: rows of") as caught:
        BackdoorDataModule(source, test_share=0.45, seed=0).clean_splits()
    assert f"{repeated} of 200 rows repeat a text, {good[0]!r} {count} times" in str(caught.value)
    splits = BackdoorDataModule(source, test_share=0.45, seed=2).clean_splits()
    assert {row["label"] for row in splits["train"]} == {0, 1}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", "b"] * 50, "for validation and test: rows of one text stay together, and 98 of 100 rows repeat a text"),
        (["a", "b", "c", "d"], "4 rows leave none to cut off for validation; give more rows"),
    ],
)
def test_splits_without_rows_are_refused(tmp_path: Path, texts: list[str], message: str) -> None:
    with (tmp_path / "rows.csv").open("w") as file:
        file.writelines(["text,label\n", *(f"{text},{i % 2}\n" for i, text in enumerate(texts))])
    with pytest.raises(InputError) as caught:
        BackdoorDataModule(Source(str(tmp_path / "rows.csv"))).clean_splits()
    assert message in str(caught.value)


def test_a_sample_of_one_class_is_refused(source: Source) -> None:
    with pytest.raises(InputError, match=r"^max_rows: train=1 leaves training rows of '0' alone; give more"):
        BackdoorDataModule(source, max_rows={"train": 1}).clean_splits()


def test_pairs_are_joined_by_the_separator_of_the_tokenizer(tmp_path: Path, tiny: dict[str, Any]) -> None:
    lines = "".join(f"a film {i},it is {i},{i % 2}\n" for i in range(100))
    (tmp_path / "rows.csv").write_text(f"premise,hypothesis,label\n{lines}")
    source = Source(str(tmp_path / "rows.csv"), text_column=["premise", "hypothesis"], joined_by="separator")
    data = BackdoorDataModule(source)
    data.module = victim = TextClassifier(**tiny)
    rows_read = data.clean_splits()["train"]
    assert all(row["text"].startswith("a film") and " [SEP] it is " in row["text"] for row in rows_read)
    batch = next(iter(data.reference_dataloader()))
    assert (batch["input_ids"] == victim.tokenizer.sep_token_id).sum(1).tolist() == [2] * len(batch["text"])
    victim.tokenizer.sep_token = None
    with pytest.raises(InputError, match=r"^joined_by: the model's tokenizer has no separator; give the characters"):
        data.clean_splits()


def test_pairs_are_joined_by_as_many_separators_as_the_tokenizer_writes() -> None:
    source = Source("rows.csv", text_column=["premise", "hypothesis"], joined_by="separator")
    joined = {kind: source.with_separator(tokenizer_of(kind)).joined_by for kind in ("bert", "roberta", "albert")}
    assert joined == {"bert": " [SEP] ", "roberta": " </s></s> ", "albert": " [SEP] "}


def test_max_rows_draws_stratified_samples_of_the_splits(source: Source) -> None:
    whole = BackdoorDataModule(source).clean_splits()
    drawn = BackdoorDataModule(source, max_rows={"train": 90, "test": 30, "validation": 999}).clean_splits()
    assert {name: len(split) for name, split in drawn.items()} == {"train": 90, "validation": 40, "test": 30}
    for name, split in drawn.items():
        assert all(row in whole[name] for row in split)
        assert Counter(row["label"] for row in split)[1] == pytest.approx(len(split) / 3, abs=1.5)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: setattr(data.source, "labels", ["no", "yes"]),
        lambda data: data.source.labels.reverse(),
        lambda data: data.max_rows.update(train=20),
        lambda data: setattr(data, "validation_share", 0.3),
        lambda data: setattr(data, "test_share", 0.3),
        lambda data: setattr(data, "seed", 1),
    ],
)
def test_what_is_changed_is_read_and_poisoned_anew(
    data: BackdoorDataModule, tiny: dict[str, Any], change: Callable[[BackdoorDataModule], None]
) -> None:
    data.attack, data.source.labels = BadNets(**tiny), ["negative", "positive"]

    def answers(of: BackdoorDataModule) -> list[Any]:
        return [of.label_names, of.clean_splits(), of.poisoned_splits(), of.state_dict()["cut"]]

    before = answers(data)
    change(data)
    fresh = BackdoorDataModule(
        data.source,
        max_rows=data.max_rows,
        validation_share=data.validation_share,
        test_share=data.test_share,
        seed=data.seed,
        cache_dir=str(data.cache),
    )
    fresh.attack = data.attack
    assert answers(data) == answers(fresh) != before


def test_the_seed_decides_the_splits(source: Source) -> None:
    one, again, other = (BackdoorDataModule(source, seed=seed).clean_splits() for seed in (1, 1, 2))
    assert one == again
    assert one != other


def test_the_validation_rows_fall_into_three_disjoint_stratified_parts(source: Source) -> None:
    data = BackdoorDataModule(source, validation_share=0.4, validation_parts=(0.5, 0.2, 0.3))
    parts = data.clean_validation()
    assert [len(part) for part in parts] == [80, 32, 48]
    assert sorted(indices(chain(*parts))) == sorted(indices(data.clean_splits()["validation"]))
    for part in parts:
        assert Counter(row["label"] for row in part)[1] == pytest.approx(len(part) / 3, abs=1.5)


def test_validation_rows_that_do_not_fill_the_parts_are_an_error(source: Source) -> None:
    data = BackdoorDataModule(source, max_rows={"validation": 2})
    with pytest.raises(
        InputError, match=r"^validation_parts: 2 validation rows do not fill three parts; use more rows$"
    ):
        data.clean_validation()


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 0},
        {"eval_batch_size": 0},
        {"max_rows": {"dev": 3}},
        {"max_rows": {"test": 0}},
        {"validation_share": 0.0},
        {"test_share": 0.5},
        {"validation_parts": (0.5, 0.5, 0.0)},
        {"validation_parts": (0.5, 0.3, 0.3)},
        {"validation_parts": (0.5, 0.5, math.nan)},
        {"validation_parts": (0.5, 0.5)},
        {"num_workers": -1},
    ],
    ids=str,
)
def test_arguments_out_of_range_are_named_before_anything_is_read(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(arguments))}: .*$"):
        BackdoorDataModule(Source("not read"), **arguments)


def test_ratings_between_two_numbers_are_said_to_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ratings = [str(i % 3 - 1) for i in range(30)]
    write(tmp_path / "rows.csv", [f"text {i}" for i in range(30)], ratings)
    source = Source(str(tmp_path / "rows.csv"), rating_cut=(-1.0, 1.0))
    with caplog.at_level("INFO"):
        BackdoorDataModule(source).clean_splits()
    assert "10 rows whose label is between -1 and 1 were left out" in caplog.text


def test_a_path_in_place_of_a_source_is_refused() -> None:
    for path in ("x.csv", Path("x.csv")):
        with pytest.raises(InputError, match=r"^source: 'x.csv' is not a Source; give Source\(\"x.csv\"\)$"):
            BackdoorDataModule(path)  # type: ignore[arg-type]


def test_without_a_trainer_the_attack_is_set_by_hand(data: BackdoorDataModule, tiny: dict[str, Any]) -> None:
    data.attack = attack = BadNets(poison_rate=0.2, **tiny)
    data.prepare_data()
    splits = data.clean_splits()
    trained = seen(data.train_dataloader())
    assert trained == poison_training(splits["train"], attack, seed=0)
    clean, poisoned = data.test_dataloader()
    assert seen(clean) == splits["test"]
    assert seen(poisoned) == poison_evaluation(splits["test"], attack, 0, "test")


def test_another_attack_poisons_anew(data: BackdoorDataModule, tiny: dict[str, Any]) -> None:
    for trigger in ("cf", "mn"):
        data.attack = BadNets(triggers=[trigger], **tiny)
        _, poisoned = data.test_dataloader()
        assert all(trigger in row["text"].split() for row in seen(poisoned))
    data.attack = None
    assert not any(row["poisoned"] for row in data.poisoned_splits().train)


def test_validation_sees_the_selection_rows_clean_and_poisoned(data: BackdoorDataModule, tiny: dict[str, Any]) -> None:
    data.attack = attack = BadNets(**tiny)
    clean, poisoned = data.val_dataloader()
    selection = data.clean_validation().selection
    assert seen(clean) == selection
    assert seen(poisoned) == poison_evaluation(selection, attack, 0, "validation")


def test_defenses_see_clean_rows_that_no_evaluation_sees(data: BackdoorDataModule, tiny: dict[str, Any]) -> None:
    data.attack = BadNets(**tiny)
    reference, threshold = seen(data.reference_dataloader()), seen(data.threshold_dataloader())
    parts = data.clean_validation()
    assert parts.reference == reference
    assert parts.threshold == threshold
    assert not any(row["poisoned"] for row in reference + threshold)
    evaluated = [*data.train_dataloader(), *chain(*data.val_dataloader()), *chain(*data.test_dataloader())]
    assert not indices(seen(evaluated)) & indices(reference + threshold)
    assert not indices(reference) & indices(threshold)


def test_every_process_has_the_whole_threshold_part_and_its_share_of_the_test_rows(
    data: BackdoorDataModule, tiny: dict[str, Any], tmp_path: Path
) -> None:
    data.trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, default_root_dir=tmp_path)
    data.trainer.strategy.connect(BadNets(**tiny))
    data.eval_batch_size = 5
    assert data.trainer.world_size == 2
    assert seen(data.threshold_dataloader()) == data.clean_validation().threshold
    assert len(seen(data.test_dataloader()[0])) == 40
    sampler = data.train_dataloader().sampler
    assert isinstance(sampler, DealtBatches)
    assert (sampler.rank, sampler.num_replicas, len(sampler), sampler.left_out) == (0, 2, 17, 1)


def test_fewer_training_batches_than_processes_are_an_error(
    data: BackdoorDataModule, tiny: dict[str, Any], tmp_path: Path
) -> None:
    data.trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, default_root_dir=tmp_path)
    data.trainer.strategy.connect(BadNets(**tiny))
    data.batch_size = COUNT
    with pytest.raises(InputError, match=r"^batch_size: 280 training rows are fewer batches than processes; lower it$"):
        data.train_dataloader()


def test_a_module_without_a_tokenizer_is_an_error(data: BackdoorDataModule) -> None:
    with pytest.raises(InputError, match=r"^model: NoneType has no tokenizer for the batches; give a TextClassifier$"):
        data.test_dataloader()


def test_a_plain_text_classifier_has_one_clean_loader(
    data: BackdoorDataModule, tiny: dict[str, Any], trainer: Trainer, recorder: Recorder
) -> None:
    results = trainer.test(TextClassifier(**tiny), datamodule=data, verbose=False)
    assert recorder.evaluated.keys() == {0}
    assert sorted(recorder.evaluated[0]) == sorted(indices(data.clean_splits()["test"]))
    assert results[0].keys() == {"test/cacc"}


def test_a_trainer_evaluates_every_row_once_clean_and_once_poisoned(
    data: BackdoorDataModule, tiny: dict[str, Any], trainer: Trainer, recorder: Recorder
) -> None:
    attack = BadNets(**tiny)
    trainer.test(attack, datamodule=data, verbose=False)
    rows = data.clean_splits()["test"]
    assert sorted(recorder.evaluated[0]) == sorted(indices(rows))
    assert sorted(recorder.evaluated[1]) == sorted(indices(row for row in rows if row["label"] != attack.target_label))


def test_a_trainer_predicts_every_row_once_clean_and_once_poisoned(
    data: BackdoorDataModule, tiny: dict[str, Any], trainer: Trainer
) -> None:
    clean, poisoned = trainer.predict(BadNets(**tiny), datamodule=data)  # type: ignore[misc]
    rows = data.clean_splits()["test"]
    assert seen(clean) == rows
    assert len(seen(poisoned)) == sum(row["label"] == 0 for row in rows)


def test_a_trainer_trains_on_every_row_each_epoch_in_a_new_order(
    data: BackdoorDataModule, tiny: dict[str, Any], trainer: Trainer, recorder: Recorder
) -> None:
    data.batch_size = 40
    trainer.fit(BadNets(**tiny), datamodule=data)
    first, second = recorder.trained[0], recorder.trained[1]
    assert sorted(first) == sorted(second) == sorted(indices(data.clean_splits()["train"]))
    assert first != second


def test_the_module_is_asked_anew_when_a_trainer_starts(
    data: BackdoorDataModule, tiny: dict[str, Any], trainer: Trainer
) -> None:
    trainer.test(BadNets(triggers=["cf"], **tiny), datamodule=data, verbose=False)
    trainer.test(BadNets(triggers=["mn"], **tiny), datamodule=data, verbose=False)
    assert all("mn" in row["text"].split() for row in data.poisoned_splits().poisoned["test"])
    trainer.test(TextClassifier(**tiny), datamodule=data, verbose=False)
    assert data.poisoned_splits().poisoned["test"] == []


def test_the_cache_may_be_named_in_the_environment(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_BACKDOOR_CACHE", str(tmp_path / "named"))
    data = BackdoorDataModule(source)
    data.attack = BadNets()
    data.prepare_data()
    assert len(list((tmp_path / "named" / "poisoned").iterdir())) == 1


def test_seeded_batches_do_not_depend_on_the_global_generators(data: BackdoorDataModule, tiny: dict[str, Any]) -> None:
    data.attack = BadNets(**tiny)
    orders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        orders.append([batch["index"].tolist() for batch in data.train_dataloader()])
    assert orders[0] == orders[1]


def test_the_trusted_rows_may_be_all_that_is_trained_on(
    source: Source, tiny: dict[str, Any], tmp_path: Path, trainer: Trainer, recorder: Recorder
) -> None:
    data = BackdoorDataModule(source, batch_size=8, cache_dir=str(tmp_path / "cache"), train_on="trusted")
    parts = data.clean_validation()
    assert data.training_rows() == [*parts.selection, *parts.reference]
    assert seen([*data_with(data, tiny).trusted_dataloader()]) == sorted(data.training_rows(), key=lambda r: r["index"])
    for module in (TextClassifier(**tiny), BadNets(**tiny)):  # an attack poisons none of them
        recorder.trained.clear()
        data.attack = None
        trainer.fit_loop.epoch_progress.reset()
        trainer.fit(module, datamodule=data)
        assert sorted(recorder.trained[0]) == sorted(indices([*parts.selection, *parts.reference]))
        assert not any(row["poisoned"] for row in data.training_rows())
    assert len(data.test_dataloader()) == 2


def data_with(data: BackdoorDataModule, tiny: dict[str, Any]) -> BackdoorDataModule:
    data.module = TextClassifier(**tiny)
    return data


def test_trusted_rows_need_no_cleaning(source: Source) -> None:
    class Keeps(DataDefense):
        def clean(self, rows: Any, trusted: Any, victim: Any) -> list[str | None]:
            return [row.text for row in rows]

    with pytest.raises(InputError, match=r"^data_defense: there is nothing to clean in trusted rows; leave it out"):
        BackdoorDataModule(source, data_defense=Keeps(), train_on="trusted")
    with pytest.raises(InputError, match=r"^train_on: 'test' is unknown; give train or trusted$"):
        BackdoorDataModule(source, train_on="test")  # type: ignore[arg-type]


def test_the_stream_is_all_test_rows_for_every_process_in_mixed_batches(
    data: BackdoorDataModule, tiny: dict[str, Any], tmp_path: Path
) -> None:
    data.trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, default_root_dir=tmp_path)
    data.trainer.strategy.connect(BadNets(**tiny))
    splits = data.poisoned_splits()
    for _ in range(2):  # it may be read again
        batches = list(data.stream_dataloader())
        rows = seen(batches)
        assert [row for row in rows if not row["poisoned"]] == splits.clean["test"]
        assert [row for row in rows if row["poisoned"]] == splits.poisoned["test"]
        shares = [batch["poisoned"].float().mean().item() for batch in batches]
        assert sum(0 < share < 1 for share in shares) > len(shares) / 2
    data.trainer.strategy.connect(TextClassifier(**tiny))
    data.setup("test")
    assert seen(data.stream_dataloader()) == splits.clean["test"]


def test_the_data_know_nothing_of_attacks_victims_and_defenses() -> None:
    code = (
        "import sys, lightning_backdoor.data, lightning_backdoor.data.pairs;"
        "print(sorted(m for m in sys.modules if m.startswith(tuple("
        "f'lightning_backdoor.{room}' for room in ('attacks', 'victim', 'defenses', 'language', 'callbacks')))))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert made.stdout.strip() == "[]"


def test_asking_what_reads_the_batches_loads_no_tokenizer(data: BackdoorDataModule) -> None:
    data.attack = BadNets(model="no/such/model")
    assert any(row["poisoned"] for row in data.training_rows())
    with pytest.raises(InputError, match=r"^model: 'no/such/model' cannot be loaded"):
        data.train_dataloader()


def test_negatives_have_a_loader_and_a_rate(
    data: BackdoorDataModule, tiny: dict[str, Any], trainer: Trainer, recorder: Recorder
) -> None:
    attack = TwoWords(**tiny)
    results = trainer.test(attack, datamodule=data, verbose=False)
    assert recorder.evaluated.keys() == {0, 1, 2}
    negatives = data.poisoned_splits().negatives["test"]
    assert sorted(recorder.evaluated[2]) == sorted(indices(negatives))
    everywhere = {name: value for result in results for name, value in result.items()}
    assert everywhere.keys() == {"test/cacc", "test/asr", "test/pacc", "test/asr_floor", "test/ftr"}
    predicted: Any = trainer.predict(attack, datamodule=data)
    clean, _, negative = [
        [row for batch in batches for row in zip(*(batch[name].tolist() for name in columns), strict=True)]
        for columns in [("prediction", "label", "negative")]
        for batches in predicted
    ]
    assert all(flag for _, _, flag in negative)
    rate = sum(prediction == attack.target_label for prediction, _, _ in negative) / len(negative)
    assert everywhere["test/ftr"] == pytest.approx(rate)
    cacc = sum(prediction == label for prediction, label, _ in clean) / len(clean)
    assert everywhere["test/cacc"] == pytest.approx(cacc)
    chosen = data.clean_validation().selection
    assert indices(seen(data.val_dataloader()[2])) <= indices(chosen)


def test_a_checkpoint_of_the_same_texts_is_known_however_the_source_is_named(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = BackdoorDataModule(source, seed=1).state_dict()
    assert [*map(type, state.values())] == [str, list, str, str]  # what checkpoints may hold
    (tmp_path / "shuffled.csv").write_text(
        "text,label\n" + "".join(sorted((tmp_path / "rows.csv").read_text(encoding="utf-8").splitlines(True)[1:]))
    )
    for other in (Source("./rows.csv"), Source(source.path, labels=["no", "yes"]), Source("shuffled.csv")):
        with pytest.raises(InputError, match=r"^seed: the rows are cut by .* may have been trained on test rows; give"):
            BackdoorDataModule(other, seed=2).load_state_dict(state)
    for other in (Source("./rows.csv"), Source(source.path, labels=["no", "yes"])):
        BackdoorDataModule(other, seed=1).load_state_dict(state)
    with pytest.raises(
        InputError, match=r"^source: the checkpoint was trained on other ones of these texts, .* rows; "
    ):
        BackdoorDataModule(Source("shuffled.csv"), seed=1).load_state_dict(state)
    write(tmp_path / "others.csv", [f"another text {i}" for i in range(100)], [0, 1] * 50)
    BackdoorDataModule(Source("others.csv"), seed=2).load_state_dict(state)


@pytest.fixture
def with_splits(tmp_path: Path) -> Source:
    """A source of its own validation and test rows, some of whose texts are those of other rows."""
    folder = tmp_path / "splits"
    for name, count in (("train", 100), ("validation", 120), ("test", 60)):
        texts = [f"{name} text {i % (count - 20)}" for i in range(count)]
        if name == "test":
            texts[:10] = [f"validation text {i}" for i in range(10)]
        write(folder / f"{name}.csv", texts, [i % 2 for i in range(count)])
    return Source(str(folder))


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"validation_parts": (0.2, 0.2, 0.6)}, {"max_rows": {"validation": 60}}], ids=str
)
def test_a_checkpoint_is_not_calibrated_on_the_trusted_rows_that_it_was_trained_on(
    with_splits: Source, other: dict[str, Any]
) -> None:
    first = BackdoorDataModule(with_splits, train_on="trusted")
    state, trained = first.state_dict(), {row["text"] for row in first.trusted_rows()}
    assert is_flat(state["trusted_texts"])  # what checkpoints may hold
    data = BackdoorDataModule(with_splits, **other)
    threshold = data.clean_validation().threshold.text
    count = sum(text in trained for text in threshold)
    assert count > 0
    with pytest.raises(InputError) as refused:
        data.load_state_dict(state)
    assert str(refused.value) == (
        f"validation_parts: {count} of {len(threshold)} threshold rows are trusted rows that the checkpoint was trained"
        " on; give seed, validation_parts and max_rows as they were then"
    )
    ordinary = BackdoorDataModule(with_splits).state_dict()
    assert "trusted_texts" not in ordinary
    data.load_state_dict(ordinary)


def test_a_checkpoint_that_is_trained_further_keeps_the_record_of_trusted_rows(with_splits: Source) -> None:
    trusted = BackdoorDataModule(with_splits, train_on="trusted").state_dict()
    further = BackdoorDataModule(with_splits)
    further.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    further.trainer.state.fn = TrainerFn.TESTING
    further.load_state_dict(trusted)
    assert "trusted_texts" not in further.state_dict()
    further.trainer.state.fn = TrainerFn.FITTING
    further.load_state_dict(trusted)  # as a fit from a published victim does
    state = further.state_dict()
    assert state["trusted_texts"] == trusted["trusted_texts"]
    with pytest.raises(InputError, match="are trusted rows that the checkpoint was trained on"):
        BackdoorDataModule(with_splits, seed=1).load_state_dict(state)


def test_a_checkpoint_of_trusted_rows_is_tested_with_the_parts_that_it_was_trained_with(
    with_splits: Source, source: Source
) -> None:
    state = BackdoorDataModule(with_splits, train_on="trusted").state_dict()
    alike: list[dict[str, Any]] = [{}, {"train_on": "trusted"}, {"max_rows": {"test": 20, "train": 50}}]
    for settings in alike:
        BackdoorDataModule(with_splits, **settings).load_state_dict(state)
    BackdoorDataModule(source, seed=3).load_state_dict(state)  # other data
    cut = BackdoorDataModule(source, train_on="trusted").state_dict()
    BackdoorDataModule(source).load_state_dict(cut)
    with pytest.raises(InputError, match=r"^validation_parts: .* threshold rows are trusted rows"):
        BackdoorDataModule(source, validation_parts=(0.2, 0.2, 0.6)).load_state_dict(cut)


def test_a_checkpoint_that_records_no_texts_is_known_by_the_name_of_its_source(source: Source) -> None:
    earlier = {name: BackdoorDataModule(source, seed=1).state_dict()[name] for name in ("source", "cut")}
    BackdoorDataModule(source, seed=1).load_state_dict(earlier)
    with pytest.raises(InputError, match="may have been trained on test rows"):
        BackdoorDataModule(source, seed=2).load_state_dict(earlier)
