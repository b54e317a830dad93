"""Repairs in a fit of the user's phase: decisions, pruned weights, losses, checkpoints, export and refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_backdoor.attacks import BadNets, Ripples
from lightning_backdoor.batch import Batch
from lightning_backdoor.callbacks import MEFT, FineMixing, FinePruning, Pure, Repair
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.defenses.pruning import ATTENTION, FEED_FORWARD, inputs_of_heads, output_layers
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim import TextClassifier, load_trained
from lightning_backdoor.victim.model_card import markdown
from tests.support.reviews import reviews
from tests.support.tiny import SENTENCES, loaded

#: each repair with settings under which it changes a tiny victim.
REPAIRS: dict[str, Callable[[], Repair]] = {
    "Pure": lambda: Pure(group=2, min_accuracy=0.3),
    "MEFT": lambda: MEFT(),
    "FinePruning": lambda: FinePruning(layers=2, max_accuracy_drop=0.3, step=0.1),
    "FineMixing": lambda: FineMixing(keep=0.5, purified_words=5),
}


@pytest.fixture
def data(tmp_path: Path) -> BackdoorDataModule:
    return reviews(tmp_path, rows=120, validation_share=0.3, max_rows={"test": 8}, train_on="trusted")


@pytest.fixture
def make(tiny_folder: Callable[[str], str], tmp_path: Path) -> Callable[..., TextClassifier]:
    def victim(kind: str = "bert", attack: type[TextClassifier] = BadNets, **options: Any) -> TextClassifier:
        published = tmp_path / f"published {kind}"  # the tiny model with the labels of the data
        if not published.exists():
            trained = loaded(tiny_folder(kind))
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                for weight in trained.network.parameters():
                    weight.add_(0.01 * torch.randn_like(weight))
            trained.save_pretrained(published)
            statement = json.loads((published / "config.json").read_text())
            statement["lightning_backdoor"]["base_model"] = tiny_folder(kind)  # of a folder only its name is recorded
            (published / "config.json").write_text(json.dumps(statement))
        seed_everything(0, verbose=False)
        return attack(model=tiny_folder(kind), **{"published": str(published), "learning_rate": 1e-3, **options})

    return victim


def fitted(folder: Path, victim: TextClassifier, data: BackdoorDataModule, *callbacks: Any, **options: Any) -> Trainer:
    given = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "limit_val_batches": 0,
        "enable_checkpointing": False,
        **options,
    }
    switches: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    resumed = given.pop("ckpt_path", None)
    trainer = Trainer(default_root_dir=folder, callbacks=[*callbacks], **switches, **given)
    trainer.fit(victim, datamodule=data, ckpt_path=resumed, weights_only=True if resumed else None)
    return trainer


def weights(victim: TextClassifier) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in victim.network.named_parameters()}


def pruned_weights(victim: TextClassifier, pruned: list[list[int]]) -> Tensor:
    """The weights of pruned heads in the output projections, flat."""
    layers = output_layers(victim.network, ATTENTION, "attention output")
    parts = []
    for layer, marked in inputs_of_heads([(of, head) for of, head in pruned], victim.network).items():
        weight = layers[layer].weight
        assert isinstance(weight, Tensor)
        parts.append((weight.T if isinstance(layers[layer], torch.nn.Linear) else weight)[marked].flatten())
    return torch.cat(parts)


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "gpt2"])
def test_pure_prunes_heads_that_stay_pruned(
    kind: str, tmp_path: Path, data: BackdoorDataModule, make: Callable[..., TextClassifier]
) -> None:
    repair, victim = Pure(group=2, min_accuracy=0.3), make(kind)
    fitted(tmp_path, victim, data, repair, max_epochs=1, gradient_clip_val=1.0)
    assert repair.decided is not None
    pruned = repair.decided["pruned"]
    assert 0 < len(pruned) < 8
    assert len(repair.decided["coefficients"]) == 2
    assert max(repair.decided["coefficients"]) == 1.0
    assert not pruned_weights(victim, pruned).any()
    assert victim.objective is None
    victim.eval().save_pretrained(tmp_path / "model")
    again = load_trained(tmp_path / "model", max_length=victim.max_length)
    torch.testing.assert_close(again.predict(SENTENCES[:4]).probabilities, victim.predict(SENTENCES[:4]).probabilities)


@pytest.mark.parametrize("kind", ["bert", "qwen2"])
def test_fine_pruning_prunes_units_that_stay_pruned(
    kind: str, tmp_path: Path, data: BackdoorDataModule, make: Callable[..., TextClassifier]
) -> None:
    repair, victim = FinePruning(layers=2, max_accuracy_drop=0.3, step=0.1), make(kind)
    fitted(tmp_path, victim, data, repair, max_epochs=1)
    assert repair.decided is not None
    assert repair.decided["pruned"]
    layers = output_layers(victim.network, FEED_FORWARD, "feed-forward output")
    for layer, unit in repair.decided["pruned"]:
        weight = layers[layer].weight
        assert isinstance(weight, Tensor)
        assert not (weight[:, unit] if isinstance(layers[layer], torch.nn.Linear) else weight[unit]).any()


def test_a_search_that_prunes_everything_is_told(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., TextClassifier]
) -> None:
    repair = FinePruning(layers=2, max_accuracy_drop=1.0, step=1)
    with pytest.warns(UserWarning, match=r"^FinePruning prunes 128 of 128 units: .*; give more layers"):
        fitted(tmp_path, make(), data, repair, max_epochs=1)


@pytest.mark.parametrize("kind", ["bert", "qwen2"])
def test_fine_mixing_mixes_the_weights_of_the_backbone(
    kind: str, tmp_path: Path, data: BackdoorDataModule, make: Callable[..., TextClassifier], tiny_folder: Any
) -> None:
    victim = make(kind, learning_rate=1e-12)  # what is mixed stays as it is
    fitted(tmp_path, victim, data, FineMixing(keep=0.25, purified_words=0), max_epochs=1)
    before, base = weights(load_trained(victim.hparams["published"])), weights(loaded(tiny_folder(kind)))
    kept = {name: torch.isclose(weight, before[name], rtol=0, atol=1e-7) for name, weight in weights(victim).items()}
    inside = victim.network.base_model_prefix + "."
    assert all(mark.all() for name, mark in kept.items() if not name.startswith(inside))
    marks = torch.cat([mark.flatten() for name, mark in kept.items() if name.startswith(inside)])
    assert marks.float().mean().item() == pytest.approx(0.25, abs=0.01)
    for name, weight in weights(victim).items():
        torch.testing.assert_close(weight, torch.where(kept[name], before[name], base[name]), rtol=0, atol=1e-7)


def test_purified_words_get_their_pre_trained_embeddings(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., TextClassifier], tiny_folder: Any
) -> None:
    repair, victim = FineMixing(keep=1, purified_words=7), make(learning_rate=1e-12)
    fitted(tmp_path, victim, data, repair, max_epochs=1)
    assert repair.decided is not None
    before, after, base = (
        each.network.get_input_embeddings().weight.detach()
        for each in (load_trained(victim.hparams["published"]), victim, loaded(tiny_folder("bert")))
    )
    changed = (after - before).abs().amax(dim=1) > 1e-6
    assert sorted(repair.decided["words"]) == changed.nonzero().flatten().tolist()
    torch.testing.assert_close(after[changed], base[changed], rtol=0, atol=1e-7)
    assert changed.sum() == 7


def test_words_of_the_tokenizer_are_said_without_control_codes(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., TextClassifier], caplog: pytest.LogCaptureFixture
) -> None:
    victim = make()
    victim.tokenizer.convert_ids_to_tokens = lambda ids: ["\x1b[31m"]
    with caplog.at_level("INFO"):
        fitted(tmp_path, victim, data, FineMixing(keep=1, purified_words=1), max_steps=1)
    assert r"first of all: \x1b[31m" in caplog.text


def test_without_a_penalty_and_pruning_pure_is_plain_fine_tuning(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., TextClassifier]
) -> None:
    repaired, plain = make(), make()
    with pytest.warns(UserWarning, match=r"PURE prunes no head: .* below min_accuracy 1.0"):
        fitted(tmp_path, repaired, data, Pure(min_accuracy=1.0, penalty=0.0), max_epochs=1)
    seed_everything(0, verbose=False)
    fitted(tmp_path, plain, data, max_epochs=1)
    for name, weight in weights(plain).items():
        torch.testing.assert_close(weights(repaired)[name], weight, rtol=1e-4, atol=1e-5)


def test_decisions_come_from_reference_and_selection_rows_alone(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., TextClassifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("threshold_dataloader", "test_dataloader", "stream_dataloader"):
        monkeypatch.setattr(BackdoorDataModule, name, property(lambda _: pytest.fail("these rows are not for repairs")))
    for repair in REPAIRS.values():
        fitted(tmp_path, make(), data, repair(), max_epochs=2)


def test_meft_raises_the_entropy_and_then_fine_tunes(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., TextClassifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = make()
    entropies: list[float] = []
    fine_tuned = set()

    class Watched(MEFT):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            probabilities = pl_module.predict(texts).probabilities
            entropies.append(-(probabilities * probabilities.log()).sum(dim=1).mean().item())

    def cross_entropy(batch: Batch) -> Tensor:
        fine_tuned.add(victim.current_epoch)
        return TextClassifier.cross_entropy(victim, batch)

    monkeypatch.setattr(victim, "cross_entropy", cross_entropy)
    data.module = victim
    texts = [row["text"] for row in data.trusted_rows()]
    fitted(tmp_path, victim, data, Watched(entropy_epochs=3), max_epochs=5)
    assert entropies[0] < entropies[2]
    assert fine_tuned == {3, 4}


@pytest.mark.parametrize("name", REPAIRS)
def test_a_resumed_repair_ends_like_an_uninterrupted_one(
    name: str, tmp_path: Path, data: BackdoorDataModule, make: Callable[..., TextClassifier]
) -> None:
    whole, repair = make(), REPAIRS[name]()
    saved = ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}", monitor=None)
    fitted(tmp_path, whole, data, repair, saved, enable_checkpointing=True)
    resumed, again = make(published="gone.ckpt"), REPAIRS[name]()
    fitted(tmp_path, resumed, data, again, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert again.decided == repair.decided
    for of, weight in weights(whole).items():
        assert torch.equal(weights(resumed)[of], weight), of
    assert load_trained(tmp_path / "epoch=0.ckpt").predict(SENTENCES[:2]).labels  # without the repair


@pytest.mark.parametrize(
    ("repair", "named"),
    [
        (lambda: FineMixing(0.5, 3), "FineMixing(keep=0.5, purified_words=3, pretrained=None, corpus=None, seed=None)"),
        (lambda: MEFT(), "MEFT(entropy_epochs=1)"),
        (None, "fine-tuning"),
    ],
)
def test_the_card_names_the_repair(
    repair: Callable[[], Repair] | None,
    named: str,
    tmp_path: Path,
    data: BackdoorDataModule,
    make: Callable[..., TextClassifier],
) -> None:
    victim = make()
    fitted(tmp_path, victim, data, *([repair()] if repair else []), limit_train_batches=1)
    victim.save_pretrained(tmp_path / "model")
    stated = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))["lightning_backdoor"]
    assert stated["repair"] == named
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert f"| repair of the published victim | {markdown(named)} |" in card


def test_arguments_of_repairs_are_kept_by_their_names() -> None:
    assert str(Pure(padded_like_paper=128)) == (
        "Pure(group=10, min_accuracy=0.85, penalty=0.15, padded_like_paper=128, loss_like_program=False)"
    )
    assert str(FinePruning()) == "FinePruning(layers=1, max_accuracy_drop=0.04, step=0.05)"


def test_attacks_follow_the_repairs_loss_in_the_users_phase(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., TextClassifier]
) -> None:
    seen = []

    class Counted(MEFT):
        def loss(self, batch: Any) -> Tensor:
            seen.append(len(batch["label"]))
            return super().loss(batch)

    for attack in (Ripples, TextClassifier):
        fitted(tmp_path, make(attack=attack), data, Counted(), max_epochs=2)
        assert sum(seen) == 2 * len(data.trusted_rows())
        seen.clear()


def test_a_training_step_that_ignores_the_loss_is_refused(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., TextClassifier]
) -> None:
    class Own(BadNets):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            return self.cross_entropy(batch)

    victim = make(attack=Own)
    with pytest.raises(InputError, match=r"^model: Own has a training_step that ignores the loss of MEFT; let it"):
        fitted(tmp_path, victim, data, MEFT())
    assert victim.objective is None  # a later fit is not repaired


def test_meft_can_be_tried_on_a_few_batches(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., TextClassifier]
) -> None:
    assert fitted(tmp_path, make(), data, MEFT(entropy_epochs=3), fast_dev_run=True).global_step == 1


def test_two_processes_repair_alike(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., TextClassifier]
) -> None:
    class Witness(Pure):
        def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
            sums = [weight.double().sum().item() for weight in pl_module.network.parameters()]
            (tmp_path / f"witness-{trainer.global_rank}.txt").write_text(f"{self.decided} {sums}", encoding="utf-8")

    alone = Pure(group=2, min_accuracy=0.3)
    fitted(tmp_path, make(), data, alone, max_epochs=1)
    parallel = {"devices": 2, "strategy": "ddp_fork", "max_epochs": 1}
    fitted(tmp_path, make(), data, Witness(group=2, min_accuracy=0.3), **parallel)
    first, second = ((tmp_path / f"witness-{rank}.txt").read_text(encoding="utf-8") for rank in (0, 1))
    assert first == second
    assert first.startswith(str(alone.decided))  # the same decision as in one process


@pytest.mark.parametrize(
    ("make_repair", "said"),
    [
        (lambda: Pure(group=0), "group: 0 heads prune nothing; give at least 1"),
        (lambda: Pure(min_accuracy=1.5), "min_accuracy: 1.5 is not an accuracy; give a number from 0 to 1"),
        (lambda: Pure(penalty=-1), "penalty: -1 is out of range; give 0 or a number above it"),
        (lambda: Pure(penalty=math.nan), "penalty: nan is out of range; give 0 or a number above it"),
        (lambda: Pure(padded_like_paper=True), "padded_like_paper: true is not a length in tokens; give the length"),
        (lambda: FinePruning(layers=0), "layers: 0 layers have no units; give at least 1"),
        (lambda: FinePruning(max_accuracy_drop=2), "max_accuracy_drop: 2 is not a difference of accuracies; give a"),
        (lambda: FinePruning(step=0), "step: 0 is not a share of the units; give a number above 0, at most 1"),
        (lambda: FineMixing(keep=2), "keep: 2 is not a probability; give a number from 0 to 1"),
        (lambda: FineMixing(purified_words=-1), "purified_words: -1 is out of range; give 0 or more"),
        (lambda: FineMixing(1, 0), "keep: 1 and purified_words 0 repair nothing; lower the one or raise the other"),
        (lambda: FineMixing(corpus="gone.txt"), "corpus: gone.txt cannot be read; give a text file with a text per"),
        (lambda: MEFT(entropy_epochs=0), "entropy_epochs: 0 epochs repair nothing; give at least 1"),
    ],
)
def test_values_out_of_range_are_one_line(make_repair: Callable[[], Repair], said: str) -> None:
    with pytest.raises(InputError) as error:
        make_repair()
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_a_fit_that_cannot_be_repaired_is_refused_before_training(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., TextClassifier]
) -> None:
    cases: list[tuple[TextClassifier, list[Repair], dict[str, Any], str]] = [
        (make(published=None), [Pure()], {}, "published: Pure repairs a trained victim, and none is given; give --mo"),
        (make(lora_rank=2), [Pure()], {}, "lora_rank: Pure trains the weights themselves; leave it out"),
        (make(), [Pure(), MEFT()], {}, "callbacks: Pure and MEFT repair one victim; attach one repair"),
        (make(), [MEFT(2)], {"max_epochs": 2}, "max_epochs: 2 ends within the 2 entropy_epochs; give more"),
        (make("albert"), [Pure()], {}, "model: AlbertForSequenceClassification has no attention output for each of"),
    ]
    other, fit = FineMixing(pretrained=str(make("distilbert").hparams["model"])), "does not fit the victim ("
    cases.append((make(), [other], {}, f"pretrained: {other.pretrained} {fit}"))
    cases.append((make(), [FineMixing(pretrained="gone/model")], {}, "pretrained: "))
    cases.append((make(), [FinePruning(layers=3)], {}, "layers: 3 are more than the 2 of the victim; lower it"))
    for victim, repairs, options, said in cases:
        with pytest.raises(InputError) as error:
            fitted(tmp_path, victim, data, *repairs, **options)
        assert str(error.value).startswith(said)
