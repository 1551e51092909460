"""Training in a steady state: what the pool still asks of the driver, over 1,000 steps after 2 of warm-up.

    PYTHONPATH=src python benchmarks/steady.py [--steps 1000] [--device cpu]

The two networks of the Fashion-MNIST recipes, on random images, with a fixed batch size and with one that changes at
each step; and the same in bf16 autocast with AdamW.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from time import perf_counter

import numpy as np

if not hasattr(np, "row_stack"):  # numba-cuda 0.30 asks for it; NumPy 2.5 removed it. Nothing is installed here
    np.row_stack = np.vstack  # type: ignore[attr-defined]

import flame_numba as fn
from flame_numba import optim
from flame_numba.train.fashion_mnist import lenet, quickstart

WARM_UP = 2
MOST = 256  # images in a batch
NETWORKS = {"quickstart": quickstart, "lenet": lenet}


def train(network: str, batches: Callable[[int], int], steps: int, bf16: bool) -> tuple[int, int, int, float, float]:
    """(driver calls, growth of what is reserved, bytes moved, most reserved ÷ most live, seconds) after the warm-up."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((MOST, 1, 28, 28)).astype(np.float32)
    labels = rng.integers(0, 10, MOST)
    device = fn.default_device()
    pool = fn.MemoryPool(device)
    with pool.use():
        model = NETWORKS[network]()
        optimizer = optim.AdamW(model.parameters(), lr=1e-3)
        start, before = 0.0, pool.stats()
        for step in range(WARM_UP + steps):
            if step == WARM_UP:
                device.synchronize()
                start, before = perf_counter(), pool.stats()
            n = batches(step)
            x, y = fn.asarray(images[:n]), fn.asarray(labels[:n])
            with fn.autocast(fn.bfloat16, enabled=bf16):
                loss = fn.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        device.synchronize()
        seconds = perf_counter() - start
        after = pool.stats()
    return (
        after.driver_calls - before.driver_calls,
        after.reserved_bytes - before.reserved_bytes,
        after.bytes_moved - before.bytes_moved,
        after.peak_reserved_bytes / after.peak_allocated_bytes,
        seconds,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--device", default=None)
    parser.add_argument("--network", choices=list(NETWORKS), help="only this one")
    given = parser.parse_args()
    device = fn.Device.parse(given.device) if given.device else fn.default_device()
    sizes = np.random.default_rng(1).integers(16, MOST + 1, given.steps + WARM_UP)
    sizes[:WARM_UP] = MOST
    kinds: dict[str, Callable[[int], int]] = {
        f"of {MOST}": lambda step: MOST,
        f"of 16 … {MOST}": lambda step: int(sizes[step]),
    }
    print(f"{device.name}: {given.steps} steps after {WARM_UP} of warm-up\n")
    print("| network | batches | precision | driver calls | reserved grew | moved | reserved ÷ live | ms a step |")
    print("|---|---|---|---|---|---|---|---|")
    with device:
        for network in [given.network] if given.network else NETWORKS:
            for name, batches in kinds.items():
                for precision in ("f32", "bf16"):
                    calls, grown, moved, ratio, seconds = train(network, batches, given.steps, precision == "bf16")
                    print(
                        f"| {network} | {name} | {precision} | {calls} | {grown} bytes | {moved / 2**20:.1f} MiB "
                        f"| {ratio:.2f} | {1e3 * seconds / given.steps:.2f} |",
                        flush=True,
                    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
