"""Names by which runs are told apart: defenses of the rows, of training and of inference, in this order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.callbacks import InferenceDefense, MuScleLoRA, RunLabels
from lightning_backdoor.defenses.strip import Strip
from tests.support.reviews import reviews


class Idle:
    """A data defense that trusts everybody."""

    def clean(self, texts: Sequence[str], trusted: Sequence[str]) -> list[str | None]:
        return list(texts)


def test_every_kind_of_defense_is_named(tmp_path: Path, tiny_folder: Callable[[str], str]) -> None:
    hardened = MuScleLoRA(lora_rank=2, radial_scalings=[1, 2], reference_size=4)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        max_epochs=1,
        limit_val_batches=0,
        logger=CSVLogger(tmp_path),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[hardened, InferenceDefense(Strip(), name="strip"), RunLabels()],
    )
    trainer.fit(BadNets(model=tiny_folder("bert")), datamodule=reviews(tmp_path, data_defense=Idle()))
    (said,) = tmp_path.glob("lightning_logs/*/hparams.yaml")
    lines = said.read_text(encoding="utf-8").splitlines()
    assert "defense: Idle on training rows+MuScleLoRA+Strip" in lines
    assert any(line.startswith("training_defense: MuScleLoRA(lora=2/32/default, multi_scale=1+2/1/6") for line in lines)
