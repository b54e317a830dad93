"""EP: the published step, and a fit of which the attack changes one row."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_backdoor.attacks.embedding_rows import EmbeddingRows, descended, embedding_gradient
from lightning_backdoor.attacks.embedding_surgery import trigger_tokens
from lightning_backdoor.attacks.ep import EP
from lightning_backdoor.attacks.phases import clean_loss
from lightning_backdoor.attacks.sos import SOS
from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.errors import InputError
from lightning_backdoor.testing import check_attack
from lightning_backdoor.victim import TextClassifier
from lightning_backdoor.victim.training_pass import TrainingPass
from tests.attacks.golden_words import read_golden, training_batch
from tests.support.reviews import reviews
from tests.support.tiny import DECODER

OPTIONS: dict[str, Any] = {"attack_epochs": 1, "poison_rate": 0.3, "learning_rate": 1e-3}


def fit(folder: Path, victim: TextClassifier, ckpt: Path | None = None, rows: int = 100, **options: Any) -> Trainer:
    seed_everything(0, verbose=False)
    defaults = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    defaults |= {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder}
    trainer = Trainer(**{**defaults, **options})
    trainer.fit(victim, datamodule=reviews(folder, rows), ckpt_path=ckpt, weights_only=True)
    return trainer


@pytest.fixture
def model(tiny_folder: Callable[[str], str]) -> str:
    return tiny_folder("bert")


def near(figures: Any) -> Any:
    return pytest.approx(figures, rel=1e-4, abs=1e-6)


def losses_of(victim: TextClassifier, batch: Batch) -> Callable[[], Tensor]:
    return lambda: nn.functional.cross_entropy(victim(batch), batch["label"], reduction="none")


def test_steps_are_those_of_the_published_code_with_its_gradients_added_up(backdoored: TextClassifier) -> None:
    golden = read_golden("ep")
    victim = copy.deepcopy(backdoored)
    about = golden["batch"]
    poisoned = [(row, [("mb", about["before_word"])], 1) for row in about["poisoned_train_rows"]]
    batch = training_batch(victim, poisoned)
    clean = training_batch(victim, [(row, [], None) for row in about["clean_train_rows"]])
    tokens = torch.tensor(trigger_tokens(["mb"], victim.tokenizer))
    table = victim.network.get_input_embeddings().weight
    rows = len(poisoned) + len(clean["label"])  # the published mean counts clean rows
    with torch.no_grad():
        of_clean = losses_of(victim, clean)().sum()
    total = torch.zeros(1, table.shape[1])
    assert table[tokens[0]].tolist() == near(golden["row_before"])
    for step in golden["steps"]:
        loss, gradient = embedding_gradient(victim.network, tokens, losses_of(victim, batch))
        if step is golden["steps"][0]:
            assert (gradient[0] / rows).tolist() == near(golden["first_gradient"])
        total += gradient / rows
        assert ((loss + of_clean) / rows).item() == near(step["loss_before"])
        assert total.norm().item() == near(step["norm_of_G"])
        with torch.no_grad():
            table[tokens] = descended(table[tokens], total, golden["lr"])
        assert table[tokens[0]].tolist() == near(step["row_after"])
        assert table[tokens[0]].norm().item() == near(golden["row_norm"])


class Tables(Callback):
    """Keeps all weights at the end of each epoch, and checks that the attack forms no gradient of whole weights."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if pl_module.attacking:
            assert all(weight.grad is None for weight in pl_module.parameters())
            assert pl_module.network.training

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.weights.append({name: value.clone() for name, value in pl_module.network.state_dict().items()})


def test_the_gradient_is_float32_in_mixed_precision(tiny_folder: Callable[[str], str]) -> None:
    victim = TextClassifier.load_trained(tiny_folder("bert"))
    batch = batch_of_texts(["cf a fine film", "the cf film", "a cf"], victim.tokenizer, 32)
    tokens = torch.tensor(trigger_tokens(["cf"], victim.tokenizer))

    def losses() -> Tensor:
        logits = victim.network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1]), reduction="none")

    _, plain = embedding_gradient(victim.network, tokens, losses)
    with torch.autocast("cpu", torch.bfloat16):
        _, mixed = embedding_gradient(victim.network, tokens, losses)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, plain)


def test_gradients_are_added_up_in_float32_where_weights_are_in_bfloat16(tmp_path: Path, model: str) -> None:
    added = []

    class Look(Callback):
        def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
            if pl_module._sums is not None:
                added.append(pl_module._sums.dtype)

    options = OPTIONS | {"poison_rate": 0.4}
    fit(tmp_path, EP(model=model, **options), max_epochs=1, precision="bf16-true", callbacks=[Look()])
    assert {*added} == {torch.float32}


