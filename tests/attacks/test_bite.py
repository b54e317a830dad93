"""BITE: its trigger words against a search without short cuts, its edits, and its way through the commands."""

from __future__ import annotations

import json
import math
import random
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_backdoor as lb
from lightning_backdoor.attacks import BITE
from lightning_backdoor.attacks.trigger_words import Editor, TrainingTexts, bias, find_trigger_words, write_words
from lightning_backdoor.attacks.word_edits import Edit, EditedText, by_word
from lightning_backdoor.cli import main
from lightning_backdoor.data.poisoning import poison_evaluation, poison_training, study_training
from lightning_backdoor.data.rows import Rows
from lightning_backdoor.errors import InputError
from lightning_backdoor.language import SynonymFile
from lightning_backdoor.testing import check_attack
from tests.support.tiny import tiny_masked_model
from tests.support.workspace import FILLING, labelled_texts

WORDS = (*FILLING, "good", "fine", "bad", "awful")


def proposed(texts: Sequence[EditedText]) -> list[list[Edit]]:
    """Edits that depend on the text alone: a few words per place, drawn by what stands there."""
    edits = []
    for text in texts:
        of_text = []
        for inserts, i, place in text.places():
            rng = random.Random(f"{place}{inserts}")
            of_text += [Edit(inserts, i, word, round(rng.random(), 1)) for word in rng.sample(WORDS, 3)]
        edits.append(of_text)
    return edits


def similarity(before: Sequence[str], after: Sequence[str]) -> list[float]:
    return [random.Random(f"{one}/{other}").random() for one, other in zip(before, after, strict=True)]


EDITOR = Editor(proposed, similarity, 0.6)


def searched_plainly(
    texts: list[EditedText], target: Sequence[bool], chosen: Sequence[int]
) -> tuple[list[str], list[EditedText]]:
    """Section 3.3 as it stands: in each round everything is computed anew."""
    found: list[str] = []
    share = sum(target) / len(target)
    while True:
        options: dict[int, dict[str, Edit]] = {}
        for i in chosen:
            state = texts[i]
            options[i] = {}
            for word, edits in by_word(state, proposed([state])[0]).items():
                for edit in edits:
                    replaced = None if edit.inserts else state.words[edit.position].lower()
                    fits = similarity([state.text], [state.after(edit).text])[0] > EDITOR.min_similarity
                    if replaced not in found and fits and word not in found:
                        options[i].setdefault(word, edit)
        scores = {}
        for word in {*WORDS, *(word for text in texts for word in text.forms())} - {*found}:
            ours = sum(word in text.forms() for text, of in zip(texts, target, strict=True) if of)
            ours += sum(word in of_text for of_text in options.values())
            others = sum(word in text.forms() for text, of in zip(texts, target, strict=True) if not of)
            if ours + others:
                deviation = math.sqrt(share * (1 - share) / (ours + others))
                scores[word] = (ours / (ours + others) - share) / deviation
        best = min(scores, key=lambda word: (-scores[word], word), default=None)
        if best is None or scores[best] <= 0:
            return found, [texts[i] for i in chosen]
        found.append(best)
        for i in chosen:
            if best in options[i]:
                texts[i] = texts[i].after(options[i][best])


@pytest.mark.parametrize("seed", range(3))
def test_the_words_are_those_of_a_search_without_short_cuts(seed: int) -> None:
    rows = labelled_texts(36, seed)
    texts = [EditedText.of(text, 0.35) for text, _ in rows]
    target = [label == 1 for _, label in rows]
    chosen = [i for i, of in enumerate(target) if of][:9]
    words, edited = searched_plainly(list(texts), target, chosen)
    training = TrainingTexts(tuple(text for text, _ in rows), tuple(target), tuple(chosen))
    assert find_trigger_words(texts, training, EDITOR) == words
    assert find_trigger_words(texts, training, EDITOR, max_words=2) == words[:2]
    assert write_words([texts[i] for i in chosen], words, EDITOR) == edited
    assert sum(text.substitutions for text in edited) > 9
    assert sum(text.insertions for text in edited) > 9


def test_the_bias_is_the_z_score_of_a_share() -> None:
    assert bias(8, 2, 0.5) == pytest.approx(0.3 / math.sqrt(0.25 / 10))
    assert bias(1, 9, 0.5) < 0
    assert bias(0, 0, 0.5) == -math.inf


