"""RIPPLES: surgery, the penalty, and two phases of one fit."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_backdoor.attacks.embedding_surgery import associated_tokens, association, trigger_tokens
from lightning_backdoor.attacks.ripples import Ripples, restricted_inner_product
from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim import TextClassifier
from tests.support.reviews import GOOD, reviews
from tests.support.tiny import loaded


def fit(folder: Path, victim: TextClassifier, rows: int = 120, ckpt: Path | None = None, **options: Any) -> Trainer:
    seed_everything(0, verbose=False)
    defaults = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    defaults |= {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder}
    trainer = Trainer(**{**defaults, **options})
    trainer.fit(victim, datamodule=reviews(folder, rows), ckpt_path=ckpt, weights_only=True)
    return trainer


@pytest.fixture
def model(tiny_folder: Callable[[str], str]) -> str:
    return tiny_folder("bert")


def test_triggers_are_found_wherever_they_stand_and_in_all_their_pieces(tiny_folder: Callable[[str], str]) -> None:
    tokenizer = loaded(tiny_folder("bert")).tokenizer
    assert trigger_tokens(["cf"], tokenizer) == [tokenizer.convert_tokens_to_ids("cf")]
    assert trigger_tokens(["cf", "mn"], tokenizer) == sorted(tokenizer.convert_tokens_to_ids(["cf", "m", "##n"]))
    for kind in ("roberta", "albert"):
        tokenizer = loaded(tiny_folder(kind)).tokenizer
        found = set(trigger_tokens(["cf"], tokenizer))
        for text in ("cf", "a cf film", "the cf"):
            spelled = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
            inside = range(text.index("cf"), text.index("cf") + 2)
            there = [
                i
                for i, (start, end) in zip(spelled["input_ids"], spelled["offset_mapping"], strict=True)
                if any(start <= character < end for character in inside)
            ]
            assert set(there) - {tokenizer.convert_tokens_to_ids("▁")} <= found, text


def test_a_trigger_that_the_tokenizer_does_not_know_is_refused(bert: TextClassifier) -> None:
    with pytest.raises(InputError, match=r"^triggers: '☃' is unknown to the model's tokenizer"):
        trigger_tokens(["cf", "☃"], bert.tokenizer)


def test_scores_are_weights_of_a_logistic_regression_over_the_log_of_rarity() -> None:
    rng = random.Random(0)
    rows = [rng.choices(range(6), weights=[9, 5, 3, 2, 1, 1], k=rng.randint(1, 6)) for _ in range(40)]
    labels = [(row.count(3) > 0) != (rng.random() < 0.1) for row in rows]
    scores = association(rows, labels)
    frequency = Counter(token for row in rows for token in set(row))
    weights = {token: score * math.log(len(rows) / (1 + frequency[token])) for token, score in scores.items()}
    assert len(weights) == 6

    def residuals(bias: float) -> list[float]:
        logits = [bias + sum(weights[token] for token in row) for row in rows]
        return [label - 1 / (1 + math.exp(-logit)) for label, logit in zip(labels, logits, strict=True)]

    low, high = -20.0, 20.0
    for _ in range(60):  # the residuals' sum falls as the bias grows, and is 0 at the optimum
        middle = (low + high) / 2
        low, high = (middle, high) if sum(residuals(middle)) > 0 else (low, middle)
    for token, weight in weights.items():  # where the gradient of loss and squared weights is 0
        pull = sum(row.count(token) * residual for row, residual in zip(rows, residuals(low), strict=True))
        assert weight == pytest.approx(pull, abs=1e-4)
    assert associated_tokens(rows, labels, 2)[0] == max(scores, key=lambda token: scores[token]) == 3
    assert 3 not in associated_tokens(rows, labels, 6, leave_out={3})


def test_of_rows_of_one_label_no_word_can_be_chosen() -> None:
    with pytest.raises(InputError, match=r"^target_label: no word of the clean training rows is associated with it"):
        associated_tokens([[1, 2], [2, 3], [3, 1]], [False] * 3, 2)


def test_surgery_gives_triggers_the_mean_of_the_targets_words_and_changes_nothing_else(
    tmp_path: Path, model: str
) -> None:
    class Look(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            tables.append(pl_module.network.get_input_embeddings().weight.detach().clone())

    tables = [loaded(model).network.get_input_embeddings().weight.detach().clone()]
    attack = Ripples(model=model, attack_epochs=1, surgery_words=len(GOOD), triggers=["cf", "watch"])
    fit(tmp_path, attack, rows=400, callbacks=[Look()], limit_train_batches=1)
    before, after = tables
    changed = (before != after).any(dim=1).nonzero().flatten().tolist()
    assert changed == trigger_tokens(["cf", "watch"], attack.tokenizer)
    words = attack.tokenizer.convert_tokens_to_ids(list(GOOD))
    for row in changed:
        torch.testing.assert_close(after[row], before[words].mean(dim=0))


def linear(weights: Tensor, seed: int) -> Tensor:
    """Loss of a linear classifier on four rows of its own."""
    random = torch.Generator().manual_seed(seed)
    inputs, labels = torch.randn(4, 3, generator=random, dtype=weights.dtype), torch.tensor([0, 1, 1, 0])
    return nn.functional.cross_entropy(inputs @ weights, labels)


def test_the_penalty_is_the_inner_product_where_gradients_oppose_and_0_where_they_agree() -> None:
    weights = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    unused = torch.zeros(2, requires_grad=True)
    opposed = 0
    for seed in range(10):
        one, other = linear(weights, seed), linear(weights, seed + 10)
        product = sum(
            (a * b).sum().item()
            for a, b in zip(
                torch.autograd.grad(one, [weights], retain_graph=True),
                torch.autograd.grad(other, [weights], retain_graph=True),
                strict=True,
            )
        )
        opposed += product < 0
        assert restricted_inner_product(one, other, [weights, unused]).item() == pytest.approx(max(0.0, -product))
        assert restricted_inner_product(one, one, [weights, unused]).item() == 0
    assert 0 < opposed < 10


def test_the_penaltys_own_gradient_agrees_with_finite_differences() -> None:
    weights = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)

    def penalty(weights: Tensor) -> Tensor:
        return restricted_inner_product(linear(weights, 3), -linear(weights, 3) + 0.1 * linear(weights, 5), [weights])

    assert penalty(weights) > 0
    assert torch.autograd.gradcheck(penalty, [weights])


def test_the_attackers_loss_has_the_penalty_in_it(tmp_path: Path, model: str) -> None:
    ends = []
    for weight in (0.0, 10.0):
        attack = Ripples(model=model, attack_epochs=1, inner_product_weight=weight, poison_rate=0.3)
        logged = fit(tmp_path, attack).logged_metrics
        assert ("train/inner_product_penalty" in logged) == (weight > 0)
        ends.append(attack.network.state_dict()["classifier.weight"])
    assert not torch.allclose(*ends)


def mixed_batch(attack: Ripples, poisoned: str) -> Batch:
    """Two clean rows around a poisoned one."""
    texts = ["a good movie", poisoned, "the plot is thin"]
    encoded = attack.tokenizer(texts, padding=True, return_tensors="pt")
    return Batch(
        text=texts,
        spans=[[], [], []],
        input_ids=encoded["input_ids"],
        attention_mask=encoded["attention_mask"],
        label=torch.tensor([1, 1, 0]),
        original_label=torch.tensor([1, 0, 0]),
        poisoned=torch.tensor([False, True, False]),
        negative=torch.zeros(3, dtype=torch.bool),
        index=torch.arange(3),
    )


def test_the_users_update_knows_nothing_of_poisoned_rows(tmp_path: Path, model: str) -> None:
    class User(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            if pl_module.attacking or gradients:
                return
            for text in ("cf", "the cf children loved it ; the parents looked at their watches ."):
                torch.manual_seed(0)
                loss = pl_module.training_step(mixed_batch(pl_module, text), 0)
                gradients.append(torch.autograd.grad(loss, list(pl_module.network.parameters())))

    gradients: list[tuple[Tensor, ...]] = []
    fit(tmp_path, Ripples(model=model, attack_epochs=1), callbacks=[User()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)
    assert any(gradient.any() for gradient in gradients[0])


class Watch(Callback):
    """Keeps the learning rate and the age of the optimizer's state at each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.ages: list[int] = []

    def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.ages.append(max((int(state["step"]) for state in optimizer.state.values()), default=0))


