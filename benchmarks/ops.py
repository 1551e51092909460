"""The rows: what is measured, on what data, and the fewest bytes or operations that it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
from harness import US, Call, Job

import flame_numba as fn

DTYPES: dict[str, Any] = {"f32": np.float32, "bf16": ml_dtypes.bfloat16}
ULPS = {"f32": 2e-6, "bf16": 1e-2}


def draw(shape: Sequence[int], dtype: str, seed: int = 0) -> np.ndarray[Any, Any]:
    """Random values; a block of 2²⁰ of them repeated where there are many, since drawing takes longer than the rest."""
    n = prod(shape)
    block = np.random.default_rng(seed).uniform(-2, 2, min(n, 1 << 20)).astype(DTYPES[dtype])
    return np.resize(block, n).reshape(shape)


def same(make: Callable[[Any, Sequence[Any]], Call | None]) -> Callable[[str, Any, Sequence[Any]], Call | None]:
    """For a call that all libraries spell alike; a library without the operands' dtype has none."""

    def build(name: str, lib: Any, xs: Sequence[Any]) -> Call | None:
        return None if any(x is None for x in xs) else make(lib, xs)

    return build


def by_name(**makers: Callable[[Any, Sequence[Any]], Call]) -> Callable[[str, Any, Sequence[Any]], Call | None]:
    """For a call that each library spells in its own way (`ours=` for this one); one that is not named has none."""

    def build(name: str, lib: Any, xs: Sequence[Any]) -> Call | None:
        maker = makers.get("ours" if name == US else name)
        return None if maker is None or any(x is None for x in xs) else maker(lib, xs)

    return build


# --- small calls: what one costs the caller ------------------------------------------------------------------------
def small() -> Iterator[Job]:
    a, b = draw((16,), "f32"), draw((16,), "f32", 1)
    yield Job("small ops, host time a call", "a + b of 16", [a, b], same(lambda lib, x: lambda: x[0] + x[1]), host=True)

    def ours(lib: Any, x: Sequence[Any]) -> Call:
        p = x[0].detach().requires_grad_()
        return lambda: p + x[1]

    def torch(lib: Any, x: Sequence[Any]) -> Call:
        p = x[0].clone().requires_grad_()
        return lambda: p + x[1]

    yield Job("small ops, host time a call", "a + b of 16, recorded for its gradient", [a, b],
              by_name(ours=ours, torch=torch), host=True)  # fmt: skip

    def ours_step(lib: Any, x: Sequence[Any]) -> Call:
        p = x[0].detach().requires_grad_()

        def step() -> Any:
            p.grad = None
            (p * x[1]).sum().backward()
            return p.grad

        return step

    def torch_step(lib: Any, x: Sequence[Any]) -> Call:
        p = x[0].clone().requires_grad_()

        def step() -> Any:
            p.grad = None
            (p * x[1]).sum().backward()
            return p.grad

        return step

    yield Job("small ops, host time a call", "(a · b).sum().backward() of 16", [a, b],
              by_name(ours=ours_step, torch=torch_step), host=True)  # fmt: skip


# --- memory-bound --------------------------------------------------------------------------------------------------
def copy(n: int) -> Iterator[Job]:
    """The limit: the driver's own copy within the device."""
    x = draw((n,), "f32")

    def ours(lib: Any, xs: Sequence[Any]) -> Call:
        source, target = xs[0], fn.empty_like(xs[0])
        backend = source.device.backend

        def run() -> Any:
            with backend.lock:
                backend.copy(target.address, source.address, source.nbytes)
            return target

        return run

    def torch(lib: Any, xs: Sequence[Any]) -> Call:
        target = lib.empty_like(xs[0])
        return lambda: target.copy_(xs[0])

    make = by_name(ours=ours, torch=torch, cupy=lambda lib, xs: xs[0].copy, numpy=lambda lib, xs: xs[0].copy)
    yield Job("memory-bound", f"driver copy {n} f32 (the limit)", [x], make, nbytes=2 * x.nbytes, tolerance=0)


def add(n: int) -> Iterator[Job]:
    for dtype in DTYPES:
        a, b = draw((n,), dtype), draw((n,), dtype, 1)
        yield Job("memory-bound", f"a + b, {n} {dtype}", [a, b], same(lambda lib, x: lambda: x[0] + x[1]),
                  nbytes=3 * a.nbytes, tolerance=ULPS[dtype])  # fmt: skip


def silu(n: int) -> Iterator[Job]:
    fused = fn.fuse(lambda x, y: fn.silu(x) * y)
    for dtype in DTYPES:
        a, b = draw((n,), dtype), draw((n,), dtype, 1)
        make = by_name(
            ours=lambda lib, x: lambda: fused(x[0], x[1]),
            torch=lambda lib, x: lambda: lib.nn.functional.silu(x[0]) * x[1],
            cupy=lambda lib, x: lambda: x[0] / (1 + lib.exp(-x[0])) * x[1],
            numpy=lambda lib, x: lambda: x[0] / (1 + np.exp(-x[0])) * x[1],
        )
        yield Job("memory-bound", f"silu(a)·b fused, {n} {dtype}", [a, b], make, nbytes=3 * a.nbytes,
                  tolerance=ULPS[dtype])  # fmt: skip


