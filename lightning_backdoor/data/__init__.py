"""Data: sources, splits, poisoning, cleaning and batches."""

from lightning_backdoor.data.cleaning import CleaningRecord, DataDefense, LabelledText, TrustedRows
from lightning_backdoor.data.datamodule import BackdoorDataModule
from lightning_backdoor.data.pairs import PairsDataModule
from lightning_backdoor.data.source import Source

__all__ = [
    "BackdoorDataModule",
    "CleaningRecord",
    "DataDefense",
    "LabelledText",
    "PairsDataModule",
    "Source",
    "TrustedRows",
]
