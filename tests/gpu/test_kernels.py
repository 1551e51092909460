"""Each family of kernels on the GPU, at the sizes, alignments and layouts where one goes wrong, against NumPy in f64.

The property tests (`--device cuda`) go through every op; these go through every kernel, quickly enough to be run under
compute-sanitizer too.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import flame_numba as fn
from flame_numba.devices import Device
from flame_numba.dtypes import ALL, FLOATS, INTEGERS, DType
from flame_numba.tensor import Tensor

Array = npt.NDArray[Any]

NUMBERS = FLOATS + INTEGERS
EDGES = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 255, 256, 257, 1023)  # around vectors of 2, 4, 8, 16, and a block of threads
LARGE = 1_000_003
ROWS = (1, 2, 31, 32, 33, 255, 256, 257, 1000, 5000)


def named(dtypes: Any) -> Any:
    return pytest.mark.parametrize("dtype", dtypes, ids=lambda d: d.name)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


def draw(rng: np.random.Generator, shape: Any, dtype: DType, low: float = -4, high: float = 4) -> Array:
    """Values that every dtype can hold; the whole ones for integers."""
    if dtype.kind == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.is_integer:
        return rng.integers(0 if dtype.kind == "uint" else int(low), int(high) + 1, shape).astype(dtype.numpy)
    return rng.uniform(low, high, shape).astype(dtype.numpy)


def wide(x: Array) -> Array:
    return x.astype(np.float64)


def same(got: Tensor, expected: Array) -> None:
    """Bit for bit, but for NaNs."""
    host = got.numpy()
    assert host.shape == expected.shape
    np.testing.assert_array_equal(host.astype(expected.dtype), expected)


def close(got: Tensor, expected: Array, ulps: float = 4, scale: Any = 0.0) -> None:
    """Within `ulps` of the result, and of `scale`: the size of the terms that it was summed from, in f32 (or f64)."""
    host = wide(got.numpy())
    assert host.shape == expected.shape
    # terms are rounded on the way in f32: two further digits of its eps for every sum of a few thousand
    slack = 16 * got.dtype.accumulator.eps * np.asarray(scale)
    tiny = 2.0**-23 if got.dtype is fn.float16 else 1e-30
    bound = ulps * got.dtype.eps * np.abs(expected) + slack + tiny
    error = np.abs(host - expected)
    assert np.all(error <= bound), f"off by {np.max(error / bound):.1f} × what is allowed"


# --- elementwise ---------------------------------------------------------------------------------------------------
@named(NUMBERS)
def test_sizes(dtype: DType, gpu: Device, rng: np.random.Generator) -> None:
    for n in (*EDGES, LARGE):
        a, b = draw(rng, n, dtype), draw(rng, n, dtype)
        x, y = fn.asarray(a), fn.asarray(b)
        close(x + y, wide(a + b) if dtype.is_integer else wide(a) + wide(b), ulps=1)
        same(x < y, a < b)
        same(fn.where(x < y, x, y), np.where(a < b, a, b))


@named([*FLOATS, fn.int8, fn.int64])
def test_offset_views(dtype: DType, gpu: Device, rng: np.random.Generator) -> None:
    """A view that begins at an odd element is not aligned for vectors; nothing next to the result is touched."""
    whole = draw(rng, 1100, dtype)
    x = fn.asarray(whole)
    for n, start, other in itertools.product((1, 8, 257, 1023), (0, 1, 3, 4, 8), (0, 5, 8)):
        y = x[start : start + n] * x[other : other + n]
        with np.errstate(over="ignore"):
            expected = whole[start : start + n] * whole[other : other + n]
        close(y, wide(expected), ulps=1)
    for n, start in itertools.product((1, 7, 8, 257), (1, 4, 8)):
        target = fn.asarray(whole)
        target[start : start + n] = x[:n] + x[:n]
        expected = whole.copy()
        expected[start : start + n] = whole[:n] + whole[:n]
        same(target, expected)


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "transposed": lambda x: x.transpose(*reversed(range(x.ndim))) if isinstance(x, np.ndarray)
    else x.permute(tuple(reversed(range(x.ndim)))),
    "stepped": lambda x: x[..., ::2],
    "reversed": lambda x: x[::-1],
    "inner": lambda x: x[..., 1:-1],
    "row": lambda x: x[:1],
    "column": lambda x: x[..., :1],
}  # fmt: skip


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
@named([fn.float32, fn.bfloat16, fn.float64, fn.uint8])
def test_strides(dtype: DType, rank: int, gpu: Device, rng: np.random.Generator) -> None:
    shape = (7, 6, 5, 4, 3)[:rank][::-1] if rank > 1 else (523,)
    for first, second in itertools.product(LAYOUTS, repeat=2):
        a, b = LAYOUTS[first](draw(rng, shape, dtype)), LAYOUTS[second](draw(rng, shape, dtype))
        x, y = fn.asarray(np.ascontiguousarray(a)), fn.asarray(np.ascontiguousarray(b))
        assert x.is_contiguous and y.is_contiguous
        base_a, base_b = draw(rng, shape, dtype), draw(rng, shape, dtype)
        u, v = LAYOUTS[first](fn.asarray(base_a)), LAYOUTS[second](fn.asarray(base_b))
        p, q = LAYOUTS[first](base_a), LAYOUTS[second](base_b)
        same(u.clone(), p)
        same(v.contiguous(), q)
        try:
            expected = np.maximum(p, q)
        except ValueError:  # these two do not broadcast
            continue
        same(fn.maximum(u, v), expected)


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
def test_writing_through_strides(rank: int, gpu: Device, rng: np.random.Generator) -> None:
    shape = (7, 6, 5, 4, 3)[:rank]
    for layout in LAYOUTS.values():
        host = draw(rng, shape, fn.float32)
        x = fn.asarray(host)
        layout(x).fill_(9)
        layout(host)[...] = 9
        same(x, host)


def test_large_broadcast(gpu: Device, rng: np.random.Generator) -> None:
    a, b = draw(rng, (1000, 1), fn.float32), draw(rng, (1, 1001), fn.float32)
    close(fn.asarray(a) * fn.asarray(b), wide(a) * wide(b), ulps=1)
    close(fn.asarray(a).T * fn.asarray(b).T, (wide(a) * wide(b)).T[: b.size], ulps=1)


@named(ALL)
def test_casts(dtype: DType, gpu: Device, rng: np.random.Generator) -> None:
    for other in ALL:
        for n in (9, 257, 10_007):
            host = draw(rng, n, dtype, 0, 100)
            x = fn.asarray(host)
            expected = host.astype(np.float64).astype(other.numpy) if dtype.is_floating else host.astype(other.numpy)
            same(x.to_dtype(other), expected)
            same(x[1:].to_dtype(other), expected[1:])
            same(x[::-2].to_dtype(other), expected[::-2])


@named(FLOATS)
def test_special_values_survive(dtype: DType, gpu: Device) -> None:
    host = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 65504, 1e-7] * 40).astype(dtype.numpy)
    x = fn.asarray(host)
    for y in (x.clone(), x[1:], x[::2], fn.concat([x, x])[: len(host)]):
        got = y.numpy()
        want = host if len(got) == len(host) else host[1:] if y.strides == (1,) else host[::2]
        np.testing.assert_array_equal(wide(got), wide(want))
        np.testing.assert_array_equal(np.signbit(wide(got)), np.signbit(wide(want)))
    for other in FLOATS:
        with np.errstate(over="ignore"):
            expected = wide(host).astype(other.numpy)
        np.testing.assert_array_equal(wide(x.to_dtype(other).numpy()), wide(expected))


def test_rounding_is_to_nearest_even(gpu: Device, rng: np.random.Generator) -> None:
    halves = np.concatenate([1 + np.arange(512) * 2.0**-9, rng.normal(size=4096) * 10.0 ** rng.integers(-30, 30, 4096)])
    for source, target in itertools.product((fn.float32, fn.float64), (fn.float16, fn.bfloat16)):
        host = halves.astype(source.numpy)
        with np.errstate(over="ignore"):
            same(fn.asarray(host).to_dtype(target), host.astype(target.numpy))


@named(ALL)
def test_creation(dtype: DType, gpu: Device) -> None:
    for n in (0, 1, 257, 5000):
        same(fn.full((n,), 3, dtype=dtype), np.full(n, 3).astype(dtype.numpy))
    same(fn.eye(33, 35, dtype=dtype), np.eye(33, 35).astype(dtype.numpy))
    if dtype.kind != "bool":
        same(fn.arange(3, 100, 7, dtype=dtype), np.arange(3, 100, 7).astype(dtype.numpy))


# --- reductions ----------------------------------------------------------------------------------------------------
SUMS = [
    ((1,), None), ((37,), 0), ((5, 300), 1), ((300, 5), 0), ((257, 33), 0), ((4096, 70), 0), ((3, 100_000), 1),
    ((20_000, 40), 0), ((17, 19, 23), 1), ((17, 19, 23), (0, 2)), ((4, 3, 5, 6), (1, 3)), ((0, 3), 0), ((3, 0), 0),
    ((2, 1, 64, 33), (0, 2)),
]  # fmt: skip


@named(FLOATS)
@pytest.mark.parametrize("shape, axis", SUMS, ids=str)
def test_sums(shape: Any, axis: Any, dtype: DType, gpu: Device, rng: np.random.Generator) -> None:
    host = draw(rng, shape, dtype)
    for x, exact in ((fn.asarray(host), wide(host)), (fn.asarray(host).flip(), wide(np.flip(host)))):
        close(fn.sum(x, axis=axis), exact.sum(axis), 2, np.abs(exact).sum(axis))
        if exact.size:
            close(fn.mean(x, axis=axis, keepdims=True), exact.mean(axis, keepdims=True), 2,
                  np.abs(exact).mean(axis, keepdims=True))  # fmt: skip
            same(fn.max(x, axis=axis), exact.max(axis))
            same(fn.min(x, axis=axis), exact.min(axis))


@named(FLOATS)
def test_long_sums(dtype: DType, gpu: Device, rng: np.random.Generator) -> None:
    """Chunks: partial results of many blocks, reduced again."""
    host = draw(rng, 1 << 22, dtype)
    x, exact = fn.asarray(host), wide(host)
    close(fn.sum(x), exact.sum(), 2, np.abs(exact).sum() / 64)
    close(fn.mean(x), exact.mean(), 2, np.abs(exact).mean())
    same(fn.max(x), exact.max())
    tall, table = x.reshape(1 << 17, 32), exact.reshape(1 << 17, 32)
    close(fn.sum(tall, axis=0), table.sum(0), 2, np.abs(table).sum(0))
    broad, table = x.reshape(2, 1 << 21), exact.reshape(2, 1 << 21)
    close(fn.sum(broad, axis=1), table.sum(1), 2, np.abs(table).sum(1))
    assert bool(fn.sum(x).numpy() == fn.sum(x).numpy())  # a fixed order: the same bits again


@named(INTEGERS)
def test_integer_reductions(dtype: DType, gpu: Device, rng: np.random.Generator) -> None:
    for shape, axis in (((257, 33), 0), ((5, 300), 1), ((100_003,), None)):
        host = draw(rng, shape, dtype, -100, 100)
        x = fn.asarray(host)
        same(fn.sum(x, axis=axis), host.sum(axis, dtype=dtype.accumulator.numpy))
        same(fn.max(x, axis=axis), host.max(axis))
        same(fn.min(x, axis=axis), host.min(axis))


def test_truth_and_products(gpu: Device, rng: np.random.Generator) -> None:
    for shape, axis in (((257, 33), 0), ((5, 300), 1), ((33, 5), 1)):
        host = rng.integers(0, 20, shape)
        for x, h in ((fn.asarray(host), host), (fn.asarray(host > 0), host > 0)):
            same(fn.all(x, axis=axis), np.all(h, axis))
            same(fn.any(x, axis=axis), np.any(h, axis))
        factors = rng.uniform(0.98, 1.02, shape).astype(np.float32)
        close(fn.prod(fn.asarray(factors), axis=axis), wide(factors).prod(axis), ulps=300)


@named([*FLOATS, fn.int32, fn.uint8])
def test_arg(dtype: DType, gpu: Device, rng: np.random.Generator) -> None:
    for shape, axis in (((1,), 0), ((5, 300), 1), ((300, 5), 0), ((4, 31), 1), ((3, 7, 11), 1), ((70_001,), None)):
        host = draw(rng, shape, dtype)
        if dtype.is_floating and host.size > 3:
            host.reshape(-1)[rng.integers(host.size, size=2)] = np.nan
        same(fn.argmax(fn.asarray(host), axis=axis), np.argmax(wide(host), axis))
        same(fn.argmin(fn.asarray(host), axis=axis), np.argmin(wide(host), axis))


# --- rows ----------------------------------------------------------------------------------------------------------
def gradients(y: Tensor, g: Array, *inputs: Tensor) -> list[Tensor]:
    found = fn.grad(y, list(inputs), [fn.asarray(g.astype(y.dtype.numpy))])
    assert all(t is not None for t in found)
    return [t for t in found if t is not None]


@named(FLOATS)
@pytest.mark.parametrize("n", ROWS)
def test_softmax(n: int, dtype: DType, gpu: Device, rng: np.random.Generator) -> None:
    host, g = draw(rng, (5, n), dtype), draw(rng, (5, n), dtype)
    exact, up = wide(host), wide(g)
    shifted = exact - exact.max(1, keepdims=True)
    log = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    p = np.exp(log)
    x = fn.asarray(host).requires_grad_()
    y, z = fn.softmax(x), fn.log_softmax(x)
    close(y, p, 8, p * (4 + np.sqrt(n)))
    close(z, log, 8, 4 + np.sqrt(n))
    used, kept = wide(y.numpy()), wide(z.numpy())
    total = np.abs(up * used).sum(1, keepdims=True) + np.sqrt(n) * 1e-3
    close(gradients(y, g, x)[0], used * (up - (up * used).sum(1, keepdims=True)), 4, used * (np.abs(up) + total))
    close(gradients(z, g, x)[0], up - np.exp(kept) * up.sum(1, keepdims=True), 4, np.abs(up) + np.exp(kept) * n * 4)


@named(FLOATS)
@pytest.mark.parametrize("n", ROWS)
def test_norms(n: int, dtype: DType, gpu: Device, rng: np.random.Generator) -> None:
    host, g = draw(rng, (5, n), dtype), draw(rng, (5, n), dtype)
    w, b = draw(rng, n, dtype, 0.5, 2), draw(rng, n, dtype)
    exact, up, scale, shift = map(wide, (host, g, w, b))
    x, weight, bias = (fn.asarray(v).requires_grad_() for v in (host, w, b))
    eps = 0.1  # a row of one element has no variance
    for centered in (True, False):
        center = exact.mean(1, keepdims=True) if centered else 0.0
        r = 1 / np.sqrt(((exact - center) ** 2).mean(1, keepdims=True) + eps)
        normal = (exact - center) * r
        u = up * scale
        dx = r * (u - (u.mean(1, keepdims=True) if centered else 0) - normal * (u * normal).mean(1, keepdims=True))
        y = fn.layer_norm(x, weight, bias, eps=eps) if centered else fn.rms_norm(x, weight, eps=eps)
        close(y, normal * scale + (shift if centered else 0), 4, np.abs(normal * scale) + 8)
        inputs = (x, weight, bias) if centered else (x, weight)
        found = gradients(y, g, *inputs)
        close(found[0], dx, 4, 16 * r * (np.abs(u) + 8))
        expected = [(up * normal).sum(0), up.sum(0)]
        for got, want, size in zip(
            found[1:], expected, ((np.abs(up * normal)).sum(0), np.abs(up).sum(0)), strict=False
        ):
            # each term is rounded to the dtype before the sum
            assert np.all(np.abs(wide(got.numpy()) - want) <= 16 * max(dtype.eps, 2e-7) * (size + 1))


@named(FLOATS)
@pytest.mark.parametrize("n", ROWS)
def test_cross_entropy(n: int, dtype: DType, gpu: Device, rng: np.random.Generator) -> None:
    host, labels = draw(rng, (33, n), dtype), rng.integers(0, n, 33)
    exact = wide(host)
    top = exact.max(1)
    lse = np.log(np.exp(exact - top[:, None]).sum(1)) + top
    expected = lse - exact[np.arange(33), labels]
    for kind in (np.int64, np.int32, np.uint8)[: 3 if n <= 256 else 2]:
        x = fn.asarray(host).requires_grad_()
        rows = fn.cross_entropy(x, fn.asarray(labels.astype(kind)), reduction="none")
        close(rows, expected, 4, 8)
        p = np.exp(exact - lse[:, None])
        p[np.arange(33), labels] -= 1
        close(gradients(rows, np.ones(33), x)[0], p, 8, 1)


# --- matrix products -----------------------------------------------------------------------------------------------
SIZES = [
    (1, 1, 1),
    (2050, 2060, 24),
    (1, 64, 64),
    (64, 1, 16),
    (63, 65, 17),
    (64, 64, 64),
    (128, 96, 48),
    (33, 257, 130),
    (200, 3, 1),
]


@named([*FLOATS, fn.int32, fn.uint8])
@pytest.mark.parametrize("m, n, k", SIZES)
def test_matmul_layouts(m: int, n: int, k: int, dtype: DType, gpu: Device, rng: np.random.Generator) -> None:
    a, b = draw(rng, (m, k), dtype, -2, 2), draw(rng, (k, n), dtype, -2, 2)
    if dtype.is_integer:
        expected, size = (a.astype(np.int64) @ b.astype(np.int64)).astype(dtype.numpy).astype(np.float64), 0.0
    else:
        expected, size = wide(a) @ wide(b), np.abs(wide(a)) @ np.abs(wide(b))
    lefts = (fn.asarray(a), fn.asarray(np.ascontiguousarray(a.T)).T, fn.asarray(np.repeat(a, 2, 1))[:, ::2])
    rights = (fn.asarray(b), fn.asarray(np.ascontiguousarray(b.T)).T, fn.asarray(np.repeat(b, 2, 0))[::2])
    for x, y in itertools.product(lefts, rights):
        close(x @ y, expected, 2, size)


@named([fn.float32, fn.bfloat16, fn.float64])
def test_matmul_batches(dtype: DType, gpu: Device, rng: np.random.Generator) -> None:
    for left, right in (((5,), ()), ((), (5,)), ((2, 3), (2, 3)), ((2, 1), (1, 3)), ((3, 2, 2), (2, 1)), ((0,), (0,))):
        a, b = draw(rng, (*left, 33, 20), dtype), draw(rng, (*right, 20, 17), dtype)
        x, y = fn.asarray(a).requires_grad_(), fn.asarray(b).requires_grad_()
        z = x @ y
        close(z, wide(a) @ wide(b), 2, np.abs(wide(a)) @ np.abs(wide(b)))
        if z.numel:
            g = draw(rng, z.shape, dtype)
            dx, dy = gradients(z, g, x, y)
            full_x = wide(g) @ np.swapaxes(wide(b), -1, -2)
            full_y = np.swapaxes(wide(a), -1, -2) @ wide(g)
            for got, full in ((dx, full_x), (dy, full_y)):
                lead = full.ndim - got.ndim
                axes = (*range(lead), *(i + lead for i, s in enumerate(got.shape) if s == 1 != full.shape[i + lead]))
                want = full.sum(axes, keepdims=True).reshape(got.shape)
                assert np.max(np.abs(wide(got.numpy()) - want)) <= 4 * dtype.eps * 400
    folded = fn.asarray(draw(rng, (4, 3, 33, 20), dtype)).permute((1, 0, 2, 3))[::-1]
    weight = fn.asarray(draw(rng, (20, 17), dtype))
    expected = wide(folded.numpy()) @ wide(weight.numpy())
    close(folded @ weight, expected, 2, np.abs(wide(folded.numpy())) @ np.abs(wide(weight.numpy())))


def test_matmul_of_two_dtypes(gpu: Device, rng: np.random.Generator) -> None:
    for left, right in itertools.permutations(FLOATS, 2):
        a, b = draw(rng, (65, 33), left), draw(rng, (33, 70), right)
        close(fn.asarray(a) @ fn.asarray(b), wide(a) @ wide(b), 2, np.abs(wide(a)) @ np.abs(wide(b)))


# --- indexing ------------------------------------------------------------------------------------------------------
@named(ALL)
def test_gather(dtype: DType, gpu: Device, rng: np.random.Generator) -> None:
    host = draw(rng, (7, 30, 11), dtype)
    x = fn.asarray(host)
    for axis, kind in itertools.product((0, 1, 2), (np.int64, np.int32, np.uint8)):
        n = host.shape[axis]
        index = rng.integers(0 if kind is np.uint8 else -n, n, (4, 5)).astype(kind)
        same(fn.take(x, fn.asarray(index), axis), np.take(host, index, axis))
        same(fn.take(x.flip(), fn.asarray(index.T), axis), np.take(np.flip(host), index.T, axis))
    along = rng.integers(-30, 30, (7, 9, 11))
    same(fn.take_along_axis(x, fn.asarray(along), 1), np.take_along_axis(host, along, 1))


@named(FLOATS)
def test_scatter_add(dtype: DType, gpu: Device, rng: np.random.Generator) -> None:
    """The gradient of a gather: many gradients on one target, few lines of many targets, and the other way round."""
    for rows, n, inner in ((5, 1000, 3), (5000, 100, 1), (100, 300, 257), (1, 50, 7)):
        index = rng.integers(-rows, rows, n)
        g = draw(rng, (n, inner), dtype)
        expected, size = np.zeros((rows, inner)), np.zeros((rows, inner))
        np.add.at(expected, index, wide(g))
        np.add.at(size, index, np.abs(wide(g)))
        x = fn.zeros((rows, inner), dtype=dtype).requires_grad_()
        y = fn.take(x, fn.asarray(index))
        found = gradients(y, g, x)[0]
        close(found, expected, 2, size)
        again = gradients(fn.take(x, fn.asarray(index)), g, x)[0]
        same(again, found.numpy())  # no atomics: the same bits
    along, g = rng.integers(0, 6, (40, 9)), draw(rng, (40, 9), dtype)
    x = fn.zeros((40, 6), dtype=dtype).requires_grad_()
    expected = np.zeros((40, 6))
    np.add.at(expected, (np.arange(40)[:, None], along), wide(g))
    close(gradients(fn.take_along_axis(x, fn.asarray(along), 1), g, x)[0], expected, 2, 40)


# --- windows -------------------------------------------------------------------------------------------------------
def convolve(x: Array, w: Array, stride: int, padding: int) -> Array:
    padded = np.pad(x, ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2))
    view = np.lib.stride_tricks.sliding_window_view(padded, w.shape[2:], (2, 3))[:, :, ::stride, ::stride]
    return np.einsum("ncpqrs,ocrs->nopq", view, w, optimize=True)


@named(FLOATS)
@pytest.mark.parametrize("stride, padding", [(1, 0), (1, 1), (2, 2), (3, 1)])
def test_convolution(stride: int, padding: int, dtype: DType, gpu: Device, rng: np.random.Generator) -> None:
    a, w, b = draw(rng, (3, 4, 17, 15), dtype), draw(rng, (6, 4, 3, 3), dtype), draw(rng, 6, dtype)
    x, weight, bias = (fn.asarray(v).requires_grad_() for v in (a, w, b))
    y = fn.conv2d(x, weight, stride=stride, padding=padding)
    close(
        y, convolve(wide(a), wide(w), stride, padding), 2, convolve(np.abs(wide(a)), np.abs(wide(w)), stride, padding)
    )
    strided = fn.conv2d(fn.asarray(np.swapaxes(a, 2, 3).copy()).transpose(2, 3), weight, stride=stride, padding=padding)
    same(strided, y.numpy())
    z = fn.conv2d(x, weight, bias, stride=stride, padding=padding)
    g = draw(rng, z.shape, dtype)
    dx, dw, db = gradients(z, g, x, weight, bias)
    # the adjoint, by its definition: <g, conv(e, w)> = <dx, e> and <g, conv(x, e)> = <dw, e>
    e, f = rng.normal(size=a.shape), rng.normal(size=w.shape)
    for got, direction, response in (
        (dx, e, convolve(e, wide(w), stride, padding)), (dw, f, convolve(wide(a), f, stride, padding)),
    ):  # fmt: skip
        left, right = (wide(g) * response).sum(), (wide(got.numpy()) * direction).sum()
        assert abs(left - right) <= 16 * dtype.eps * np.sqrt((wide(got.numpy()) ** 2 * direction**2).sum()) + 1e-3
    total = wide(g).sum((0, 2, 3))
    assert np.all(np.abs(wide(db.numpy()) - total) <= 4 * dtype.eps * np.abs(total) + 1e-3)


@named(FLOATS)
@pytest.mark.parametrize("kernel, stride, padding", [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 0)])
def test_pools(kernel: int, stride: int, padding: int, dtype: DType, gpu: Device, rng: np.random.Generator) -> None:
    host = draw(rng, (2, 3, 17, 14), dtype)
    x = fn.asarray(host).requires_grad_()

    def windows(values: Array, fill: float) -> Array:
        padded = np.pad(values, ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2), constant_values=fill)
        view = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (2, 3))[:, :, ::stride, ::stride]
        return view.reshape(*view.shape[:4], -1)

    largest, average = fn.max_pool2d(x, kernel, stride, padding), fn.avg_pool2d(x, kernel, stride, padding)
    same(largest, windows(wide(host), -np.inf).max(-1).astype(dtype.numpy))
    close(average, windows(wide(host), 0).mean(-1), 2, 4)
    places = windows(np.arange(host.size, dtype=np.float64).reshape(host.shape), -1).astype(np.int64)
    g = draw(rng, largest.shape, dtype)
    winners = np.take_along_axis(places, windows(wide(host), -np.inf).argmax(-1)[..., None], -1)[..., 0]
    expected = np.zeros(host.size)
    np.add.at(expected, winners, wide(g))
    close(gradients(largest, g, x)[0], expected.reshape(host.shape), 2, 16)
    shares = np.zeros(host.size + 1)  # the last one takes what falls on the padding
    np.add.at(shares, places, np.broadcast_to(wide(g)[..., None] / kernel**2, places.shape))
    close(gradients(average, g, x)[0], shares[:-1].reshape(host.shape), 2, 16)


# --- random numbers ------------------------------------------------------------------------------------------------
@named(FLOATS)
def test_random_numbers_do_not_depend_on_the_device(dtype: DType, gpu: Device) -> None:
    for n in (1, 3, 4, 5, 1023, 100_003):
        on = {}
        for device in (gpu, Device.cpu()):
            generator = fn.Generator(seed=2**40 + n)
            uniform = fn.rand((n,), dtype=dtype, device=device, generator=generator)
            scaled = fn.rand((n,), -2, 3, dtype=dtype, device=device, generator=generator)
            normal = fn.randn((n,), dtype=dtype, device=device, generator=generator)
            whole = fn.randint(-5, 1000, (n,), device=device, generator=generator)
            on[device.kind] = [t.numpy() for t in (uniform, scaled, normal, whole)] + [generator.state()]
        (a, b, c, d, state), (p, q, r, s, other) = on[gpu.kind], on["cpu"]
        np.testing.assert_array_equal(a, p)
        np.testing.assert_array_equal(d, s)
        assert state == other
        # a multiply-add in one rounding, and another library's logarithm
        np.testing.assert_allclose(wide(b), wide(q), rtol=4 * dtype.eps, atol=8 * dtype.eps)
        np.testing.assert_allclose(wide(c), wide(r), rtol=16 * dtype.eps, atol=16 * max(dtype.eps, 1e-7))


def test_moments(gpu: Device) -> None:
    generator = fn.Generator(7)
    z = wide(fn.randn((1 << 20,), generator=generator).numpy())
    u = wide(fn.rand((1 << 20,), generator=generator).numpy())
    assert abs(z.mean()) < 5e-3 and abs(z.var() - 1) < 8e-3
    assert abs(u.mean() - 0.5) < 2e-3 and abs(u.var() - 1 / 12) < 1e-3
    counts = np.bincount(fn.randint(0, 7, (70_000,), generator=generator).numpy(), minlength=7)
    assert np.all(np.abs(counts - 10_000) < 500)
    kept = fn.dropout(fn.ones((100_000,)), 0.25, generator=generator).numpy()
    assert abs((kept == 0).mean() - 0.25) < 0.01 and np.allclose(kept[kept != 0], 1 / 0.75)
