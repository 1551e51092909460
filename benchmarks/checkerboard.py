"""Fragmentation that no allocator without moves survives: this library, PyTorch in both modes, and CuPy.

    PYTHONPATH=src python benchmarks/checkerboard.py [--limit-gib 60] [--only flame_numba,torch,…]

Under a limit, blocks of 1 to 64 MiB fill 90 % of it, each with a pattern of its own. Every second block is freed. Then
one block of 90 % of the free bytes (the limit less what is live) is asked for; and every block that was kept is
compared with its pattern. Each contender runs in a process of its own, with the same sizes in the same order.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

if not hasattr(np, "row_stack"):  # numba-cuda 0.30 asks for it; NumPy 2.5 removed it. Nothing is installed here
    np.row_stack = np.vstack  # type: ignore[attr-defined]

MIB, GIB = 1 << 20, 1 << 30
STEP = 2654435761  # a pattern: element i of block k is i · STEP + k


def sizes(limit: int) -> list[int]:
    rng, total, result = random.Random(0), 0, []
    while True:
        size = rng.randint(MIB, 64 * MIB) // 512 * 512
        if total + size > 0.9 * limit:
            return result
        result.append(size)
        total += size


def play(limit: int, make: Callable[[int, int], Any], same: Callable[[Any, int], bool], large: Callable[[int], Any],
         wait: Callable[[], None], error: type[Exception]) -> dict[str, Any]:  # fmt: skip
    """The game, for any library. make(k, bytes): a block with pattern k; same(block, k): does it still hold it."""
    planned = sizes(limit)
    blocks: dict[int, Any] = {k: make(k, size) for k, size in enumerate(planned)}
    for k in range(0, len(planned), 2):
        del blocks[k]
    free = limit - sum(planned[1::2])
    wanted = int(0.9 * free) // 512 * 512
    wait()
    start = perf_counter()
    try:
        got = large(wanted)
        wait()
        outcome = "succeeds"
    except error as failure:
        got, outcome = None, f"fails: {type(failure).__name__}"
    seconds = perf_counter() - start
    exact = sum(same(block, k) for k, block in blocks.items())
    del got
    return {"outcome": outcome, "seconds": seconds, "wanted": wanted, "kept": len(blocks), "exact": exact}


def flame_numba(limit: int) -> dict[str, Any]:
    import flame_numba as fn

    device = fn.default_device()
    pool = fn.MemoryPool(device, fn.PoolConfig(limit=limit))

    def pattern(k: int, count: int) -> Any:
        return fn.arange(count, dtype=fn.int64) * STEP + k

    with pool.use():
        result = play(
            limit,
            lambda k, size: pattern(k, size // 8),
            lambda block, k: bool((block == pattern(k, block.numel)).all().item()),
            lambda size: fn.empty((size,), dtype=fn.uint8),
            device.synchronize,
            fn.OutOfMemory,
        )
        stats = pool.stats()
    return {**result, "moved": stats.bytes_moved, "reserved": stats.peak_reserved_bytes}


def torch(limit: int) -> dict[str, Any]:
    import torch

    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)

    def pattern(k: int, count: int) -> Any:
        return torch.arange(count, dtype=torch.int64, device="cuda") * STEP + k

    result = play(
        limit,
        lambda k, size: pattern(k, size // 8),
        lambda block, k: bool((block == pattern(k, block.numel())).all()),
        lambda size: torch.empty(size, dtype=torch.uint8, device="cuda"),
        torch.cuda.synchronize,
        torch.cuda.OutOfMemoryError,
    )
    return {**result, "reserved": torch.cuda.max_memory_reserved()}


def cupy(limit: int) -> dict[str, Any]:
    import cupy

    pool = cupy.get_default_memory_pool()
    pool.set_limit(size=limit)

    def pattern(k: int, count: int) -> Any:
        return cupy.arange(count, dtype=cupy.int64) * STEP + k

    return play(
        limit,
        lambda k, size: pattern(k, size // 8),
        lambda block, k: bool((block == pattern(k, block.size)).all()),
        lambda size: cupy.empty(size, dtype=cupy.uint8),
        cupy.cuda.runtime.deviceSynchronize,
        cupy.cuda.memory.OutOfMemoryError,
    ) | {"reserved": pool.total_bytes()}


CONTENDERS: dict[str, tuple[Callable[[int], dict[str, Any]], dict[str, str]]] = {
    "flame_numba": (flame_numba, {}),
    "torch": (torch, {}),
    "torch, expandable segments": (torch, {"PYTORCH_ALLOC_CONF": "expandable_segments:True",
                                           "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}),
    "cupy": (cupy, {}),
}  # fmt: skip


def row(name: str, limit: int) -> str:
    environment = {**os.environ, **CONTENDERS[name][1]}
    argv = [sys.executable, str(Path(__file__).resolve()), "--worker", name, "--limit-bytes", str(limit)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return f"| {name} | did not run: {reason} | | | | |"
    found = json.loads(done.stdout.strip().splitlines()[-1])
    moved = f"{found['moved'] / GIB:.1f} GiB" if "moved" in found else "–"
    return (
        f"| {name} | {found['outcome']} | {1e3 * found['seconds']:.0f} ms | {found['exact']} of {found['kept']} "
        f"| {moved} | {found['reserved'] / GIB:.1f} GiB |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit-gib", type=float, default=60)
    parser.add_argument("--limit-bytes", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--only", default="", metavar="NAME,…")
    given = parser.parse_args()
    limit = given.limit_bytes or int(given.limit_gib * GIB)
    if given.worker:
        print(json.dumps(CONTENDERS[given.worker][0](limit)))
        return 0
    planned = sizes(limit)
    free = limit - sum(planned[1::2])
    print(
        f"Limit {limit / GIB:.1f} GiB; {len(planned)} blocks, {sum(planned) / GIB:.1f} GiB; every second freed; "
        f"then one block of {0.9 * free / GIB:.1f} GiB, 90 % of what is free.\n"
    )
    print("| library | the large block | time | kept blocks bit-exact | moved | reserved at most |")
    print("|---|---|---|---|---|---|")
    for name in [part for part in given.only.split(",") if part] or CONTENDERS:
        print(row(name, limit), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
