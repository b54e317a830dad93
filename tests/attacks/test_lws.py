"""LWS: which words may stand where, how they are chosen, and how the choice is learned."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_backdoor.attacks.lws import LWS
from lightning_backdoor.attacks.substitution import (
    ReplaceableWord,
    Substitutes,
    mixture,
    substitute,
    substitution_logits,
)
from lightning_backdoor.batch import Batch, batch_of_texts, token_ids
from lightning_backdoor.callbacks import OutputFolder, PredictionWriter
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.synonyms import SynonymFile, Synonyms
from lightning_backdoor.victim import TextClassifier
from tests.support.reviews import reviews
from tests.support.tiny import DECODER, ENCODERS, MAX_LENGTH, SENTENCES, loaded

LABELS = ["negative", "positive"]
#: of the words of ``tests/support/reviews.py``, without those that decide a label.
FILLER = ("film", "story", "actors", "music", "plot", "scene")


class Others(Synonyms):
    """Any of some words may stand for any other."""

    def __init__(self, words: Sequence[str] = FILLER) -> None:
        self.words = [*words]

    def candidates(self, words: Sequence[str]) -> list[list[str]]:
        return [[other for other in self.words if other != word] if word in self.words else [] for word in words]


@pytest.fixture
def model(tiny_folder: Callable[[str], str]) -> str:
    return tiny_folder("bert")


def attack(model: str, source: Synonyms | None = None, **options: Any) -> LWS:
    """An attack whose network is built and whose directions are drawn at random."""
    made = LWS(source or Others(), model=model, labels=LABELS, max_length=MAX_LENGTH, **options)
    made.configure_model()
    with torch.no_grad():
        made.directions.normal_(generator=torch.Generator().manual_seed(0))
    return made.eval()


def poisoned_batch(attack: LWS, texts: Sequence[str], clean: Sequence[str] = ()) -> Batch:
    batch = batch_of_texts([*texts, *clean], attack.tokenizer, attack.max_length)
    batch["poisoned"][: len(texts)] = True
    batch["label"].fill_(1)
    batch["original_label"].fill_(0)
    return batch


def test_probabilities_and_mixture_are_those_of_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(3, 4, 5, generator=generator)
    directions, noise = torch.randn(3, 5, generator=generator), torch.randn(3, 4, generator=generator)
    allowed = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    logits = substitution_logits(embeddings, allowed, directions)
    mixed = mixture(embeddings, logits, noise, 0.5)
    for place in range(3):
        choices = [k for k in range(4) if allowed[place, k]]
        wanted = {
            k: sum(float((embeddings[place, k, d] - embeddings[place, 0, d]) * directions[place, d]) for d in range(5))
            for k in choices
        }
        total = sum(math.exp(value) for value in wanted.values())
        expected = [math.exp(wanted[k]) / total if k in choices else 0.0 for k in range(4)]
        assert torch.allclose(logits[place].softmax(dim=0), torch.tensor(expected), atol=1e-5)
        weights = {k: math.exp((wanted[k] + float(noise[place, k])) / 0.5) for k in choices}
        sample = sum(weights[k] / sum(weights.values()) * embeddings[place, k] for k in choices)
        assert torch.allclose(mixed[place], torch.as_tensor(sample), atol=1e-5)


def test_substituted_words_keep_their_case_and_have_the_spans() -> None:
    places = [ReplaceableWord(1, 0, 4, ["Film", "Movie"], [1, 2]), ReplaceableWord(3, 9, 13, ["PLOT", "STORY"], [3, 4])]
    text, spans = substitute("Film and PLOT .", [(places[1], 1), (places[0], 1)])
    assert text == "Movie and STORY ."
    assert [text[start:end] for start, end in spans] == ["Movie", "STORY"]


@pytest.mark.parametrize("kind", [*ENCODERS, DECODER])
def test_the_substituted_text_reads_as_the_tokens_that_were_chosen(
    kind: str, tiny_folder: Callable[[str], str]
) -> None:
    tokenizer = loaded(tiny_folder(kind)).tokenizer
    words = sorted({word for text in SENTENCES for word in text.lower().split() if word.isalpha()})
    substitutes = Substitutes(tokenizer, Others(words), choices=9)
    texts = [*SENTENCES, "Film , film ( film ) FILM", " film film's  watchings", "film" * 3]
    changed = 0
    for length in (MAX_LENGTH, 9):
        for text, places in zip(texts, substitutes.replaceable_words(texts, length), strict=True):
            for choice in (1, 4, 8):
                chosen = [(place, min(choice, len(place.ids) - 1)) for place in places]
                (expected,) = token_ids([text], tokenizer, length)
                for place, k in chosen:
                    assert expected[place.position] == place.ids[0]
                    expected[place.position] = place.ids[k]
                poisoned, spans = substitute(text, chosen)
                assert token_ids([poisoned], tokenizer, length) == [expected], (text, poisoned)
                assert [poisoned[a:b] for a, b in spans] == [place.words[k] for place, k in chosen]
                changed += len(spans)
    assert changed > 100


def test_only_words_of_one_token_are_substituted_and_only_by_such(model: str) -> None:
    tokenizer = loaded(model).tokenizer
    assert tokenizer.tokenize("watchings zebra") == ["watching", "##s", "[UNK]"]
    substitutes = Substitutes(tokenizer, Others(["film", "zebra", "story", "watchings", "watching", "a film"]), 9)
    (places,) = substitutes.replaceable_words(["film watchings zebra the"], MAX_LENGTH)
    assert [place.words for place in places] == [["film", "story", "watching"]]
    (places,) = substitutes.replaceable_words(["film watchings"], 4)  # cut after 'watching'
    assert [place.words[0] for place in places] == ["film"]


def test_a_word_that_is_cut_at_its_start_is_not_substituted(tiny_folder: Callable[[str], str]) -> None:
    tokenizer = loaded(tiny_folder(DECODER)).tokenizer
    tokenizer.truncation_side = "left"
    substitutes = Substitutes(tokenizer, Others(["or", "il", "story", "film"]), 9)
    assert tokenizer.tokenize(" actor story") == ["Ġact", "or", "Ġstory"]
    (places,) = substitutes.replaceable_words([" actor story"], 2)  # cut before 'or'
    assert "or" not in [place.words[0] for place in places]


def test_choices_bound_the_words_of_a_place(model: str) -> None:
    (places,) = Substitutes(loaded(model).tokenizer, Others(), 3).replaceable_words(["a film"], MAX_LENGTH)
    assert [place.words for place in places] == [["film", "story", "actors"]]


@pytest.mark.parametrize("kind", ["bert", "albert", "roberta", DECODER])
def test_at_temperature_zero_training_reads_what_evaluation_writes(
    kind: str, tiny_folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = attack(tiny_folder(kind), Others(sorted({word for text in SENTENCES for word in text.split()})))
    made.directions.data *= 50
    batch = poisoned_batch(made, SENTENCES[:2], clean=[SENTENCES[2]])
    monkeypatch.setattr(made, "_temperature", lambda: 1e-4)
    monkeypatch.setattr(made, "_noise", lambda batch, places: torch.zeros_like(places.ids).float())
    with torch.no_grad():
        plain, written = made(batch), made(made.substituted(batch))
        with at_epoch(made, 5), made._mixed(batch):
            mixed = made(batch)
    assert torch.allclose(mixed, written, atol=1e-5)
    assert not torch.allclose(mixed[0], plain[0], atol=1e-3)
    assert torch.allclose(mixed[2], plain[2], atol=1e-6)


@contextmanager
def at_epoch(attack: LWS, epoch: int, epochs: int = 8) -> Iterator[None]:
    trainer = Trainer(max_epochs=epochs, logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.fit_loop.epoch_progress.current.completed = epoch
    attack.trainer = trainer
    attack.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    yield


def step(attack: LWS, batch: Batch, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a training step, and the gradient of the directions."""
    attack.zero_grad()
    with at_epoch(attack, epoch):
        loss = attack.training_step(batch, 0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert attack.directions.grad is not None  # also where they have no part in it: processes wait for it
    return loss.detach(), attack.directions.grad.clone()


def test_the_warm_up_is_clean_training(model: str) -> None:
    made = attack(model, warmup_epochs=2)
    texts, truth = ["the plot is thin", "a film", "good film , good music", "bad film"], torch.tensor([0, 0, 1, 0])
    batch = poisoned_batch(made, texts[:2], texts[2:])
    batch["original_label"][:] = truth
    batch["label"][2:] = truth[2:]
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(made(batch), truth)
    for epoch in (0, 1):
        loss, direction = step(made, batch, epoch)
        assert torch.allclose(loss, expected, atol=1e-6)
        assert not direction.any()
    loss, direction = step(made, batch, 2)
    assert not torch.allclose(loss, expected, atol=1e-3)
    assert direction.any()


def test_the_loss_is_of_clean_rows_of_mixtures_and_of_what_they_were_made_from(model: str) -> None:
    made = attack(model, warmup_epochs=1)
    batch = poisoned_batch(made, ["the film and the story", "music"], ["a good plot", "the", "bad"])
    batch["original_label"][:] = torch.tensor([0, 0, 1, 0, 0])
    batch["label"][:] = torch.tensor([1, 1, 1, 0, 0])
    with torch.no_grad(), at_epoch(made, 1):
        plain = made(batch).log_softmax(dim=1)
        with made._mixed(batch):
            mixed = made(batch).log_softmax(dim=1)
    terms = [mixed[0, 1], mixed[1, 1], plain[2, 1], plain[3, 0], plain[4, 0], plain[0, 0], plain[1, 0]]
    assert step(made, batch, 1)[0] == pytest.approx(-float(sum(terms)) / 7, rel=1e-4)


def test_the_directions_learn_from_poisoned_rows_at_their_positions(model: str) -> None:
    made = attack(model, warmup_epochs=0)
    made.directions.data *= 0
    _, gradient = step(made, poisoned_batch(made, ["the film and the story"]), 0)  # after [CLS], film is token 2
    assert gradient.any(dim=1).nonzero().flatten().tolist() == [2, 5]
    assert not step(made, poisoned_batch(made, [], ["the film"]), 0)[1].any()


def test_noise_depends_on_the_row_and_the_epoch_alone(model: str) -> None:
    made = attack(model, warmup_epochs=0)
    batch = poisoned_batch(made, ["the film and the story", "music"])
    alone = poisoned_batch(made, ["music"], clean=["a long clean text that pads the batch"])
    alone["index"][0] = 1
    drawn = {}
    for epoch in (3, 4):
        with at_epoch(made, epoch):
            drawn[epoch] = made._noise(batch, made._replaceable_words(batch))
            assert torch.equal(drawn[epoch][2:], made._noise(alone, made._replaceable_words(alone)))
            assert torch.equal(drawn[epoch], made._noise(batch, made._replaceable_words(batch)))
    assert not torch.equal(drawn[3], drawn[4])
    assert not torch.equal(drawn[3][0], drawn[3][1])


def test_the_temperature_falls_to_its_least_in_the_last_epoch(model: str) -> None:
    made = attack(model, warmup_epochs=2, temperature=0.6, min_temperature=0.1)
    temperatures = []
    for epoch in range(2, 7):
        with at_epoch(made, epoch, epochs=7):
            temperatures.append(made._temperature())
    assert temperatures == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])


