"""Tensors as a user meets them: shapes, views, indexing, numbers, repr, errors."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any
from unittest import mock

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
    for other in (x.clone(), x.T.contiguous(), x.T.reshape(-1), x + 0):
        assert other.storage is not x.storage


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
        (lambda x: x.add("a"), fn.DTypeError, "expected tensors and numbers"),
        (lambda x: x + np.ones(3), fn.DTypeError, "expected tensors and numbers, got ndarray"),
        (lambda x: x == [1, 2, 3], fn.DTypeError, "expected tensors and numbers, got list"),
        (lambda x: x * np.complex64(2), fn.DTypeError, "expected tensors and numbers, got complex64"),
        (lambda x: x * 2j, fn.DTypeError, "expected tensors and numbers, got complex"),
        (lambda x: x + "a", TypeError, "'Tensor' and 'str'"),
        (lambda x: x.slice(1, 0, None), fn.DTypeError, "slice: end must be an int, got None"),
        (lambda x: x.numpy_async([0]), fn.DTypeError, "numpy_async: out must be a NumPy array, got list"),
        (lambda x: x.reshape((1,) * 64 + (2, 3)).numpy(), fn.ShapeError, "at most 64 axes, the tensor has 66"),
        (lambda x: f"{x:.2f}", fn.ShapeError, "'.2f' needs exactly one element"),
        (lambda x: fn.Parameter([1.0]), fn.DTypeError, "Parameter: expected a tensor, got list"),
        (lambda x: fn.Parameter.randint(0, 3, (2,)), fn.DTypeError, "only floating tensors"),
        (lambda x: np.sum(x, out=np.empty(())), fn.DTypeError, "sum: out must be None"),
        (lambda x: np.mean(x, dtype=np.int32), fn.DTypeError, "mean: dtype must be floating, got int32"),
        (lambda x: x.to_dtype(x), fn.DTypeError, "is not one of"),
        (lambda x: x.to_dtype("complex64"), fn.DTypeError, "is not one of"),
        (lambda x: fn.asarray(np.array([1j])), fn.DTypeError, "is not one of"),
        (lambda x: (x > 0) + (x > 1), fn.DTypeError, "not defined for bool"),
        (lambda x: fn.arange(3).requires_grad_(), fn.DTypeError, "only floating tensors"),
        (lambda x: fn.take(x, x), fn.DTypeError, "indices must be integers"),
        (lambda x: fn.take(x, fn.asarray([5])).numpy(), fn.IndexOutOfRange, "take: an index was out of range"),
        (lambda x: fn.cross_entropy(x, fn.asarray([0, 3])).item(), fn.IndexOutOfRange, "label was out of range"),
        (lambda x: fn.conv2d(x, x), fn.ShapeError, "needs images"),
        (lambda x: fn.Device.parse("tpu"), fn.DeviceError, "expected 'cpu', 'cuda'"),
        (lambda x: fn.Device.parse("cuda:²"), fn.DeviceError, "expected 'cpu', 'cuda'"),
        (lambda x: fn.Device.parse("cpu:3"), fn.DeviceError, "one CPU device"),
        (lambda x: fn.Device.cuda(1.5), fn.DeviceError, "ordinal must be an integer ≥ 0, got 1.5"),
        (lambda x: fn.Device.cuda("0"), fn.DeviceError, "ordinal must be an integer ≥ 0, got '0'"),
        (lambda x: fn.Device.cuda(-1), fn.DeviceError, "ordinal must be an integer ≥ 0, got -1"),
        (lambda x: fn.Device.simulated(1e9), fn.DeviceError, "memory must be an integer"),
        (lambda x: fn.concat([x, fn.Tensor.ones((3, 3))], axis=1), fn.ShapeError, "must agree but for axis 1"),
        (lambda x: x.broadcast_to(2, 2, 2), fn.ShapeError, "do not broadcast"),
        (lambda x: fn.flatten(x, 1, 0), fn.AxisError, "start_axis=1 comes after end_axis=0"),
        (lambda x: fn.roll(x, (1, 2, 3), (0, 1)), fn.AxisError, "must have one length"),
        (lambda x: fn.repeat(x, fn.ones((2,)), 0), fn.DTypeError, "repeat: repeats must be integers, got float32"),
        (lambda x: x.split([3, -1]), fn.ShapeError, "split: sizes .3, -1. must be ≥ 0 and add up to 2"),
        (lambda x: fn.meshgrid([1, 2], [3]), fn.DTypeError, "meshgrid: operands must be tensors, got list"),
        (lambda x: fn.broadcast_tensors(x, [1]), fn.DTypeError, "broadcast_tensors: operands must be tensors"),
        (lambda x: fn.pad(x, ((1, 1), (1, 1)), None), fn.DTypeError, "pad: .* number, got None"),
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


@pytest.mark.parametrize("draw", [fn.dropout, lambda x, generator: fn.rand(x.shape, device="cpu", generator=generator)])
def test_a_draw_without_room_for_the_result_uses_up_nothing(draw):
    generator = fn.Generator(3)
    with fn.MemoryPool("cpu", fn.PoolConfig(limit="1 MiB")).use():
        x = fn.ones((200_000,), device="cpu")
        with pytest.raises(fn.OutOfMemory):
            draw(x, generator=generator)
    assert generator.state() == (3, 0)


def test_methods_show_the_signature_of_their_op():
    assert list(inspect.signature(fn.Tensor.sum).parameters)[:3] == ["x", "axis", "keepdims"]
    assert list(inspect.signature(fn.Tensor.var).parameters)[:2] == ["x", "axis"]


def test_random_numbers_have_their_moments():
    x = fn.randn((200_000,), mean=2.0, std=3.0, generator=fn.Generator(1)).numpy()
    assert abs(x.mean() - 2) < 0.03 and abs(x.std() - 3) < 0.03
    u = fn.rand((200_001,), low=-1.0, high=3.0, generator=fn.Generator(2)).numpy()
    assert u.min() >= -1 and u.max() < 3 and abs(u.mean() - 1) < 0.01
    i = fn.randint(0, 6, (60_000,), generator=fn.Generator(3)).numpy()
    assert (np.bincount(i, minlength=6) > 9_500).all()
    sample = fn.randn((7,), dtype=fn.float32, generator=fn.Generator(0))
    assert np.array_equal(sample.numpy(), fn.randn((9,), generator=fn.Generator(0)).numpy()[:7])


@pytest.mark.parametrize("dtype", [fn.float16, fn.bfloat16, fn.float32, fn.float64])
def test_uniform_numbers_stay_below_the_end(dtype):
    """Also where few numbers of the dtype lie between, so that the sum is often rounded up to the end."""
    for low in (0.0, 1000.0, -3.0, 2049.0, 1e4):
        u = fn.rand((20_000,), low, low + 1, dtype=dtype, generator=fn.Generator(4)).numpy().astype(float)
        assert u.max() < low + 1 and u.min() >= min(low, float(np.asarray(low, dtype.numpy)))
    assert fn.rand((3,), 5, 5, dtype=dtype).tolist() == [5, 5, 5]
    assert fn.rand((2000,), 1e15, 1e15 + 1, dtype=fn.float64, generator=fn.Generator(4)).numpy().max() < 1e15 + 1


@pytest.mark.parametrize("dtype", dtypes.INTEGERS)
def test_random_integers_reach_all_of_their_dtype(dtype):
    limits = np.iinfo(dtype.numpy)
    low, high = int(limits.min), int(limits.max) + 1
    x = fn.randint(low, high, (3000,), dtype=dtype, generator=fn.Generator(5)).numpy()
    assert abs(x.astype(float).mean() - (low + high) / 2) < 0.03 * (high - low)
    assert x.min() < low + (high - low) // 50 and x.max() > high - (high - low) // 50
    assert (fn.randint(high - 2, high, (50,), dtype=dtype).numpy() >= high - 2).all()
    for ends in ((low - 1, high), (low, high + 1), (2**70, 2**70 + 1)):
        with pytest.raises(fn.DTypeError, match=f"randint: {dtype.name} holds"):
            fn.randint(*ends, (3,), dtype=dtype)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: fn.rand((2,), 5, 1), fn.ConfigError, "rand: needs low ≤ high"),
        (lambda: fn.rand((2,), 0, float("inf")), fn.ConfigError, "rand: needs low ≤ high, numbers that float32 holds"),
        (lambda: fn.rand((2,), "a"), fn.DTypeError, "rand: low must be a number"),
        (lambda: fn.randn((2,), std=float("nan")), fn.ConfigError, "randn: needs .* std=nan"),
        (lambda: fn.rand((2,), generator=3), fn.DTypeError, "generator must be a Generator or None, got 3"),
        (lambda: fn.Generator().set_state((1,)), fn.ConfigError, "set_state: needs .seed, counters used."),
        (lambda: fn.Generator().set_state((1, 0.5)), fn.DTypeError, "set_state: offset must be an int"),
        (lambda: fn.Generator().set_state((1, -3)), fn.ConfigError, r"set_state: .* from 0 to 2⁶⁴ − 1, got \(1, -3\)"),
        (lambda: fn.Generator().set_state((1, 2**64)), fn.ConfigError, "set_state: .* from 0 to 2⁶⁴ − 1"),
    ],
)
def test_random_functions_refuse_what_makes_no_sense(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize(
    "copied",
    [
        lambda x: fn.roll(x, 3, 1), lambda x: fn.roll(x, 6), lambda x: fn.tile(x, 1), lambda x: fn.tile(x, (1, 1, 1)),
        lambda x: fn.repeat(x, 1), lambda x: fn.repeat(x, 1, 0), lambda x: fn.pad_border(x, ((0, 0), (0, 0)), "edge"),
        lambda x: fn.tile(x[:1, :1], (2, 3)), lambda x: fn.repeat(x[:, :1], 3, 1),
        lambda x: fn.pad(x, ((0, 0), (0, 0))),
    ],
)  # fmt: skip
def test_ops_that_copy_do_so_whatever_the_values(copied):
    x = fn.asarray(array(2, 3)).requires_grad_()
    y = copied(x)
    assert y.storage is not x.storage and y.is_contiguous
    y.sum().backward()
    assert x.grad.sum().item() == y.numel


def test_cutting():
    x = fn.asarray(array(4, 3))
    assert [p.shape for p in x.split(3)] == [(3, 3), (1, 3)]
    assert [p.shape for p in x[:0].split(2)] == [p.shape for p in x[:0].chunk(2)] == [(0, 3)]
    assert [p.shape for p in x.split([0, 4])] == [(0, 3), (4, 3)]
    assert [p.tolist() for p in x.chunk(2, axis=1)] == [p.tolist() for p in np.split(x.numpy(), [2], 1)]
    assert [p.tolist() for p in x.T.unstack()] == x.T.tolist() and x[:0].unstack() == ()
    assert all(p.storage is x.storage for p in (*x.split(1), *x.unstack(1)))


@pytest.mark.parametrize("cut", [lambda x: x.split(1), lambda x: x.unstack(), lambda x: x.chunk(40)])
def test_gradients_of_parts_are_written_once(cut):
    """One op for all parts, so that the time is not quadratic; a part that gets no gradient has zeros."""
    x = fn.asarray(array(40, 2)).requires_grad_()
    parts = cut(x)
    assert len({id(p.node.parent) for p in parts}) == 1
    sum((p * p).sum() for p in parts[::2]).backward()
    expected = 2 * array(40, 2)
    expected[1::2] = 0
    assert np.array_equal(x.grad.numpy(), expected)
    few = fn.asarray(array(4, 2), dtype=fn.float64).requires_grad_()
    assert fn.gradcheck(lambda x: cut(x)[1] * cut(x)[3], few, order=2)


def test_assignment_from_an_overlapping_view_of_itself():
    host = array(3, 6)
    x = fn.asarray(host)
    x[:, 1:] = x[:, :-1]
    host[:, 1:] = host[:, :-1].copy()
    assert np.array_equal(x.numpy(), host)
    x[::-1] = x
    assert np.array_equal(x.numpy(), host[::-1])


def test_a_write_into_another_device_is_refused():
    from flame_numba.ops.core.copies import copy_into

    elsewhere = fn.Tensor.empty((3,), device=fn.Device.simulated())
    with pytest.raises(fn.DeviceMismatch, match="move them to one device"):
        copy_into(elsewhere, fn.Tensor.ones((3,)))


# --- copies and pickles ---------------------------------------------------------------------------------------------
def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("dtype", dtypes.ALL, ids=lambda d: d.name)
@pytest.mark.parametrize("shape", [(3, 2), (), (0, 4)], ids=str)
def test_a_copied_tensor_has_memory_of_its_own(copied, dtype, shape):
    x = fn.ones((2, *shape), dtype=dtype)[1]  # a view
    y = copied(x)
    assert type(y) is fn.Tensor and y.storage is not x.storage and y.device == x.device and not y.requires_grad
    assert y.dtype is dtype and y.shape == shape and y.storage.numel == x.numel
    assert y.numpy().tobytes() == x.numpy().tobytes()


class Named(fn.Parameter):
    """With an attribute, and arguments of its own."""

    def __init__(self, name: str, data: fn.Tensor) -> None:
        super().__init__(data)
        self.name = name


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_a_copied_leaf_is_a_leaf_of_its_class(copied):
    weight, frozen = Named("w", fn.ones((2,))), fn.Parameter(fn.ones((2,))).requires_grad_(False)
    leaf = fn.ones((2,)).requires_grad_()
    (weight * leaf).sum().backward()
    for x, kind in ((weight, Named), (frozen, fn.Parameter), (leaf, fn.Tensor)):
        y = copied(x)
        assert type(y) is kind and y.is_leaf and y.requires_grad is x.requires_grad
        assert (y.storage is x.storage) is (copied is copy.copy)
    assert copied(weight).name == "w"
    again = copied([weight, weight])
    assert again[0] is again[1]


def test_deepcopy_copies_the_gradient_too():
    x = fn.ones((2,)).requires_grad_()
    (x * 3).sum().backward()
    y = copy.deepcopy(x)
    y.grad.fill_(0)
    assert x.grad.tolist() == [3, 3] and copy.copy(x).grad is None and pickled(x).grad is None


def test_a_result_is_aliased_with_its_history_and_not_copied_without():
    x = fn.ones((2,)).requires_grad_()
    y = copy.copy(x * 3)
    assert not y.is_leaf
    y.sum().backward()
    assert x.grad.tolist() == [3, 3]
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(fn.GradientError, match="is the result of multiply"):
            copied(x * 3)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_small_values_are_copied(copied):
    x = fn.ones((1,))  # its device was used, so it holds a backend
    assert copied(x.device) == x.device and copied(x.device.pinned) == x.device.pinned
    assert copied(fn.Device.cuda(3)) == fn.Device.cuda(3)
    assert all(copied(d) is d for d in dtypes.ALL)
    generator = fn.Generator(7)
    generator.take(5)
    again = copied(generator)
    assert again.state() == generator.state() and again.take(1) == generator.take(1)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_owners_are_not_copied(copied):
    x = fn.ones((3,))
    with pytest.raises(fn.PoolError, match="storage: it owns a block"):
        copied(x.storage)
    for owner in (x.device.current_stream(), x.device.current_stream().record()):
        with pytest.raises(fn.DeviceError, match="not copied or pickled"):
            copied(owner)
    assert (x + 1).tolist() == [2, 2, 2]


def test_unpickling_wants_the_device():
    if fn.cuda.is_available():
        pytest.skip("there is one")
    with fn.Device.cpu():
        rebuild, parts, _ = fn.ones((2,)).__reduce__()
    parts = [fn.Device.cuda(0) if isinstance(part, fn.Device) else part for part in parts]
    with pytest.raises(fn.DeviceError, match="driver|cuda-bindings"):
        rebuild(*parts)


# --- what Python and NumPy call --------------------------------------------------------------------------------------
class Knowing:
    """Knows how to deal with a tensor."""

    def __radd__(self, other: object) -> str:
        return "radd"

    def __add__(self, other: object) -> str:
        return "add"


def test_operators_leave_foreign_operands_to_them():
    x = fn.ones((2,))
    for foreign in (None, "a", object(), {}):
        assert (x == foreign) is (foreign == x) is False and (x != foreign) is True
        assert foreign not in x
    assert x == mock.ANY
    assert (x + Knowing(), Knowing() + x) == ("radd", "add")
    for call in (lambda: x + None, lambda: None * x, lambda: x @ None, lambda: x < "a"):
        with pytest.raises(TypeError, match="not supported between|unsupported operand"):
            call()
    x += 1
    with pytest.raises(TypeError, match="unsupported operand"):
        x += None
    assert x.tolist() == [2, 2]


def test_contains_and_format():
    x = fn.asarray(array(2, 3))
    assert 3.0 in x and 7 not in x and x[0, 1] in x and 1 not in fn.zeros((0,))
    assert f"{x.sum():.4f}|{x[:1, :1]:5.1f}|{fn.tensor(7):04d}" == "15.0000|  0.0|0007"
    assert f"{x}" == str(x)


@pytest.mark.parametrize("name", ["sum", "mean", "std", "var", "max", "min", "prod", "all", "any"])
@pytest.mark.parametrize("keywords", [{}, {"axis": 0}, {"axis": (0, 1), "keepdims": True}], ids=str)
def test_numpy_s_reductions_take_tensors(name, keywords):
    host = array(3, 4) + 1
    found = getattr(np, name)(fn.asarray(host), **keywords)
    assert isinstance(found, fn.Tensor)
    np.testing.assert_allclose(found.numpy(), getattr(np, name)(host, **keywords), rtol=1e-6)


def test_numpy_s_keywords_mean_the_same():
    host = array(2, 3, 4)
    x = fn.asarray(host)
    np.testing.assert_allclose(np.std(x, ddof=1).numpy(), np.std(host, ddof=1), rtol=1e-6)
    for reduce in (np.sum, np.mean, np.var, np.prod):
        assert reduce(x, dtype=np.float64).dtype is fn.float64
    for axes in (None, (1, 0, 2)):
        assert np.array_equal(np.transpose(x, axes).numpy(), np.transpose(host, axes))
    assert x.transpose().shape == (2, 4, 3) and x.transpose(0, 1).shape == (3, 2, 4)
    assert np.array_equal(x.transpose(2, 0, 1).numpy(), host.transpose(2, 0, 1))


def test_expand_keeps_the_axes_that_are_minus_one():
    x = fn.arange(3).reshape(3, 1)
    for shape in ((-1, 2), (4, -1, 2), (4, 3, -1)):
        kept = tuple(m if n == -1 else n for n, m in zip(shape, (4, 3, 1)[-len(shape) :]))
        for found in (x.expand(*shape), x.expand(shape), x.expand(list(shape))):
            assert np.array_equal(found.numpy(), np.broadcast_to(x.numpy(), kept))


@pytest.mark.parametrize(
    "make",
    [
        lambda kind: kind.rand((2,)), lambda kind: kind.randn((2,)), lambda kind: kind.zeros((2,)),
        lambda kind: kind.ones((2,)), lambda kind: kind.full((2,), 0.5), lambda kind: kind.empty((2,)),
        lambda kind: kind.eye(2), lambda kind: kind.from_numpy(np.ones(2)), lambda kind: kind.from_vec([1.0], (1,)),
        lambda kind: kind.arange(0.0, 2.0), lambda kind: kind.linspace(0.0, 1.0, 3), lambda kind: kind.scalar(1.0),
    ],
)  # fmt: skip
def test_what_a_class_makes_is_of_it(make):
    assert type(make(fn.Tensor)) is fn.Tensor and not make(fn.Tensor).requires_grad
    assert type(make(fn.Parameter)) is fn.Parameter and make(fn.Parameter).requires_grad
