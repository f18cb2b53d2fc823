"""CUDA graphs of the network: a batch of a shape that comes again is launched at once, not kernel by kernel.

Captured are the network's forward and backward pass. What depends on the objects (assignment, losses), what the ranks
do together (the normaliser's sum, the gradients' average) and the update stay outside: ranks may replay different
shapes in one step, and gradients' hooks, clipping, loss scales and checks see what they always see.
"""

from __future__ import annotations

import gc
import logging
import math
import time
import weakref
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from .compiled import NetworkRunner

logger = logging.getLogger(__name__)

Outputs = tuple[list[Tensor], list[Tensor]]  # of the network: each level's logits and deltas

_APPEARANCES = 2  # of a shape until it is captured: what comes once is not worth a second or so
_RARER = 10  # times as many for a shape whose graph had to go, so that shapes in turn do not capture each other away


class CudaGraphs:
    """Records what functions launch on a GPU, all into one pool of memory, which is right if they replay in turn.

    Raises:
        RuntimeError: another device.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise RuntimeError(f"only what runs on a GPU can be captured, and this runs on the device {device}")
        self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
        self.max_bytes = torch.cuda.get_device_properties(device).total_memory // 8

    def warm_up(self, function: Callable[[], object]) -> None:
        """Call a function as often as PyTorch's own captures do, so that libraries choose and allocate before."""
        gc.collect()  # a graph of a model that is gone must not be destroyed during the capture
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        try:
            with torch.cuda.stream(self.stream):
                for _ in range(3):
                    function()
        finally:
            current.wait_stream(self.stream)  # also where it failed, since what it used is freed or put back next

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """Return a function's result and what fills it anew, from whatever is then in the tensors that it reads."""
        graph = torch.cuda.CUDAGraph()
        # "thread_local": the loader's thread pins memory meanwhile
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            result = function()
        return result, graph.replay


