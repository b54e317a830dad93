"""Passes for logits alone, whose last layer works on the readout token only, once its attention is computed.

After its last attention a transformer works on each token alone, and the head of a sequence classifier reads one token
(:mod:`lightning_backdoor.models.readout`). The output projection and the feed-forward layers of the last layer, three
quarters of its weights, are therefore needed for one token of each text, in the forward and in the backward pass.
Logits, gradients and random draws of dropout are those of a plain pass, up to rounding.

Nothing is assumed of an architecture: the linear layers that may be shortened are found by passes over a few made-up
tokens, in which all other rows of their outputs are NaN. Where that changes logits, as in a head that averages tokens,
all is computed.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import Conv1D, PreTrainedModel

from lightning_backdoor.models.readout import is_causal, readout_positions

#: packages whose hooks may see the last layer: they read only the readout token's row there, or, as those of this
#: module, leave passes of other threads alone.
KNOWN_HOOKS = ("transformers.", "lightning_backdoor.victim.", __name__)


class _Tail(NamedTuple):
    """The linear layers after the last attention that are computed for the readout token alone.

    Attributes:
        layers: the layers, in the order in which they run.
        narrow: those among them whose outputs stay one row per text, since only later ones of these layers read them.
        found_for: what this was found for, see :func:`_state`.
        causal: whether the network is causal.
    """

    layers: tuple[nn.Module, ...]
    narrow: frozenset[nn.Module]
    found_for: tuple[object, ...]
    causal: bool


_tails: WeakKeyDictionary[PreTrainedModel, _Tail] = WeakKeyDictionary()
#: held while a tail is looked up: a network that is being tried out must not be used by another thread.
_lookup = threading.Lock()
#: the block of this thread in which passes are shortened.
_block: ContextVar[object | None] = ContextVar("readout_only", default=None)


@contextmanager
def readout_only(network: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Iterator[Tensor | None]:
    """Within the block, a pass of the network over this batch computes only what its logits depend on.

    Attention is computed for all tokens; hidden states of the last layer hold for the readout token alone. Networks
    whose logits depend on other tokens' rows, that are compiled, that recompute activations (gradient checkpointing),
    or on which others have put hooks, compute all. Passes in other threads are not changed, so that several threads
    may use a network at once, each in a block of its own.

    Which layers are shortened is found once, and again when modules, dropout probabilities or the configuration change.
    Other attributes of modules that decide what the head reads, such as ``summary_type`` in the head of XLNet, must not
    be changed by hand afterwards.

    Args:
        network: any sequence classifier of transformers.
        input_ids: (batch, length), int64.
        attention_mask: (batch, length), int64, 1 for tokens and 0 for padding.

    Yields:
        The positions, (batch,), int64, of the tokens for which alone the output of the last attention is read; None if
        all is computed.

    Example::

        with readout_only(network, input_ids, attention_mask):
            logits = network(input_ids=input_ids, attention_mask=attention_mask).logits
    """
    if torch.compiler.is_compiling() or input_ids.shape[1] == 1 or _block.get() is not None:
        yield None
        return
    with _lookup:
        tail = _tail(network)
    if tail is None or not tail.layers:
        yield None
        return
    positions = readout_positions(network, input_ids, attention_mask, tail.causal)
    with _shortened(tail, positions, input_ids.shape[1]):
        yield positions


def _tail(network: PreTrainedModel) -> _Tail | None:
    """The layers of a network that are shortened; None if it must compute all, see :func:`readout_only`."""
    state = _state(network)
    if state is None:
        return None
    tail = _tails.get(network)
    if tail is None or tail.found_for != state:
        tail = _tails[network] = _find_tail(network, state)
    return tail


@contextmanager
def _shortened(tail: _Tail, positions: Tensor, length: int, rest: float = 0.0) -> Iterator[None]:
    """Shortens the layers to the rows at these positions, (batch,); the other rows of their outputs are ``rest``."""
    index = positions[:, None, None]
    block = object()

    def shorten(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        x: Tensor = args[0]
        if _block.get() is not block or x.shape[1] == 1:
            return None
        return x.gather(1, index.expand(-1, 1, x.shape[2])), *args[1:]

    def lengthen(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if _block.get() is not block:
            return None
        batch, _, features = output.shape
        return output.new_full((batch, length, features), rest).scatter(1, index.expand(-1, 1, features), output)

    handles = [layer.register_forward_pre_hook(shorten) for layer in tail.layers]
    handles += [layer.register_forward_hook(lengthen) for layer in tail.layers if layer not in tail.narrow]
    token = _block.set(block)
    try:
        yield
    finally:
        _block.reset(token)
        for handle in handles:
            handle.remove()


def _state(network: PreTrainedModel) -> tuple[object, ...] | None:
    """What is shortened depends on this: modules, dropout, configuration. None if all must be computed."""
    # private values change with the implementation of attention, on which it does not depend
    state: list[object] = [repr({name: value for name, value in vars(network.config).items() if name[0] != "_"})]
    for module in network.modules():
        before, after = module._forward_pre_hooks, module._forward_hooks  # private: torch 2.13.0
        hooks = (*before.values(), *after.values()) if before or after else ()
        compiled = module._compiled_call_impl or type(module).__name__ == "OptimizedModule"  # private: torch 2.13.0
        recomputes = module.training and vars(module).get("gradient_checkpointing")
        if compiled or recomputes or any(not _is_known(hook) for hook in hooks):
            return None
        state.append((id(module), vars(module).get("p")))
    return tuple(state)


def _is_known(hook: object) -> bool:
    return str(getattr(hook, "__module__", None)).startswith(KNOWN_HOOKS)


class _Call(NamedTuple):
    layer: nn.Module
    rows: torch.Size | None
    features: int


class _CallsSinceAttention(TorchFunctionMode):
    """Collects calls of linear layers, and forgets them at each attention."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.count: Counter[nn.Module] = Counter()
        linear = [module for module in network.modules() if isinstance(module, nn.Linear | Conv1D)]
        self._handles = [layer.register_forward_hook(self._collect) for layer in linear]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if "softmax" in name or "attention" in name:
            self.calls.clear()
        return func(*args, **(kwargs or {}))

    def _collect(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.count[layer] += 1
        self.calls.append(_Call(layer, args[0].shape[:-1], output.shape[-1]))

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()


def _find_tail(network: PreTrainedModel, state: tuple[object, ...]) -> _Tail:
    """Finds the layers by passes in training mode, under dropout with the same random draws."""
    causal = is_causal(network)
    best = _Tail((), frozenset(), state, causal)
    ids, mask = _made_up_batch(network)
    positions = readout_positions(network, ids, mask, causal)
    evaluating = [module for module in network.modules() if not module.training]
    devices = [] if ids.device.type == "cpu" else [ids.device]  # beside the processor's generator

    def logits() -> Tensor:
        with torch.random.fork_rng(devices, device_type=ids.device.type):
            result: Tensor = network(input_ids=ids, attention_mask=mask).logits
        return result

    network.train()
    try:
        with torch.no_grad(), torch.autocast(ids.device.type, enabled=False):
            with _CallsSinceAttention(network) as since:
                expected = logits()
            once = [call for call in since.calls if call.rows == ids.shape and since.count[call.layer] == 1]
            if len(since.calls) == since.count.total():  # no attention that is known was computed
                return best
            layers = tuple(call.layer for call in once)
            hidden: int = network.config.get_text_config().hidden_size
            inner = frozenset(call.layer for call in once[:-1] if call.features != hidden)
            near = math.sqrt(torch.finfo(expected.dtype).eps)
            # first with NaN after every layer, which shows whether tokens are mixed after the attention
            for narrow in (frozenset[nn.Module](), inner):
                tail = _Tail(layers, narrow, state, causal)
                with _shortened(tail, positions, ids.shape[1], rest=math.nan):
                    found = logits()
                if not torch.allclose(found, expected, rtol=near, atol=near):
                    break
                best = tail
    except (AttributeError, IndexError, RuntimeError, ValueError):  # it cannot read such a batch, or a narrow output
        pass
    finally:
        for module in evaluating:
            module.training = False
    return best


def _made_up_batch(network: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Token ids and mask, (3, 7): a text without padding, one with padding on the right, and one on the left."""
    padding: int | None = network.config.pad_token_id
    tokens = [number for number in range(8) if number != padding][:7]
    mask = torch.ones(3, 7, dtype=torch.long, device=network.device)
    mask[1, 5:] = mask[2, :2] = 0
    ids = torch.tensor(tokens, device=network.device).expand(3, 7)
    return ids.where(mask.bool(), padding or 0), mask
