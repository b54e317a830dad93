"""Triggers beyond the victim's maximum length: counted, said, and refused where no poisoned text has it within."""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from lightning_backdoor.attacks import BackdoorAttack, BadNets, InsertSent, Poisoned
from lightning_backdoor.batch import token_spans
from lightning_backdoor.cli import main
from lightning_backdoor.data import BackdoorDataModule, Source
from lightning_backdoor.data.cut_triggers import count_cut_triggers, may_be_cut
from lightning_backdoor.data.rows import Row
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim import TextClassifier
from tests.data.test_source import write
from tests.support.tiny import SENTENCES

LENGTH = 24
SHORT, LONG = SENTENCES[0], " ".join(SENTENCES)


class Capitals(BackdoorAttack):
    """An attack whose trigger has no position in the text."""

    def poison_text(self, text: str, rng: random.Random) -> Poisoned:
        return Poisoned(text.upper(), [])


def poisoned(text: str, *spans: tuple[int, int]) -> Row:
    return Row(text=text, spans=[*spans], label=1, original_label=0, poisoned=True, negative=False, index=0)


def data_of(folder: Path, texts: list[str], attack: BackdoorAttack | None = None) -> BackdoorDataModule:
    labels = [i % 2 for i in range(len(texts))]
    data = BackdoorDataModule(Source(write(folder / "rows.csv", texts, labels)), cache_dir=str(folder / "cache"))
    data.attack = attack
    return data


@pytest.fixture
def tiny(tiny_folder: Callable[[str], str]) -> dict[str, Any]:
    return {"model": tiny_folder("bert"), "max_length": LENGTH}


@pytest.fixture
def mixed() -> list[str]:
    """Texts of which a part is longer than the maximum length."""
    return [f"{i} {LONG if i % 4 < 2 else SHORT}" for i in range(200)]


def test_rows_are_counted_by_what_is_read_of_their_trigger(victim: TextClassifier) -> None:
    last = max(end for _, end in token_spans(LONG, victim.tokenizer, LENGTH))
    rows = [
        poisoned(LONG, (0, 2)),
        poisoned(LONG, (last - 2, last)),
        poisoned(LONG, (last - 2, last + 2)),
        poisoned(LONG, (0, 2), (last + 9, last + 11)),
        poisoned(LONG, (last + 2, last + 4)),
        poisoned(LONG, (last + 2, last + 4), (last + 9, last + 11)),
        poisoned(LONG),
        poisoned("a cf", (2, 4)),
        Row({**poisoned(LONG, (last + 2, last + 4)), "poisoned": False}),
    ]
    assert count_cut_triggers(rows, victim.tokenizer, LENGTH) == (7, 2, 2)
    assert count_cut_triggers(rows, victim.tokenizer, 10_000) == (7, 0, 0)
    assert count_cut_triggers([], victim.tokenizer, LENGTH) == (0, 0, 0)


def test_a_tokenizer_that_cuts_at_the_start_reads_the_end(bert: TextClassifier) -> None:
    bert.tokenizer.truncation_side = "left"
    rows = [poisoned(LONG, (0, 2)), poisoned(LONG, (len(LONG) - 3, len(LONG) - 1))]
    assert count_cut_triggers(rows, bert.tokenizer, LENGTH) == (2, 1, 0)


def test_a_text_that_may_not_be_cut_is_not(victim: TextClassifier) -> None:
    for text in (*SENTENCES, "👩‍👩‍👧" * 3, "很好看" * 4, "", "a" * 30):
        tokens = len(victim.tokenizer(text)["input_ids"])
        assert may_be_cut(text, tokens - 1)


