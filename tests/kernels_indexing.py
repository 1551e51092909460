"""The launches of `kernels/index/`, each kernel in each variant: for tests/test_sm90.py."""

from __future__ import annotations

import pytest

import flame_numba as fn
from flame_numba.dtypes import DType
from flame_numba.ops.index import launches
from flame_numba.tensor import Tensor


def gathering_and_scattering(dtype: DType) -> None:
    x = Tensor.empty((40, 6, 8, 5), dtype=dtype)
    some, other = Tensor.empty((7,), dtype=fn.int64), Tensor.empty((3, 1), dtype=fn.int32)
    x[:, some], x[other, :, some], x.permute((2, 0, 3, 1))[:, some, other]  # merged, apart, strided
    fn.take_along_axis(x, Tensor.empty((1, 6, 2, 5), dtype=fn.int64), 2)
    value = Tensor.empty((7, 5), dtype=dtype)
    x[0, some, 0, :] = value[:, 0:1]
    x[:, some, :, other] = 1
    y, source = Tensor.empty((40, 30), dtype=dtype), Tensor.empty((7, 30), dtype=dtype)
    for floating in (y, y.T.contiguous().T):
        fn.index_add(floating, 0, some, source)
        fn.index_copy(floating, 0, some, source)
    along = Tensor.empty((40, 5), dtype=fn.int64)
    for reduce in ("sum", "prod", "amax", "amin"):
        fn.scatter_reduce(y, 1, along, y[:, :5], reduce)
    fn.scatter(y, 1, along, y[:, :5])


def sorted_scattering(dtype: DType) -> None:
    """By a sort of the index, as many entries and few lines are; here a few, so that the fake pool does not grow."""
    x, source = Tensor.empty((100, 3), dtype=dtype), Tensor.empty((50, 3), dtype=dtype)
    index = Tensor.empty((50,), dtype=fn.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launches, "wants_sort", lambda *_: True)
        fn.index_add(x, 0, index, source)
        fn.index_copy(x, 0, index, source)
        for reduce in ("prod", "amax", "amin"):
            fn.scatter_reduce(x, 0, Tensor.empty((50, 3), dtype=fn.int64), source, reduce)


BY_HAND = (gathering_and_scattering, sorted_scattering)
