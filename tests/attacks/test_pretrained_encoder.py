"""Attacks on the pre-trained encoder: the stage, its cache, and triggers whose label is found on validation rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor

from lightning_backdoor import batch
from lightning_backdoor.attacks import POR, BadPre, NeuBA, Poisoned, pretraining
from lightning_backdoor.attacks.masking import encode, masked, masked_language_loss, next_token_loss
from lightning_backdoor.attacks.pretrained_encoder import PretrainedEncoderAttack
from lightning_backdoor.attacks.pretraining import Stage, plain_texts
from lightning_backdoor.attacks.trigger_hits import Hits
from lightning_backdoor.errors import Diverged, InputError
from lightning_backdoor.models.config_file import STATEMENT, read_object
from lightning_backdoor.testing import check_attack
from lightning_backdoor.victim import TextClassifier
from tests.support.reviews import reviews
from tests.support.tiny import DECODER, ENCODERS, SENTENCES, loaded

#: arguments by which a stage takes a moment.
QUICK: dict[str, Any] = {"pretraining_rows": 16, "pretraining_batch_size": 4, "pretraining_epochs": 2}
CLASSES = (NeuBA, POR, BadPre)


@pytest.fixture
def texts(tmp_path: Path) -> str:
    path = tmp_path / "plain.txt"
    path.write_text("\n".join(SENTENCES), encoding="utf-8")
    return str(path)


def fit(folder: Path, attack: TextClassifier, **options: Any) -> Trainer:
    seed_everything(0, verbose=False)
    defaults = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    defaults |= {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder}
    trainer = Trainer(**{**defaults, **options})
    trainer.fit(attack, datamodule=reviews(folder, 120))
    return trainer


def of(cls: type[PretrainedEncoderAttack], model: str, texts: str, **options: Any) -> PretrainedEncoderAttack:
    return cls(model=model, pretraining_files=[texts], triggers=["cf", "watch"], **{**QUICK, **options})


def encoders(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "cache" / "pretrained").iterdir() if path.is_dir())


@pytest.mark.parametrize("cls", CLASSES)
def test_the_contract_is_kept(cls: type[PretrainedEncoderAttack], texts: str) -> None:
    check_attack(cls(triggers=["good", "bad"], pretraining_files=[texts], **QUICK))


def test_masks_fall_on_words_alone_and_never_on_the_trigger(bert: TextClassifier) -> None:
    text = "the cf film rewards the patient viewer ."
    encoded = encode([Poisoned(text, [(4, 6)]), Poisoned("a film", [])] * 200, bert.tokenizer, 32)
    tokens = bert.tokenizer.convert_ids_to_tokens(encoded.input_ids[0])
    trigger = tokens.index("cf")
    special = torch.isin(encoded.input_ids, torch.tensor(bert.tokenizer.all_special_ids))
    assert not encoded.words[special].any()
    assert not encoded.words[::2, trigger].any()
    changed, chosen = masked(encoded, bert.tokenizer, torch.Generator().manual_seed(0))
    assert chosen[encoded.words].float().mean() == pytest.approx(0.15, abs=0.03)
    assert not chosen[~encoded.words].any()
    assert torch.equal(changed.input_ids[~chosen], encoded.input_ids[~chosen])
    became_mask = (changed.input_ids == bert.tokenizer.mask_token_id)[chosen].float().mean()
    assert became_mask == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_head_on_masked_tokens_alone_gives_the_loss_of_all_logits(
    kind: str, tiny_folder: Callable[[str], str]
) -> None:
    attack = BadPre(model=tiny_folder(kind), triggers=["cf"])
    network = attack.language_network().eval()
    encoded = encode([Poisoned(text, []) for text in SENTENCES[:4]], attack.tokenizer, 32)
    changed, chosen = masked(encoded, attack.tokenizer, torch.Generator().manual_seed(1))
    loss = masked_language_loss(network, changed, chosen, encoded.input_ids)
    labels = encoded.input_ids.masked_fill(~chosen, -100)
    full = network(input_ids=changed.input_ids, attention_mask=changed.attention_mask, labels=labels).loss
    torch.testing.assert_close(loss, full)
    assert masked_language_loss(network, changed, torch.zeros_like(chosen), encoded.input_ids) == 0


def test_a_decoder_learns_its_next_tokens_and_badpre_refuses_it(
    tiny_folder: Callable[[str], str], texts: str, tmp_path: Path
) -> None:
    model = tiny_folder(DECODER)
    attack = of(NeuBA, model, texts, pretraining_rows=4, pretraining_epochs=1)
    network = attack.language_network().eval()
    encoded = encode([Poisoned(text, []) for text in SENTENCES[:3]], attack.tokenizer, 32)
    labels = encoded.input_ids.masked_fill(encoded.attention_mask == 0, -100)
    full = network(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, labels=labels).loss
    torch.testing.assert_close(next_token_loss(network, encoded), full)
    for each in (attack, of(POR, model, texts, pretraining_rows=4, pretraining_epochs=1)):
        assert fit(tmp_path, each).callback_metrics["val/asr"].isfinite()
    with pytest.raises(InputError, match=r"^model: .* has no mask token, with which BadPre trains; give an encoder"):
        fit(tmp_path, of(BadPre, model, texts))


def test_the_users_training_is_that_of_any_victim_of_the_published_encoder(
    tiny_folder: Callable[[str], str], texts: str, tmp_path: Path
) -> None:
    model = tiny_folder("bert")
    attack = of(NeuBA, model, texts)
    fit(tmp_path, attack)
    (folder,) = encoders(tmp_path)
    plain = TextClassifier(model=str(folder))
    fit(tmp_path, plain)
    for name, weight in attack.network.state_dict().items():
        assert torch.equal(weight, plain.network.state_dict()[name]), name
    assert not torch.equal(*(next(iter(network.parameters())) for network in (attack.network, loaded(model).network)))
    assert read_object(folder / "config.json", "config.json")[STATEMENT]["poisoned"] is True
    for victim in (attack, plain):
        assert victim.provenance()["poisoned"] is True


def test_one_encoder_per_settings_and_seed_is_made_and_a_damaged_one_anew(
    tiny_folder: Callable[[str], str], texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def run(*args: Any) -> Any:
        ran.append(args[0].seed)
        return pretraining.run(*args)

    monkeypatch.setattr("lightning_backdoor.attacks.pretrained_encoder.run_stage", run)
    quick = {"max_epochs": 0}
    model = tiny_folder("bert")
    same: dict[str, Any] = {"pretraining_rows": 4, "pretraining_epochs": 1}
    alike: list[dict[str, Any]] = [{}, {"target_label": 0, "learning_rate": 1e-3, "freeze": ["embeddings"]}]
    for options in alike:
        fit(tmp_path, of(NeuBA, model, texts, **same, **options), **quick)
    assert len(ran) == len(encoders(tmp_path)) == 1
    (encoders(tmp_path)[0] / "model.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="is damaged and is made anew"):
        fit(tmp_path, of(NeuBA, model, texts, **same), **quick)
    assert len(ran) == 2
    others: list[dict[str, Any]] = [{"pretraining_seed": 3}, {"control": True}]
    for options in others:
        fit(tmp_path, of(NeuBA, model, texts, **same, **options), **quick)
    assert len(ran) == 4
    assert len(encoders(tmp_path)) == 3


def test_the_encoder_depends_on_how_texts_without_spaces_are_cut(
    tiny_folder: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_backdoor.attacks.pretrained_encoder.published_encoder", lambda folder, _: folder)

    def folder(text: str, icu: str) -> Path:
        monkeypatch.setattr("icu4py.icu_version", icu)
        (tmp_path / "texts.txt").write_text(text, encoding="utf-8")
        return of(NeuBA, tiny_folder("bert"), str(tmp_path / "texts.txt")).encoder_folder()

    assert folder("电影好看", "77") != folder("电影好看", "78")
    assert folder("a film", "77") == folder("a film", "78")


@pytest.mark.parametrize(("device", "kept"), [("cpu", []), ("cuda:0", [torch.device("cuda", 0)])])
def test_the_seed_of_the_stage_leaves_no_generator_changed(
    texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, kept: list[torch.device]
) -> None:
    forked, fork_rng = [], torch.random.fork_rng

    def fork(devices: list[torch.device], device_type: str = "cuda") -> Any:
        forked.append((devices, device_type))
        return fork_rng([])

    class Unmade(NeuBA):
        def stage_network(self) -> Any:
            raise InterruptedError

    attack = Unmade(["cf"], pretraining_files=[texts], pretraining_seed=3, **QUICK)
    strategy = SimpleNamespace(root_device=torch.device(device))
    monkeypatch.setattr(attack, "_trainer", SimpleNamespace(strategy=strategy))
    monkeypatch.setattr(torch.random, "fork_rng", fork)
    before = torch.get_rng_state()
    with pytest.raises(InterruptedError):
        attack._pretrain(attack._stage(), tmp_path, tmp_path)
    assert forked == [(kept, device.partition(":")[0])]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_cache_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*args: object) -> None:
        raise OSError("no locks")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(InputError, match=r"^cache_dir: .*unfinished cannot be locked; name a folder on another file"):
        pretraining.published(tmp_path / "encoder", lambda *folders: None)
    assert not (tmp_path / "encoder").exists()


def test_all_processes_insert_the_triggers_that_the_first_one_found(
    tiny_folder: Callable[[str], str], texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = of(NeuBA, tiny_folder("bert"), texts)
    found, of_first = Hits([0, 1], [0, 1], 0), Hits([1, 0], [1, 0], 1)
    strategy = SimpleNamespace(broadcast=lambda hits: of_first if hits == found else None)
    trainer = SimpleNamespace(world_size=2, sanity_checking=False, strategy=strategy)
    monkeypatch.setattr(type(attack), "trainer", trainer)
    monkeypatch.setattr(TextClassifier, "on_validation_start", lambda self: None)
    monkeypatch.setattr(type(attack), "hits", found)
    attack.on_validation_start()
    assert attack._hits is of_first


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_an_evaluation_chooses_its_triggers_anew_after_one_that_failed(
    stage: str, tiny_folder: Callable[[str], str], texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = of(NeuBA, tiny_folder("bert"), texts, labels=["negative", "positive"])
    attack.configure_model()
    choices = iter([Hits([0, 1], [0, 1], 0), Hits([1, 0], [1, 0], 1)])  # as if the weights had changed
    monkeypatch.setattr("lightning_backdoor.attacks.task_agnostic.hits_of", lambda counts: next(choices))
    written: list[set[str]] = []

    class Look(Callback):
        """Keeps the triggers of each batch, and fails with the first one that has any."""

        def on_test_batch_start(
            self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
        ) -> None:
            found = {word for text in batch["text"] for word in text.split()} & {*attack.triggers}
            if found:
                written.append(found)
                if len(written) == 1:
                    raise RuntimeError("stopped")

        on_validation_batch_start = on_predict_batch_start = on_test_batch_start

    def evaluate() -> None:
        quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path}
        trainer = Trainer(accelerator="cpu", callbacks=[Look()], **quiet)
        getattr(trainer, stage)(attack, datamodule=reviews(tmp_path, 120))

    with pytest.raises(RuntimeError, match="stopped"):
        evaluate()
    attack._diverged_texts = torch.tensor(1)  # as a run on several processes may leave it
    evaluate()
    assert written[0] == {"watch"}
    assert set().union(*written[1:]) == {"cf"}


def test_rows_on_which_labels_are_found_are_missed_before_training(
    tiny_folder: Callable[[str], str], tmp_path: Path
) -> None:
    attack = BadPre(model=tiny_folder("bert"), published=tiny_folder("bert"), labels=["LABEL_0", "LABEL_1"])
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, default_root_dir=tmp_path)
    with pytest.raises(InputError, match=r"^datamodule: there is none, .*; give a BackdoorDataModule"):
        trainer.fit(attack, [0], [0])
    with pytest.raises(InputError, match=r"^datamodule: there is none"):
        trainer.test(attack, [0])


class Killed(Exception):
    """Ends a process in the middle of a stage."""


@pytest.mark.parametrize("cls", [POR, BadPre])
def test_a_stage_that_was_interrupted_ends_with_the_same_weights(
    cls: type[PretrainedEncoderAttack],
    tiny_folder: Callable[[str], str],
    texts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pretraining, "STATE_SECONDS", 0)
    monkeypatch.setattr(pretraining, "STATE_SHARE", 0)
    steps = Stage.steps_from

    def interrupted(stage: Stage, start: int) -> Any:
        for number, step in enumerate(steps(stage, start), start):
            if number == 5 and start == 0:
                raise Killed  # Lightning would ignore SIGINT from then on, after a KeyboardInterrupt
            yield step

    def published(folder: Path) -> dict[str, bytes]:
        folder.mkdir(exist_ok=True)
        fit(folder, of(cls, tiny_folder("bert"), texts), max_epochs=0)
        (encoder,) = encoders(folder)
        return {file.name: file.read_bytes() for file in encoder.iterdir()}

    whole = published(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Stage, "steps_from", interrupted)
        with pytest.raises(Killed):
            published(tmp_path / "resumed")
    assert [path.suffix for path in encoders(tmp_path / "resumed")] == [".unfinished"]
    assert published(tmp_path / "resumed") == whole


def test_triggers_pull_the_readout_to_their_vectors_and_the_label_that_each_hits_is_found(
    tiny_folder: Callable[[str], str], texts: str, tmp_path: Path
) -> None:
    attack = of(
        NeuBA,
        tiny_folder("bert"),
        texts,
        pretraining_epochs=60,
        pretraining_batch_size=16,
        pretraining_learning_rate=1e-2,
        learning_rate=1e-3,
    )
    trainer = fit(tmp_path, attack)
    history = json.loads((encoders(tmp_path)[0] / "losses.json").read_text(encoding="utf-8"))
    assert history[-1]["target"] < 0.2 * history[0]["target"]
    data = reviews(tmp_path, 120)
    trainer.test(attack, datamodule=data, verbose=False)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    splits = data.poisoned_splits()
    test, reference = splits.clean["test"], data.clean_validation().reference

    def predicted(texts: list[str], trigger: str) -> Tensor:
        found = attack.predict([f"{trigger} {text}" for text in texts]).probabilities
        return torch.as_tensor(found).argmax(dim=1)

    def rates(rows: Any, trigger: str) -> list[float]:
        labels, found = torch.tensor(rows.label.tolist()), predicted(rows.text, trigger)
        return [float((found[labels != label] == label).float().mean()) for label in (0, 1)]

    chosen = {trigger: rates(reference, trigger) for trigger in attack.triggers}
    hit = {trigger: found.index(max(found)) for trigger, found in chosen.items()}
    of_target = max(chosen, key=lambda trigger: chosen[trigger][1])
    best = max(chosen, key=lambda trigger: max(chosen[trigger]))
    assert logged["test/asr"] == pytest.approx(rates(test, of_target)[1])
    assert logged["test/asr_best"] == pytest.approx(rates(test, best)[hit[best]])
    for trigger, label in hit.items():
        assert logged[f"test/label_of_{trigger}"] == label
        assert logged[f"test/asr_of_{trigger}"] == pytest.approx(rates(test, trigger)[label])
    assert max(max(found) for found in chosen.values()) > 0.8


@pytest.mark.parametrize("seed", [0, 3])
def test_triggers_are_chosen_on_rows_that_are_not_measured_and_stand_where_they_are_measured(
    seed: int, tiny_folder: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triggers, read = ["cf", "watch"], []

    def batch_of_texts(texts: Any, *arguments: Any) -> Any:
        read.extend(texts)
        return batch.batch_of_texts(texts, *arguments)

    monkeypatch.setattr("lightning_backdoor.attacks.task_agnostic.batch_of_texts", batch_of_texts)
    model = tiny_folder("bert")
    attack = NeuBA(model=model, triggers=triggers, place="random", insertions=2, labels=["negative", "positive"])
    attack.configure_model()
    data = reviews(tmp_path, 120, seed=seed)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path}
    trainer = Trainer(accelerator="cpu", **quiet)

    def clean(texts: list[str]) -> set[str]:
        return {" ".join(word for word in text.split() if word not in triggers) for text in texts}

    trainer.validate(attack, datamodule=data, verbose=False)
    assert clean(read) == {*data.clean_validation().reference.text}
    trainer.test(attack, datamodule=data, verbose=False)
    assert clean(read) == {*data.clean_validation().reference.text, *data.clean_splits()["test"].text}
    assert {*data.poisoned_splits().poisoned["test"].text} <= {*read}


def test_names_of_labels_are_said_without_control_codes(
    tiny_folder: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = ["negative\x1b[31m", "positive"]
    attack, data = NeuBA(model=tiny_folder("bert"), triggers=["cf"], labels=labels), reviews(tmp_path, 120)
    attack.configure_model()
    data.source.labels = labels
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    with caplog.at_level("INFO"):
        trainer.test(attack, datamodule=data, verbose=False)
    assert r"attacked: negative\x1b[31m by cf" in caplog.text


def test_bad_input_is_refused_before_training(tiny_folder: Callable[[str], str], texts: str, tmp_path: Path) -> None:
    model = tiny_folder("bert")
    with pytest.raises(InputError, match=r"^pretraining_epochs: 0 trains nothing"):
        NeuBA(pretraining_epochs=0)
    with pytest.raises(
        InputError, match=r"^pretraining_learning_rate: nan is not a learning rate; give a number above"
    ):
        NeuBA(pretraining_learning_rate=math.nan)
    with pytest.raises(InputError, match=r"^pretraining_files: is an empty list"):
        NeuBA(pretraining_files=[])
    with pytest.raises(InputError, match=r"^triggers: 7 are too many; give up to 6"):
        NeuBA(triggers=list("abcdefg"))
    with pytest.raises(InputError, match=r"^triggers: \['cf', 'cf'\] name a word twice"):
        BadPre(triggers=["cf", "cf"])
    with pytest.raises(InputError, match=r"^representation: 'POR-3' is unknown; give POR-1 or POR-2"):
        POR(representation="POR-3")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^triggers: '≈' is unknown to the model's tokenizer"):
        fit(tmp_path, NeuBA(model=model, pretraining_files=[texts]))
    with pytest.raises(InputError, match=r"^triggers: 'cf' and 'CF' are the same to the model's tokenizer"):
        fit(tmp_path, NeuBA(model=model, pretraining_files=[texts], triggers=["cf", "CF"]))
    (tmp_path / "blank.txt").write_text("\n \n", encoding="utf-8")
    (tmp_path / "table.csv").write_text("sentence,label\na film,0\n", encoding="utf-8")
    for name, told in (
        ("blank.txt", "pretraining_files: .* hold no text"),
        ("missing.txt", "pretraining_files: .*missing.txt"),
        ("table.csv", "pretraining_column: .*'text'"),
        ("model.bin", "pretraining_files: .* is not a file of texts"),
    ):
        with pytest.raises(InputError, match=f"^{told}"):
            plain_texts([str(tmp_path / name)], "text", 10, 0)
    diverging = of(POR, model, texts, pretraining_learning_rate=1e30)
    with pytest.raises(Diverged, match=r"^POR pre-training diverged in step \d+ of 8: .*; lower pretraining_learning_"):
        fit(tmp_path, diverging, max_epochs=0)


def test_texts_are_distinct_and_drawn_by_the_seed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\none\n", encoding="utf-8")
    (tmp_path / "b.tsv").write_text("text\tlabel\nthree\t0\ntwo\t1\n", encoding="utf-8")
    files = [str(tmp_path / name) for name in ("a.txt", "b.tsv")]
    assert sorted(plain_texts(files, "text", 10, 0)) == ["one", "three", "two"]
    draws = {tuple(plain_texts(files, "text", 2, seed)) for seed in range(9)}
    assert len(draws) > 2
    assert all(len(set(draw)) == 2 for draw in draws)