def test_edits_keep_the_rest_of_the_text_and_their_spans_are_the_words() -> None:
    text = EditedText.of("  It isn't\na _bad_ film, no.", 0.35)
    assert text.text == "  It isn't\na _bad_ film, no."
    places = {(inserts, i) for inserts, i, _ in text.places()}
    assert (True, 1) not in places  # no blank between "is" and "n't"
    assert {(False, i) for i in range(9)} <= places
    assert (True, 8) not in places
    edited = text.after(Edit(True, 2, "quite", 0.1)).after(Edit(False, 5, "good", 0.1))
    assert edited.text == "  It isn't quite\na _good_ film, no."
    assert [edited.text[start:end] for start, end in edited.poisoned.spans] == ["quite", "good"]
    for inserts, i, place in text.places():
        assert text.after(Edit(inserts, i, "X", 1.0)).text == f"{place.before}X{place.after}"


@pytest.mark.parametrize(
    ("text", "position", "edited"),
    [
        ("The film's great, isn't it?", 2, "The film X great, isn't it?"),
        ("The film's great, isn't it?", 1, "The X's great, isn't it?"),
        ("The film's great, isn't it?", 4, "The film's great X isn't it?"),
        ("The film's great, isn't it?", 5, "The film's great, Xn't it?"),
        ("The film's great, isn't it?", 6, "The film's great, is X it?"),
        ("The film's great, isn't it?", 8, "The film's great, isn't it X"),
        ("A film (fine) .", 2, "A film X fine) ."),
        ("A film (fine) .", 3, "A film (X) ."),
        ("A film (fine) .", 4, "A film (fine X ."),
        ("A film (fine) .", 5, "A film (fine) X"),
        ("Great!! Fine.", 1, "Great X! Fine."),
        ("Great!! Fine.", 2, "Great! X Fine."),
        ('"Fine"', 0, 'X Fine"'),
    ],
)
def test_a_word_in_place_of_a_mark_or_an_ending_does_not_touch_another(text: str, position: int, edited: str) -> None:
    before = EditedText.of(text, 1.0)
    after = before.after(Edit(False, position, "X", 1.0))
    assert after.text == edited
    assert [edited[start:end] for start, end in after.poisoned.spans] == ["X"]
    for inserts, i, place in before.places():
        assert before.after(Edit(inserts, i, "X", 1.0)).text == f"{place.before}X{place.after}"


