"""Captures: what passes of a network over batches gave, each computed once and shared by all that read it."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Hashable, Iterator, Set
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_backdoor.models.readout import readout_positions
from lightning_backdoor.models.readout_only import readout_only

#: bytes of results that are kept by default; beyond them, results are computed again.
CAPACITY = 1 << 30

#: what a defense may read of a network inside.
Reads = Set[Literal["hidden_states", "attention", "gradients"]]

T = TypeVar("T")
_current: ContextVar[Captures | None] = ContextVar("captures", default=None)
#: the blocks of :func:`recorded_use` that are running, outermost first.
_running: list[Used] = []


class Captures:
    """The results of passes of one network whose weights do not change, kept in memory by the content of the batches.

    A result is kept under the token ids and the mask of its batch, the pass and its options: it does not depend on
    which loader or object a batch came from. Results are given out as copies. Nothing is kept or given out while the
    network is in training mode, or has other weights, modules or hooks than at :meth:`begin`; a pass is then computed
    as if there were no captures. Writes that torch does not count (through ``.data``, by a fused optimizer) are noticed
    later; see :meth:`end`.

    Args:
        capacity: bytes of results that are kept. Beyond it results drawn at random are dropped, so that some of the
            results of a long evaluation are still there when the next one reads the same batches.

    Attributes:
        hidden_states: whether the victim's own forward passes also keep the hidden states of :func:`readout_states`.
        intact: after a lasting evaluation, whether the network was the same at its end as at its beginning, so that
            what is kept holds for another one.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.hidden_states = False
        self.intact = False
        self._network: PreTrainedModel | None = None
        self._state: tuple[object, ...] | None = None
        self._sums: Tensor | None = None
        self._results: dict[Hashable, _Result] = {}
        self._keys: list[Hashable] = []  # of the results, in no order
        self._bytes = 0
        self._rng = random.Random(0)

    def begin(self, network: PreTrainedModel, lasting: bool = False) -> None:
        """Begins an evaluation of a network; what is kept stays, and must be of a network with the same weights.

        Args:
            network: the network, in evaluation mode.
            lasting: whether the results are to hold for another evaluation.
        """
        self.intact = False
        self._network, self._state = network, _state(network)
        self._sums = _sums(network) if lasting else None

    def end(self) -> None:
        """Ends an evaluation; of a lasting one, the weights are compared with those at its beginning."""
        if self._network is not None and self._sums is not None:
            self.intact = self.is_of(self._network) and torch.equal(_sums(self._network), self._sums)
        self._network = self._state = self._sums = None

    def rebase(self, network: PreTrainedModel) -> None:
        """Takes the network as it is now for unchanged: after a pass, in which transformers may add hooks."""
        self._state = _state(network)

    def is_of(self, network: PreTrainedModel) -> bool:
        """Whether the results are those of a network as it is now: the network of :meth:`begin`, unchanged."""
        return network is self._network and self._state is not None and _state(network) == self._state

    def has(self, key: Hashable) -> bool:
        """Whether a result is kept for a key."""
        return key in self._results

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What a function returned when it was called for this key; calls it if nothing is kept.

        Args:
            key: all that determines the result.
            make: makes the result, of tensors, texts, and lists, tuples and dictionaries of them.
        """
        result = self._results.get(key)
        if result is None:
            started = time.perf_counter()
            value = make()
            result = _Result(value, time.perf_counter() - started, _bytes_of(value))
            self._keep(key, result)
            _report(key, 0.0)
        else:
            _report(key, result.seconds)
        return cast(T, _copy(result.value))

    def _keep(self, key: Hashable, result: _Result) -> None:
        if result.bytes > self.capacity:
            return
        while self._bytes + result.bytes > self.capacity:
            drawn = self._rng.randrange(len(self._keys))
            self._keys[drawn], self._keys[-1] = self._keys[-1], self._keys[drawn]
            self._bytes -= self._results.pop(self._keys.pop()).bytes
        self._results[key] = result
        self._keys.append(key)
        self._bytes += result.bytes


class _Result(NamedTuple):
    value: object
    seconds: float
    bytes: int


class Used:
    """The results that a block of :func:`recorded_use` used.

    Attributes:
        seconds: time that computing results took that had been computed before the block; each counts once.
        keys: keys of all results that were used.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.keys: set[Hashable] = set()

    def add(self, key: Hashable, seconds: float) -> None:
        """Adds a result, and the seconds that computing it took if that was before the block."""
        if key not in self.keys:
            self.keys.add(key)
            self.seconds += seconds


@contextmanager
def sharing(captures: Captures | None) -> Iterator[None]:
    """Makes captures current within the block, so that :func:`shared` keeps and reuses results; None shares nothing."""
    token = _current.set(captures)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def recorded_use() -> Iterator[Used]:
    """Records which results of captures the block uses, and how long those took that were computed before it."""
    used = Used()
    _running.append(used)
    try:
        yield used
    finally:
        _running.remove(used)


def _report(key: Hashable, seconds: float) -> None:
    for used in _running:
        used.add(key, seconds)