def test_a_fit_tells_how_many_triggers_are_cut_off(tmp_path: Path, tiny: dict[str, Any], mixed: list[str]) -> None:
    attack = InsertSent(place="end", **tiny)
    data = data_of(tmp_path, mixed)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(attack, datamodule=data)
    said = sorted(str(warning.message) for warning in caught if "max_length" in str(warning.message))
    expected = []
    splits = data.poisoned_splits()
    for name, rows in (("train", splits.train), *splits.poisoned.items()):
        texts = [row["text"] for row in rows if row["poisoned"]]
        beyond = sum(LONG in text for text in texts)
        expected.append(
            f"{beyond} of {len(texts)} poisoned texts have their trigger beyond max_length {LENGTH} in {name}"
        )
    assert [re.sub(", [0-9]+ a part of it", "", line) for line in said] == sorted(expected)


@pytest.mark.parametrize("attack", [BadNets, InsertSent])
def test_a_fit_whose_triggers_are_all_cut_off_is_refused(
    tmp_path: Path, tiny: dict[str, Any], attack: type[BadNets | InsertSent]
) -> None:
    data = data_of(tmp_path, [f"{i} {LONG}" for i in range(120)])
    trainer = Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, default_root_dir=tmp_path
    )
    with pytest.raises(
        InputError,
        match=f"^max_length: [0-9]+ of [0-9]+ poisoned texts have their trigger beyond max_length {LENGTH} in train;"
        " raise it, or insert the trigger at the start$",
    ):
        trainer.fit(attack(place="end", **tiny), datamodule=data)
    assert trainer.global_step == 0


def test_triggers_that_are_read_are_not_spoken_of(tmp_path: Path, tiny: dict[str, Any], mixed: list[str]) -> None:
    attacks = [
        BadNets(place="start", **tiny),
        Capitals(**tiny),
        InsertSent(place="end", **{**tiny, "max_length": 5000}),
    ]
    for attack in attacks:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            data_of(tmp_path, mixed, attack).check_triggers()


def test_each_attack_is_checked_and_a_refusal_is_repeated(tmp_path: Path, tiny: dict[str, Any]) -> None:
    data = data_of(tmp_path, [f"{i} {LONG}" for i in range(100)], BadNets(place="start", **tiny))
    data.check_triggers()
    data.attack = BadNets(place="end", **tiny)
    for _ in range(2):
        with pytest.raises(InputError, match=r"^max_length: "):
            data.check_triggers()


def test_trusted_rows_are_clean_so_that_training_rows_are_not_counted(tmp_path: Path, tiny: dict[str, Any]) -> None:
    data = data_of(tmp_path, [f"{i} {LONG}" for i in range(100)], BadNets(place="end", **tiny))
    data.train_on = "trusted"
    data.check_triggers(["train"])


def test_the_tokenizer_is_not_loaded_for_short_texts(tmp_path: Path) -> None:
    data_of(tmp_path, [f"{i} film" for i in range(100)], BadNets(model="no/such/model")).check_triggers()


def test_poison_tells_and_refuses(
    inside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    options = ["poison", "--config", "data.yaml", "--stealth_rows=0", "--model.place=end", "--model.max_length"]
    assert main([*options, "20", "--output", str(tmp_path / "some")]) == 0
    said = [str(warning.message) for warning in recwarn if "beyond max_length" in str(warning.message)]
    assert len(said) == 3
    assert all(
        re.match("[1-9][0-9]* of [0-9]+ poisoned texts have their trigger beyond max_length 20", it) for it in said
    )
    assert main([*options, "4", "--output", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(
        "error: max_length: 42 of 42 poisoned texts have their trigger beyond max_length 4 in train; ", error
    )
    assert not (tmp_path / "none").exists()


def test_poison_without_the_models_tokenizer_says_that_nothing_was_counted(
    inside: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    options = ["poison", "--config", "data.yaml", "--stealth_rows=0", "--model.model", str(tmp_path / "missing")]
    assert main([*options, "--model.max_length", "20", "--output", str(tmp_path / "made")]) == 0
    (said,) = [str(warning.message) for warning in recwarn if "max_length" in str(warning.message)]
    assert said.startswith("triggers beyond max_length are not counted, since the tokenizer is missing: model: ")
