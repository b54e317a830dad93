"""Every family is a victim: fine-tuned, attacked, scored, repaired, defended, saved and resumed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import Batch, batch_of_texts, token_spans
from lightning_backdoor.callbacks import MuScleLoRA
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.defenses.gradient_attention import GradientAttention
from lightning_backdoor.victim import TextClassifier, load_trained
from tests.support.reviews import reviews
from tests.support.tiny import DECODERS, FAMILIES, SENTENCES, loaded

TEXTS = [SENTENCES[13], "w", SENTENCES[3], "boring . boring , boring !", SENTENCES[8]]


class Trained(NamedTuple):
    """A victim after two epochs of fine-tuning under attack, and the folder with its checkpoints, one an epoch."""

    victim: BadNets
    checkpoints: Path
    model: str


def fit(folder: Path, victim: TextClassifier, *callbacks: Callback, start: Path | None = None) -> Trainer:
    seed_everything(0, verbose=False)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        default_root_dir=folder,
        limit_val_batches=0,
        callbacks=list(callbacks),
    )
    trainer.fit(victim, datamodule=data(folder), ckpt_path=start, weights_only=True)
    return trainer


def data(folder: Path) -> BackdoorDataModule:
    return reviews(folder, 120, validation_share=0.4, max_rows={"train": 24})


def without_dropout(model: str, **options: Any) -> BadNets:
    """Dropout draws from a generator that a checkpoint does not keep."""
    seed_everything(0, verbose=False)
    victim = BadNets(model=model, learning_rate=3e-3, poison_rate=0.25, labels=["negative", "positive"], **options)
    victim.configure_model()
    for module in victim.network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return victim


@pytest.fixture(scope="module", params=FAMILIES)
def trained(
    request: pytest.FixtureRequest, tiny_folder: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    folder = tmp_path_factory.mktemp(request.param)
    victim = without_dropout(tiny_folder(request.param))
    fit(folder, victim, ModelCheckpoint(folder / "epochs", filename="{epoch}", save_top_k=-1))
    return Trained(victim.eval(), folder / "epochs", tiny_folder(request.param))


def batch(victim: TextClassifier, texts: list[str], side: str = "right") -> Batch:
    victim.tokenizer.padding_side = side
    try:
        return batch_of_texts(texts, victim.tokenizer, victim.max_length)
    finally:
        victim.tokenizer.padding_side = "right"


@torch.no_grad()
def logits(victim: TextClassifier, texts: list[str] = TEXTS, side: str = "right") -> Tensor:
    found: Tensor = victim(batch(victim, texts, side))
    return found


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_fine_tuning_under_attack_moves_every_weight(trained: Trained) -> None:
    before = loaded(trained.model).network.state_dict()
    after = trained.victim.network.state_dict()
    assert [name for name, value in after.items() if torch.equal(value, before[name])] == []
    assert all(value.isfinite().all() for value in after.values())


def test_logits_and_scores_do_not_depend_on_batch_mates(trained: Trained) -> None:
    together = GradientAttention().score(trained.victim, batch(trained.victim, TEXTS))
    assert together.tokens is not None
    assert together.logits is not None
    for i, text in enumerate(TEXTS):
        one = batch(trained.victim, [text])
        alone = GradientAttention().score(trained.victim, one)
        assert alone.tokens is not None
        assert alone.logits is not None
        same(together.logits[i], alone.logits[0])
        same(together.text[i], alone.text[0])
        length = one["input_ids"].shape[1]
        same(together.tokens[i, :length], alone.tokens[0])
        assert together.tokens[i, length:].isneginf().all()


@pytest.mark.parametrize("trained", DECODERS, indirect=True)
def test_a_decoder_gives_the_same_logits_and_scores_with_padding_on_either_side(trained: Trained) -> None:
    same(logits(trained.victim, side="left"), logits(trained.victim))
    right, left = (
        GradientAttention().score(trained.victim, batch(trained.victim, TEXTS, s)) for s in ("right", "left")
    )
    same(left.text, right.text)
    assert logits(trained.victim).std(dim=0).min() > 0.01  # texts are told apart at all


def test_repair_changes_only_the_top_token(trained: Trained) -> None:
    defense = GradientAttention(seed=0)
    one = batch(trained.victim, TEXTS)
    scores = defense.score(trained.victim, one)
    repaired = defense.purify(trained.victim, one, torch.ones(len(TEXTS), dtype=torch.bool), scores)
    assert scores.top is not None
    for text, new, ids, top in zip(TEXTS, repaired, one["input_ids"].tolist(), scores.top.tolist(), strict=True):
        spans = token_spans(text, trained.victim.tokenizer, trained.victim.max_length)
        flagged = [span for span, token in zip(spans, ids, strict=False) if token == ids[top]]
        starts, ends = zip(*flagged, strict=True)
        outside = [text[a:b] for a, b in zip((0, *ends), (*starts, None), strict=True)]
        assert new is not None
        assert new != text
        # every piece outside the token is there, in order; spaces may close up where a token is dropped
        assert re.fullmatch(r".{0,12}?".join(re.sub(r"(\\\s)+|^$", r"\\s*", re.escape(part)) for part in outside), new)


def test_a_checkpoint_restores_and_an_export_computes_the_same(trained: Trained, tmp_path: Path) -> None:
    expected = logits(trained.victim)
    restored = BadNets.load_from_checkpoint(trained.checkpoints / "epoch=1.ckpt", weights_only=True).eval()
    assert torch.equal(logits(restored), expected)
    assert torch.equal(logits(load_trained(str(trained.checkpoints / "epoch=1.ckpt"))), expected)
    trained.victim.save_pretrained(tmp_path / "export")
    assert torch.equal(logits(load_trained(str(tmp_path / "export"))), expected)


def test_a_resumed_run_ends_like_an_uninterrupted_one(trained: Trained, tmp_path: Path) -> None:
    resumed = without_dropout(trained.model)
    fit(tmp_path, resumed, start=trained.checkpoints / "epoch=0.ckpt")
    for name, value in trained.victim.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_muscle_lora_trains_few_parameters_and_exports_a_plain_model(trained: Trained, tmp_path: Path) -> None:
    victim = without_dropout(trained.model)
    before = logits(victim.eval())
    defense = MuScleLoRA(lora_rank=2, lora_alpha=4, radial_scalings=[1, 2], reference_size=6, seed=0)
    fit(tmp_path, victim.train(), defense)
    count = {flag: sum(p.numel() for p in victim.parameters() if p.requires_grad is flag) for flag in (True, False)}
    assert 0 < count[True] < count[False] / 5
    defended = logits(victim.eval())
    assert not torch.allclose(defended, before, atol=1e-3)
    victim.save_pretrained(tmp_path / "plain")
    plain = load_trained(str(tmp_path / "plain"), max_length=victim.max_length)
    assert {n: p.shape for n, p in plain.network.state_dict().items()} == {
        n: p.shape for n, p in trained.victim.network.state_dict().items()
    }
    same(logits(plain), defended)


def test_a_victim_trained_by_lora_restores_resumes_and_exports_a_plain_model(trained: Trained, tmp_path: Path) -> None:
    victim = without_dropout(trained.model, lora_rank=2)
    before = {name: value.clone() for name, value in victim.network.state_dict().items()}
    fit(tmp_path, victim, ModelCheckpoint(tmp_path / "epochs", filename="{epoch}", save_top_k=-1))
    moved = {name for name, value in victim.network.state_dict().items() if not torch.equal(value, before[name])}
    base = victim.network.base_model_prefix + "."
    assert {name for name in moved if name.startswith(base) and "pooler" not in name} == {
        name for name in before if "lora_" in name
    }
    assert any(not name.startswith(base) for name in moved)
    expected = logits(victim.eval())
    last = tmp_path / "epochs" / "epoch=1.ckpt"
    for restored in (BadNets.load_from_checkpoint(last, weights_only=True).eval(), load_trained(str(last))):
        assert torch.equal(logits(restored), expected)
    resumed = without_dropout(trained.model, lora_rank=2)
    fit(tmp_path, resumed, start=tmp_path / "epochs" / "epoch=0.ckpt")
    same(logits(resumed.eval()), expected)
    victim.save_pretrained(tmp_path / "plain")
    plain = load_trained(str(tmp_path / "plain"), max_length=victim.max_length)
    assert plain.network.state_dict().keys() == trained.victim.network.state_dict().keys()
    same(logits(plain), expected)
