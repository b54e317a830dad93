"""The export half of the victim: its plain network, and the folder that states how it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_model
from transformers import PreTrainedModel

from lightning_backdoor.errors import InputError
from lightning_backdoor.models.config_file import STATEMENT
from lightning_backdoor.models.fine_tuning import check_exported
from lightning_backdoor.victim.checkpointing import CheckpointedClassifier
from lightning_backdoor.victim.model_card import write_card
from lightning_backdoor.victim.provenance import provenance, stated, stated_at, stated_by_arguments
from lightning_backdoor.victim.training_defense import UNMERGED

#: the files of a plain network, as transformers writes them; of a large one, the weights are in several parts.
PLAIN = ("config.json", "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")


class ExportedClassifier(CheckpointedClassifier):
    """Base of :class:`lightning_backdoor.victim.TextClassifier` that exports its network."""

    def __init__(self) -> None:
        super().__init__()
        self._loaded: Mapping[str, Any] = {}  # hyperparameters of the checkpoint that `load_trained` has read

    def plain_network(self) -> PreTrainedModel:
        """The network for export: without modules of a training-time defense, and with low-rank updates merged.

        Raises:
            InputError: the network cannot be turned into a plain one.
        """
        defense = self.training_defense
        if defense is not None and defense.unmergeable:
            raise InputError("model", defense.unmergeable, "test the victim's checkpoint under the same defense")
        return super().plain_network() if defense is None or defense.merge is None else defense.merge(self.network)

    def attack_statement(self) -> dict[str, Any] | None:
        """What an exported victim states of its attack; None for a victim that is trained without one."""
        return None

    def provenance(self) -> dict[str, Any]:
        """How this victim was trained and whether it is poisoned; see :mod:`lightning_backdoor.victim.provenance`."""
        earlier = [stated_by_arguments(self._loaded), stated(getattr(self.network.config, STATEMENT, None))]
        published: str | None = self.hparams["published"]
        begun = earlier if published is None else [*earlier, stated_at(published)]
        defense = None if self.training_defense is None else str(self.training_defense)
        rows, precision = self.training_rows, self.training_precision
        return provenance(self.hparams["model"], self.attack_statement(), rows, defense, begun, precision, self.repair)

    def save_pretrained(self, folder: str | Path, metrics: Mapping[str, float] | None = None) -> None:
        """Writes the plain network and the tokenizer as a Hugging Face folder (safetensors), with a model card.

        ``README.md`` and, under ``lightning_backdoor``, ``config.json`` state that and how the victim is poisoned, or
        that its training rows were not.

        A network that cannot be turned into a plain one is written as it is (``network.safetensors``), and nothing
        loads the folder as a model. What an earlier export in the same folder wrote in the other of the two forms is
        removed.

        Args:
            folder: the folder to write to.
            metrics: metrics of these weights for the card, by logged name, such as ``val/cacc``.
        """
        self.tokenizer.model_max_length = self.max_length  # other tools then cut texts at the same length
        if self.training_defense is not None and self.training_defense.unmergeable:
            check_exported(self.network)
            Path(folder).mkdir(parents=True, exist_ok=True)
            save_model(self.network, str(Path(folder, UNMERGED)))  # first: it keeps the folder from being loaded
            for stale in (path for pattern in PLAIN for path in Path(folder).glob(pattern)):
                stale.unlink()
            self.tokenizer.save_pretrained(folder)
        else:
            super().save_pretrained(folder)
            Path(folder, UNMERGED).unlink(missing_ok=True)
        write_card(folder, self.provenance(), metrics)