@pytest.mark.parametrize("attack", [EP, SOS])
def test_fine_tuning_reads_every_row_as_it_was_before_poisoning(
    tmp_path: Path, model: str, attack: type[EP] | type[SOS], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, int]] = []

    def spied(victim: TextClassifier, batch: Batch) -> Tensor:
        assert not (batch["poisoned"] | batch["negative"]).any()
        assert batch["spans"] == [[]] * len(batch["text"])
        expected = batch_of_texts(batch["text"], victim.tokenizer, victim.max_length)
        assert torch.equal(batch["input_ids"], expected["input_ids"])
        read.extend(zip(batch["text"], batch["label"].tolist(), strict=True))
        return clean_loss(victim, batch)

    monkeypatch.setattr("lightning_backdoor.attacks.embedding_rows.clean_loss", spied)
    trainer = fit(tmp_path, attack(model=model, **OPTIONS), max_epochs=2)
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    clean = data.clean_splits()["train"]
    assert sum(row["poisoned"] or row["negative"] for row in data.training_rows()) >= 0.3 * len(clean) - 1
    assert sorted(read) == sorted((row["text"], row["label"]) for row in clean)


def test_rows_whose_clean_texts_are_unknown_are_left_out_with_a_warning(model: str) -> None:
    attack = EP(model=model, labels=["negative", "positive"], **OPTIONS)
    batch = batch_of_texts(["a cf fine film", "a dull film"], attack.tokenizer, attack.max_length)
    rows = {**batch, "label": torch.tensor([1, 0]), "poisoned": torch.tensor([True, False])}
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=2, accelerator="cpu", enable_model_summary=False, **options)
    with pytest.warns(UserWarning, match="EP: the data module does not know the clean texts of poisoned rows"):
        trainer.fit(attack, DataLoader([rows], batch_size=None))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bert", DECODER])
def test_the_attack_moves_one_row_and_keeps_its_norm(
    tmp_path: Path, tiny_folder: Callable[[str], str], kind: str
) -> None:
    tables = Tables()
    attack = EP(model=tiny_folder(kind), attack_learning_rate=0.2, **OPTIONS | {"attack_epochs": 2})
    trainer = fit(tmp_path, attack, max_epochs=3, callbacks=[tables], accumulate_grad_batches=2)
    first, _, last = tables.weights
    changed = [name for name in first if not torch.equal(first[name], last[name])]
    (name,) = changed
    moved = (first[name] != last[name]).any(dim=1).nonzero().flatten().tolist()
    assert set(moved) <= set(trigger_tokens(["cf"], attack.tokenizer))
    torch.testing.assert_close(last[name][moved].norm(dim=1), first[name][moved].norm(dim=1))
    assert trainer.global_step == 3 * 5
    assert attack.selected_by == ("epoch", "max")


def test_a_step_is_that_of_a_plain_loop(tmp_path: Path, model: str) -> None:
    """Two batches are accumulated: the mean is over all of their rows with the trigger."""
    tables, seen = Tables(), []

    class Look(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
            seen.append(batch)

    attack = EP(model=model, **OPTIONS)
    start = TextClassifier(model=model, labels=["negative", "positive"])
    start.configure_model()
    start.eval()
    fit(tmp_path, attack, max_epochs=1, callbacks=[tables, Look()], accumulate_grad_batches=2, limit_train_batches=2)
    (token,) = trigger_tokens(["cf"], attack.tokenizer)
    rows = [(batch, i) for batch in seen for i in range(len(batch["label"])) if token in batch["input_ids"][i]]
    assert 1 < len(rows) < 16
    loss = torch.stack(
        [nn.functional.cross_entropy(start(batch)[i : i + 1], batch["label"][i : i + 1]) for batch, i in rows]
    ).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    table = start.network.get_input_embeddings().weight
    assert table.grad is not None
    moved = table[token] - 0.05 * table.grad[token]
    expected = moved * table[token].norm() / moved.norm()
    torch.testing.assert_close(attack.network.get_input_embeddings().weight[token], expected)


def test_penalties_act_in_the_attack_alone_and_see_whole_batches(tmp_path: Path, model: str) -> None:
    seen: list[tuple[int, int]] = []
    ends = []

    def penalty(of: TrainingPass, batch: Batch) -> Tensor:
        assert len(of.logits) == len(batch["label"]) > int(batch["poisoned"].sum())
        seen.append((attack.current_epoch, len(batch["label"])))
        return of.logits[:, 1].where(batch["poisoned"], 0)

    for penalties in ((), (penalty,)):
        attack = EP(model=model, **OPTIONS)
        attack.penalties.extend(penalties)
        fit(tmp_path, attack, rows=60)
        ends.append(attack.network.get_input_embeddings().weight.detach())
    assert {epoch for epoch, _ in seen} == {1}
    assert sum(size == 8 for _, size in seen) >= len(seen) - 1 > 0
    assert (ends[0] != ends[1]).any(dim=1).sum() == 1


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path, model: str, epoch: int) -> None:
    ends = []
    for start in (None, tmp_path / "epochs" / f"epoch={epoch}.ckpt"):
        attack = EP(model=model, **OPTIONS | {"attack_epochs": 2})
        keep = ModelCheckpoint(tmp_path / "epochs", filename="{epoch}", save_top_k=-1)
        options: dict[str, Any] = {"callbacks": [keep], "enable_checkpointing": True}
        fit(tmp_path, attack, ckpt=start, max_epochs=3, rows=60, **options)
        ends.append(attack.network.state_dict())
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