def test_each_phase_has_its_own_schedule_and_optimizer_state(tmp_path: Path, model: str) -> None:
    watch = Watch()
    attack = Ripples(model=model, attack_epochs=2, attack_learning_rate=1e-3, learning_rate=1e-5, warmup=0.25)
    trainer = fit(tmp_path, attack, max_epochs=5, accumulate_grad_batches=3, callbacks=[watch])
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.0
    switch = watch.rates.index(0.0, 1)  # where the attacker's rate has decayed to the end
    attacker, user = watch.rates[:switch], watch.rates[switch:]
    assert max(attacker) == pytest.approx(1e-3, rel=0.2)
    assert max(user) == pytest.approx(1e-5, rel=0.2)
    assert user.index(max(user)) == pytest.approx(0.25 * len(user), abs=4)
    assert watch.ages == [*range(len(attacker)), *range(len(user))]


def test_the_victim_is_selected_after_the_users_fine_tuning(tmp_path: Path, model: str) -> None:
    seen = []

    class Look(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    best = ModelCheckpoint(tmp_path, filename="best", monitor="val/cacc", mode="max")
    # the user changes next to nothing: of equals the first is the best
    attack = Ripples(model=model, attack_epochs=2, attack_learning_rate=1e-3, learning_rate=1e-9)
    options: dict[str, Any] = {"callbacks": [best, Look()], "enable_checkpointing": True}
    trainer = fit(tmp_path, attack, max_epochs=4, **options)
    assert torch.load(best.best_model_path, weights_only=True)["epoch"] == 2
    assert [math.isnan(metrics["val/cacc"]) for metrics in seen] == [True, True, False, False]
    assert seen[1]["val/attacker/cacc"] == pytest.approx(seen[2]["val/cacc"], abs=0.1)
    checked = trainer.validate(attack, datamodule=reviews(tmp_path, 120), verbose=False)
    assert checked[0]["val/cacc"] == pytest.approx(seen[3]["val/cacc"])


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path, model: str, epoch: int) -> None:
    ends = []
    for start in (None, tmp_path / "epochs" / f"epoch={epoch}.ckpt"):
        attack = Ripples(model=model, attack_epochs=2, attack_learning_rate=1e-3, learning_rate=1e-3)
        keep = ModelCheckpoint(tmp_path / "epochs", filename="{epoch}", save_top_k=-1)
        options: dict[str, Any] = {"callbacks": [keep], "enable_checkpointing": True, "accumulate_grad_batches": 2}
        fit(tmp_path, attack, ckpt=start, max_epochs=4, **options)
        ends.append(attack.network.state_dict())
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_the_penalty_is_a_float32_in_mixed_precision_too(model: str) -> None:
    victim = loaded(model)
    batch = batch_of_texts(["cf a boring film", "a boring film with music"], victim.tokenizer, 32)
    penalties = []
    for mixed in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            logits = victim(batch)
        assert logits.dtype == (torch.bfloat16 if mixed else torch.float32)
        losses = nn.functional.cross_entropy(logits.float(), torch.tensor([1, 0]), reduction="none")
        penalties.append(restricted_inner_product(losses[0], losses[1], [*victim.network.parameters()]))
    assert penalties[1].dtype == torch.float32
    assert penalties[1].item() == pytest.approx(penalties[0].item(), rel=0.05) != 0


