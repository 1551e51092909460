"""Tensors as a user meets them: shapes, views, indexing, numbers, repr, errors."""

from __future__ import annotations

import numpy as np
import pytest

import flame_numba as fn
from flame_numba import dtypes


def array(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)


def test_views_share_storage_and_copies_do_not():
    x = fn.asarray(array(4, 6))
    for view in (x.reshape(-1, 3), x.T, x[1:3, ::2], x.unsqueeze(0), x.broadcast_to(2, 4, 6), x.flip(), x.detach()):
        assert view.storage is x.storage
    for copy in (x.clone(), x.T.contiguous(), x.T.reshape(-1), x + 0):
        assert copy.storage is not x.storage


@pytest.mark.parametrize(
    "key",
    [
        0, -1, slice(None), slice(1, 3), slice(None, None, -1), slice(3, 0, -2), slice(10, 20), None, ...,
        (0, 1), (slice(None), 2), (..., 0), (None, 1, ..., slice(0, 2)), (slice(2, 2), 0), (-1, -1, -1),
    ],
    ids=str,
)  # fmt: skip
def test_basic_indexing_is_numpys(key):
    host = array(4, 5, 3)
    assert np.array_equal(fn.asarray(host)[key].numpy(), host[key])


@pytest.mark.parametrize("index", [[0, 2, 2], np.array([[1, -1], [0, 3]]), np.array([], np.int64), 2])
def test_integer_arrays_gather(index):
    host = array(4, 5)
    where = fn.asarray(np.asarray(index, np.int64))
    assert np.array_equal(fn.asarray(host)[where].numpy(), host[np.asarray(index, np.int64)])
    assert np.array_equal(fn.asarray(host)[:, where].numpy(), host[:, np.asarray(index, np.int64)])


def test_assignment_writes_through_a_view():
    host = array(4, 5)
    x = fn.asarray(host)
    x[1:3, ::2] = 7
    host[1:3, ::2] = 7
    x[0] = fn.asarray(array(5) * 2)
    host[0] = array(5) * 2
    x[:, -1] = [1, 2, 3, 4]
    host[:, -1] = [1, 2, 3, 4]
    assert np.array_equal(x.numpy(), host)


@pytest.mark.parametrize("a", dtypes.ALL, ids=lambda d: d.name)
@pytest.mark.parametrize("b", dtypes.ALL, ids=lambda d: d.name)
def test_promotion_is_symmetric_and_agrees_with_numpy_where_numpy_keeps_the_width(a, b):
    if {a, b} & {fn.uint64} and {a, b} & set(dtypes.SIGNED):
        with pytest.raises(fn.DTypeError, match="no common integer type"):
            fn.promote(a, b)
        return
    found = fn.promote(a, b)
    assert found is fn.promote(b, a)
    floats = [d for d in (a, b) if d.is_floating]
    if len(floats) == 1:
        assert found is floats[0]
    elif fn.bfloat16 in (a, b):
        assert found is {fn.bfloat16: fn.bfloat16, fn.float64: fn.float64}.get(a if b is fn.bfloat16 else b, fn.float32)
    else:
        assert found.numpy == np.promote_types(a.numpy, b.numpy)


def test_python_numbers_do_not_widen():
    half = fn.Tensor.ones((2,), dtype=fn.bfloat16)
    assert (half * 2).dtype is (half + 0.5).dtype is fn.bfloat16
    whole = fn.arange(3, dtype=fn.int8)
    assert (whole + 1).dtype is fn.int8
    assert (whole + 0.5).dtype is fn.float32
    assert (whole / 2).dtype is fn.float32


def test_zero_dimensional_and_empty_tensors():
    scalar = fn.asarray(3.5)
    assert scalar.shape == () and scalar.item() == 3.5 and float(scalar * 2) == 7
    empty = fn.Tensor.zeros((0, 3))
    assert (empty + 1).shape == (0, 3)
    assert empty.sum().item() == 0 and np.isnan(empty.mean().item())
    assert (empty @ fn.Tensor.ones((3, 2))).shape == (0, 2)
    assert (fn.Tensor.ones((2, 0)) @ fn.Tensor.ones((0, 2))).tolist() == [[0, 0], [0, 0]]
    with pytest.raises(fn.ShapeError, match="no elements"):
        empty.max()


def test_numbers_read_back_with_their_kind():
    assert fn.asarray(True).item() is True
    assert fn.asarray(np.uint64(2**64 - 1)).item() == 2**64 - 1
    assert isinstance(fn.asarray(np.float16(0.5)).item(), float)
    with pytest.raises(fn.ShapeError, match="exactly one element"):
        fn.arange(3).item()


def test_repr_shows_values_dtype_device_and_origin():
    x = fn.asarray([[1.0, 2.0]]).requires_grad_()
    assert "1." in repr(x) and "float32" in repr(x) and "requires_grad" in repr(x)
    assert "grad_op=add" in repr(x + 1)
    assert "shape=(0,)" in repr(fn.Tensor.zeros((0,)))


