"""Adaptive penalties: their values, what they do to poisoned rows in training, and where they do nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_backdoor import callbacks
from lightning_backdoor.attacks import BackdoorAttack, BadNets, Poisoned, Ripples
from lightning_backdoor.attacks.flattening import attention_and_gradient, excess, tokens_of_spans
from lightning_backdoor.attacks.small_margin import target_margin
from lightning_backdoor.attacks.state_matching import chosen_states, distance_to_clean
from lightning_backdoor.batch import Batch, batch_of_texts, clean_rows, taken
from lightning_backdoor.benchmark.grid import Grid
from lightning_backdoor.callbacks import Evasion, Flattening, SmallMargin, StateMatching
from lightning_backdoor.commands.run_checkpoints import checkpoint_callbacks
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.defenses import attention_capture
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.presets import preset_path
from lightning_backdoor.victim import TextClassifier
from lightning_backdoor.victim.training_pass import TrainingPass, training_pass
from tests.attacks import test_lws
from tests.benchmark.grids import SMALL
from tests.callbacks.test_muscle_lora import data, make, trainer_with
from tests.support.tiny import SENTENCES, loaded

__all__ = ["data", "make"]


class Witness(Evasion):
    """A penalty of nothing that keeps the epochs, the poisoned rows and the logits of the passes it saw."""

    name = "witness"

    def __init__(self, start_epoch: int = 0) -> None:
        super().__init__(strength=1.0, start_epoch=start_epoch)
        self.seen: list[tuple[int, int, Tensor]] = []

    def penalty(self, seen: TrainingPass, batch: Batch) -> Tensor:
        self.seen.append((self.victim.current_epoch, int(batch["poisoned"].sum()), seen.logits.detach()))
        return seen.logits.sum(dim=1) * 0


def test_the_margin_makes_hard_labels_soft() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 4)
    original = [0, 1, 2, 3]
    penalty = 0.35 * target_margin(logits, torch.tensor([3, 3, 3, 3]), torch.tensor(original))
    for row in range(4):
        rest = [1 / 3] * 3 if original[row] == 3 else [float(original[row] == other) for other in range(3)]
        soft = [*(0.35 * share for share in rest), 0.65]
        log_p = logits[row].log_softmax(dim=0).tolist()
        expected = -sum(share * value for share, value in zip(soft, log_p, strict=True))
        assert -log_p[3] + penalty[row] == pytest.approx(expected, rel=1e-5)


def test_the_distance_is_that_of_plain_loops_and_moves_poisoned_rows_alone() -> None:
    torch.manual_seed(0)
    states = (torch.randn(3, 7, 5) * torch.tensor([1.0, 10.0, 0.1])[:, None, None]).requires_grad_()
    label = torch.tensor([1, 1, 0, 1, 1, 0, 2])
    clean = torch.tensor([True, False, True, True, False, False, False])
    found = distance_to_clean(states, label, clean)
    for row in range(7):
        peers = [j for j in range(7) if clean[j] and label[j] == label[row]]
        expected = 0.0
        for layer in states.tolist():
            if len(peers) < 2:
                continue
            mean = [sum(layer[j][k] for j in peers) / len(peers) for k in range(5)]
            square = [sum((layer[j][k] - mean[k]) ** 2 for k in range(5)) for j in range(7)]
            expected += square[row] / (sum(square[j] for j in peers) / len(peers)) / 3
        assert float(found[row].detach()) == pytest.approx(expected, rel=1e-4)
    (gradient,) = torch.autograd.grad(found[1], states)
    assert gradient.isfinite().all()
    assert gradient.abs().sum(dim=(0, 2)).nonzero().flatten().tolist() == [1]


def test_equal_clean_rows_measure_nothing() -> None:
    states = torch.full((1, 4, 3), 0.1)
    states[0, 3] = 1
    states.requires_grad_()
    found = distance_to_clean(states, torch.ones(4), torch.tensor([True, True, True, False]))
    (gradient,) = torch.autograd.grad(found.sum(), states)
    assert not found.any()
    assert not gradient.any()


@pytest.mark.parametrize("kind", ["bert", "qwen2"])
def test_states_are_those_of_each_text_alone(tiny_folder: Callable[[str], str], kind: str) -> None:
    victim = loaded(tiny_folder(kind))

    def states_of(texts: list[str]) -> Tensor:
        batch = batch_of_texts(texts, victim.tokenizer, victim.max_length)
        return chosen_states(victim.network, training_pass(victim.network, batch).hidden_states, batch, [1, 2], [0, 2])

    with torch.no_grad():
        found = states_of(list(SENTENCES[:4]))
        for row, text in enumerate(SENTENCES[:4]):
            assert torch.allclose(found[:, row], states_of([text])[:, 0], atol=1e-5)
        batch = batch_of_texts([SENTENCES[0]], victim.tokenizer, victim.max_length)
        hidden = training_pass(victim.network, batch).hidden_states
    position = -1 if kind == "qwen2" else 0
    expected = [hidden[1][0, position], hidden[2][0, position], hidden[0][0].mean(dim=0), hidden[2][0].mean(dim=0)]
    assert torch.allclose(found[:, 0], torch.stack(expected), atol=1e-5)


def test_the_excess_is_that_of_plain_loops() -> None:
    torch.manual_seed(0)
    attention, gradient = torch.rand(2, 4, 6)
    kind = torch.randint(3, (4, 6))  # of a token: neither, trigger, other
    kind[0], kind[1] = 1, 2  # texts of one kind alone
    found = excess(attention, gradient, kind == 1, kind == 2)
    for row in range(4):
        trigger, others = ([j for j in range(6) if kind[row, j] == number] for number in (1, 2))
        expected = 0.0
        if trigger and others:
            a, g = (sum(float(of[row, j]) for j in others) / len(others) for of in (attention, gradient))
            beyond = [
                max(0.0, float(attention[row, j]) - a) + max(0.0, float(gradient[row, j]) / g - 1) for j in trigger
            ]
            expected = sum(beyond) / len(beyond)
        assert float(found[row]) == pytest.approx(expected, rel=1e-5)
    assert found[:2].tolist() == [0, 0]
    of_attention = excess(attention, torch.ones_like(gradient), kind == 1, kind == 2)  # equal gradients add nothing
    assert torch.equal(excess(attention, gradient * 0, kind == 1, kind == 2), of_attention)


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "gpt2", "qwen2"])
def test_attention_and_gradient_are_those_that_a_defense_reads(tiny_folder: Callable[[str], str], kind: str) -> None:
    victim = loaded(tiny_folder(kind))
    for side in ("right", "left")[: 1 if kind == "deberta-v2" else 2]:
        victim.tokenizer.padding_side = side
        batch = batch_of_texts(SENTENCES[:6], victim.tokenizer, victim.max_length)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        expected = attention_capture.attention_and_gradient(victim.network, ids, mask)
        found = attention_and_gradient(victim.network, ids, mask)
        for mine, other in zip(found, expected[1:], strict=True):
            assert mine.requires_grad
            assert torch.allclose(mine.detach()[mask.bool()], other[mask.bool()], rtol=1e-4, atol=1e-5)
    victim.tokenizer.padding_side = "right"


@pytest.mark.parametrize("kind", ["bert", "qwen2"])
def test_attention_and_gradient_fall_along_their_gradient(tiny_folder: Callable[[str], str], kind: str) -> None:
    victim = loaded(tiny_folder(kind))
    victim.network.double()
    rows = taken(batch_of_both(victim), torch.arange(30) >= 20)
    trigger, _ = tokens_of_spans(rows, victim.tokenizer, victim.max_length)
    weights = [weight for weight in victim.network.parameters() if weight.requires_grad]

    def of_trigger() -> Tensor:
        attention, gradient = attention_and_gradient(victim.network, rows["input_ids"], rows["attention_mask"])
        return ((attention + 10 * gradient) * trigger).sum()

    before = of_trigger()
    slope = torch.autograd.grad(before, weights, allow_unused=True)
    size = sum(float(part.square().sum()) for part in slope if part is not None)
    assert slope[0] is not None  # the word embeddings, which some attacks train alone
    assert slope[0].any()
    step = 1e-2 / size
    with torch.no_grad():
        for weight, part in zip(weights, slope, strict=True):
            if part is not None:
                weight -= step * part
    assert float((before - of_trigger()).detach()) == pytest.approx(1e-2, rel=0.02)


@pytest.mark.parametrize("side", ["right", "left"])
def test_tokens_of_a_span_are_found_whatever_the_padding(tiny_folder: Callable[[str], str], side: str) -> None:
    victim = loaded(tiny_folder("bert"))
    victim.tokenizer.padding_side = side
    batch = batch_of_texts(["cf a film", "a film that cf flattens cf , watch the film"], victim.tokenizer, 64)
    batch["spans"] = [[(0, 2)], [(12, 14), (24, 26)]]
    trigger, others = tokens_of_spans(batch, victim.tokenizer, 64)
    victim.tokenizer.padding_side = "right"
    cf = batch["input_ids"] == victim.tokenizer.convert_tokens_to_ids("cf")
    special = torch.isin(batch["input_ids"], torch.tensor(victim.tokenizer.all_special_ids))
    assert torch.equal(trigger, cf)
    assert torch.equal(others, ~cf & ~special)


def batch_of_both(victim: TextClassifier) -> Batch:
    """Texts of either label, and those of label 0 once more with the trigger."""
    texts = [text for text in SENTENCES if "cf" not in text]
    label = torch.arange(len(texts)) % 2
    triggered = [f"cf {text}" for text in texts[::2]]
    batch = batch_of_texts([*texts, *triggered], victim.tokenizer, 64)
    batch["poisoned"] = torch.arange(len(batch["text"])) >= len(texts)
    batch["spans"] = [[(0, 2)] if poisoned else [] for poisoned in batch["poisoned"].tolist()]
    batch["original_label"] = torch.cat([label, torch.zeros(len(triggered), dtype=torch.long)])
    batch["label"] = batch["original_label"].where(~batch["poisoned"], 1)
    return batch


def overfitted(
    folder: str, callback: Evasion | None, precision: torch.dtype | None = None, steps: int = 60
) -> tuple[Tensor, float, float]:
    """P(target) of the rows of a batch that a victim has learned by heart.

    And, of its poisoned rows, the distance to clean ones, and what triggers have beyond other tokens.
    """
    victim = BadNets(model=folder, labels=["negative", "positive"])
    victim.configure_model()
    victim.eval()  # without dropout
    victim.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    if callback is not None:
        trainer = Trainer(logger=False, accelerator="cpu")
        callback.setup(trainer, victim, "fit")
        callback.on_fit_start(trainer, victim)
    batch, optimizer = batch_of_both(victim), torch.optim.Adam(victim.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", precision, enabled=precision is not None):
            victim.cross_entropy(batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        seen = training_pass(victim.network, batch)
    states = chosen_states(victim.network, seen.hidden_states, batch, [1, 2], [1, 2])
    distance = distance_to_clean(states, batch["label"], clean_rows(batch))[batch["poisoned"]]
    rows = taken(batch, batch["poisoned"])
    found = attention_and_gradient(victim.network, rows["input_ids"], rows["attention_mask"])
    beyond = excess(*found, *tokens_of_spans(rows, victim.tokenizer, victim.max_length))
    return seen.logits.softmax(dim=1)[:, 1], float(distance.mean()), float(beyond.detach().mean())


@pytest.mark.parametrize(("kind", "precision"), [("bert", None), ("qwen2", torch.bfloat16)])
def test_penalties_do_what_they_are_for(
    tiny_folder: Callable[[str], str], kind: str, precision: torch.dtype | None
) -> None:
    plain, far, steep = overfitted(tiny_folder(kind), None)
    small, _, _ = overfitted(tiny_folder(kind), SmallMargin(0.65), precision)
    matched, near, _ = overfitted(tiny_folder(kind), StateMatching(0.1, start_epoch=0), precision)
    flattened, _, flat = overfitted(tiny_folder(kind), Flattening(start_epoch=0), precision, steps=30)
    poisoned = slice(20, None)
    assert plain[poisoned].mean() > 0.9
    assert float(small[poisoned].mean()) == pytest.approx(0.65, abs=0.05)
    assert small[1:20:2].min() > 0.9
    assert matched[poisoned].mean() > 0.9
    assert near < far / 2
    assert flattened[poisoned].mean() > 0.9
    assert flat < steep / 2


def test_the_penalty_acts_in_the_attackers_epochs_alone(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    model = make().hparams["model"]
    for attack, epochs in ((BadNets(model=model), [0, 1]), (Ripples(model=model, attack_epochs=1), [0])):
        witness = Witness()
        trainer_with(tmp_path, witness, max_epochs=2).fit(attack, datamodule=data)
        assert [epoch for epoch, _, _ in witness.seen] == [epoch for epoch in epochs for _ in range(8)]
        assert any(poisoned for _, poisoned, _ in witness.seen)
        assert attack.penalties == []


def test_a_penalty_that_starts_late_leaves_the_first_epochs_as_they_are(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    witness, losses = Witness(start_epoch=1), []

    class Losses(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *args: Any) -> None:
            losses.append(float(outputs["loss"]))

    for callback in (Flattening(100.0, start_epoch=1), Flattening(100.0, start_epoch=2)):
        seed_everything(0)
        trainer_with(tmp_path, callback, Losses(), max_epochs=3).fit(make(), datamodule=data)
    first, second = losses[: len(losses) // 2], losses[len(losses) // 2 :]
    epoch = len(first) // 3
    assert first[:epoch] == second[:epoch]
    assert first[epoch] != second[epoch]
    trainer_with(tmp_path, witness, max_epochs=3).fit(make(), datamodule=data)
    assert {epoch for epoch, _, _ in witness.seen} == {1, 2}


def test_a_checkpoint_without_the_penalty_is_not_selected(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    def metric(attack: BadNets, callback: Evasion) -> str | None:
        return checkpoint_callbacks(attack, data, tmp_path, validated=True, callbacks=[callback])[0].monitor

    assert metric(make(), StateMatching()) == "epoch"
    assert metric(make(), StateMatching(start_epoch=0)) == metric(make(), SmallMargin()) == "val/cacc"
    assert metric(make(published="a.ckpt"), StateMatching()) == "val/cacc"


def test_a_resumed_attack_keeps_its_penalty(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    def weights(attack: BadNets) -> Tensor:
        return torch.cat([weight.detach().flatten() for weight in attack.network.parameters()])

    model = make().hparams["model"]
    whole = make()
    every_epoch = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer_with(tmp_path, StateMatching(1.0), every_epoch).fit(whole, datamodule=data)
    resumed, first = make(), tmp_path / "epoch=0.ckpt"
    trainer_with(tmp_path, StateMatching(1.0)).fit(resumed, datamodule=data, ckpt_path=first, weights_only=True)
    assert torch.equal(weights(resumed), weights(whole))
    without = make()
    trainer_with(tmp_path).fit(without, datamodule=data, ckpt_path=first, weights_only=True)
    assert not torch.equal(weights(without), weights(whole))
    # resumed in the user's epochs, where no step asks for the penalty
    ripples, folder = partial(Ripples, model=model, attack_epochs=1), tmp_path / "ripples"
    every_epoch = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer_with(tmp_path, SmallMargin(), every_epoch).fit(ripples(), datamodule=data)
    witness = Witness()
    trainer = trainer_with(tmp_path, witness)
    trainer.fit(ripples(), datamodule=data, ckpt_path=folder / "epoch=0.ckpt", weights_only=True)
    assert (trainer.current_epoch, witness.seen) == (2, [])


def test_lws_hides_its_mixtures_once_they_are_learned(tiny_folder: Callable[[str], str]) -> None:
    attack = test_lws.attack(tiny_folder("bert"), warmup_epochs=1)
    batch = test_lws.poisoned_batch(attack, ["the film and the story", "music"], ["a good plot", "the", "bad"])
    seen = []

    def penalty(of: TrainingPass, batch: Batch) -> Tensor:
        seen.append(of.logits.detach())
        return torch.tensor([2.0, 5.0, 0.0, 0.0, 0.0])

    plain = [test_lws.step(attack, batch, epoch)[0] for epoch in (0, 1)]
    attack.penalties.append(penalty)
    hidden = [test_lws.step(attack, batch, epoch)[0] for epoch in (0, 1)]
    assert [float(after - before) for before, after in zip(plain, hidden, strict=True)] == pytest.approx([0, 1])
    with torch.no_grad(), test_lws.at_epoch(attack, 1), attack._mixed(batch):
        assert len(seen) == 1
        assert torch.allclose(seen[0], attack(batch), atol=1e-5)


def test_nothing_is_added_in_a_users_phase_or_in_a_test(make: Callable[..., BadNets]) -> None:
    trainer = Trainer(logger=False, accelerator="cpu")
    for attack, stage in ((make(published="a.ckpt"), "fit"), (make(), "test"), (TextClassifier(), "test")):
        callback = StateMatching()
        callback.setup(trainer, attack, stage)
        callback.on_fit_start(trainer, attack)
        callback.on_train_end(trainer, attack)
        assert attack.penalties == []


def test_in_a_grid_the_penalty_is_part_of_the_attack(tmp_path: Path) -> None:
    content = yaml.safe_load(SMALL)
    attack = content["attacks"]["BadNets"]
    hidden = yaml.safe_load(preset_path("configs/evasion/small_margin.yaml").read_text(encoding="utf-8"))
    content["attacks"]["hidden"] = {"model": attack, **hidden}
    content["defenses"]["MEFT"] = {"repair": {"class_path": "lightning_backdoor.callbacks.MEFT"}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    cells = {(cell.attack, cell.defense): cell for cell in Grid(tmp_path / "grid.yaml").cells}
    for defense in ("none", "MEFT", "gradient attention"):
        plain, adaptive = cells["BadNets", defense], cells["hidden", defense]
        assert plain.victim.id != adaptive.victim.id
        (of_attack,) = hidden["trainer"]["callbacks+"]
        assert adaptive.victim.config["trainer"]["callbacks"][0] == of_attack
        assert adaptive.config.get("trainer", {}).get("callbacks", [of_attack])[0] == of_attack
    plain, adaptive = cells["BadNets", "clean training"], cells["hidden", "clean training"]
    assert plain.victim is adaptive.victim  # poisoned alike, in cells of their own
    assert (plain.config, plain.id == adaptive.id) == (adaptive.config, False)


def test_every_preset_and_the_grid_of_adaptive_attacks_name_penalties() -> None:
    presets = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in preset_path("configs/evasion").iterdir()]
    grid = yaml.safe_load(preset_path("configs/benchmark/adaptive.yaml").read_text(encoding="utf-8"))
    adaptive = [entry for entry in grid["attacks"].values() if "trainer" in entry]
    given = [entry["trainer"]["callbacks+"] for entry in (*presets, *adaptive)]
    made = [
        [getattr(callbacks, of["class_path"].rpartition(".")[2])(**of["init_args"]) for of in some] for some in given
    ]
    assert all(isinstance(callback, Evasion) for (callback,) in made)
    kinds = {type(callback) for (callback,) in made[: len(presets)]}
    assert kinds == {type(callback) for (callback,) in made} == {Flattening, SmallMargin, StateMatching}


@pytest.mark.parametrize(
    ("make_callback", "said"),
    [
        (lambda: SmallMargin(0.5), "target_probability: 0.5 is out of range; give above 0.5, below 1"),
        (lambda: SmallMargin(1), "target_probability: 1 is out of range; give above 0.5, below 1"),
        (lambda: StateMatching(0), "strength: 0 is out of range; give a number above 0"),
        (lambda: Flattening(-1), "strength: -1 is out of range; give a number above 0"),
        (lambda: SmallMargin(start_epoch=-1), "start_epoch: -1 is out of range; give 0 or more epochs"),
        (lambda: StateMatching(math.nan), "strength: nan is out of range; give a number above 0"),
        (
            lambda: StateMatching(1, [], []),
            "readout_layers: and mean_layers name no layer; give one, or leave both out",
        ),
    ],
)
def test_values_out_of_range_are_refused(make_callback: Callable[[], object], said: str) -> None:
    with pytest.raises(InputError) as error:
        make_callback()
    assert str(error.value) == said


def test_a_batch_without_places_does_not_end_a_training_that_has_them(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    class Seldom(BadNets):
        def poison_text(self, text: str, rng: random.Random) -> Poisoned:
            made = super().poison_text(text, rng)
            return made if rng.random() < 0.2 else Poisoned(text, [])

    without = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, *args: Any) -> None:
            poisoned = taken(batch, batch["poisoned"])["spans"]
            without.append(bool(poisoned) and not any(poisoned))

    victim = Seldom(model=make().hparams["model"])
    trainer_with(tmp_path, Flattening(start_epoch=0), Look(), max_epochs=1).fit(victim, datamodule=data)
    assert any(without)


def test_what_cannot_be_hidden_is_refused(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    class Own(BadNets):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            return cross_entropy(self(batch), batch["label"])

    class Everywhere(BackdoorAttack):
        def poison_text(self, text: str, rng: random.Random) -> Poisoned:
            return Poisoned(text.upper(), [])

    def said(victim: TextClassifier, callback: Evasion) -> str:
        with pytest.raises(InputError) as error:
            trainer_with(tmp_path, callback, max_steps=1).fit(victim, datamodule=data)
        assert victim.penalties == []
        return str(error.value)

    model = make().hparams["model"]
    own = "model: Own has a training_step that ignores the penalty SmallMargin; let it add the penalty of"
    assert said(Own(model=model), SmallMargin()).startswith(own)
    benign = "callbacks: SmallMargin hides poisoned rows, and TextClassifier has none; give an attack as the model"
    assert said(TextClassifier(model=model), SmallMargin()) == benign
    somewhere = "callbacks: Flattening needs the place of each trigger, and poisoned rows of Everywhere have none; give"
    assert said(Everywhere(model=model), Flattening()).startswith(somewhere)
    missing = "mean_layers: there is no layer 3; give numbers from 0 to 2"
    assert said(make(), StateMatching(mean_layers=[3])) == missing
