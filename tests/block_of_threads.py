"""A block of many threads in plain Python: what a kernel of several threads does, without a GPU.

The kernel's function runs once a thread, each in a thread of its own, with the words of the kernel language bound to
Python's. So a kernel that is right for one thread only, or that lacks a barrier, is found on any machine. Slow: for
small blocks. Shared memory begins as noise.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import numpy as np

MASK = (1 << 64) - 1


def unsigned(value: Any) -> Any:
    """A number of 64 bits without a sign, from any."""
    return int(value) & MASK


def launch(
    kernel: Callable[..., None], arguments: tuple[Any, ...], blocks: int, threads: int, names: Mapping[str, Any],
    shared: Mapping[str, tuple[int, Any]], helpers: Mapping[str, Callable[..., Any]],
) -> None:  # fmt: skip
    """Run `kernel` as `blocks` blocks of `threads`. shared: name → (length, dtype) of the block's arrays."""
    for block in range(blocks):
        _one_block(kernel, arguments, block, blocks, threads, names, shared, helpers)


def _one_block(
    kernel: Callable[..., None], arguments: tuple[Any, ...], block: int, blocks: int, threads: int,
    names: Mapping[str, Any], shared: Mapping[str, tuple[int, Any]], helpers: Mapping[str, Callable[..., Any]],
) -> None:  # fmt: skip
    rng = np.random.default_rng(block)
    memory = {k: rng.integers(0, 100, length).astype(dtype) for k, (length, dtype) in shared.items()}
    meeting = threading.Barrier(threads, timeout=60)
    failures: list[BaseException] = []

    def one(t: int) -> None:
        bound: dict[str, Any] = {
            "thread_index": lambda: t, "block_index": lambda: block, "block_count": lambda: blocks,
            "grid": lambda: block * threads + t, "gridsize": lambda: blocks * threads, "barrier": meeting.wait,
            "udiv": lambda a, b: a // b, "THREADS": threads, "I": int, "U": unsigned, **names,
        }  # fmt: skip
        bound |= {k: (lambda array=array: array) for k, array in memory.items()}
        for name, helper in helpers.items():
            bound[name] = FunctionType(helper.__code__, {**helper.__globals__, **bound})
        try:
            FunctionType(kernel.__code__, {**kernel.__globals__, **bound})(*arguments)
        except BaseException as error:
            failures.append(error)
            meeting.abort()

    workers = [threading.Thread(target=one, args=(t,)) for t in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