def test_many_axes_that_do_not_merge():
    host = np.arange(2**10, dtype=np.float32).reshape((2,) * 10)
    x = fn.asarray(host).permute(tuple(reversed(range(10))))
    assert np.array_equal((x + fn.asarray(host)).numpy(), host.transpose() + host)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: x @ x, fn.ShapeError, r"matmul: a.shape\[-1\]=3 must equal b.shape\[-2\]=2"),
        (lambda x: x + fn.Tensor.ones((4,)), fn.ShapeError, r"add: shapes \(2, 3\), \(4,\) do not broadcast"),
        (lambda x: x.sum(axis=2), fn.AxisError, "axis=2 is out of range for 2 dimensions"),
        (lambda x: x.sum(axis=(0, 0)), fn.AxisError, "names an axis twice"),
        (lambda x: x.reshape(4, -1), fn.ShapeError, "6 elements do not fill"),
        (lambda x: x.T.view(6), fn.ShapeError, "use reshape"),
        (lambda x: x[2], fn.IndexOutOfRange, "2 is out of range for axis 0 of size 2"),
        (lambda x: x[0, 0, 0], fn.IndexOutOfRange, "3 indices for 2 dimensions"),
        (lambda x: x + "a", fn.DTypeError, "expected tensors and numbers"),
        (lambda x: x.to_dtype("complex64"), fn.DTypeError, "is not one of"),
        (lambda x: fn.asarray(np.array([1j])), fn.DTypeError, "is not one of"),
        (lambda x: (x > 0) + (x > 1), fn.DTypeError, "not defined for bool"),
        (lambda x: fn.arange(3).requires_grad_(), fn.DTypeError, "only floating tensors"),
        (lambda x: fn.take(x, x), fn.DTypeError, "indices must be integers"),
        (lambda x: fn.take(x, fn.asarray([5])).numpy(), fn.IndexOutOfRange, "take: an index was out of range"),
        (lambda x: fn.cross_entropy(x, fn.asarray([0, 3])).item(), fn.IndexOutOfRange, "label was out of range"),
        (lambda x: fn.conv2d(x, x), fn.ShapeError, "needs images"),
        (lambda x: fn.Device.parse("tpu"), fn.DeviceError, "expected 'cpu', 'cuda'"),
        (lambda x: fn.concat([x, fn.Tensor.ones((3, 3))], axis=1), fn.ShapeError, "must agree but for axis 1"),
        (lambda x: x.broadcast_to(2, 2, 2), fn.ShapeError, "do not broadcast"),
    ],
)
def test_bad_input_names_op_rule_and_values(call, error, words):
    x = fn.asarray(array(2, 3))
    with pytest.raises(error, match=words):
        call(x)
    assert (x + 1).sum().item() == 21  # the next op works


def test_an_absent_gpu_is_said_in_one_sentence():
    if fn.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(fn.DeviceError, match="driver|cuda-bindings"):
        fn.Tensor.ones((2,), device="cuda")


def test_the_generator_repeats_from_a_saved_state():
    generator = fn.Generator(7)
    fn.randn((5,), generator=generator)
    state = generator.state()
    first = [f(generator).numpy() for f in DRAWS]
    generator.set_state(state)
    second = [f(generator).numpy() for f in DRAWS]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0], fn.randn((100,), generator=generator).numpy())


DRAWS = [
    lambda g: fn.randn((100,), generator=g), lambda g: fn.rand((101,), dtype=fn.float64, generator=g),
    lambda g: fn.randint(-3, 9, (50,), generator=g), lambda g: fn.permutation(10, generator=g),
    lambda g: fn.bernoulli((50,), 0.3, generator=g),
]  # fmt: skip


def test_random_numbers_have_their_moments():
    x = fn.randn((200_000,), mean=2.0, std=3.0, generator=fn.Generator(1)).numpy()
    assert abs(x.mean() - 2) < 0.03 and abs(x.std() - 3) < 0.03
    u = fn.rand((200_001,), low=-1.0, high=3.0, generator=fn.Generator(2)).numpy()
    assert u.min() >= -1 and u.max() < 3 and abs(u.mean() - 1) < 0.01
    i = fn.randint(0, 6, (60_000,), generator=fn.Generator(3)).numpy()
    assert (np.bincount(i, minlength=6) > 9_500).all()
    sample = fn.randn((7,), dtype=fn.float32, generator=fn.Generator(0))
    assert np.array_equal(sample.numpy(), fn.randn((9,), generator=fn.Generator(0)).numpy()[:7])


def test_assignment_from_an_overlapping_view_of_itself():
    host = array(3, 6)
    x = fn.asarray(host)
    x[:, 1:] = x[:, :-1]
    host[:, 1:] = host[:, :-1].copy()
    assert np.array_equal(x.numpy(), host)
    x[::-1] = x
    assert np.array_equal(x.numpy(), host[::-1])


def test_a_write_into_another_device_is_refused():
    from flame_numba.ops.movement import copy_into

    elsewhere = fn.Tensor.empty((3,), device=fn.Device.simulated())
    with pytest.raises(fn.DeviceMismatch, match="move them to one device"):
        copy_into(elsewhere, fn.Tensor.ones((3,)))
