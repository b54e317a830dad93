"""Precision: what ``auto`` stands for on a device, and float32 in evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def auto_precision(accelerator: str = "auto") -> str:
    """The precision that ``--trainer.precision auto`` stands for on this machine.

    Args:
        accelerator: the device, as for Lightning's Trainer.

    Returns:
        ``bf16-mixed`` where the device has bfloat16 in hardware, so that training in it is faster; else ``32-true``.

    Example::

        Trainer(precision=auto_precision()).fit(victim, datamodule=data)
    """
    return "bf16-mixed" if has_bfloat16(accelerator) else "32-true"


def has_bfloat16(accelerator: str = "auto") -> bool | None:
    """Whether a device computes in bfloat16 in hardware.

    GPUs of NVIDIA do from compute capability 8.0, GPUs of AMD, and processors with AVX-512 BF16 or AMX.

    Args:
        accelerator: the device, as for Lightning's Trainer.

    Returns:
        None for other kinds of devices, of which it is not known.
    """
    if accelerator in ("auto", "gpu"):
        from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector

        accelerator = _AcceleratorConnector._choose_auto_accelerator()  # private: lightning 2.6.6
    if accelerator == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if accelerator == "cpu":
        # torch.cpu.get_capabilities is public, but not in torch 2.6; private: torch 2.13.0
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return None


@contextmanager
def evaluation_precision(trainer: Trainer) -> Iterator[None]:
    """The precision of a trainer in evaluation, within the block: that of the weights.

    Mixed precision keeps weights in float32 and concerns training alone, so that metrics do not depend on the machine
    that evaluates. Where the weights themselves are in another precision, as in ``bf16-true``, evaluation is too.
    """
    device = trainer.strategy.root_device.type
    with trainer.precision_plugin.forward_context(), torch.autocast(device, enabled=False):
        yield
