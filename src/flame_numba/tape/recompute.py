"""What a checkpointed call keeps in place of its saved tensors: how to run it again, and the random numbers it drew.

While the call runs, the `Saved`s that its ops make are told to let go of their tensors (`Frame.drop`). The first that
is asked for its tensor has the call run again; what is saved then, in the same order, fills all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import ReferenceType, ref

from ..devices.contexts import Contexts
from ..errors import GradientError
from ..pool import memory_tag
from ..tensor import Tensor
from .modes import Mode

FRAMES = Contexts()  # how many checkpointed calls are running, or running again, anywhere
_KEEPER: ContextVar[Frame | Collector | None] = ContextVar("flame_numba_checkpoint", default=None)
_FILLED: ContextVar[list[Frame] | None] = ContextVar("flame_numba_filled", default=None)


class Tape:
    """The random numbers' places that a call drew, to be drawn again: (seed, first counter) of each draw."""

    def __init__(self, draws: list[Any], parent: Tape | None, replaying: bool) -> None:
        self._draws = draws
        self._parent = parent  # the call that this one is part of notes its draws as well
        self._replaying = replaying
        self._at = 0

    def take(self, draw: Callable[[], Any]) -> Any:
        """What `draw()` gives, or gave the first time."""
        if not self._replaying:
            value = draw() if self._parent is None else self._parent.take(draw)
            self._draws.append(value)
            return value
        if self._at == len(self._draws):
            raise GradientError("checkpoint: run again, the function drew more random numbers than the first time")
        self._at += 1
        return self._draws[self._at - 1]


class Lost:
    """What a `Saved` remembers of the tensor that it let go."""

    __slots__ = ("dtype", "frame", "node", "requires_grad", "shape", "storage")

    def __init__(self, frame: Frame, tensor: Tensor, is_output: bool) -> None:
        self.frame = frame
        self.node = None if is_output else tensor.node
        self.requires_grad = tensor.requires_grad
        self.shape, self.dtype = tensor.shape, tensor.dtype
        self.storage = ref(tensor.storage)  # alive if somebody else keeps the tensor


class Frame:
    """One checkpointed call. `again`: runs it once more."""

    def __init__(self, name: str, again: Callable[[], Any]) -> None:
        outer = current_keeper()
        self.name = name
        self._again = again
        self.running = True  # for the first time: it may ask for what it saved itself, by a backward pass inside
        self._draws: list[Any] = []
        self._waiting: list[ReferenceType[Any]] = []
        self.tape: Tape = Tape(self._draws, None if outer is None else outer.tape, replaying=False)

    def drop(self, saved: Any, tensor: Tensor, is_output: bool) -> None:
        """Let `saved` be without its tensor until somebody asks."""
        saved.tensor, saved.lost = None, Lost(self, tensor, is_output)
        self._waiting.append(ref(saved))

    def recompute(self) -> None:
        """Run the call again, and give every `Saved` that still lives its tensor."""
        collector = Collector(Tape(self._draws, None, replaying=True))
        with entered(collector), Mode(True), memory_tag("activations"):
            self._again()
        count = len(self._waiting)
        if len(collector.found) < count or (len(collector.found) > count and not self.running):
            raise GradientError(
                f"checkpoint: run again, {self.name} saved {len(collector.found)} tensors, the first time "
                f"{count}; it must do the same each time"
            )
        pairs = zip(self._waiting, collector.found, strict=False)
        filling = [(saved, again) for waiting, again in pairs if (saved := waiting()) is not None]
        for saved, again in filling:  # all before any is filled: a graph that fails here is to hold nothing
            self._check(saved.lost, again.tensor)
        for saved, again in filling:
            self._fill(saved, again.tensor, again.version)
        filled = _FILLED.get()
        if filled is not None:
            filled.append(self)

    def _check(self, lost: Lost, tensor: Tensor) -> None:
        if (tensor.shape, tensor.dtype) != (lost.shape, lost.dtype):
            raise GradientError(
                f"checkpoint: run again, {self.name} saved a {tensor.dtype.name} tensor of shape {tensor.shape}, the "
                f"first time {lost.dtype.name} of shape {lost.shape}; it must do the same each time"
            )

    def _fill(self, saved: Any, tensor: Tensor, version: int) -> None:
        saved.tensor = tensor.detach()  # without the second graph, which is no longer needed
        if saved.lost.storage() is not tensor.storage:
            saved.version = version  # else it was never let go: its version is still the one to compare with

    def forget(self) -> None:
        """Let go of the tensors again."""
        for waiting in self._waiting:
            saved = waiting()
            if saved is not None:
                saved.tensor = None


class Collector:
    """Takes what is saved while a call runs again."""

    running = True

    def __init__(self, tape: Tape) -> None:
        self.tape: Tape = tape
        self.found: list[Any] = []  # `Saved`s

    def drop(self, saved: Any, tensor: Tensor, is_output: bool) -> None:
        """Take note of `saved`, which keeps its tensor: a backward pass inside the call may ask for it."""
        saved.tensor = tensor.detach() if is_output else tensor
        self.found.append(saved)


def current_keeper() -> Frame | Collector | None:
    """Who takes what is saved here, if not the graph."""
    keeper = _KEEPER.get() if FRAMES.open else None
    return keeper if keeper is not None and keeper.running else None  # an interrupt may have left one behind


def current_tape() -> Tape | None:
    """Where random draws are noted or replayed, if a checkpointed call is running."""
    keeper = current_keeper()
    return None if keeper is None else keeper.tape


def is_recomputing() -> bool:
    """Whether a checkpointed call is running again: what it counts or logs has been counted before."""
    return isinstance(current_keeper(), Collector)


@contextmanager
def entered(keeper: Frame | Collector) -> Iterator[None]:
    """Ops inside save their tensors with `keeper`."""
    FRAMES.enter()
    before = _KEEPER.get()
    try:  # whenever an interrupt comes, the keeper of before is put back first
        _KEEPER.set(keeper)
        yield
    finally:
        _KEEPER.set(before)
        FRAMES.leave()


@contextmanager
def forgetting(wanted: bool) -> Iterator[None]:
    """If wanted, let go at the end of what was recomputed inside, for graphs that are kept."""
    filled: list[Frame] = []
    token = _FILLED.set(filled if wanted else None)
    try:
        yield
    finally:
        _FILLED.reset(token)
        for frame in filled:
            frame.forget()