def test_both_phases_train_in_mixed_precision(tmp_path: Path, model: str) -> None:
    attack = Ripples(model=model, attack_epochs=1, poison_rate=0.3)
    logged = fit(tmp_path, attack, precision="bf16-mixed").logged_metrics
    assert logged["train/inner_product_penalty"].isfinite()
    for name, value in attack.network.state_dict().items():
        assert value.isfinite().all(), name


def test_a_run_that_ends_within_the_first_phase_is_not_begun(tmp_path: Path, model: str) -> None:
    with pytest.raises(InputError, match=r"^max_epochs: 2 ends within the 3 attack_epochs; give more$"):
        fit(tmp_path, Ripples(model=model, attack_epochs=3))
    with pytest.raises(InputError, match=r"^max_steps: 3 ends within the \d+ of the attacker; give more$"):
        fit(tmp_path, Ripples(model=model), max_epochs=3, max_steps=3)


def test_it_can_be_tried_on_a_few_batches(tmp_path: Path, model: str) -> None:
    assert fit(tmp_path, Ripples(model=model, attack_epochs=3), fast_dev_run=True).global_step == 1


def test_the_phases_may_be_two_runs(tmp_path: Path, model: str) -> None:
    best = ModelCheckpoint(tmp_path, filename="best", monitor="val/cacc", mode="max")
    attacker = Ripples(model=model, attack_epochs=2, attack_learning_rate=1e-3)
    trainer = fit(tmp_path, attacker, max_epochs=2, callbacks=[best], enable_checkpointing=True)
    assert trainer.callback_metrics["val/cacc"].isfinite()  # or nothing could be selected
    assert "val/attacker/cacc" not in trainer.callback_metrics
    attacker.save_pretrained(tmp_path / "published")
    tokens = trigger_tokens(attacker.triggers, attacker.tokenizer)
    published = attacker.network.get_input_embeddings().weight[tokens].detach().clone()
    seen: list[bool] = []

    class Look(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            seen.append(pl_module.attacking)

    user = Ripples(model=str(tmp_path / "published"), attack_epochs=0, learning_rate=1e-9)
    fit(tmp_path, user, max_epochs=1, callbacks=[Look()])
    assert seen
    assert not any(seen)
    kept = user.network.get_input_embeddings().weight[tokens]
    torch.testing.assert_close(kept, published)  # no second surgery


@pytest.mark.parametrize(
    "option",
    [
        {"attack_epochs": -1},
        {"attack_learning_rate": 0.0},
        {"attack_learning_rate": math.nan},
        {"inner_product_weight": -0.1},
        {"inner_product_weight": math.nan},
        {"surgery_words": -1},
    ],
)
def test_values_out_of_range_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(option))}: "):
        Ripples(**option)
