"""Attention on the GPU against the CPU device: the same kernels with other tiles."""

from __future__ import annotations

import numpy as np
import pytest

import flame_numba as fn

pytestmark = pytest.mark.gpu

CALLS = {
    "plain": ((2, 4, 100, 64), (2, 4, 130, 64), {}),
    "causal, grouped": ((2, 8, 150, 128), (2, 2, 150, 128), {"causal": True}),
    "narrow, lower right": ((1, 2, 65, 24), (1, 1, 200, 24), {"causal": "lower_right"}),
    "wide": ((1, 2, 70, 200), (1, 2, 70, 200), {}),
    "dropout": ((2, 2, 70, 32), (2, 2, 90, 32), {"dropout": 0.3}),
    "one query": ((3, 4, 1, 64), (3, 4, 300, 64), {}),
}


def both_ways(device, shapes, dtype, marks, keywords):
    rng = np.random.default_rng(0)
    q, k, v = (
        fn.asarray(rng.standard_normal(s).astype(np.float32), device=device).to_dtype(dtype).requires_grad_()
        for s in shapes
    )
    full = (*shapes[0][:-1], shapes[1][-2])
    mask = fn.asarray(rng.random((full[0], 1, 1, full[-1])) < 0.8, device=device) if marks else None
    bias = None
    inputs = [q, k, v]
    if marks:
        bias = fn.asarray(rng.standard_normal((full[1], 1, full[-1])).astype(np.float32), device=device)
        inputs.append(bias.requires_grad_())
    if "dropout" in keywords:
        keywords = {**keywords, "generator": fn.Generator(3)}
    y = fn.attention(q, k, v, mask, bias=bias, **keywords)
    g = fn.asarray(rng.standard_normal(y.shape).astype(np.float32), device=device).to_dtype(dtype)
    return [t.detach().to_dtype(fn.float64).numpy() for t in (y, *fn.grad(y, inputs, [g]))]


@pytest.mark.parametrize("marks", [False, True], ids=["plain", "mask and bias"])
@pytest.mark.parametrize("dtype", [fn.float32, fn.bfloat16, fn.float64], ids=lambda d: d.name)
@pytest.mark.parametrize("name", CALLS)
def test_the_machines_agree(name, dtype, marks):
    q, k, keywords = CALLS[name]
    found = both_ways(fn.default_device(), (q, k, k), dtype, marks, keywords)
    again = both_ways(fn.default_device(), (q, k, k), dtype, marks, keywords)
    expected = both_ways("cpu", (q, k, k), dtype, marks, keywords)
    tolerance = {fn.float32: 2e-5, fn.bfloat16: 2e-2, fn.float64: 1e-12}[dtype]
    for a, b, c in zip(found, again, expected, strict=True):
        assert np.array_equal(a, b)  # no atomics: the same bits
        np.testing.assert_allclose(a, c, atol=tolerance * max(1, np.abs(c).max()), rtol=0)