class CapturedOrPlain(NetworkRunner):
    """Calls a network, and captures it for each kind of images that comes again; the log says so.

    Outputs, and gradients of parameters, lie in memory of the graphs: they hold until the next call, and until the next
    backward pass. A replay's backward pass has to come before the next replay: while one is due, a call is a plain one,
    as for images that were not captured, yet or ever. Other modes or trained parameters have graphs of their own. Where
    parameters, buffers or modules are replaced or moved, all are captured anew; those without gradients, which may hold
    what a module derived from its weights, also when weights change, and when a module that counts its `mode_changes`
    has counted one, since fused optimizers write weights without PyTorch's counting it.

    Args:
        owner: holds the parameters and buffers.
        function: images (N, 3, H, W) to logits and deltas of each level.

    Attributes:
        make_graphs: makes what records on a device; something else than `CudaGraphs` in tests.
        counts: shapes "captured"; calls "replayed" and "plain", and how many of these "failed" to be captured.
    """

    make_graphs: Callable[[torch.device], Any] = CudaGraphs

    def __init__(self, owner: nn.Module, function: Callable[[Tensor], Outputs]) -> None:
        super().__init__(function)
        self.owner = owner
        self.counts: Counter[str] = Counter()
        self.pending: weakref.ref[_Pending] | None = None
        self._recordings: OrderedDict[Hashable, _Recording] = OrderedDict()  # the least recently used first
        self._places: list[int] | None = None  # of what the owner has; it may not have all yet

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "owner": self.owner}

    def _begin(self) -> None:
        """Drop all graphs, which read and write where parameters and buffers were, and note where these are now."""
        if self._recordings:
            logger.info("CUDA graphs: parameters or modules were replaced or moved, so all is captured anew")
        self._recordings.clear()
        self._appearances: Counter[Hashable] = Counter()
        self._needed: defaultdict[Hashable, float] = defaultdict(lambda: _APPEARANCES)
        self._graphs: Any = None
        self._gradients: dict[str, Tensor] = {}  # of parameters by name, in which all backward passes leave them
        self._modules, self._buffers = list(self.owner.modules()), list(self.owner.buffers())
        self._tensors = [*self.owner.parameters(), *self._buffers]
        self._counting: list[Any] = [module for module in self._modules if hasattr(module, "mode_changes")]
        members = ((x._parameters, x._buffers, x._modules) for x in self._modules)
        self._members: list[dict[str, Any]] = list(chain.from_iterable(members))  # empty ones too: a norm may be added
        self._places = self._places_now()

    def _places_now(self) -> list[int]:
        """Return what changes once a parameter, buffer or module of the owner is another one, new or elsewhere."""
        members = chain.from_iterable(map(dict.values, self._members))
        return [*map(id, members), *(x.data_ptr() for x in self._tensors)]

    def __call__(self, images: Tensor) -> Outputs:
        is_due = self.pending is not None and self.pending() is not None
        recording = None if is_due or images.requires_grad else self._recording(images)
        if recording is None:
            self.counts["plain"] += 1
            return self.function(images)
        self.counts["replayed"] += 1
        if not recording.trained:
            return recording.split(recording.forward(images))
        pending = _Pending()
        self.pending = weakref.ref(pending)
        return recording.split(_Replay.apply(recording, pending, images, *recording.trained.values()))

    def _recording(self, images: Tensor) -> _Recording | None:
        """Return the graphs for such images, captured if it is time to; None if the call is to be a plain one."""
        if self._places is None or self._places_now() != self._places:
            self._begin()
        device, grad = images.device.type, torch.is_grad_enabled()
        cast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        trained = grad and tuple(tensor.requires_grad for tensor in self._tensors)
        modes = tuple(module.training for module in self._modules)
        key = (*images.shape, images.stride(), cast, trained, modes, torch.is_inference_mode_enabled())
        found = self._recordings.pop(key, None)
        if found is None or (not grad and found.weights != self._weights()):
            self._appearances[key] = 1 if found else self._appearances[key] + 1
            found = self._capture(images, key) if self._appearances[key] >= self._needed[key] else None
            if found is not None and not grad:
                found.weights = self._weights()  # after the capture, which may have put buffers back
        if found is None:
            self.counts["failed"] += math.isinf(self._needed[key])
            return None
        self._recordings[key] = found
        while len(self._recordings) > 1 and sum(x.bytes for x in self._recordings.values()) > self._graphs.max_bytes:
            old, _ = self._recordings.popitem(last=False)
            self._appearances[old], self._needed[old] = 0, self._needed[old] * _RARER
        return found

    def _weights(self) -> tuple[int, int]:
        """Return what changes with every write to parameters and buffers that PyTorch counts, and with the mode."""
        versions = (0 if x.is_inference() else x._version for x in self._tensors)
        return sum(module.mode_changes for module in self._counting), sum(versions)

    def _capture(self, images: Tensor, key: Hashable) -> _Recording | None:
        """Capture the network for such images, leaving buffers as they were; None, and never again, if that fails."""
        about, start = f"a batch of {'x'.join(map(str, images.shape))}", time.monotonic()
        before = [buffer.clone() for buffer in self._buffers]  # such as a norm's statistics
        try:
            with self.while_preparing():
                self._graphs = self._graphs or self.make_graphs(images.device)
                found = _Recording(self._graphs, _AsModule(self.owner, self.function), images, self._gradients)
        except RuntimeError as error:
            self._needed[key] = math.inf
            reason = " ".join(str(error).split())[:200]
            logger.warning(f"CUDA graphs: {about} cannot be captured ({reason}) and always runs without a graph")
            return None
        finally:
            with torch.no_grad():
                for buffer, value in zip(self._buffers, before, strict=True):
                    if not torch.equal(buffer, value):  # a write makes other graphs be captured anew
                        buffer.copy_(value)
        self.counts["captured"] += 1
        passes, took = "forward and backward" if found.trained else "forward", time.monotonic() - start
        logger.info(f"CUDA graphs: captured {about}, {passes}, in {took:.1f} s, beside {len(self._recordings)} others")
        return found

    def summary(self) -> list[str]:
        """Say how many calls were replays."""
        captured, replayed, plain, failed = (self.counts[x] for x in ("captured", "replayed", "plain", "failed"))
        return [
            f"CUDA graphs: {captured} captured; of {replayed + plain:,} calls of the network {replayed:,} were replays "
            f"and {plain:,} ran without a graph, {failed:,} of them since their shape cannot be captured"
        ]


class _Pending:
    """Lives as long as a backward pass may follow."""


