"""Log-likelihoods of token sequences under a causal language model."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from lightning_backdoor.models.bucketing import pass_limits
from lightning_backdoor.models.parallel import in_passes

#: texts with the same first three tokens, on which it is tried whether a model looks ahead; every vocabulary has them.
PROBE = ([3, 1, 4, 1, 5, 2, 6], [3, 1, 4, 3, 1, 4, 1])
#: rows of logits that a processor turns into log-probabilities at once: few enough for its cache.
PROCESSOR_ROWS = 4


def logits_at_once(head: nn.Module, device: torch.device) -> int:
    """The number of tokens whose logits are held at once: 48 MiB on a processor, 2^26 logits elsewhere."""
    assert isinstance(head.weight, Tensor)
    logits = (3 << 24) // head.weight.dtype.itemsize if device.type == "cpu" else 1 << 26
    return max(1, logits // len(head.weight))


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor of the processor to a device without waiting for the work that the device has."""
    return tensor.to(device, non_blocking=True)


def log_probabilities(
    head: nn.Module, hidden: Tensor, positions: Tensor, targets: Tensor, buffers: list[Tensor]
) -> Tensor:
    """log P(target token | hidden state at its position), computed in chunks to bound the memory of the logits.

    Args:
        head: the language model's output layer.
        hidden: (tokens, hidden size).
        positions: (n,), int64, on the processor, ascending rows of ``hidden``; the head is applied once to each
            distinct one.
        targets: (n,), int64, on the processor, token ids.
        buffers: memory for logits, kept from call to call, since new memory takes as long as the logits themselves; one
            buffer is taken from it, or made, and put back. Several threads may share it.

    Returns:
        (n,), float32.
    """
    device, vocabulary = hidden.device, len(head.weight)  # type: ignore[arg-type]
    most = logits_at_once(head, device)
    distinct, row = torch.unique_consecutive(positions, return_inverse=True)
    block = min(most, PROCESSOR_ROWS) if device.type == "cpu" else most
    chunks = -(-len(distinct) // (most - most % block))
    size = block * -(-len(distinct) // (max(1, chunks) * block))  # chunks of one size
    starts = range(0, len(distinct), block)
    bounds = torch.searchsorted(row, torch.tensor([*starts, len(distinct)])).tolist()
    chosen = on_device(row % block * vocabulary + targets, device)  # among all logits of a block
    asked = hidden[on_device(distinct, device)]
    buffer = buffers.pop() if buffers else hidden.new_empty(most, vocabulary)
    float32 = None if buffer.dtype == torch.float32 else torch.empty(block, vocabulary, device=device)
    out = torch.empty(len(positions), device=device)
    for start, first, last in zip(starts, bounds, bounds[1:], strict=False):
        if start % size == 0:
            logits = _logits(head, asked[start : start + size], buffer)
        of_block = logits[start % size :][:block]
        if float32 is not None:
            of_block = float32[: len(of_block)].copy_(of_block)
        torch.log_softmax(of_block, dim=-1, out=of_block)  # in place: new memory would take longer than the work
        torch.index_select(of_block.view(-1), 0, chosen[first:last], out=out[first:last])
    buffers.append(buffer)
    return out


def _logits(head: nn.Module, hidden: Tensor, buffer: Tensor) -> Tensor:
    """The logits of hidden states, in the memory of ``buffer`` if the head is a plain matrix."""
    weight, bias = head.weight, getattr(head, "bias", None)
    assert isinstance(weight, Tensor)
    if type(head) is nn.Linear and bias is None:
        return torch.mm(hidden, weight.T, out=buffer[: len(hidden)])
    logits: Tensor = head(hidden)
    return logits


def plain_log_likelihoods(network: PreTrainedModel, rows: Sequence[list[int]]) -> list[float]:
    """log P (natural logarithm) of each row's tokens after the first; every row is read whole.

    Rows are read in batches of similar length.

    Args:
        network: a causal language model.
        rows: token ids; rows of fewer than two tokens get 0.
    """
    log_likelihoods = [0.0] * len(rows)
    device = network.device
    limits = pass_limits(device, network.dtype)
    limits = limits._replace(tokens=min(limits.tokens, logits_at_once(network.get_output_embeddings(), device)))

    def compute(group: list[int]) -> list[float]:
        with plain_inference(device):
            ids, lengths = _padded([rows[i] for i in group], device)
            real = torch.arange(ids.shape[1], device=device) < lengths[:, None]
            logits = network(input_ids=ids, attention_mask=real.long(), use_cache=False).logits[:, :-1].float()
            chosen = logits.gather(2, ids[:, 1:, None])[..., 0] - logits.logsumexp(dim=-1)
            sums: list[float] = chosen.double().masked_fill(~real[:, 1:], 0.0).sum(dim=1).tolist()
            return sums

    for group, values in in_passes(compute, [len(row) if len(row) > 1 else 0 for row in rows], limits, device):
        for i, value in zip(group, values, strict=True):
            log_likelihoods[i] = value
    return log_likelihoods


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids (rows, longest), padded on the right, to which no token attends, and the rows' lengths (rows,)."""
    ids = pad_sequence([torch.tensor(row or [0], dtype=torch.long) for row in rows], batch_first=True)
    return ids.to(device), torch.tensor([len(row) for row in rows], device=device)


class _Float32Settings:
    """Torch's settings of float32 for the whole process, at their defaults while any thread is in a block of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._restore = ExitStack()

    @contextmanager
    def default(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                # torch raises if the precision has been set per backend
                with suppress(RuntimeError):
                    self._restore.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
                    torch.set_float32_matmul_precision("highest")
                self._restore.callback(torch.set_default_dtype, torch.get_default_dtype())
                torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._restore.close()


_float32 = _Float32Settings()


@contextmanager
def plain_inference(device: torch.device) -> Iterator[None]:
    """Disables gradients within the block, and computes in the network's own precision whatever the caller has set.

    Several threads may be in such a block at once.
    """
    with torch.inference_mode(), torch.autocast(device.type, enabled=False), _float32.default():
        yield


def looks_ahead(network: PreTrainedModel) -> bool:
    """Whether a model's predictions depend on later tokens, as a causal language model's predictions never do."""
    # texts of equal length, since in bfloat16 logits differ a little by length
    one, other = (
        network(input_ids=torch.tensor([ids], device=network.device), use_cache=False).logits[:, :3] for ids in PROBE
    )
    return not torch.allclose(one, other, rtol=1e-3, atol=1e-3)