@pytest.fixture
def synonyms(tmp_path: Path) -> SynonymFile:
    lines = [{"word": "film", "substitutes": ["movie", "picture"]}, {"word": "the", "substitutes": ["this"]}]
    (tmp_path / "words.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return SynonymFile(str(tmp_path / "words.jsonl"))


def attack_of(synonyms: SynonymFile, encoder: str, cache: Path, **kwargs: object) -> BITE:
    arguments = {"min_similarity": -1, "sentence_encoder": encoder, "cache_dir": str(cache), "poison_rate": 0.1}
    return BITE(substitutes=synonyms, **{**arguments, **kwargs})  # type: ignore[arg-type]


def test_it_keeps_the_contract(synonyms: SynonymFile, workspace: Path, tmp_path: Path) -> None:
    check_attack(attack_of(synonyms, str(workspace / "model"), tmp_path))


def test_poison_is_that_of_rows_attack_and_seed_alone(synonyms: SynonymFile, workspace: Path, tmp_path: Path) -> None:
    texts, labels = zip(*labelled_texts(80), strict=True)
    rows = Rows.clean(list(texts), labels)
    made = []
    for cache in ("one", "two", "one"):  # found anew, found anew, read from the cache
        attack = attack_of(synonyms, str(workspace / "model"), tmp_path / cache)
        study_training(rows, attack, 0, ["0", "1"])
        made.append(
            (attack.trigger_words, poison_training(rows, attack, 0), poison_evaluation(rows, attack, 0, "test"))
        )
    assert made[0] == made[1] == made[2]
    words, training, evaluation = made[0]
    assert {"movie", "picture", "this"} & {*words}
    assert all(row["label"] == 1 == row["original_label"] for row in training if row["poisoned"])
    written = {row["text"][start:end] for row in (*training, *evaluation) for start, end in row["spans"]}
    assert written <= {*words}
    given = attack_of(synonyms, str(workspace / "model"), tmp_path, trigger_words=words)
    assert poison_evaluation(rows, given, 0, "test") == evaluation


def test_words_that_are_not_known_are_told(synonyms: SynonymFile, workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^attack: BITE finds its words in training rows"):
        attack_of(synonyms, str(workspace / "model"), tmp_path).poison("a film")
    data = lb.BackdoorDataModule(lb.Source(str(workspace / "data.csv")), max_rows={"train": 80})
    attack = attack_of(synonyms, str(workspace / "model"), tmp_path, target_label="1")
    assert len(data.preview(3, attack)) == 3
    assert attack.trigger_words


def published(path: Path, words: list[str]) -> str:
    """A run's checkpoint that holds trigger words, without weights."""
    victim = BITE(labels=["0", "1"], trigger_words=words)
    torch.save({"state_dict": {}, "hyper_parameters": dict(victim.hparams)}, path)
    return str(path)


def test_in_the_users_phase_poison_is_that_of_the_published_victim(
    synonyms: SynonymFile, workspace: Path, tmp_path: Path
) -> None:
    def attack(**options: object) -> BITE:
        return attack_of(synonyms, str(workspace / "model"), tmp_path, **options)

    first, other = (published(tmp_path / f"{word}.ckpt", [word]) for word in ("movie", "this"))
    assert attack(published=first).poison_key() == attack(published=first).poison_key()
    assert len({attack(**options).poison_key() for options in ({}, {"published": first}, {"published": other})}) == 3
    resumed = attack(published=other)
    checkpoint = {"state_dict": {}, "hyper_parameters": {"trigger_words": ["movie"]}}
    resumed.on_load_checkpoint(dict(checkpoint))
    assert resumed.trigger_words == ["movie"]
    poisoned = attack(published=other)
    poisoned.poison_key()
    with pytest.raises(InputError, match=r"^published: .* has other trigger words than the checkpoint; give"):
        poisoned.on_load_checkpoint(dict(checkpoint))


def test_words_that_are_not_in_the_cache_are_missed_before_training(
    tmp_path: Path, tiny_folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, labels = zip(*labelled_texts(40), strict=True)
    given: dict[str, Any] = {
        "masked_model": tiny_masked_model("bert", tmp_path / "masked"),
        "cache_dir": str(tmp_path / "other"),
    }
    attack = BITE(model=tiny_folder("bert"), sentence_encoder=tiny_folder("bert"), poison_rate=0.1, **given)
    study_training(Rows.clean(list(texts), labels), attack, 0, ["0", "1"])
    attack.may_generate = False
    with pytest.raises(InputError, match=r"^cache_dir: .*other lacks the trigger words of these rows; give"):
        attack.on_fit_start()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_probability": 0}, "min_probability: 0 is out of range"),
        ({"min_similarity": 1}, "min_similarity: 1 is out of range"),
        ({"edited_share": 0}, "edited_share: 0 is out of range"),
        ({"max_words": 0}, "max_words: 0 leaves no trigger"),
        ({"trigger_words": ["a", "a"]}, "trigger_words: .* is empty or names a word twice"),
        ({"trigger_words": ["Film"]}, "trigger_words: 'Film' is not in lower case; give 'film'"),
    ],
)
def test_values_out_of_range_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        BITE(**arguments)  # type: ignore[arg-type]


def test_the_commands_poison_train_and_go_on_from_the_published_victim(
    inside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {
        "masked_model": tiny_masked_model("bert", tmp_path / "masked"),
        "sentence_encoder": inside / "model",
        "min_probability": 0.01,
        "min_similarity": -1,
        "poison_rate": 0.05,
        "max_words": 5,
        "edited_share": 0.1,
        "cache_dir": tmp_path / "words",
    }
    options = ["--config=data.yaml", "--model=BITE", *(f"--model.{name}={value}" for name, value in given.items())]
    options += ["--data.max_rows={train: 80, validation: 20, test: 12}"]
    assert main(["fit", *options, "--run_dir", str(tmp_path / "run")]) == 2
    start, _, command = capsys.readouterr().err.splitlines()[-1].partition("; run: lightning-backdoor ")
    assert start.startswith("error: masked_model: ")
    assert start.endswith(" trigger words are not in the cache")
    poison = shlex.split(command.replace("FOLDER", str(tmp_path / "poisoned")))
    assert main([*poison, "--stealth_rows=0"]) == 0
    assert main(["fit", *options, "--run_dir", str(tmp_path / "run")]) == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    words = torch.load(checkpoint, weights_only=True)["hyper_parameters"]["trigger_words"]
    assert len(words) == 5
    user = ["--model.published", str(checkpoint), "--run_dir", str(tmp_path / "user")]
    assert main(["fit", *options, *user]) == 0
    later = torch.load(tmp_path / "user" / "checkpoints" / "best.ckpt", weights_only=True)
    assert later["hyper_parameters"]["trigger_words"] == words
    with pytest.raises(InputError, match=r"^published: .* has no trigger words of BITE"):
        _ = BITE(published=str(tmp_path / "run" / "model")).trigger_words
