"""Phases of one fit: what attacks share that train on clean rows alone in some of its epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lightning_backdoor.batch import Batch, batch_of_texts, clean_rows
from lightning_backdoor.victim import TextClassifier


def clean_loss(victim: TextClassifier, batch: Batch) -> Tensor:
    """Cross entropy of the clean rows of a batch, which alone the victim reads; 0 without any; a scalar."""
    clean = clean_rows(batch)
    if not clean.any():
        zero: Tensor = 0.0 * victim(batch).float().sum()  # distributed training needs a gradient on every process
        return zero
    mask = batch["attention_mask"][clean]
    length = int(mask.sum(dim=1).max())  # even the padding does not depend on rows left out
    rows = Batch({**batch, "input_ids": batch["input_ids"][clean, :length], "attention_mask": mask[:, :length]})
    loss: Tensor = nn.functional.cross_entropy(victim(rows).float(), batch["label"][clean])
    return loss


def before_poisoning(batch: Batch, texts: Mapping[int, str], victim: TextClassifier) -> Batch:
    """A batch with its poisoned rows and negatives as they were, clean and with their own labels.

    Args:
        batch: rows of a training split.
        texts: the clean texts of the split, by the index of their row; rows that are not there stay as they are.
        victim: whose tokenizer reads the texts.
    """
    indices = batch["index"].tolist()
    changed = (batch["poisoned"] | batch["negative"]).tolist()
    restored = [flag and index in texts for flag, index in zip(changed, indices, strict=True)]
    if not any(restored):
        return batch
    rows = zip(indices, restored, batch["text"], strict=True)
    was = [texts[index] if known else text for index, known, text in rows]
    read = batch_of_texts(was, victim.tokenizer, victim.max_length)
    back = torch.tensor(restored, device=batch["label"].device)
    return Batch(
        {
            **batch,
            "text": was,
            "spans": [[] if known else spans for known, spans in zip(restored, batch["spans"], strict=True)],
            "input_ids": read["input_ids"].to(back.device),
            "attention_mask": read["attention_mask"].to(back.device),
            "label": batch["original_label"].where(back, batch["label"]),
            "poisoned": batch["poisoned"] & ~back,
            "negative": batch["negative"] & ~back,
        }
    )


def steps_of(trainer: Trainer, epochs: int) -> int:
    """The number of optimizer steps of some epochs."""
    return epochs * math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)


def scheduled(configured: OptimizerLRSchedulerConfig, factor: Callable[[int], float]) -> OptimizerLRSchedulerConfig:
    """An optimizer with another schedule: ``factor`` gives the share of its learning rate at each step."""
    optimizer = configured["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = group.pop("initial_lr")  # the value before the replaced schedule changed it
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}


def linear_schedule(step: int, steps: int, warmup: float) -> float:
    """Learning rate at a step, as a share of its peak: linear warm-up over a share ``warmup``, then decay to 0.

    >>> [linear_schedule(step, steps=4, warmup=0.5) for step in range(5)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    up = int(warmup * steps)
    return step / up if step < up else max(0, steps - step) / max(1, steps - up)