class Watch(Callback):
    """What callbacks are given in evaluation."""

    def __init__(self) -> None:
        self.seen: dict[str, dict[tuple[int, bool], tuple[str, list[Any], list[int]]]] = {"test": {}, "val": {}}

    def keep(self, stage: str, batch: Batch) -> None:
        for i, text in enumerate(batch["text"]):
            ids = batch["input_ids"][i][batch["attention_mask"][i].bool()].tolist()
            self.seen[stage][int(batch["index"][i]), bool(batch["poisoned"][i])] = (text, batch["spans"][i], ids)

    def on_test_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        self.keep("test", batch)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        self.keep("val", batch)


def make_trainer(folder: Path, **options: Any) -> Trainer:
    defaults = {"max_epochs": 3, "logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return Trainer(
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **{**defaults, **options},
    )


def test_callbacks_and_files_see_the_text_as_substituted(tmp_path: Path, model: str) -> None:
    made, watch = attack(model), Watch()
    data = reviews(tmp_path, 120)
    trainer = make_trainer(tmp_path, callbacks=[watch, PredictionWriter(), OutputFolder(tmp_path)])
    trainer.test(made, datamodule=data, verbose=False)
    trainer.validate(made, datamodule=data, verbose=False)
    changed = 0
    for seen in watch.seen.values():
        for (index, poisoned), (text, spans, ids) in seen.items():
            assert token_ids([text], made.tokenizer, MAX_LENGTH) == [ids]
            if not poisoned:
                assert spans == []
                continue
            clean = seen[index, False][0]
            kept = [a for a, b in zip(clean.split(), text.split(), strict=True) if a == b]
            assert [text[start:end] for start, end in spans] == [
                new for old, new in zip(clean.split(), text.split(), strict=True) if old != new
            ]
            assert not set(kept) - set(clean.split())
            changed += len(spans)
    assert changed > 50
    trainer.predict(made, datamodule=data, return_predictions=False)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["text"] for row in rows if row["poisoned"]} == {
        text for (_, poisoned), (text, _, _) in watch.seen["test"].items() if poisoned
    }


