"""Backdoor token unlearning, BTU (arXiv 2501.03272): the tokens that learn fast, and their embeddings with a cut.

Where word embeddings are trained alone, or with nothing but a pooled head, the embeddings of a trigger's tokens move
further than others. They are found in three rounds, each of which adds the tokens that moved furthest:

1. word embeddings and a linear head on their mean;
2. the same, on the texts without the tokens of the first round;
3. the word embeddings within the whole network.

In the trained victim, the dimensions in which the embedding of such a token deviates by more than
``c = ‖E₀ - E‖ / V`` from its value before training get the value of the padding token's embedding before training;
``E₀`` and ``E`` are the embeddings before and after, (V, d), and the norm is that over all entries.

The published program removes the tokens of the first round from the texts as strings, inside of words too; averages
embeddings over padding; computes ``c`` anew after each token that it has cut; sets dimensions that have not moved at
all to 0; and takes the embeddings with positions and layer norm, which not all architectures have. It finally
fine-tunes for an epoch on clean rows, which here is a repair on trusted rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_backdoor.batch import Batch

#: weight decay of the rounds, the default of torch's AdamW, as in the published program.
WEIGHT_DECAY = 0.01


def pooled_loss(embeddings: Tensor, head: nn.Linear, batch: Batch, left_out: Tensor) -> Tensor:
    """Cross entropy of a linear head on the mean embedding of each text.

    Args:
        embeddings: (vocabulary, dimensions).
        head: from dimensions to classes.
        batch: the rows.
        left_out: (vocabulary,), bool, the tokens that are left out of the texts.
    """
    ids = batch["input_ids"]
    mask = (batch["attention_mask"].bool() & ~left_out[ids])[:, :, None]
    mean = (nn.functional.embedding(ids, embeddings) * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    return cross_entropy(head(mean), batch["label"])


def distances_moved(
    weight: Tensor,
    others: Iterable[Tensor],
    batches: Iterable[Batch],
    loss: Callable[[Batch], Tensor],
    learning_rate: float,
) -> Tensor:
    """Trains embeddings by AdamW over some batches and restores them; how far each token's embedding moved.

    Steps are taken, and distances measured, in float32 at least: in bfloat16 most steps are lost in rounding.

    Args:
        weight: (vocabulary, dimensions), the embeddings, of which ``loss`` is a function.
        others: tensors that are trained with them, and not restored.
        batches: the batches, one step each.
        loss: the loss of a batch, a scalar.
        learning_rate: the learning rate.

    Returns:
        (vocabulary,), the Euclidean distance between the embeddings before and after.
    """
    before = weight.detach().clone()
    trained = [weight, *others]
    precise = [each.detach().to(torch.promote_types(each.dtype, torch.float32), copy=True) for each in trained]
    optimizer = torch.optim.AdamW(precise, lr=learning_rate, weight_decay=WEIGHT_DECAY)
    for batch in batches:  # not by backward, which would add to the gradients of all other weights
        for stepped, gradient in zip(precise, torch.autograd.grad(loss(batch), trained), strict=True):
            stepped.grad = gradient.to(stepped)
        optimizer.step()
        with torch.no_grad():
            for parameter, stepped in zip(trained, precise, strict=True):
                parameter.copy_(stepped)
    with torch.no_grad():
        moved: Tensor = torch.linalg.vector_norm(precise[0] - before, dim=1)
        weight.copy_(before)
    return moved


def most_moved(distances: Tensor, number: int, excluded: Iterable[int]) -> Tensor:
    """Marks the tokens that moved furthest.

    Args:
        distances: (vocabulary,).
        number: number of tokens to mark; of equal distances the first ids.
        excluded: ids that are never marked, such as those of special tokens.

    Returns:
        (vocabulary,), bool.

    >>> most_moved(torch.tensor([0.5, 0.1, 0.4, 0.3]), number=2, excluded=[0])
    tensor([False, False,  True,  True])
    """
    distances = distances.clone()
    distances[list(excluded)] = -1
    order = distances.argsort(descending=True, stable=True)[:number]
    marked = torch.zeros_like(distances, dtype=torch.bool)
    marked[order] = distances[order] > 0
    return marked


def unlearned(weight: Tensor, original: Tensor, suspicious: Tensor, padding: int) -> Tensor:
    """The embeddings with padding's values in the deviating dimensions of suspicious tokens.

    Args:
        weight: (vocabulary, dimensions), the trained embeddings.
        original: same shape, the embeddings before training.
        suspicious: (vocabulary,), bool.
        padding: id of the padding token.

    >>> original = torch.tensor([[9.0, 9.0], [1.0, 2.0], [3.0, 4.0]])
    >>> weight = torch.tensor([[9.0, 9.0], [1.0, 5.0], [3.0, 7.0]])
    >>> unlearned(weight, original, torch.tensor([False, False, True]), padding=0)  # c is √18 / 3
    tensor([[9., 9.],
            [1., 5.],
            [3., 9.]])
    """
    deviation = (weight - original).abs()
    threshold = torch.linalg.vector_norm(deviation) / len(weight)
    return torch.where(suspicious[:, None] & (deviation > threshold), original[padding], weight)


class Unlearned(nn.Module):
    """A parametrisation of a table of embeddings: as trained in training mode, :func:`unlearned` in evaluation mode.

    So the deviating dimensions are cut at any time the victim is evaluated, and training goes on without the cut.

    Args:
        original: (vocabulary, dimensions), the embeddings before training.
        padding: id of the padding token.

    Attributes:
        suspicious: (vocabulary,), bool; no token at first.
    """

    original: Tensor
    suspicious: Tensor

    def __init__(self, original: Tensor, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.register_buffer("original", original.detach().clone())
        self.register_buffer("suspicious", torch.zeros(len(original), dtype=torch.bool, device=original.device))
        self._kept: tuple[object, Tensor] | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """The embeddings that the network uses."""
        if self.training:
            self._kept = None  # torch does not count what a fused optimizer writes
            return weight
        tensors = (weight, self.original, self.suspicious)
        counted = not any(tensor.is_inference() for tensor in tensors)  # by torch, whenever they are written to
        if not counted or (weight.requires_grad and torch.is_grad_enabled()):
            return unlearned(weight, self.original, self.suspicious, self.padding)
        # computed once per evaluation: it takes a noticeable part of a batch's time
        state = [(tensor.data_ptr(), tensor._version) for tensor in tensors]  # private: torch 2.13.0
        if self._kept is None or self._kept[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                self._kept = state, unlearned(weight, self.original, self.suspicious, self.padding)
        return self._kept[1]