def shared(
    run: Callable[..., T], network: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, **options: Hashable
) -> T:
    """What a pass over a batch gives: ``run(network, input_ids, attention_mask, **options)``, computed once.

    Without current captures (:func:`sharing`), or where gradients are recorded, the pass is computed.

    Args:
        run: a pass, which returns tensors, or tuples, lists or dictionaries of them, and changes nothing.
        network: the network.
        input_ids: (batch, length), int64.
        attention_mask: (batch, length), int64, 1 for tokens and 0 for padding.
        **options: further arguments of the pass.
    """
    captures = _current.get()
    if captures is None or torch.is_grad_enabled() or not captures.is_of(network):
        return run(network, input_ids, attention_mask, **options)
    key = _key(run, input_ids, attention_mask, **options)

    def make() -> T:
        result = run(network, input_ids, attention_mask, **options)
        captures.rebase(network)
        if input_ids.device.type != "cpu":
            torch.accelerator.synchronize(input_ids.device)
        return result

    return captures.once(key, make)


def plain_logits(
    network: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, keep_states: bool = False
) -> Tensor:
    """The logits of a classifier, (batch, classes), by a plain forward pass.

    Args:
        network: any sequence classifier of transformers.
        input_ids: (batch, length), int64.
        attention_mask: (batch, length), int64, 1 for tokens and 0 for padding.
        keep_states: whether the pass also keeps hidden states, if a defense reads them.
    """
    captures = _current.get()
    states = captures is not None and (
        (keep_states and captures.hidden_states) or captures.has(_key(_with_states, input_ids, attention_mask))
    )
    if states:
        return shared(_with_states, network, input_ids, attention_mask)[0]
    return shared(_logits, network, input_ids, attention_mask)


@torch.no_grad()
def readout_states(network: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The hidden states from which a classifier's head reads, after the embeddings and after each layer.

    They are those of the token that the head reads in the last layer (:mod:`lightning_backdoor.models.readout`): the
    first token in encoders, the last one in decoders. They are taken from the plain forward pass where that keeps them;
    see :attr:`lightning_backdoor.defenses.defense.Defense.reads`.

    Args:
        network: any sequence classifier of transformers.
        input_ids: (batch, length), int64.
        attention_mask: (batch, length), int64, 1 for tokens and 0 for padding.

    Returns:
        (layers + 1, batch, hidden size), in the precision of the network, without gradients.

    Example::

        states = readout_states(victim.network, batch["input_ids"], batch["attention_mask"])
        states[-1]  # what the head reads
    """
    captures = _current.get()
    if captures is not None:
        captures.hidden_states = True  # the passes that follow keep them as well
    return shared(_with_states, network, input_ids, attention_mask)[1]


def _logits(network: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    with readout_only(network, input_ids, attention_mask):
        logits: Tensor = network(input_ids=input_ids, attention_mask=attention_mask).logits
    return logits


def _with_states(network: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    with readout_only(network, input_ids, attention_mask):
        output = network(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
    rows = torch.arange(len(input_ids), device=input_ids.device)
    positions = readout_positions(network, input_ids, attention_mask)
    return output.logits, torch.stack([layer[rows, positions] for layer in output.hidden_states])


def _state(network: PreTrainedModel) -> tuple[object, ...] | None:
    """What changes with the weights, modules and hooks of a network; None in training mode."""
    state: list[object] = []
    for module in network.modules():
        if module.training:
            return None
        hooks = (*module._forward_pre_hooks, *module._forward_hooks)  # private: torch 2.13.0
        weights = [(id(weight), _version(weight)) for weight in module._parameters.values() if weight is not None]
        state.append((id(module), hooks, *weights))
    return tuple(state)


def _sums(network: PreTrainedModel) -> Tensor:
    """The sum of each weight, (weights,), float64."""
    return torch.stack([weight.detach().sum(dtype=torch.float64).cpu() for weight in network.parameters()])


def _version(weight: Tensor) -> tuple[int, int]:
    """A number that changes whenever a tensor is written to, but by a fused optimizer or through ``.data``."""
    # tensors that were made in inference mode are not counted
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version  # private: torch 2.13.0


def _key(run: Callable[..., Any], input_ids: Tensor, attention_mask: Tensor, **options: Hashable) -> Hashable:
    return run, *sorted(options.items()), _digest(input_ids, attention_mask), _precision(input_ids.device)


def _digest(input_ids: Tensor, attention_mask: Tensor) -> bytes:
    digest = hashlib.blake2b(str(tuple(input_ids.shape)).encode())
    for tensor in (input_ids, attention_mask):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.digest()


def _precision(device: torch.device) -> torch.dtype | None:
    """The type to which autocast casts on a device; None where it is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def _bytes_of(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_bytes_of, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_bytes_of, value))
    return len(value) if isinstance(value, str) else 0


def _copy(value: Any) -> Any:
    """A copy of which every tensor can be changed, and used with gradients if it is made outside of inference mode."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: _copy(part) for name, part in value.items()}
    if isinstance(value, tuple):
        parts = map(_copy, value)
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return [_copy(part) for part in value] if isinstance(value, list) else value