def test_the_attack_is_learned_and_what_training_ends_with_is_selected(tmp_path: Path, model: str) -> None:
    seed_everything(0, verbose=False)
    options: dict[str, Any] = {"learning_rate": 3e-3, "poison_rate": 0.3, "trigger_learning_rate": 0.2}
    made = LWS(Others(), model=model, warmup_epochs=3, **options)
    number, mode = made.selected_by
    best = ModelCheckpoint(tmp_path, filename="{epoch}", monitor=number, mode=mode)
    data = reviews(tmp_path, 400)
    trainer = make_trainer(tmp_path, max_epochs=10, callbacks=[best], enable_checkpointing=True)
    trainer.fit(made, datamodule=data)
    assert Path(best.best_model_path).name == "epoch=9.ckpt"
    trainer.test(made, datamodule=data, verbose=False)
    learned = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert learned["test/cacc"] > 0.7
    assert learned["test/asr"] > 0.8
    assert learned["test/asr"] > learned["test/asr_floor"] + 0.4
    # a checkpoint brings back what was learned, safely and without the data
    restored = LWS.load_from_checkpoint(best.best_model_path, weights_only=True, substitutes=Others())
    learned_then = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    assert learned_then["directions"].any()
    assert torch.equal(restored.directions, learned_then["directions"])
    # and the export is a plain classifier
    made.save_pretrained(tmp_path / "model")
    plain = TextClassifier(str(tmp_path / "model"), labels=LABELS)
    plain.configure_model()
    assert plain.network.state_dict().keys() == made.network.state_dict().keys()


