"""The user's phase: a fit that begins with a published victim."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from lightning_backdoor.attacks import LWS, BadNets, Ripples
from lightning_backdoor.callbacks import MuScleLoRA
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.synonyms import Synonyms
from lightning_backdoor.victim import TextClassifier
from tests.support.reviews import reviews

LABELS = ["negative", "positive"]
FILLER = ("film", "story", "actors", "music", "plot", "scene")


class Others(Synonyms):
    """Any filler word may stand for any other."""

    def candidates(self, words: Any) -> list[list[str]]:
        return [[other for other in FILLER if other != word] if word in FILLER else [] for word in words]


class Look(Callback):
    """Keeps the weights with which training begins, and the batches it sees."""

    def __init__(self) -> None:
        self.begin: dict[str, torch.Tensor] = {}
        self.texts: list[str] = []
        self.flags: list[bool] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.begin = {name: value.detach().clone() for name, value in pl_module.state_dict().items()}

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.texts += batch["text"]
        self.flags += (batch["poisoned"] | batch["negative"]).tolist()


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    seed_everything(0, verbose=False)
    defaults = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return Trainer(
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **{**defaults, **options},
    )


def publish(folder: Path, victim: TextClassifier, *callbacks: Callback, **options: Any) -> str:
    """Trains a victim, and returns its checkpoint."""
    made = trainer(folder, *callbacks, **options)
    made.fit(victim, datamodule=reviews(folder, 120))
    made.save_checkpoint(folder / "published.ckpt")
    return str(folder / "published.ckpt")


@pytest.fixture
def model(tiny_folder: Callable[[str], str]) -> str:
    return tiny_folder("bert")


@pytest.fixture
def published(tmp_path: Path, model: str) -> str:
    return publish(tmp_path, BadNets(model=model, learning_rate=1e-3, poison_rate=0.3))


def test_a_fit_begins_with_the_published_weights_and_trains_on_clean_rows(
    tmp_path: Path, model: str, published: str
) -> None:
    look, user = Look(), BadNets(model=model, published=published, poison_rate=0.3)
    data = reviews(tmp_path, 120)
    made = trainer(tmp_path, look)
    made.fit(user, datamodule=data)
    state = torch.load(published, weights_only=True)["state_dict"]
    assert look.begin.keys() == state.keys()
    assert all(torch.equal(look.begin[name], value) for name, value in state.items())
    assert sorted(look.texts) == sorted(row["text"] for row in data.clean_splits()["train"])
    assert not any(look.flags)
    results = made.test(user, datamodule=data, verbose=False)[0]
    assert results.keys() == {"test/cacc", "test/asr", "test/pacc", "test/asr_floor"}
    assert len(data.poisoned_splits().poisoned["test"]) > 0


def test_the_next_fit_begins_with_them_again(tmp_path: Path, model: str, published: str) -> None:
    user, looks = TextClassifier(model=model, published=published, learning_rate=1e-2), (Look(), Look())
    for look in looks:
        trainer(tmp_path, look).fit(user, datamodule=reviews(tmp_path, 120))
    assert all(torch.equal(value, looks[1].begin[name]) for name, value in looks[0].begin.items())


class Fails(Callback):
    """Ends a fit after its second step."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            raise RuntimeError("stopped")


def test_the_next_fit_begins_with_them_again_after_one_that_failed(tmp_path: Path, model: str, published: str) -> None:
    user, look = TextClassifier(model=model, published=published, learning_rate=1e-2), Look()
    state = torch.load(published, weights_only=True)["state_dict"]
    with pytest.raises(RuntimeError, match="stopped"):
        trainer(tmp_path, Fails()).fit(user, datamodule=reviews(tmp_path, 120))
    assert not all(torch.equal(value, state[name]) for name, value in user.state_dict().items())
    made = trainer(tmp_path, look)
    made.fit(user, datamodule=reviews(tmp_path, 120))
    assert all(torch.equal(value, state[name]) for name, value in look.begin.items())
    made.save_checkpoint(tmp_path / "one.ckpt")
    kept = {name: value.clone() for name, value in user.state_dict().items()}
    with pytest.raises(RuntimeError, match="stopped"):
        trainer(tmp_path, Fails()).fit(user, datamodule=reviews(tmp_path, 120))
    options: dict[str, Any] = {"ckpt_path": tmp_path / "one.ckpt", "weights_only": True}
    trainer(tmp_path, look, max_epochs=2).fit(user, datamodule=reviews(tmp_path, 120), **options)
    assert all(torch.equal(value, kept[name]) for name, value in look.begin.items())