class _Recording:
    """The graphs for images of one kind, and the tensors that they read and write.

    It has leaves of its own in the place of the parameters, over the same memory: the parameters' own nodes in
    autograd's graph, which DDP keeps, may belong to another stream, which must not get into a capture.

    Attributes:
        trained: parameters by name that get a gradient; none if there is no backward pass.
        bytes: of images, outputs and their gradients, which no other recording can share.
        weights: what they were, if there are no gradients.
    """

    def __init__(self, graphs: Any, network: _AsModule, images: Tensor, gradients: dict[str, Tensor]) -> None:
        self._images = images.clone()
        self.weights: Hashable = None
        named = network.owner.named_parameters() if torch.is_grad_enabled() else ()
        self.trained = {name: parameter for name, parameter in named if parameter.requires_grad}
        leaves: dict[str, Tensor] = {f"owner.{name}": nn.Parameter(x.detach()) for name, x in self.trained.items()}

        def forward() -> list[Tensor]:
            logits, deltas = functional_call(network, leaves, (self._images,))
            torch.clear_autocast_cache()  # so that the next pass, the captured one, casts the weights itself
            self._levels = len(logits)
            return [*logits, *deltas]

        def backward(outputs: Sequence[Tensor], of_outputs: Sequence[Tensor]) -> list[Tensor | None]:
            with torch.autocast(images.device.type, enabled=False):  # which a training's backward pass is outside of
                found = torch.autograd.grad(outputs, list(leaves.values()), of_outputs, allow_unused=True)
            pairs = [(gradients[name], x) for name, x in zip(self.trained, found, strict=True) if x is not None]
            torch._foreach_copy_([own for own, _ in pairs], [x for _, x in pairs])
            return [None if x is None else gradients[name] for name, x in zip(self.trained, found, strict=True)]

        def once() -> None:
            outputs = forward()
            if leaves:
                backward(outputs, [torch.zeros_like(output) for output in outputs])

        for name in self.trained.keys() - gradients.keys():
            gradients[name] = torch.empty_like(self.trained[name])
        self._gradients: list[Tensor | None] = [gradients[name] for name in self.trained]
        self._keep_earlier_gradients()
        graphs.warm_up(once)
        outputs, self._replay_forward = graphs.record(forward)
        self._outputs, self._of_outputs = [output.detach() for output in outputs], []
        if leaves:
            self._of_outputs = [torch.empty_like(output) for output in self._outputs]
            self._gradients, self._replay_backward = graphs.record(lambda: backward(outputs, self._of_outputs))
        self.bytes = sum(x.numel() * x.element_size() for x in (self._images, *self._outputs, *self._of_outputs))

    def split(self, outputs: Sequence[Tensor]) -> Outputs:
        """Return the outputs as the network does."""
        return list(outputs[: self._levels]), list(outputs[self._levels :])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Replay the forward pass for other images; return what `split` takes."""
        self._images.copy_(images)
        self._replay_forward()
        return tuple(output.detach() for output in self._outputs)

    def _keep_earlier_gradients(self) -> None:
        """Copy gradients that another may be added to out of the own ones, which autograd made them."""
        for parameter, own in zip(self.trained.values(), self._gradients, strict=True):
            kept = parameter.grad
            if kept is not None and own is not None and kept.data_ptr() == own.data_ptr():
                parameter.grad = kept.clone()

    def backward(self, of_outputs: Sequence[Tensor]) -> list[Tensor | None]:
        """Replay the backward pass; return the gradient of each parameter."""
        self._keep_earlier_gradients()
        torch._foreach_copy_(self._of_outputs, list(of_outputs))
        self._replay_backward()
        return [None if own is None else own.detach() for own in self._gradients]


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, recording, pending, images, *parameters):  # type: ignore[no-untyped-def]
        ctx.recording, ctx.pending = recording, pending
        return recording.forward(images)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        if ctx.pending is None:
            raise RuntimeError("a captured network has one backward pass; turn MODEL.FOCAL_DET.SPEED.CUDA_GRAPHS off")
        ctx.pending = None
        return None, None, None, *ctx.recording.backward(grads)


class _AsModule(nn.Module):
    """A function as a module, so that `functional_call` can put other leaves in the place of its owner's parameters."""

    def __init__(self, owner: nn.Module, function: Callable[[Tensor], Outputs]) -> None:
        super().__init__()
        self.owner, self.function = owner, function

    def forward(self, images: Tensor) -> Outputs:
        return self.function(images)
