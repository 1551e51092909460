"""Rows for kernels that are more than a formula or a sum: scans, sorting, scatter, norms, attention, windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from harness import Job
from ops import ULPS, by_name, draw

import flame_numba as fn

GROUP = "scans, sorting, scatter, norms, attention, convolution"


def scan(n: int) -> Iterator[Job]:
    x = draw((n,), "f32")
    make = by_name(
        ours=lambda lib, xs: lambda: fn.cumsum(xs[0]),
        torch=lambda lib, xs: lambda: xs[0].cumsum(0),
        cupy=lambda lib, xs: lambda: lib.cumsum(xs[0]),
    )
    yield Job(GROUP, f"cumsum {n} f32", [x], make, nbytes=2 * x.nbytes, tolerance=1e-3)


def sort(n: int) -> Iterator[Job]:
    x = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    make = by_name(
        ours=lambda lib, xs: lambda: fn.sort(xs[0]),
        torch=lambda lib, xs: lambda: xs[0].sort(stable=True).values,
        cupy=lambda lib, xs: lambda: lib.sort(xs[0]),
    )
    yield Job(GROUP, f"stable sort {n} f32", [x], make, nbytes=2 * x.nbytes, tolerance=0)


def scatter(rows: int, n: int, count: int) -> Iterator[Job]:
    """The gradient of an embedding: deterministic here, by atomics in PyTorch."""
    table, source = draw((rows, n), "f32"), draw((count, n), "f32", 1)
    index = np.random.default_rng(2).integers(0, rows, count)
    make = by_name(
        ours=lambda lib, xs: lambda: fn.index_add(xs[0], 0, xs[1], xs[2]),
        torch=lambda lib, xs: lambda: xs[0].index_add(0, xs[1], xs[2]),
    )
    yield Job(GROUP, f"index_add of {count} rows of {n} to {rows}, f32", [table, index, source], make, tolerance=1e-4)


def group_norm(shape: tuple[int, ...]) -> Iterator[Job]:
    for dtype in ("f32", "bf16"):
        x, w, b = draw(shape, dtype), draw(shape[1:2], dtype, 1), draw(shape[1:2], dtype, 2)
        make = by_name(
            ours=lambda lib, xs: lambda: fn.group_norm(xs[0], 32, xs[1], xs[2]),
            torch=lambda lib, xs: lambda: lib.nn.functional.group_norm(xs[0], 32, xs[1], xs[2]),
        )
        yield Job(GROUP, f"group_norm {shape} {dtype}", [x, w, b], make, nbytes=2 * x.nbytes, tolerance=4 * ULPS[dtype])


def attention(shape: tuple[int, ...]) -> Iterator[Job]:
    batch, heads, s, d = shape
    for dtype in ("f32", "bf16"):
        q, k, v = (draw(shape, dtype, i) for i in range(3))
        make = by_name(
            ours=lambda lib, xs: lambda: fn.attention(*xs, causal=True),
            torch=lambda lib, xs: lambda: lib.nn.functional.scaled_dot_product_attention(*xs, is_causal=True),
        )
        yield Job(GROUP, f"causal attention {shape} {dtype}", [q, k, v], make, flops=2 * batch * heads * s * s * d,
                  tolerance=2e-2)  # fmt: skip


def convolution(x_shape: Sequence[int], w_shape: Sequence[int]) -> Iterator[Job]:
    for dtype in ("f32", "bf16"):
        x, w = draw(x_shape, dtype), draw(w_shape, dtype, 1)
        make = by_name(
            ours=lambda lib, xs: lambda: fn.conv2d(xs[0], xs[1], padding=1),
            torch=lambda lib, xs: lambda: lib.nn.functional.conv2d(xs[0], xs[1], padding=1),
        )
        flops = 2 * int(np.prod(x_shape)) * int(np.prod(w_shape)) // w_shape[1]
        yield Job(GROUP, f"conv2d {tuple(x_shape)}, 3 × 3, {dtype}", [x, w], make, flops=flops, tolerance=2e-2)


def rows(on_gpu: bool) -> dict[str, Callable[[], Iterator[Job]]]:
    """The jobs by name; small on the CPU device."""
    scale = 1 if on_gpu else 64
    side = 64 if on_gpu else 16
    return {
        "scan": lambda: scan((1 << 26) // scale),
        "sort": lambda: sort((1 << 24) // scale),
        "scatter": lambda: scatter(50_000 // scale, 256, 100_000 // scale),
        "group_norm": lambda: group_norm((8, 320, side, side)),
        "attention": lambda: attention((4, 16, 2048 // scale, 64)),
        "convolution": lambda: convolution((4, 320, side, side), (320, 320, 3, 3)),
    }
