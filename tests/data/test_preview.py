"""``data.preview`` and ``attack.poison``: what an attack makes of texts, without a trainer and without weights."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

import lightning_backdoor as lb
from lightning_backdoor.data.preview import Preview, PreviewRow
from tests.support.workspace import labelled_texts


@pytest.fixture
def data(tmp_path: Path) -> lb.BackdoorDataModule:
    with (tmp_path / "data.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *labelled_texts(60)])
    source = lb.Source(str(tmp_path / "data.csv"), labels=["negative", "positive"])
    return lb.BackdoorDataModule(source, cache_dir=str(tmp_path / "cache"))


def test_the_preview_shows_the_poison_of_training(data: lb.BackdoorDataModule) -> None:
    attack = lb.BadNets(poison_rate=0.4, model="no/model")
    preview = data.preview(50, attack)
    data.attack = attack
    poisoned = {row["index"]: row for row in data.poisoned_splits().train if row["poisoned"]}
    shown = {row.index: row for row in preview}
    assert poisoned
    for index, row in poisoned.items():
        assert shown[index].poisoned_text == row["text"]
        assert shown[index].spans == row["spans"]
        assert shown[index].poisoned_label == "positive"
        assert "[[cf]]" in shown[index].marked
    assert all(row.poisoned_text is None for row in preview if row.label == "positive")


def test_without_an_attack_nothing_is_poisoned(data: lb.BackdoorDataModule) -> None:
    preview = data.preview(3)
    assert len(preview) == 3
    assert not any(row.poisoned_text for row in preview)
    assert list(preview.frame["text"]) == [row.text for row in preview]
    assert data.preview(0) == []


def test_the_label_policy_decides_which_rows_are_poisoned(data: lb.BackdoorDataModule) -> None:
    policies = {"dirty": {"negative"}, "clean": {"positive"}, "mixed": {"negative", "positive"}}
    for policy, labels in policies.items():
        preview = data.preview(10, lb.BadNets(label_policy=policy))
        assert {row.label for row in preview if row.poisoned_text} == labels


def test_the_preview_is_printed_in_full_and_escaped(tmp_path: Path) -> None:
    labels = ["neg\x07", "pos\x1b[31m"]
    rows = [("text", "label"), *[(f"<b>\x1b[31m {i} " + "long " * 50, labels[i % 2]) for i in range(40)]]
    with (tmp_path / "data.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    preview = lb.BackdoorDataModule(lb.Source(str(tmp_path / "data.csv"))).preview(4, lb.BadNets())
    text, html = repr(preview), preview._repr_html_()
    assert text.count("[[cf]]") == html.count("<mark>cf</mark>") > 0
    assert not {"\x1b", "\x07"} & set(text)
    assert r"  pos\x1b[31m" + " " * len("poisoned:   ") + "<b>" in text
    assert "&lt;b&gt;" in html
    assert text.count("long") >= 4 * 50


def test_control_characters_of_a_text_are_no_marks() -> None:
    row = PreviewRow(0, "bad", "a", "\0a\1 <cf> film", "good", [(4, 8), (6, 8)])
    html = Preview([row])._repr_html_()
    assert html.count("<mark>") == html.count("</mark>") == 1
    assert "<mark>&lt;cf&gt;</mark> film" in html
    assert row.marked == "\0a\1 [[<cf>]] film"


def test_a_target_label_may_be_named_and_must_exist(data: lb.BackdoorDataModule) -> None:
    assert data.preview(5, lb.BadNets(target_label="positive")) == data.preview(5, lb.BadNets(target_label=1))
    with pytest.raises(lb.InputError, match="target_label: 4 is out of range"):
        data.preview(5, lb.BadNets(target_label=4))


def test_a_text_is_poisoned_in_the_same_way_each_time() -> None:
    attack = lb.BadNets(triggers=["cf"], model="no/model")
    text, spans = attack.poison("a good film")
    assert [text[start:end] for start, end in spans] == ["cf"]
    assert attack.poison("a good film") == (text, spans)
    assert attack.poison(["another", "a good film"])[1] == (text, spans)
    assert len({attack.poison("one two three four five six", seed=seed).text for seed in range(20)}) > 1


def test_an_attack_that_leaves_a_text_out_or_has_to_learn_its_trigger_says_so() -> None:
    class Picky(lb.BackdoorAttack):
        def poison_texts(self, texts: object, rngs: object) -> list[lb.Poisoned | None]:
            return [None, lb.Poisoned("x", [])][: len(list(texts))]  # type: ignore[call-overload]

    with pytest.raises(lb.InputError, match="text: Picky leaves 'a' out"):
        Picky().poison("a")
    assert Picky().poison(["a", "b"])[0] is None
    with pytest.raises(lb.InputError, match="attack: LWS learns its substitutions in training"):
        lb.LWS().poison("a")


def test_what_is_no_text_or_no_attack_is_refused(data: lb.BackdoorDataModule) -> None:
    wrong: Any
    for wrong in (None, 3, ["a", None], b"a"):
        with pytest.raises(lb.InputError, match=r"texts: a .* is not a text"):
            lb.BadNets().poison(wrong)
    for wrong in (lb.Strip(), "BadNets", lb.BadNets):
        with pytest.raises(lb.InputError, match=r"attack: .* is not an attack"):
            data.preview(3, wrong)
