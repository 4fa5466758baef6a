"""Runs networks on a device: batches of few shapes, precision, memory that runs out. Knows no family.

Whatever a pipeline asks of its networks goes through `Engine.each`, so that every family is run alike. An
engine never answers for a part of the pictures: it goes on with smaller batches, or raises.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from node.domain.errors import TransientError

log = logging.getLogger(__name__)

Forward = Callable[[Tensor], Any]
"""Pictures (n, channels, y, x) to one tensor, or to a tuple of tensors and None."""
Shape = tuple[int, int, int]
"""Channels, rows and columns of a picture."""
Compiler = Callable[[nn.Module, Forward, Shape], Forward]
"""Of a network, one of its functions, and the shape of what it takes: the same, faster."""
Answer = TypeVar("Answer")
Pictures = NDArray[np.float32] | Tensor

CPU = torch.device("cpu")
PLAIN_BATCH = 16
"""On a CPU: any number of pictures up to this goes through at once."""
SHAPES = (8, 16, 32, 64, 128)
"""On a GPU: each batch is filled up to one of these, so that autotuning and compilers see few shapes."""


class Engine:
    """One device, one precision. With a `compiler`, or `compiles` (torch.compile), networks run compiled."""

    def __init__(
        self,
        device: torch.device = CPU,
        precision: torch.dtype = torch.float32,
        *,
        shapes: Sequence[int] | None = None,
        compiler: Compiler | None = None,
        compiles: bool = False,
    ) -> None:
        """`shapes`: the only sizes a batch may have, smallest first; empty: any, up to PLAIN_BATCH."""
        self.device = device
        self.precision = precision
        self.busy = Busy(device)
        self.compiler: Compiler | None = compiler or (quickened if compiles else None)
        self._is_cuda = device.type == "cuda"
        self._shapes = tuple(shapes if shapes is not None else SHAPES if self._is_cuda else ())
        self._most = max(self._shapes, default=PLAIN_BATCH)
        self._layout = torch.contiguous_format if compiler else torch.channels_last
        if self._is_cuda:
            torch.backends.cudnn.benchmark = True
            torch.backends.cudnn.allow_tf32 = False  # what is left in float32 shall be float32

    @property
    def is_fixed(self) -> bool:
        """Whether batches have fixed shapes, which are worth meeting before the first patient's."""
        return bool(self._shapes)

    @property
    def largest_batch(self) -> int:
        return self._most

    def place(self, network: nn.Module) -> Any:
        """The network for use: on the device, eval mode, channels last, no gradients of its weights."""
        network.eval().requires_grad_(False)
        return network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def each(self, function: Forward, groups: Sequence[Pictures]) -> list[Any]:
        """What `function` answers to each group of pictures (n, channels, y, x), in float32 on the device.

        Batches are filled across groups. An answer is what the function answers: a tensor of n rows, or a
        tuple of such. Raises TransientError when the device has no memory for a single picture.
        """
        pictures = torch.cat([torch.as_tensor(one) for one in groups]) if len(groups) > 1 else groups[0]
        answers = _joined(list(self._answers(function, torch.as_tensor(pictures))))
        counts = [len(one) for one in groups]
        return _split(answers, counts) if len(groups) > 1 else [answers]

    def warm_up(self, function: Forward, shape: Shape) -> None:
        """Let the function meet every shape it will see. Nothing is done where any shape will do."""
        for count in self._shapes:
            if count <= self._most:
                self.each(function, [torch.zeros(count, *shape)])

    def _answers(self, function: Forward, pictures: Tensor) -> Iterator[Any]:
        done = 0
        while done < len(pictures):
            some = pictures[done : done + self._most]
            shape = self._shape_for(len(some))
            some = some[:shape]
            answer = self._attempt(function, some, shape)
            if answer is None:
                self._shrink(shape)
                continue
            yield answer
            done += len(some)

    def _shape_for(self, count: int) -> int:
        """The size of the next batch of `count` pictures: one they nearly fill, else the largest they do."""
        known = [shape for shape in self._shapes if shape <= self._most] or [count]
        fits = next((shape for shape in known if shape >= count), 0)
        full = [shape for shape in known if shape <= count]
        return fits if not full or fits - count in range(fits // 4 + 1) else full[-1]

    @torch.no_grad()
    def _attempt(self, function: Forward, some: Tensor, shape: int) -> Any:
        """The answer of one batch, or None when there was no memory for it."""
        try:
            with self.busy.flight():
                batch = self._up(some, shape)
                lower = self.precision is not torch.float32
                with torch.autocast(self.device.type, self.precision, enabled=lower):
                    answer = function(batch)
                return _each_tensor(answer, lambda tensor: tensor[: len(some)].float())
        except torch.OutOfMemoryError:  # nothing of the batch may be held while memory is freed
            return None

    def _up(self, some: Tensor, shape: int) -> Tensor:
        """The batch on the device, filled up with empty pictures."""
        if self._is_cuda and some.device.type == "cpu":
            some = some.contiguous().pin_memory()
        batch = some.to(self.device, non_blocking=self._is_cuda)
        if len(batch) < shape:
            batch = functional.pad(batch, (0, 0) * 3 + (0, shape - len(batch)))
        return batch.contiguous(memory_format=self._layout)

    def _shrink(self, shape: int) -> None:
        """Smaller batches from now on. Raises TransientError where there are none."""
        if self._is_cuda:
            torch.cuda.empty_cache()
        if shape == 1:
            raise TransientError(
                f"{self.device} has no memory left for one picture; see what else uses it (nvidia-smi), "
                "or set model.device to cpu"
            )
        self._most = max(shape // 2, 1)
        if self._shapes and self._most not in self._shapes:
            self._shapes = (self._most, *self._shapes)
        log.warning("%s ran out of memory at %d pictures; batches of %d now", self.device, shape, self._most)


class Busy:
    """For how long batches were in flight, on whatever device: on a GPU by its own clock."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._lock = threading.Lock()
        self._seconds = 0.0
        self._open: deque[tuple[Any, Any]] = deque()

    @contextmanager
    def flight(self) -> Iterator[None]:
        if self._is_cuda:
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            yield
            ended.record()
            with self._lock:
                self._open.append((began, ended))
        else:
            began_s = time.perf_counter()
            yield
            with self._lock:
                self._seconds += time.perf_counter() - began_s

    def seconds(self) -> float:
        """Of the batches that have ended."""
        with self._lock:
            while self._open and self._open[0][1].query():
                began, ended = self._open.popleft()
                self._seconds += began.elapsed_time(ended) / 1000
            return self._seconds


def in_float32(function: Callable[..., Answer], *tensors: Tensor) -> Answer:
    """`function` of the tensors, in float32 also where all around it is computed in less: for heads."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return function(*tensors)
    with torch.autocast(kind, enabled=False):
        return function(*(tensor.float() for tensor in tensors))


def quickened(network: nn.Module, function: Forward, shape: Shape) -> Forward:
    """The function through torch.compile. Where that fails, at any shape, it says so and runs as it is."""
    fast: list[Forward] = [torch.compile(function, dynamic=False)]

    def run(x: Tensor) -> Any:
        if fast:
            try:
                return fast[0](x)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ImportError) as error:  # all of dynamo's and inductor's are RuntimeErrors
                fast.clear()
                said = str(error).strip().partition("\n")[0]
                name = type(network).__name__
                log.warning("%s is not compiled, and runs as it is (model.compile): %s", name, said)
        return function(x)

    return run


def _each_tensor(answer: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The answer, a tensor or a (named) tuple of tensors and None, with each tensor changed."""
    if isinstance(answer, Tensor):
        return change(answer)
    return _alike(answer, [None if one is None else change(one) for one in answer])


def _alike(pattern: Any, values: Sequence[Any]) -> Any:
    return pattern._make(values) if hasattr(pattern, "_make") else tuple(values)


def _joined(answers: Sequence[Any]) -> Any:
    """The answers of several batches as one."""
    first = answers[0]
    if len(answers) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(list(answers))
    return _alike(first, [None if of[0] is None else torch.cat(of) for of in zip(*answers, strict=True)])


def _split(answer: Any, counts: Sequence[int]) -> list[Any]:
    """One answer as those of several groups."""
    if isinstance(answer, Tensor):
        return list(answer.split(list(counts)))
    parts = [[None] * len(counts) if one is None else one.split(list(counts)) for one in answer]
    return [_alike(answer, values) for values in zip(*parts, strict=True)]