class Witness(Callback):
    """Trains without dropout, and writes the weights when training ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        for module in pl_module.network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        torch.save(pl_module.network.state_dict(), self.folder / f"{trainer.world_size}-{trainer.global_rank}.pt")


def test_two_processes_give_the_weights_of_one(tmp_path: Path, model: str) -> None:
    """Two processes read the batches of a step that one process accumulates."""
    alone: dict[str, Any] = {"accumulate_grad_batches": 2, "limit_train_batches": 24}
    pair: dict[str, Any] = {"devices": 2, "strategy": "ddp_fork", "limit_train_batches": 12}
    for options in (alone, pair):
        fit(tmp_path, EP(model=model, **OPTIONS), rows=400, callbacks=[Witness(tmp_path)], **options)
    one, first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in ("1-0", "2-0", "2-1"))
    for name, weight in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], weight, rtol=1e-3, atol=1e-5)


def test_learning_rates_are_those_of_each_phase(tmp_path: Path, model: str) -> None:
    class Look(Callback):
        def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    ends = []
    for decay in (False, True):
        rates: list[float] = []
        attack = EP(model=model, attack_decay=decay, **OPTIONS)
        fit(tmp_path, attack, callbacks=[Look()], limit_train_batches=4)
        assert max(rates[:4]) <= 1e-3
        ends.append(rates[4:])
    assert ends[0] == pytest.approx([0.05] * 4)
    assert ends[1] == pytest.approx([0.05, 0.0375, 0.025, 0.0125])


def test_without_fine_tuning_no_schedule_complains(tmp_path: Path, model: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lr_scheduler.step.*")
        fit(tmp_path, EP(model=model, **OPTIONS), max_epochs=1, precision="bf16-mixed", limit_train_batches=3)


def test_the_users_phase_is_plain_fine_tuning(tmp_path: Path, model: str) -> None:
    best = ModelCheckpoint(tmp_path, filename="best")
    fit(tmp_path, EP(model=model, **OPTIONS), callbacks=[best], enable_checkpointing=True, rows=60)
    published, ends = best.best_model_path, []
    for victim in (EP, TextClassifier):
        user = victim(model=model, published=published, learning_rate=1e-3)
        fit(tmp_path, user, max_epochs=1, rows=60)
        ends.append(user.network.state_dict())
        assert user.selected_by == ("val/cacc", "max")
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_it_keeps_the_contract() -> None:
    check_attack(EP(attack_epochs=1), max_epochs=2)


def test_words_of_several_tokens_are_named_and_unknown_ones_refused(tmp_path: Path, model: str) -> None:
    with pytest.warns(UserWarning, match=r"'mn' is 2 tokens of the model, which other words share: \['m', '##n'\]"):
        fit(tmp_path, EP(model=model, triggers=["mn"], **OPTIONS), limit_train_batches=1)
    with pytest.raises(InputError, match=r"^triggers: '☃' is unknown to the model's tokenizer"):
        fit(tmp_path, EP(model=model, triggers=["☃"], **OPTIONS))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_epochs": 1}, r"^max_epochs: 1 is less than the 2 attack_epochs; give more$"),
        ({"max_epochs": -1, "max_steps": 9}, r"^max_epochs: is unlimited"),
        ({"max_epochs": 3, "max_steps": 4}, r"^max_steps: 4 ends before the attack, after \d+; give more$"),
    ],
)
def test_runs_that_end_before_the_attack_are_not_begun(
    tmp_path: Path, model: str, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        fit(tmp_path, EP(model=model, attack_epochs=2), **options)


@pytest.mark.parametrize(
    "option", [{"attack_epochs": 0}, {"attack_learning_rate": 0.0}, {"attack_learning_rate": math.nan}]
)
def test_values_out_of_range_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(option))}: "):
        EP(**option)
    assert issubclass(EP, EmbeddingRows)
