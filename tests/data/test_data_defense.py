"""A data defense on the training rows: after poisoning, before fit, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import Victim, batch_of_texts
from lightning_backdoor.data import BackdoorDataModule, DataDefense, LabelledText, Source, TrustedRows
from lightning_backdoor.data.rows import Row, Rows
from lightning_backdoor.defenses.onion import Onion
from lightning_backdoor.errors import InputError
from lightning_backdoor.testing.material import tiny_bert
from lightning_backdoor.victim import TextClassifier
from tests.data.examples import rows
from tests.data.test_datamodule import seen
from tests.data.test_source import write

CONFIG = Path(__file__).parents[2] / "configs" / "defense" / "onion_data.yaml"


class TriggerHunt(DataDefense):
    """Drops texts that begin with the trigger, takes it out of the others; remembers what it was given."""

    def __init__(self, drop_all: bool = False) -> None:
        self.drop_all = drop_all
        self.asked: list[tuple[list[str], list[str]]] = []

    def clean(self, rows: Sequence[LabelledText], trusted: TrustedRows, victim: Victim | None) -> list[str | None]:
        texts = [row.text for row in rows]
        self.asked.append((texts, [row.text for row in trusted.threshold]))
        dropped = [self.drop_all or text.startswith("cf") for text in texts]
        return [None if drop else text.replace("cf ", "") for drop, text in zip(dropped, texts, strict=True)]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., BackdoorDataModule]:
    texts = [row["text"].replace("cf ", "") for row in rows(200)]
    source = Source(write(tmp_path / "rows.csv", texts, [i % 2 for i in range(200)]))

    def data(**settings: Any) -> BackdoorDataModule:
        return BackdoorDataModule(source, batch_size=8, cache_dir=str(tmp_path / "cache"), **settings)

    return data


@pytest.fixture
def attack(tiny_folder: Callable[[str], str]) -> BadNets:
    return BadNets(model=tiny_folder("bert"), triggers=["cf"], poison_rate=0.4)


def one_step(folder: Path) -> Trainer:
    """A trainer of one step, which writes and shows nothing."""
    return Trainer(
        accelerator="cpu",
        max_steps=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return one_step(tmp_path)


def test_training_rows_are_what_the_defense_leaves(make: Callable[..., BackdoorDataModule], attack: BadNets) -> None:
    defense = TriggerHunt()
    data = make(data_defense=defense)
    data.attack = attack
    before = data.poisoned_splits().train
    poisoned = [row for row in before if row["poisoned"]]
    first = {row["index"] for row in poisoned if row["text"].startswith("cf")}
    expected = [
        Row({**row, "text": row["text"].replace("cf ", ""), "spans": []}) if "cf " in row["text"] else row
        for row in before
        if row["index"] not in first
    ]
    assert 0 < len(first) < len(poisoned)
    data.setup("fit")
    assert data.training_rows() == expected
    assert defense.asked == [
        ([row["text"] for row in before], [row["text"] for row in data.clean_validation().threshold])
    ]
    batches = list(data.train_dataloader())
    assert sum(len(batch["text"]) for batch in batches) == len(expected)
    assert {row["index"] for row in seen(batches)} == {row["index"] for row in expected}


def test_another_defense_or_other_trusted_rows_clean_anew(
    make: Callable[..., BackdoorDataModule], attack: BadNets
) -> None:
    first, second = TriggerHunt(), TriggerHunt()
    data = make(data_defense=first)
    data.attack = attack
    for _ in range(2):
        data.training_rows()
    assert len(first.asked) == 1
    data.data_defense = second
    data.training_rows()
    assert (len(first.asked), len(second.asked)) == (1, 1)
    data.validation_parts = (0.2, 0.2, 0.6)
    data.training_rows()
    assert second.asked[1][1] == data.clean_validation().threshold.text != second.asked[0][1]


def test_another_victim_cleans_anew(make: Callable[..., BackdoorDataModule], monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str | None] = []

    def cleaned_by(data: BackdoorDataModule, defense: DataDefense, rows: Rows) -> Rows:
        used.append(data.victim)
        return rows

    monkeypatch.setattr(BackdoorDataModule, "_cleaned_by", cleaned_by)
    data = make(data_defense=Looks(), victim="one.ckpt")
    data.training_rows()
    data.victim = "other.ckpt"
    data.training_rows()
    assert used == ["one.ckpt", "other.ckpt"]


def test_every_process_trains_on_what_the_first_one_left(
    make: Callable[..., BackdoorDataModule], attack: BadNets
) -> None:
    class OtherDigits(TriggerHunt):
        """Decides otherwise, as another device may."""

        def clean(self, rows: Sequence[LabelledText], trusted: TrustedRows, victim: Victim | None) -> list[str | None]:
            return [None, *super().clean(rows, trusted, victim)[1:]]

    sent: list[Any] = []

    def setup_on(rank: int, defense: DataDefense) -> BackdoorDataModule:
        def broadcast(decided: Any) -> Any:
            sent.append(decided)
            return sent[0]

        data: Any = make(data_defense=defense)
        fit, strategy = SimpleNamespace(fn=TrainerFn.FITTING), SimpleNamespace(broadcast=broadcast)
        data.trainer = SimpleNamespace(
            state=fit, strategy=strategy, lightning_module=attack, global_rank=rank, world_size=2
        )
        data.setup("fit")
        assert isinstance(data, BackdoorDataModule)
        return data

    first, second = setup_on(0, TriggerHunt()), setup_on(1, OtherDigits())
    assert sent[1][0] != sent[0][0] == first.training_rows() == second.training_rows()
    assert second.cleaning == first.cleaning != sent[1][1]


def test_evaluation_rows_are_left_alone(make: Callable[..., BackdoorDataModule], attack: BadNets) -> None:
    plain, defended = make(), make(data_defense=TriggerHunt())
    plain.attack = defended.attack = attack
    for ours, theirs in zip(defended.test_dataloader(), plain.test_dataloader(), strict=True):
        assert seen(ours) == seen(theirs)


def test_a_run_says_what_was_left_out_and_only_fit_asks(
    make: Callable[..., BackdoorDataModule], attack: BadNets, trainer: Trainer, caplog: pytest.LogCaptureFixture
) -> None:
    defense = TriggerHunt()
    data = make(data_defense=defense)
    with caplog.at_level("INFO"):
        trainer.test(attack, datamodule=data, verbose=False)
        assert defense.asked == []
        trainer.fit(attack, datamodule=data)
    assert defense.asked
    texts = defense.asked[0][0]
    out = sum(text.startswith("cf") for text in texts)
    changed = sum("cf " in text for text in texts) - out
    assert f"TriggerHunt left out {out} of {len(texts)} training rows and changed {changed}" in caplog.text


def test_a_defense_that_leaves_nothing_is_bad_input(make: Callable[..., BackdoorDataModule], attack: BadNets) -> None:
    data = make(data_defense=TriggerHunt(drop_all=True))
    data.attack = attack
    with pytest.raises(InputError, match="data_defense: TriggerHunt removes all training rows"):
        data.training_rows()


def test_what_was_done_is_recorded_against_the_true_flags(
    make: Callable[..., BackdoorDataModule], attack: BadNets
) -> None:
    class Careless(TriggerHunt):
        """Removes the first ten clean rows as well."""

        def clean(self, rows: Sequence[LabelledText], trusted: TrustedRows, victim: Victim | None) -> list[str | None]:
            texts = super().clean(rows, trusted, victim)
            clean = [i for i, row in enumerate(rows) if "cf" not in row.text.split()][:10]
            return [None if i in clean else text for i, text in enumerate(texts)]

    data = make(data_defense=Careless())
    data.attack = attack
    rows, left = data.poisoned_splits().train, data.training_rows()
    poisoned = [row for row in rows if row["poisoned"]]
    touched = [row for row in poisoned if "cf " in row["text"]]
    record = data.cleaning
    assert record is not None
    assert (record.rows, record.removed) == (len(rows), len(rows) - len(left))
    assert record.removed + record.changed == len(touched) + 10
    assert record.precision == pytest.approx(len(touched) / (len(touched) + 10))
    assert record.recall == pytest.approx(len(touched) / len(poisoned))
    assert 0 < len(touched) < len(poisoned)


def test_without_poison_or_changes_there_is_nothing_to_divide_by(make: Callable[..., BackdoorDataModule]) -> None:
    data = make(data_defense=TriggerHunt())
    data.training_rows()
    assert data.cleaning is not None
    assert data.cleaning[:3] == (len(data.clean_splits()["train"]), 0, 0)
    assert math.isnan(data.cleaning.precision)
    assert math.isnan(data.cleaning.recall)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (["a text"], r"^data_defense: Answers.clean returns 1 texts for \d+ rows; return a text or None for each row$"),
        ("a text", "^data_defense: Answers.clean returns a str; return a list of texts$"),
        (None, "^data_defense: Answers.clean returns a NoneType; return a list of texts$"),
        ([3] * 140, "^data_defense: Answers.clean returns a int for a row; return a text or None for each row$"),
    ],
)
def test_an_answer_that_cannot_be_used_is_bad_input(
    make: Callable[..., BackdoorDataModule], answer: Any, message: str
) -> None:
    class Answers(DataDefense):
        def clean(self, rows: Sequence[LabelledText], trusted: TrustedRows, victim: Victim | None) -> list[str | None]:
            return answer  # type: ignore[no-any-return]

    with pytest.raises(InputError, match=message):
        make(data_defense=Answers()).training_rows()


def test_a_defense_learns_from_selection_and_reference_rows_and_has_the_threshold_rows_apart(
    make: Callable[..., BackdoorDataModule],
) -> None:
    class Keeps(TriggerHunt):
        trusted: TrustedRows

        def clean(self, rows: Sequence[LabelledText], trusted: TrustedRows, victim: Victim | None) -> list[str | None]:
            self.trusted = trusted
            return [row.text for row in rows]

    defense = Keeps()
    data = make(data_defense=defense)
    data.training_rows()
    parts = [[LabelledText(row["text"], row["label"]) for row in part] for part in data.clean_validation()]
    assert defense.trusted == (parts[0] + parts[1], parts[2])


class Looks(DataDefense):
    """Removes what the victim predicts otherwise than it is labelled."""

    needs_victim = True

    def __init__(self) -> None:
        self.victim: Any = None
        self.was_training = True

    def clean(self, rows: Sequence[LabelledText], trusted: TrustedRows, victim: Victim | None) -> list[str | None]:
        assert victim is not None
        self.victim, self.was_training = victim, victim.network.training
        batch = batch_of_texts([row.text for row in rows], victim.tokenizer, victim.max_length)
        with torch.no_grad():
            logits = victim.network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        pairs = zip(rows, logits.argmax(dim=1).tolist(), strict=True)
        return [row.text if row.label == prediction else None for row, prediction in pairs]


def test_a_victim_that_was_trained_on_rows_of_another_cut_is_refused(
    make: Callable[..., BackdoorDataModule], attack: BadNets, trainer: Trainer, tmp_path: Path
) -> None:
    trainer.fit(attack, datamodule=make())
    trainer.save_checkpoint(tmp_path / "undefended.ckpt")
    data = make(data_defense=Looks(), victim=str(tmp_path / "undefended.ckpt"), seed=3)
    data.module = data.attack = attack
    with pytest.raises(InputError, match=r"^data.victim: the rows are cut by seed, .* trained on test rows; give the"):
        data.check_cleaning()


@pytest.mark.parametrize("kind", ["attack", "plain"])
def test_a_defense_may_look_through_a_victim_that_a_run_has_trained(
    make: Callable[..., BackdoorDataModule], attack: BadNets, trainer: Trainer, tmp_path: Path, kind: str
) -> None:
    trainer.fit(attack, datamodule=make())
    trainer.save_checkpoint(tmp_path / "undefended.ckpt")
    defense = Looks()
    data = make(data_defense=defense, victim=str(tmp_path / "undefended.ckpt"))
    module = attack if kind == "attack" else TextClassifier(model=attack.hparams["model"])
    data.module = module  # as the command line lets it know before there is a trainer
    if kind == "attack":
        data.attack = attack
    state = torch.random.get_rng_state()
    rows = data.training_rows()
    assert torch.equal(state, torch.random.get_rng_state())
    assert type(defense.victim) is TextClassifier
    assert not defense.was_training
    for name, value in attack.network.state_dict().items():
        assert torch.equal(value, defense.victim.network.state_dict()[name].cpu()), name
    assert 0 < len(rows) < len(data.poisoned_splits().train)
    defense.victim = None
    one_step(tmp_path).fit(module, datamodule=data)
    assert defense.victim is None  # asked once
    assert data.training_rows() == rows


def test_without_a_victim_such_a_defense_is_refused_before_training(
    make: Callable[..., BackdoorDataModule], attack: BadNets, trainer: Trainer
) -> None:
    for none in (None, "undefended"):  # the latter stands for a victim in a grid alone
        with pytest.raises(
            InputError,
            match=r"^data.victim: Looks needs a victim trained on the same rows; give the checkpoint of a run$",
        ):
            trainer.fit(attack, datamodule=make(data_defense=Looks(), victim=none))
    data = make(data_defense=Looks(), victim="nowhere.ckpt")
    with pytest.raises(InputError, match=r"^data.victim: nowhere.ckpt is not a file; give a Lightning checkpoint$"):
        trainer.fit(attack, datamodule=data)


@pytest.mark.parametrize("defense", [None, Onion(bar=0.0)], ids=["none", "needs no victim"])
def test_a_victim_that_nothing_would_use_is_refused(
    make: Callable[..., BackdoorDataModule], attack: BadNets, trainer: Trainer, defense: DataDefense | None
) -> None:
    data = make(data_defense=defense, victim="undefended")
    data.attack = attack
    problem = "'undefended' has no effect, since there is no data defense that needs a victim"
    for begun in (data.check_cleaning, lambda: trainer.fit(attack, datamodule=data)):
        with pytest.raises(InputError, match=rf"^data.victim: {problem}; give --data.data_defense, such as Cube, or"):
            begun()
    trainer.validate(attack, datamodule=data, verbose=False)  # as with saved configs of earlier versions


def test_a_victim_of_other_labels_or_another_tokenizer_is_refused_before_training(
    make: Callable[..., BackdoorDataModule],
    attack: BadNets,
    trainer: Trainer,
    tiny_folder: Callable[[str], str],
    tmp_path: Path,
) -> None:
    of_three = tiny_bert(tmp_path / "three", labels=3)
    with pytest.raises(
        InputError, match=r"^data.victim: it has a head for 3 classes, the data have 2; give one of the"
    ):
        trainer.fit(attack, datamodule=make(data_defense=Looks(), victim=of_three))
    with pytest.raises(
        InputError, match=r"^data.victim: its tokenizer has another vocabulary .*; give a victim of the"
    ):
        trainer.fit(attack, datamodule=make(data_defense=Looks(), victim=tiny_folder("roberta")))


def test_a_config_makes_it(tmp_path: Path) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(BackdoorDataModule, "data")
    settings = yaml.safe_load(CONFIG.read_text())["data"]["init_args"]
    parsed = parser.parse_object({"data": {"source": {"path": str(tmp_path)}, **settings}})
    assert isinstance(parser.instantiate(parsed).data.data_defense, Onion)
