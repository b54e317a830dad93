"""Data: sources, splits, poisoning and batches."""

from lightning_backdoor.data.datamodule import BackdoorDataModule
from lightning_backdoor.data.pairs import PairsDataModule
from lightning_backdoor.data.source import Source

__all__ = ["BackdoorDataModule", "PairsDataModule", "Source"]
