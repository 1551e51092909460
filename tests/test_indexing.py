"""`x[key]` and `x[key] = value` with any key: NumPy's results, gradients of both, and the errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flame_numba as fn
from flame_numba.testing import LAYOUTS, with_layout


def at_once():
    """On CUDA an index is known to be out of range only later, unless in debug mode."""
    return fn.debug_mode(fn.default_device().kind == "cuda")


SHAPES = [(5,), (3, 4), (2, 3, 4), (1, 4), (2, 0, 3), (4, 1, 2, 3), ()]


@st.composite
def keys(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple:
    """Every kind of item, in any order, that NumPy accepts for this shape."""
    common = draw(st.sampled_from([(), (3,), (2, 1), (2, 3), (0,), (1,)]))
    items, axis = [], 0
    axes = draw(st.integers(0, len(shape)))
    while axis < axes:
        n = shape[axis]
        kind = draw(st.sampled_from(["int", "slice", "slice", "array", "array", "mask", "none", "true"]))
        if kind == "none":
            items.append(None)
            if len(items) > 8:
                break
        elif kind == "true" and len(items) < 8:
            items.append(draw(st.sampled_from([True, True, False])))
        elif kind == "slice" or n == 0:
            bound = st.one_of(st.none(), st.integers(-n - 1, n + 1))
            step = draw(st.sampled_from([None, 1, 2, -1, -2, 3]))
            items.append(slice(draw(bound), draw(bound), step))
            axis += 1
        elif kind == "int":
            items.append(draw(st.sampled_from([int, np.int32]))(draw(st.integers(-n, n - 1))))
            axis += 1
        elif kind == "mask":
            covered = shape[axis : axis + draw(st.integers(1, min(2, len(shape) - axis)))]
            # exactly one element is chosen, so that the masks of a key broadcast
            mask = np.zeros(covered, bool)
            if mask.size:
                mask.reshape(-1)[draw(st.integers(0, mask.size - 1))] = True
            items.append(mask)
            axis += len(covered)
        else:
            part = tuple(draw(st.sampled_from([n_, 1])) for n_ in common)[draw(st.integers(0, len(common))) :]
            values = draw(st.lists(st.integers(-n, n - 1), min_size=int(np.prod(part)), max_size=int(np.prod(part))))
            dtype = draw(st.sampled_from([np.int64, np.int32]))
            items.append(np.array(values, dtype).reshape(part))
            axis += 1
    if draw(st.booleans()):
        # an ellipsis anywhere: the axes after it are then the last ones, so only where the key covers all
        if axis == len(shape):
            items.insert(draw(st.integers(0, len(items))), Ellipsis)
        else:
            items.append(Ellipsis)
    return tuple(items)


def as_key(key: tuple, kind: str) -> tuple:
    """The key with its arrays as tensors, lists or tuples."""
    change = {
        "tensor": fn.asarray,
        "array": lambda a: a,
        "list": lambda a: a.tolist() if a.ndim and a.size else a,
        "tuple": lambda a: tuple(a.tolist()) if a.ndim and a.size else a,
    }[kind]
    return tuple(change(k) if isinstance(k, np.ndarray) else k for k in key)


@settings(max_examples=150)
@given(data=st.data())
def test_reading_is_numpys(data):
    shape = data.draw(st.sampled_from(SHAPES))
    key = data.draw(keys(shape))
    host = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    try:
        expected = host[key]
    except IndexError:
        return
    x = with_layout(host, data.draw(st.sampled_from(LAYOUTS)))
    found = x[as_key(key, data.draw(st.sampled_from(["tensor", "array", "list", "tuple"])))]
    assert found.shape == expected.shape
    assert np.array_equal(found.numpy(), expected)


@settings(max_examples=150)
@given(data=st.data())
def test_writing_is_numpys(data):
    shape = data.draw(st.sampled_from(SHAPES))
    key = data.draw(keys(shape))
    host = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    x = with_layout(host, data.draw(st.sampled_from([name for name in LAYOUTS if name != "broadcast"])))
    try:
        target = host[key].shape
    except IndexError:
        return
    part = target[data.draw(st.integers(0, len(target))) :]
    part = tuple(data.draw(st.sampled_from([n, n, 1])) for n in part)
    if data.draw(st.booleans()):
        value = -np.arange(1, 1 + int(np.prod(part)), dtype=np.float32).reshape(part)
        host[key] = value
        x[as_key(key, "tensor")] = fn.asarray(value)
    else:
        host[key] = -7
        x[as_key(key, "array")] = -7
    assert np.array_equal(x.numpy(), host)


@pytest.mark.parametrize(
    "key",
    [
        (slice(None), fn.asarray([2, 0, 2])),
        (fn.asarray([[0, 1], [1, 1]]), slice(None), fn.asarray([3, 0])),
        (fn.asarray(np.array([[True, False, True], [False, True, True]])),),
        (1, slice(None, None, -2)),
        (slice(None), None, 0, fn.asarray([1, 1])),
    ],
    ids=["one", "apart", "mask", "slices", "neighbours"],
)
def test_gradients_of_reading_and_writing(key):
    rng = np.random.default_rng(0)
    x = fn.asarray(rng.normal(size=(2, 3, 4))).requires_grad_()
    value = fn.asarray(rng.normal(size=x[key].shape)).requires_grad_()

    def assigned(x, value):
        y = x * 1
        y[key] = value
        return y

    assert fn.gradcheck(lambda x: x[key], [x], order=2)
    assert fn.gradcheck(assigned, [x, value], order=2)
    assert fn.gradcheck(assigned, [x.detach(), value], order=2)


def test_of_equal_indices_the_last_wins_and_gets_the_gradient():
    x = fn.zeros((4,))
    value = fn.asarray([1.0, 2.0, 3.0, 4.0]).requires_grad_()
    x[fn.asarray([1, 3, 1, 1])] = value
    assert x.tolist() == [0, 4, 0, 2]
    (x * fn.asarray([1.0, 10.0, 100.0, 1000.0])).sum().backward()
    assert value.grad.tolist() == [0, 1000, 0, 10]


def test_a_mask_with_one_value_does_not_wait(monkeypatch):
    from flame_numba.ops.order import searching

    x, mask = fn.zeros((3, 4)), fn.asarray(np.array([True, False, True]))
    monkeypatch.setattr(searching, "nonzero", None)
    x[mask] = 1
    x[mask] = fn.asarray([1.0, 2.0, 3.0, 4.0])
    assert x.tolist() == [[1, 2, 3, 4], [0, 0, 0, 0], [1, 2, 3, 4]]


def test_the_value_may_share_memory_with_the_target():
    host = np.arange(12.0).reshape(3, 4)
    x = fn.asarray(host.copy())
    x[fn.asarray([0, 1, 2])] = x[::-1]
    assert np.array_equal(x.numpy(), host[::-1])
    i = fn.asarray([3, 2, 1, 0])
    i[i] = fn.asarray([10, 11, 12, 13])
    assert i.tolist() == [13, 12, 11, 10]
    x[0] += 1  # reads a view, changes it, and assigns it to itself
    assert x[0].tolist() == (host[2] + 1).tolist()


def test_a_basic_key_is_a_view_and_an_index_is_a_copy():
    x = fn.zeros((3, 4))
    assert x[1:, None, 0].storage is x.storage
    assert x[fn.asarray([0, 1])].storage is not x.storage
    y = x[...]
    assert y is not x and y.storage is x.storage


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda x: x[3], fn.IndexOutOfRange, "index: 3 is out of range for axis 0 of size 3"),
        (lambda x: x[0, 0, 0], fn.IndexOutOfRange, "3 indices for 2 dimensions"),
        (lambda x: x[..., ...], fn.IndexOutOfRange, "one ... only"),
        (lambda x: x[1.0], fn.IndexOutOfRange, "expected ints, slices"),
        (lambda x: x["a"], fn.IndexOutOfRange, "expected ints, slices"),
        (lambda x: x[fn.asarray([0.5])], fn.DTypeError, "must be of integers or bool, got float32"),
        (lambda x: x[fn.asarray([0, 3])], fn.IndexOutOfRange, r"3 at 1, for axis 0 of size 3"),
        (lambda x: x[:, fn.asarray([[0, -5]])], fn.IndexOutOfRange, r"-5 at \(0, 1\), for axis 1 of size 4"),
        (lambda x: x[[0, 1], [0, 9]], fn.IndexOutOfRange, "index: .*9 at 1, for axis 1 of size 4"),
        (lambda x: x[[[0], [1, 2]]], fn.ShapeError, "rows differ in length"),
        (lambda x: x[[0, 1], [0, 1, 2]], fn.ShapeError, "do not broadcast"),
        (lambda x: x[fn.asarray(np.ones(4, bool))], fn.IndexOutOfRange, r"mask of shape \(4,\) does not fit axes 0"),
        (lambda x: fn.zeros((0, 2))[fn.asarray([0])], fn.IndexOutOfRange, "is empty"),
        (lambda x: x.__setitem__(0, fn.zeros((3,))), fn.ShapeError, "not broadcast"),
        (lambda x: x.__setitem__([0, 1], fn.zeros((3, 4))), fn.ShapeError, "not broadcast"),
        (
            lambda x: fn.arange(3).__setitem__(0, 1.5),
            fn.DTypeError,
            "the number 1.5 does not go into a tensor of int64",
        ),
        (lambda x: fn.arange(3).__setitem__(0, fn.ones(())), fn.DTypeError, "float32 does not go into"),
        (lambda x: x.expand((2, 3, 4)).__setitem__(0, 1), fn.ShapeError, "elements share memory"),
        (lambda x: x.requires_grad_().__setitem__(0, 1), fn.GradientError, "leaf that requires a gradient"),
        (lambda x: x[0].__setitem__(0, fn.ones(()).requires_grad_()), fn.GradientError, "shares memory"),
    ],
)
def test_errors(call, error, message):
    with at_once(), pytest.raises(error, match=message):
        call(fn.zeros((3, 4)))


@pytest.mark.parametrize(
    "shape, mask", [((3,), (0,)), ((3, 4), (3, 0)), ((3, 4), (0, 4)), ((3, 4), (0,)), ((0,), (0,))]
)
def test_a_mask_with_an_empty_axis_takes_nothing(shape, mask):
    x, key = np.ones(shape), np.zeros(mask, bool)
    y = fn.asarray(x)
    assert y[fn.asarray(key)].shape == x[key].shape
    y[fn.asarray(key)] = 7
    assert np.array_equal(y.numpy(), x)


def test_nothing_is_written_when_an_index_is_out_of_range():
    x = fn.zeros((3,))
    with at_once(), pytest.raises(fn.IndexOutOfRange, match="4 at 2 .and 1 more., for axis 0 of size 3"):
        x[fn.asarray([0, 1, 4, 5])] = 1
    assert x.tolist() == [0, 0, 0]


def test_masked_fill_refuses_what_the_dtype_does_not_hold():
    x, mask = fn.zeros((2,), dtype=fn.uint8), fn.tensor([True, False])
    for value in (300, -1, np.int64(256)):
        with pytest.raises(fn.DTypeError, match="masked_fill: "):
            fn.masked_fill(x, mask, value)
    assert fn.masked_fill(x, mask, 255).tolist() == [255, 0]


@pytest.mark.parametrize("dtype", [fn.int64, fn.int32], ids=str)
def test_a_wrong_index_is_wrong_also_where_another_axis_is_empty(device: fn.Device, dtype: fn.DType) -> None:
    """As NumPy; the first full batch would be too late to hear of it."""
    x, wrong, right = fn.zeros((0, 4)), fn.tensor([9], dtype=dtype), fn.tensor([3, -4], dtype=dtype)
    for call in (
        lambda i: x[:, i],
        lambda i: x.clone().__setitem__((slice(None), i), 1.0),
        lambda i: fn.take(x, i, 1),
        lambda i: fn.index_select(x, 1, i),
        lambda i: fn.index_add(x, 1, i, fn.zeros((0, i.numel))),
    ):
        call(right)
        device.synchronize()
        with pytest.raises(fn.IndexOutOfRange):
            call(wrong)
            fn.zeros(1).numpy()  # on a GPU it is noticed here