def transpose(n: int) -> Iterator[Job]:
    for dtype in DTYPES:
        a = draw((n, n), dtype)
        make = by_name(
            ours=lambda lib, x: lambda: x[0].T.contiguous(),
            torch=lambda lib, x: lambda: x[0].T.contiguous(),
            cupy=lambda lib, x: lambda: lib.ascontiguousarray(x[0].T),
            numpy=lambda lib, x: lambda: np.ascontiguousarray(x[0].T),
        )
        yield Job("memory-bound", f"transposed copy {n} × {n} {dtype}", [a], make, nbytes=2 * a.nbytes, tolerance=0)


def sums(rows: int, columns: int) -> Iterator[Job]:
    for dtype in DTYPES:
        x = draw((rows, columns), dtype) + DTYPES[dtype](1)  # a sum of about 0 would be all rounding
        for label, axis in (("all", None), ("axis 0", 0), ("axis -1", -1)):
            make = by_name(
                ours=lambda lib, xs, axis=axis: lambda: fn.sum(xs[0], axis=axis),
                torch=lambda lib, xs, axis=axis: lambda: xs[0].sum() if axis is None else xs[0].sum(axis),
                cupy=lambda lib, xs, axis=axis: lambda: xs[0].sum(axis),
                numpy=lambda lib, xs, axis=axis: lambda: xs[0].sum(axis),
            )
            yield Job("memory-bound", f"sum {label}, {rows} × {columns} {dtype}", [x], make, nbytes=x.nbytes,
                      tolerance=ULPS[dtype] * 4)  # fmt: skip


def softmax(rows: int, n: int) -> Iterator[Job]:
    def arrays(lib: Any, xs: Sequence[Any]) -> Call:
        def run() -> Any:
            e = lib.exp(xs[0] - xs[0].max(-1, keepdims=True))
            return e / e.sum(-1, keepdims=True)

        return run

    for dtype in DTYPES:
        x = draw((rows, n), dtype)
        make = by_name(
            ours=lambda lib, xs: lambda: fn.softmax(xs[0]),
            torch=lambda lib, xs: lambda: lib.softmax(xs[0], -1),
            cupy=arrays,
            numpy=arrays,
        )
        yield Job("memory-bound", f"softmax {rows} × {n} {dtype}", [x], make, nbytes=2 * x.nbytes,
                  tolerance=ULPS[dtype])  # fmt: skip


def layer_norm(rows: int, n: int) -> Iterator[Job]:
    for dtype in DTYPES:
        x, w, b = draw((rows, n), dtype), draw((n,), dtype, 1), draw((n,), dtype, 2)
        make = by_name(
            ours=lambda lib, xs: lambda: fn.layer_norm(*xs),
            torch=lambda lib, xs: lambda: lib.nn.functional.layer_norm(xs[0], (xs[0].shape[-1],), xs[1], xs[2]),
        )
        yield Job("memory-bound", f"layer_norm {rows} × {n} {dtype}", [x, w, b], make, nbytes=2 * x.nbytes,
                  tolerance=ULPS[dtype])  # fmt: skip


# --- matrix products -----------------------------------------------------------------------------------------------
def matmul(sizes: Sequence[tuple[str, int]]) -> Iterator[Job]:
    for dtype, n in sizes:
        a, b = draw((n, n), dtype), draw((n, n), dtype, 1)
        yield Job("matrix products", f"{n} × {n} × {n} {dtype}", [a, b], same(lambda lib, x: lambda: x[0] @ x[1]),
                  flops=2 * n**3, tolerance=ULPS[dtype] * 8)  # fmt: skip


def rows(on_gpu: bool) -> dict[str, Callable[[], Iterator[Job]]]:
    """The jobs by name, made when they are reached (their data is large); small on the CPU device."""
    n = 1 << 28 if on_gpu else 1 << 20
    lines = 65_536 if on_gpu else 256
    sizes = [("f32", 1024), ("f32", 4096), ("bf16", 4096)] if on_gpu else [("f32", 256), ("bf16", 128)]
    return {
        "small": small,
        "copy": lambda: copy(n),
        "add": lambda: add(n),
        "silu": lambda: silu(n),
        "transpose": lambda: transpose(16_384 if on_gpu else 512),
        "sum": lambda: sums(lines, 4096),
        "softmax": lambda: softmax(lines, 4096),
        "layer_norm": lambda: layer_norm(lines, 4096),
        "matmul": lambda: matmul(sizes),
    }