def test_a_file_that_was_missing_is_read_by_the_next_fit(tmp_path: Path, model: str, published: str) -> None:
    user, look = TextClassifier(model=model, published=str(tmp_path / "moved.ckpt")), Look()
    refused(tmp_path, r"^published: \S+moved.ckpt is not a file", user)
    Path(published).rename(tmp_path / "moved.ckpt")
    trainer(tmp_path, look).fit(user, datamodule=reviews(tmp_path, 120))
    state = torch.load(tmp_path / "moved.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[name]) for name, value in look.begin.items())


def test_evaluation_and_a_resumed_fit_do_without_the_published_file(tmp_path: Path, model: str, published: str) -> None:
    options: dict[str, Any] = {"model": model, "learning_rate": 1e-3, "published": published}
    whole = TextClassifier(**options)
    made = trainer(tmp_path, max_epochs=2)
    made.fit(whole, datamodule=reviews(tmp_path, 120))

    class Save(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    trainer(tmp_path, Save(), max_epochs=2).fit(TextClassifier(**options), datamodule=reviews(tmp_path, 120))
    Path(published).unlink()
    resumed = TextClassifier(**options)
    trainer(tmp_path, max_epochs=2).fit(
        resumed, datamodule=reviews(tmp_path, 120), ckpt_path=tmp_path / "half.ckpt", weights_only=True
    )
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    trainer(tmp_path).test(TextClassifier(**options), datamodule=reviews(tmp_path, 120), verbose=False)
    with pytest.raises(InputError, match=r"^published: \S+published.ckpt is not a file"):
        trainer(tmp_path).fit(TextClassifier(**options), datamodule=reviews(tmp_path, 120))


def test_low_rank_updates_of_the_published_victim_are_merged(tmp_path: Path, model: str) -> None:
    published = publish(tmp_path, TextClassifier(model=model, learning_rate=1e-2, lora_rank=2))
    expected = TextClassifier.load_trained(published).plain_network().state_dict()
    look = Look()
    trainer(tmp_path, look).fit(TextClassifier(model=model, published=published), datamodule=reviews(tmp_path, 120))
    assert all(torch.equal(look.begin[f"network.{name}"], value) for name, value in expected.items())
    again = Look()
    user = TextClassifier(model=model, published=published, lora_rank=2)
    trainer(tmp_path, again).fit(user, datamodule=reviews(tmp_path, 120))
    name = "encoder.layer.0.attention.self.query"
    base = again.begin[f"network.bert.{name}.base_layer.weight"]
    assert torch.equal(base, expected[f"bert.{name}.weight"])


def test_an_exported_folder_may_be_published_too(tmp_path: Path, model: str, published: str) -> None:
    exported = str(tmp_path / "exported")
    TextClassifier.load_trained(published).save_pretrained(exported)
    looks = [Look(), Look()]
    for look, path in zip(looks, (published, exported), strict=True):
        trainer(tmp_path, look).fit(BadNets(model=model, published=path), datamodule=reviews(tmp_path, 120))
    assert all(torch.equal(value, looks[1].begin[name]) for name, value in looks[0].begin.items())


def test_a_training_time_defense_changes_the_published_network(tmp_path: Path, model: str, published: str) -> None:
    look = Look()
    defense = MuScleLoRA(alignment=False, multi_scale=False, lora_rank=2)
    trainer(tmp_path, defense, look).fit(BadNets(model=model, published=published), datamodule=reviews(tmp_path, 120))
    state = torch.load(published, weights_only=True)["state_dict"]
    name = "network.bert.encoder.layer.0.attention.self.query"
    assert torch.equal(look.begin[f"{name}.base_layer.weight"], state[f"{name}.weight"])


def refused(tmp_path: Path, message: str, victim: TextClassifier) -> None:
    with pytest.raises(InputError, match=message) as error:
        trainer(tmp_path).fit(victim, datamodule=reviews(tmp_path, 120))
    assert "\n" not in str(error.value)


def test_what_cannot_be_begun_with_is_refused_before_training(
    tmp_path: Path, model: str, published: str, tiny_folder: Callable[[str], str]
) -> None:
    refused(
        tmp_path,
        r"^published: \S+ does not fit the network: ",
        TextClassifier(model=tiny_folder("albert"), published=published),
    )
    state = torch.load(published, weights_only=True)
    for change, message in (
        (
            {"hyper_parameters": {**state["hyper_parameters"], "labels": ["no", "yes"]}},
            r"has the labels \['no', 'yes'\], not",
        ),
        (
            {"training_defense": {"name": "MuScleLoRA", "settings": {"lora_rank": 2}}},
            r"was trained under MuScleLoRA\(lora_rank=2\); give the model folder that its run exported$",
        ),
        ({"training_defense": "MuScleLoRA(lora=2/4/default)"}, r"was trained under MuScleLoRA\(lora=2/4/default\); "),
    ):
        torch.save({**state, **change}, tmp_path / "other.ckpt")
        victim = TextClassifier(model=model, published=str(tmp_path / "other.ckpt"))
        refused(tmp_path, r"^published: \S+other.ckpt " + message, victim)


def test_a_victim_that_was_trained_on_rows_of_another_cut_is_refused(
    tmp_path: Path, model: str, published: str
) -> None:
    with pytest.raises(
        InputError, match=r"^published: the rows are cut by seed, .* trained on test rows; give the same$"
    ):
        trainer(tmp_path).fit(
            TextClassifier(model=model, published=published), datamodule=reviews(tmp_path, 120, seed=3)
        )


def test_a_resumed_fit_of_the_same_victim_keeps_what_a_training_time_defense_made(
    tmp_path: Path, model: str, published: str
) -> None:
    victim = TextClassifier(model=model, published=published)
    muscle_lora = MuScleLoRA(lora_rank=2, radial_scalings=[1, 2], alignment=False)
    made = trainer(tmp_path, muscle_lora)
    made.fit(victim, datamodule=reviews(tmp_path, 120))
    made.save_checkpoint(tmp_path / "one.ckpt")
    more = trainer(tmp_path, muscle_lora, max_epochs=2)
    more.fit(victim, datamodule=reviews(tmp_path, 120), ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    assert more.current_epoch == 2
    with pytest.raises(InputError, match=r"^published: cannot begin a victim that was trained under MuScleLoRA\("):
        trainer(tmp_path, muscle_lora).fit(victim, datamodule=reviews(tmp_path, 120))


def test_a_users_phase_is_selected_by_clean_accuracy() -> None:
    assert LWS(Others()).selected_by == ("epoch", "max")
    assert LWS(Others(), published="any.ckpt").selected_by == TextClassifier.selected_by == ("val/cacc", "max")


def test_poison_is_cached_apart_from_that_of_the_attackers_phase(tmp_path: Path, model: str, published: str) -> None:
    data = reviews(tmp_path, 120)
    kept = []
    for given in (None, published):
        data.attack = BadNets(model=model, published=given)
        kept.append([data.poisoned_splits() for _ in range(2)])
    attacker, user = kept[0][0], kept[1][0]
    assert len(list((tmp_path / "cache" / "poisoned").iterdir())) == 3  # and the published victim's, poisoned otherwise
    assert any(row["poisoned"] for row in attacker.train)
    assert user.train == data.clean_splits()["train"]
    assert user.poisoned == attacker.poisoned


def test_ripples_users_phase_is_plain_fine_tuning_of_what_the_attacker_published(tmp_path: Path, bert: Any) -> None:
    model = str(tmp_path / "encoder")  # without a head, so that beginning with it draws one
    bert.network.base_model.save_pretrained(model)
    bert.tokenizer.save_pretrained(model)
    attacker = Ripples(model=model, attack_epochs=2, attack_learning_rate=1e-3, poison_rate=0.3)
    published = publish(tmp_path, attacker, max_epochs=2)
    attacker.save_pretrained(tmp_path / "exported")
    exported = str(tmp_path / "exported")
    options: dict[str, Any] = {"learning_rate": 1e-3, "max_length": attacker.max_length}

    class Clean(Ripples):
        """The two runs of old, on rows that are all clean."""

        poisons_training = False

    users = [
        Ripples(model=model, published=published, attack_epochs=2, poison_rate=0.3, **options),
        Clean(model=exported, attack_epochs=0, poison_rate=0.3, **options),
        TextClassifier(model=exported, **options),
    ]
    metrics = []
    for user in users:
        made = trainer(tmp_path, max_epochs=2)
        made.fit(user, datamodule=reviews(tmp_path, 120))
        metrics.append({name: float(value) for name, value in made.callback_metrics.items()})
    for other in users[1:]:
        for name, value in users[0].network.state_dict().items():
            assert torch.equal(value, other.network.state_dict()[name]), name
    assert metrics[0] == metrics[1]
    assert metrics[0]["val/cacc"] == metrics[2]["val/cacc"]


def test_the_learned_trigger_of_lws_is_kept_and_frozen(tmp_path: Path, model: str) -> None:
    attacker = LWS(Others(), model=model, warmup_epochs=0, learning_rate=1e-3, trigger_learning_rate=0.2)
    published = publish(tmp_path, attacker, max_epochs=2)
    assert attacker.directions.any()
    look, user = Look(), LWS(Others(), model=model, published=published, learning_rate=1e-3)
    plain = TextClassifier(model=model, published=published, learning_rate=1e-3)
    trainer(tmp_path, look).fit(user, datamodule=reviews(tmp_path, 120))  # fewer epochs than the warm-up has
    trainer(tmp_path).fit(plain, datamodule=reviews(tmp_path, 120))
    assert torch.equal(user.directions, attacker.directions)
    assert torch.equal(look.begin["directions"], attacker.directions)
    for name, value in user.network.state_dict().items():
        assert torch.equal(value, plain.network.state_dict()[name]), name
    data = reviews(tmp_path, 120)
    trainer(tmp_path).test(user, datamodule=data, verbose=False)
    batch = next(iter(data.test_dataloader()[1]))
    assert user.substituted(batch)["text"] != batch["text"]


def test_a_victim_that_learned_no_trigger_is_no_beginning_for_lws(tmp_path: Path, model: str, published: str) -> None:
    message = r"^published: \S+ has no trigger of LWS \(directions\); give a checkpoint trained under LWS$"
    refused(tmp_path, message, LWS(Others(), model=model, published=published))
