"""The loop that all trainings share: classification, with data and losses kept on the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from math import cos, pi
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from ..amp import GradScaler, autocast
from ..dtypes import DType, bfloat16, float16, int64
from ..errors import ConfigError
from ..extras import MissingExtra, require
from ..grad import no_grad
from ..nn import Module
from ..ops.index.gather import take
from ..ops.losses.losses import cross_entropy
from ..ops.random import permutation
from ..ops.shape.creation import empty
from ..ops.shape.movement import narrow
from ..optim import Optimizer
from ..tensor import Tensor
from .progress import SILENT, Report

PRECISIONS: dict[str, DType | None] = {"f32": None, "bf16": bfloat16, "f16": float16}
EVALUATION_BATCH = 1000


class Data(NamedTuple):
    """Inputs (n, …) and labels (n), to train on and to test with, all on one device."""

    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor


class Epoch(NamedTuple):
    """What one pass over the data came to. Train figures are those of the batches as they went by."""

    number: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float
    batch_losses: list[float]

    def __str__(self) -> str:
        return (
            f"epoch {self.number}: train loss {self.train_loss:.4f}, accuracy {self.train_accuracy:.4f}; "
            f"test loss {self.test_loss:.4f}, accuracy {self.test_accuracy:.4f} ({self.seconds:.1f} s)"
        )


class Tally:
    """Losses and right answers of an epoch's batches, written on the device and read once."""

    def __init__(self, batches: int, like: Tensor) -> None:
        self._losses = empty((batches,), device=like.device)
        self._right = empty((batches,), dtype=int64, device=like.device)
        self._sizes: list[int] = []

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Note one batch: its mean loss, and how often the largest logit is the label's."""
        i = len(self._sizes)
        self._sizes.append(labels.numel)
        with no_grad():
            self._losses[i] = loss
            self._right[i] = (logits.argmax(-1) == labels).sum()

    def read(self) -> tuple[float, float, list[float]]:
        """(mean loss, accuracy, loss of each batch). Waits for the device."""
        losses, total = self._losses.numpy(), sum(self._sizes)
        mean = float(np.dot(losses.astype(np.float64), self._sizes)) / total
        return mean, int(self._right.numpy().sum()) / total, [float(loss) for loss in losses]


def precision_dtype(precision: str) -> DType | None:
    """What autocast lowers to; None for f32. Raises ConfigError for an unknown name."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    return PRECISIONS[precision]


def one_blas_thread() -> Any:
    """`with one_blas_thread():` NumPy's BLAS, which multiplies on the CPU device, works in the calling thread only.

    Products of a batch are small: more threads gain little, and on a busy machine, where they wait for each other,
    they make a product up to 100 times slower. Does nothing without threadpoolctl, which scikit-learn brings.
    """
    try:
        control = require("threadpoolctl", extra="demo", purpose="limiting BLAS to one thread")
    except MissingExtra:
        return nullcontext()
    return control.threadpool_limits(limits=1, user_api="blas")


def batch_count(n: int, size: int) -> int:
    """Batches in n elements; the last may be smaller."""
    return -(-n // size)


def batches(inputs: Tensor, labels: Tensor, size: int, shuffle: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs, labels) of each batch: views in order, or rows gathered in a new random order."""
    n = labels.numel
    order = permutation(n, device=labels.device) if shuffle else None
    for start in range(0, n, size):
        length = min(size, n - start)
        if order is None:
            yield narrow(inputs, 0, start, length), narrow(labels, 0, start, length)
        else:
            rows = narrow(order, 0, start, length)
            yield take(inputs, rows), take(labels, rows)


def _forward(model: Module, low: DType | None, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    with autocast(low or bfloat16, enabled=low is not None):
        logits: Tensor = model(inputs)
        return cross_entropy(logits, labels), logits


def evaluate(model: Module, inputs: Tensor, labels: Tensor, precision: str = "f32") -> tuple[float, float]:
    """(mean loss, accuracy) of a classifier that is not training. Waits for the device."""
    low = precision_dtype(precision)
    tally = Tally(batch_count(labels.numel, EVALUATION_BATCH), labels)
    model.eval()
    with no_grad():
        for x, y in batches(inputs, labels, EVALUATION_BATCH):
            loss, logits = _forward(model, low, x, y)
            tally.add(loss, logits, y)
    model.train()
    return tally.read()[:2]


def fit(
    model: Module, optimizer: Optimizer, data: Data, *, epochs: int, batch_size: int, shuffle: bool = True,
    precision: str = "f32", cool_down: bool = False, report: Report = SILENT,
) -> list[Epoch]:  # fmt: skip
    """Train a classifier with cross-entropy. precision: "f32", "bf16" (autocast) or "f16" (autocast and GradScaler).

    cool_down lets the optimizer's rate fall to 0 along half a cosine. (Loshchilov and Hutter 2017)
    In f32 and bf16 nothing comes to the host before an epoch's end; f16 asks once a step whether it overflowed.
    """
    low = precision_dtype(precision)
    scaler = GradScaler(enabled=low is float16)
    done: list[Epoch] = []
    highest, step, steps = optimizer.lr, 0, epochs * batch_count(data.train_labels.numel, batch_size)
    for number in range(1, epochs + 1):
        start = perf_counter()
        tally = Tally(batch_count(data.train_labels.numel, batch_size), data.train_labels)
        for x, y in batches(data.train_inputs, data.train_labels, batch_size, shuffle):
            optimizer.lr = highest * (0.5 + 0.5 * cos(pi * step / steps)) if cool_down else highest
            step += 1
            loss, logits = _forward(model, low, x, y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            tally.add(loss, logits, y)
            report.advance()
        done.append(_close(model, data, tally, precision, number, start))
        report.line(str(done[-1]))
    return done


def _close(model: Module, data: Data, tally: Tally, precision: str, number: int, start: float) -> Epoch:
    train_loss, train_accuracy, losses = tally.read()
    seconds = perf_counter() - start
    test_loss, test_accuracy = evaluate(model, data.test_inputs, data.test_labels, precision)
    return Epoch(number, train_loss, train_accuracy, test_loss, test_accuracy, seconds, losses)


def final_lines(last: Epoch) -> list[str]:
    """The closing lines of a run, for people and for programs that read them."""
    return [
        f"train loss: {last.train_loss:.4f}",
        f"test loss: {last.test_loss:.4f}",
        f"test accuracy: {last.test_accuracy:.4f}",
    ]
