"""A callback that repairs a published victim by PURE: head pruning, then training with a penalty on attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_backdoor.batch import Batch
from lightning_backdoor.callbacks.repair import PruningRepair
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.defenses.pruning import (
    ATTENTION,
    accuracy,
    inputs_of_heads,
    output_layers,
    prune_while_accurate,
    without_inputs,
    zero_inputs,
)
from lightning_backdoor.defenses.pure import (
    attention_penalty,
    layer_coefficients,
    pruning_order,
    remaining_heads,
    row_variance,
)
from lightning_backdoor.defenses.readout_attention import readout_attention
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.evaluation_mode import evaluating


class Pure(PruningRepair):
    """PURE (Zhao et al., ICML 2024), a repair: prunes heads that clean texts do not use, and normalises attention.

    The variance of the readout token's attention is taken on the reference rows, the accuracy of the pruned victim on
    the selection rows; the published code takes both on the same rows. A pruned head's weights in the output projection
    are zero, and stay zero. See :mod:`lightning_backdoor.defenses.pure` for the formulas, and for where the published
    code differs.

    Works on encoders and decoders, other than those whose layers share their weights (ALBERT): their heads cannot be
    pruned layer by layer.

    Args:
        group: heads per group that is pruned at once.
        min_accuracy: lowest accuracy of the pruned victim on the selection rows, from 0 to 1.
        penalty: weight of the attention norm in the loss, at least 0.
        padded_like_paper: length in tokens to which texts are padded for the variance, as in the published code, which
            pads to 128; False (the default) pads nothing.
        loss_like_program: take the coefficients and the norm as the published code does: no penalty for the layer of
            the highest variance, and a norm over all texts of a batch.

    Raises:
        InputError: a value is out of range (here); see :class:`~lightning_backdoor.callbacks.repair.Repair` (in
            ``setup``); the architecture has no output projection per layer (before the first step).

    Example::

        Trainer(max_epochs=3, gradient_clip_val=1.0, callbacks=[Pure(min_accuracy=0.8)]).fit(victim, datamodule=data)
    """

    has_loss = True

    def __init__(
        self,
        group: int = 10,
        min_accuracy: float = 0.85,
        penalty: float = 0.15,
        padded_like_paper: int | bool = False,
        loss_like_program: bool = False,
    ) -> None:
        super().__init__()
        if group < 1:
            raise InputError("group", f"{group} heads prune nothing", "give at least 1")
        if not 0 <= min_accuracy <= 1:
            raise InputError("min_accuracy", f"{min_accuracy} is not an accuracy", "give a number from 0 to 1")
        if not 0 <= penalty < math.inf:
            raise InputError("penalty", f"{penalty} is out of range", "give 0 or a number above it")
        if padded_like_paper is True or padded_like_paper < 0:
            raise InputError(
                "padded_like_paper",
                f"{str(padded_like_paper).lower()} is not a length in tokens",
                "give the length to which every text is padded, such as 128, or false",
            )
        self.group = group
        self.min_accuracy = min_accuracy
        self.penalty = penalty
        self.padded_like_paper = padded_like_paper
        self.loss_like_program = loss_like_program

    def decide(self, data: BackdoorDataModule) -> dict[str, Any]:
        """The heads to prune, and the coefficient of each layer in the loss."""
        network = self.victim.network
        layers = output_layers(network, ATTENTION, "attention output")
        reference, selection = map(self.on_device, (data.reference_dataloader(), data.selection_dataloader()))
        order, spared = pruning_order(self._variance(reference))

        def accuracy_without(pruned: list[tuple[int, int]]) -> float:
            with without_inputs(layers, inputs_of_heads(pruned, network)):
                return accuracy(network, selection)

        found = prune_while_accurate(order, spared, self.group, self.min_accuracy, accuracy_without)
        before, after = accuracy_without([]), accuracy_without(found.pruned)
        if found.pruned:
            rows = sum(len(batch["label"]) for batch in selection)
            rank_zero_info(
                f"PURE prunes {len(found.pruned)} of {len(order)} heads: accuracy on the {rows} selection rows"
                f" {before:.3f} before, {after:.3f} after"
            )
        else:
            rank_zero_warn(
                f"PURE prunes no head: without any of the first, accuracy is below min_accuracy {self.min_accuracy};"
                f" that of the victim is {before:.3f}"
            )
        with without_inputs(layers, inputs_of_heads(found.pruned, network)):
            variance = self._variance(reference)
        coefficients = layer_coefficients(variance, found.pruned, from_zero=self.loss_like_program)
        return {"pruned": [list(pair) for pair in found.pruned], "coefficients": coefficients.tolist()}

    @torch.no_grad()
    def _variance(self, batches: list[Batch]) -> Tensor:
        """The mean variance of each head's attention from the readout token, (layers, heads), on the CPU."""
        per_text = []
        with evaluating(self.victim.network):
            for batch in batches:
                mask = batch["attention_mask"]
                rows = readout_attention(self.victim.network, batch["input_ids"], mask).rows
                per_text.append(row_variance(rows, mask, int(self.padded_like_paper) or None).cpu())
        return torch.cat(per_text).mean(dim=0)

    def change(self, decided: dict[str, Any]) -> None:
        """Sets the weights of the pruned heads to zero."""
        self._zero(decided)

    def zero_gradients(self, decided: dict[str, Any]) -> None:
        """Sets the gradients of the pruned heads to zero."""
        self._zero(decided, gradients=True)

    def _zero(self, decided: dict[str, Any], gradients: bool = False) -> None:
        network = self.victim.network
        layers = output_layers(network, ATTENTION, "attention output")
        zero_inputs(layers, inputs_of_heads(_pairs(decided), network), gradients)

    def loss(self, batch: Batch) -> Tensor:
        """Cross entropy, plus the penalty on the attention of the readout token by the heads that remain."""
        assert self.decided is not None
        seen = readout_attention(self.victim.network, batch["input_ids"], batch["attention_mask"])
        coefficients = torch.tensor(self.decided["coefficients"])[:, None].expand(-1, seen.rows.shape[2])
        weights = coefficients * remaining_heads(coefficients, _pairs(self.decided))
        penalty = self.penalty * attention_penalty(seen.rows, weights.to(seen.rows), self.loss_like_program)
        self.victim.log("train/attention_penalty", penalty.detach(), batch_size=len(batch["label"]))
        return nn.functional.cross_entropy(seen.logits.float(), batch["label"]) + penalty


def _pairs(decided: dict[str, Any]) -> list[tuple[int, int]]:
    """The pruned heads as pairs of layer and head."""
    return [(layer, head) for layer, head in decided["pruned"]]
