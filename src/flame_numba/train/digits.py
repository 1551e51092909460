"""The demo: a small network learns scikit-learn's handwritten digits in mixed precision."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from .. import nn
from ..data import load_digits
from ..devices import Device, current_device
from ..ops.random import manual_seed
from ..ops.shape.creation import asarray
from ..optim import AdamW
from ..plots import loss_curve, pool_timeline
from ..pool import MemoryPool, PoolStats
from .loop import Data, Epoch, batch_count, fit, one_blas_thread
from .progress import progress

BATCH = 64
EPOCHS = 30
EVENTS = 1_000_000  # of the pool, for the picture: about 4,000 an epoch


class DigitsRun(NamedTuple):
    """What a run leaves: its epochs, the pool's books at the end, and the pictures."""

    epochs: list[Epoch]
    pool: PoolStats
    pictures: list[Path]


def network() -> nn.Sequential:
    """(N, 64) pixels → (N, 10) logits."""
    return nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def train_digits(
    out: str | os.PathLike[str], *, epochs: int = EPOCHS, precision: str = "bf16", seed: int = 0,
    device: Device | str | None = None,
) -> DigitsRun:  # fmt: skip
    """Train on 1,437 digits, test on 360, and draw the losses and the pool's memory into the folder `out`.

    `seed` picks the split, the first weights and the order of the batches. Raises MissingExtra without the extra demo.
    """
    where = current_device() if device is None else Device.parse(device)
    digits = load_digits(seed)
    manual_seed(seed)
    pool = MemoryPool(where)
    with where, pool.use(), one_blas_thread():
        pool.record_history(max_events=EVENTS)
        flat = (digits.train_images.reshape(-1, 64), digits.test_images.reshape(-1, 64))
        data = Data(asarray(flat[0]), asarray(digits.train_labels), asarray(flat[1]), asarray(digits.test_labels))
        model = network()
        optimizer = AdamW(model.parameters(), lr=4e-3, weight_decay=0.05)
        with progress("digits", epochs * batch_count(data.train_labels.numel, BATCH)) as report:
            done = fit(
                model, optimizer, data, epochs=epochs, batch_size=BATCH, precision=precision, cool_down=True,
                report=report,
            )  # fmt: skip
        stats = pool.stats()
    losses = [loss for epoch in done for loss in epoch.batch_losses]
    pictures = [
        loss_curve(losses, Path(out) / "loss.png", f"handwritten digits, {precision}"),
        pool_timeline(pool.history(), Path(out) / "pool.png", f"memory pool on {where}"),
    ]
    return DigitsRun(done, stats, pictures)
