"""Pictures of a run as PNG files. matplotlib is imported when the first one is drawn."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from .extras import require

MEBIBYTE = 1 << 20


class MemorySample(Protocol):
    """One moment of a pool: what is in use, and what is held from the driver."""

    @property
    def seconds(self) -> float: ...
    @property
    def allocated_bytes(self) -> int: ...
    @property
    def reserved_bytes(self) -> int: ...


def loss_curve(
    points: Iterable[float | tuple[float, float]], path: str | os.PathLike[str], title: str = "training loss"
) -> Path:
    """Draw losses against steps. points: losses, one a step, or (step, loss) pairs. Returns the PNG's path."""
    pairs = [point if isinstance(point, tuple) else (step, point) for step, point in enumerate(points)]
    figure, axes = _figure(title, x="step", y="loss")
    axes.plot([step for step, _ in pairs], [loss for _, loss in pairs], color="tab:blue", linewidth=1.2)
    return _save(figure, path)


def pool_timeline(history: Sequence[MemorySample], path: str | os.PathLike[str], title: str = "memory pool") -> Path:
    """Draw a pool's reserved and allocated memory in MiB against seconds. Returns the PNG's path."""
    seconds = [sample.seconds for sample in history]
    figure, axes = _figure(title, x="seconds", y="MiB")
    for name, colour in (("reserved", "tab:gray"), ("allocated", "tab:orange")):
        mebibytes = [getattr(sample, f"{name}_bytes") / MEBIBYTE for sample in history]
        peak = f" (peak {max(mebibytes):,.1f} MiB)" if mebibytes else ""
        # a pool changes in steps: between two samples it has the earlier one's value
        axes.fill_between(seconds, mebibytes, step="post", alpha=0.35, color=colour)
        axes.step(seconds, mebibytes, where="post", color=colour, linewidth=1.2, label=name + peak)
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right")
    return _save(figure, path)


def _figure(title: str, *, x: str, y: str) -> tuple[Any, Any]:
    # Figure itself, not pyplot: it needs no display and keeps no global state
    figure = require("matplotlib.figure", extra="demo", purpose="drawing a picture").Figure(
        figsize=(8, 4.5), layout="constrained"
    )
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, format="png", dpi=120)
    return target