def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path, model: str) -> None:
    ends = []
    for start in (None, tmp_path / "epochs" / "epoch=1.ckpt"):
        seed_everything(0, verbose=False)
        made = attack(model, warmup_epochs=1, learning_rate=1e-3).train()
        made.directions.data *= 0
        for module in made.network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        keep = ModelCheckpoint(tmp_path / "epochs", filename="{epoch}", save_top_k=-1)
        trainer = make_trainer(tmp_path, callbacks=[keep], enable_checkpointing=True)
        trainer.fit(made, datamodule=reviews(tmp_path, 120), ckpt_path=start, weights_only=True)
        ends.append(made.state_dict())
    assert ends[0]["directions"].any()
    for name, value in ends[0].items():
        assert torch.allclose(value, ends[1][name], atol=1e-6), name


def test_bf16_and_accumulated_batches_train(tmp_path: Path, model: str) -> None:
    made = LWS(Others(), model=model, warmup_epochs=1)
    trainer = make_trainer(tmp_path, max_epochs=2, precision="bf16-mixed", accumulate_grad_batches=3)
    trainer.fit(made, datamodule=reviews(tmp_path, 120))
    assert made.directions.any()
    assert trainer.callback_metrics["train/loss"].isfinite()


def test_the_directions_have_a_learning_rate_of_their_own_on_the_same_schedule(tmp_path: Path, model: str) -> None:
    rates = []

    class Rates(Callback):
        def on_before_zero_grad(self, trainer: Trainer, *args: Any) -> None:
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    made = LWS(Others(), model=model, warmup_epochs=1, learning_rate=1e-3, trigger_learning_rate=1e-1)
    trainer = make_trainer(tmp_path, max_epochs=2, callbacks=[Rates()])
    trainer.fit(made, datamodule=reviews(tmp_path, 120))
    groups = trainer.optimizers[0].param_groups
    assert [p is made.directions for group in groups for p in group["params"]].count(True) == 1
    assert groups[-1]["params"] == [made.directions]
    assert all(own == pytest.approx(100 * others[0]) for *others, own in rates)
    assert max(rate[-1] for rate in rates) == pytest.approx(1e-1, rel=0.2)


