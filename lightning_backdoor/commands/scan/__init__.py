"""``scan``: flags and repairs suspicious texts before a fine-tuned checkpoint reads them."""

from lightning_backdoor.commands.scan.command import main
from lightning_backdoor.commands.scan.options import parser

__all__ = ["main", "parser"]
