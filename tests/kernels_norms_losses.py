"""Calls that launch each hand-written kernel of the norms, the class losses and dropout, in each variant.

`test_sm90.py` compiles what they launch for the GPU, on a device without memory.
"""

from __future__ import annotations

import flame_numba as fn
from flame_numba.dtypes import DType
from flame_numba.ops.random import _check_weights
from flame_numba.tensor import Tensor


def _floating(dtype: DType, *shape: int) -> Tensor:
    return Tensor.empty(shape, dtype=dtype).requires_grad_()


def _backward(y: Tensor) -> None:
    y.backward(Tensor.empty(y.shape, dtype=y.dtype))


def row_norms(dtype: DType) -> None:
    x, w, b = _floating(dtype, 8, 4096), _floating(dtype, 4096), _floating(dtype, 4096)
    for y in (fn.layer_norm(x), fn.layer_norm(x, w), fn.layer_norm(x, w, b), fn.layer_norm(x, None, b)):
        _backward(y)
    for y in (fn.rms_norm(x), fn.rms_norm(x, w)):
        _backward(y)
    _backward(fn.layer_norm(_floating(dtype, 8, 64), _floating(dtype, 64), _floating(dtype, 64)))
    _backward(fn.layer_norm(_floating(dtype, 100_000, 64), _floating(dtype, 64), _floating(dtype, 64)))
    _backward(fn.layer_norm_modulate(_floating(dtype, 4, 256, 512), _floating(dtype, 4, 512), _floating(dtype, 4, 512)))


def channel_norms(dtype: DType) -> None:
    for shape, groups in (((4, 64, 8, 8), 32), ((8, 512, 64, 64), 32), ((1, 32, 600, 600), 4)):
        w, b = _floating(dtype, shape[1]), _floating(dtype, shape[1])
        x = _floating(dtype, *shape)
        for y in (fn.group_norm(x, groups), fn.group_norm(x, groups, w), fn.group_norm(x, groups, w, b)):
            _backward(y)
        _backward(fn.group_norm(x, groups, None, b))
        _backward(fn.batch_norm(x, None, None, w, b, training=True))
    fn.batch_norm(_floating(dtype, 64, 100), Tensor.empty((100,)), Tensor.empty((100,)), training=True)
    fn.batch_norm(_floating(dtype, 64, 100), Tensor.empty((100,)), Tensor.empty((100,)))


def class_losses(dtype: DType) -> None:
    labels = Tensor.empty((64,), dtype=fn.int64)
    for n in (10, 50_000):
        x, w = _floating(dtype, 64, n), Tensor.empty((n,), dtype=dtype)
        for weight in (None, w):
            for smoothing in (0.0, 0.1):
                _backward(fn.cross_entropy(x, labels, weight, label_smoothing=smoothing))
            _backward(fn.nll_loss(x, labels, weight, reduction="none"))


def dropout(dtype: DType) -> None:
    _backward(fn.dropout(_floating(dtype, 1000), 0.1))


def weights(dtype: DType) -> None:
    for n in (10, 50_000):
        _check_weights(Tensor.empty((4, n), dtype=dtype))


BY_HAND = (row_norms, channel_norms, class_losses, dropout, weights)