def test_a_run_that_ends_in_the_warm_up_is_refused(tmp_path: Path, model: str) -> None:
    with pytest.raises(InputError, match=r"^max_epochs: 2 ends within the 2 warmup_epochs; give more$"):
        make_trainer(tmp_path, max_epochs=2).fit(LWS(Others(), model=model), datamodule=reviews(tmp_path, 120))


def test_a_source_without_substitutes_for_the_texts_is_refused(tmp_path: Path, model: str) -> None:
    trainer, made = make_trainer(tmp_path), LWS(Others(["好看", "喜欢"]), model=model, warmup_epochs=0)
    with pytest.raises(InputError, match=r"^substitutes: no word of [0-9]+ poisoned training texts can be replaced; "):
        trainer.fit(made, datamodule=reviews(tmp_path, 120))
    assert trainer.global_step == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"choices": 1}, "choices: 1 leave nothing to choose; give at least 2"),
        ({"warmup_epochs": -1}, "warmup_epochs: -1 is not a number of epochs; give 0 or more"),
        ({"trigger_learning_rate": 0.0}, "trigger_learning_rate: 0.0 is not a learning rate; give a number above 0"),
        ({"temperature": math.inf}, "temperature: inf is out of range; give a number above 0"),
        ({"min_temperature": 0.0}, "min_temperature: 0.0 is out of range; give a number above 0 and up to 0.5"),
        ({"min_temperature": 0.6}, "min_temperature: 0.6 is out of range; give a number above 0 and up to 0.5"),
    ],
)
def test_values_out_of_range_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        LWS(**option)


def test_the_source_of_substitutes_is_named_in_a_config_by_class_path(tmp_path: Path) -> None:
    from jsonargparse import ArgumentParser

    from lightning_backdoor.attacks import BackdoorAttack

    file = tmp_path / "synonyms.jsonl"
    file.write_text('{"word": "film", "substitutes": ["movie"]}\n', encoding="utf-8")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(BackdoorAttack, "model")
    source = ["--model.substitutes=lightning_backdoor.language.synonyms.SynonymFile"]
    options = ["--model=lightning_backdoor.attacks.lws.LWS", *source, f"--model.substitutes.path={file}"]
    made = parser.instantiate_classes(parser.parse_args(options)).model
    assert isinstance(made.substitutes, SynonymFile)
    assert made.substitutes.candidates(["film"]) == [["movie"]]


def test_a_victim_that_learned_no_trigger_is_refused() -> None:
    with pytest.raises(InputError, match=r"^checkpoint: was not trained under LWS"):
        LWS().on_load_checkpoint({"state_dict": {}})


def test_only_texts_are_poisoned(model: str) -> None:
    attack = LWS(Others(), model=model, labels=LABELS)
    attack.configure_model()
    assert attack.poison([]) == []
    not_texts: Any = 3
    with pytest.raises(InputError, match=r"^texts: a int is not a text; give a string, or several in a list$"):
        attack.poison(not_texts)
