"""The family with a trailing underscore: values, dtypes, shapes, shared memory, versions, and the graph."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import flame_numba as fn
from flame_numba.ops import TABLE
from flame_numba.ops.inplace import INPLACE, OPERATORS
from flame_numba.testing import LAYOUTS, with_layout


def at_once():
    """On CUDA an index is known to be out of range only later, unless in debug mode."""
    return fn.debug_mode(fn.default_device().kind == "cuda")


MASK = fn.asarray(np.array([[True, False, True], [False, False, True]]))
ROWS, LINES = fn.asarray([1, 1]), fn.asarray([[2, 0], [1, 1]])
SOURCE = fn.asarray(np.linspace(0.1, 0.9, 6).reshape(2, 3))

# operands beside x, of shape (2, 3) and f64, with values in 0.2 … 0.9; for all others, SOURCE as often as needed
OPERANDS = {
    "fill_": (0.5,), "zero_": (), "copy_": (SOURCE,), "uniform_": (), "normal_": (), "clip_": (0.3, 0.6),
    "clamp_": (0.3, 0.6), "nan_to_num_": (), "masked_fill_": (MASK, 0.5), "masked_scatter_": (MASK, SOURCE),
    "index_add_": (0, ROWS, SOURCE), "index_copy_": (0, ROWS, SOURCE), "index_fill_": (0, ROWS, 0.5),
    "scatter_": (1, LINES, SOURCE), "scatter_add_": (1, LINES, SOURCE), "put_along_axis_": (LINES, 0.5, 1),
    "scatter_reduce_": (1, LINES, SOURCE, "amax"), "index_put_": ((ROWS,), 0.5),
    "prelu_": (fn.ones((3,), dtype="float64"),),
    "acosh_": (), "lgamma_": (), "digamma_": (),
}  # fmt: skip
BITS = [name for name in INPLACE if name.startswith("bitwise_")]
NAMES = [name for name in INPLACE if name not in BITS]
RANDOM = ("uniform_", "normal_")
TWINS = {"sub_": "subtract", "mul_": "multiply", "div_": "divide", "neg_": "negative", "clamp_": "clip"}


def operands(name):
    if name in OPERANDS:
        return OPERANDS[name]
    entry = TABLE[TWINS.get(name, name[:-1])]
    return (SOURCE,) * (len(entry.parameters) - 1) if name not in ("addcmul_", "addcdiv_") else (SOURCE, SOURCE)


def values():
    return np.random.default_rng(0).uniform(0.2, 0.9, (2, 3))


def twin(name, x, *args):
    """The same out of place."""
    if name == "fill_" or name == "zero_":
        return x * 0 + (args[0] if args else 0)
    if name == "copy_":
        return x * 0 + args[0]
    if name == "index_put_":
        return fn.index_fill(x, 0, args[0][0], args[1])
    return TABLE[TWINS.get(name, name[:-1])].op(x, *args)


@pytest.mark.parametrize("name", NAMES)
def test_a_save_of_the_old_value_is_stale(name):
    """For every op in place, with and without a graph: what needed the old value raises, and names the op."""
    w = fn.asarray(values()).requires_grad_()
    x = fn.asarray(values())
    y = (x * w).sum()  # saves x
    version = x.storage.version
    assert getattr(x, name)(*operands(name)) is x
    assert x.storage.version > version
    with pytest.raises(fn.GradientError, match="multiply: .* changed in place"):
        y.backward()

    x = fn.asarray(values()) * w
    y = (x * w).sum()
    getattr(x, name)(*operands(name))
    with pytest.raises(fn.GradientError, match="multiply: .* changed in place"):
        y.backward()


@pytest.mark.parametrize("name", [n for n in NAMES if n not in RANDOM])
def test_equals_its_twin(name):
    args = operands(name)
    expected = twin(name, fn.asarray(values()), *args).numpy()
    for layout in LAYOUTS:
        x = with_layout(values(), layout)
        memory = x.storage
        assert np.array_equal(getattr(x, name)(*args).numpy(), expected, equal_nan=True), layout
        assert x.storage is memory and x.shape == (2, 3) and x.dtype is fn.float64


@pytest.mark.parametrize("name", [n for n in NAMES if n not in (*RANDOM, "fill_", "zero_", "copy_")])
def test_gradients_are_its_twins(name):
    """On a tensor of the graph: to the old value and to the operands, as without the underscore."""
    entry = TABLE.get(TWINS.get(name, name[:-1]))
    if entry is not None and entry.non_differentiable:
        pytest.skip(entry.non_differentiable)
    grads = []
    for call in (lambda x, *args: getattr(x, name)(*args), lambda x, *args: twin(name, x, *args)):
        w = fn.asarray(values()).requires_grad_()
        args = [
            a.clone().requires_grad_() if isinstance(a, fn.Tensor) and a.dtype.is_floating else a
            for a in operands(name)
        ]
        y = call(w * 1, *args)
        (y * fn.asarray(np.arange(6.0).reshape(2, 3))).sum().backward()
        grads.append([w.grad, *(a.grad for a in args if isinstance(a, fn.Tensor) and a.dtype.is_floating)])
    for a, b in zip(*grads, strict=True):
        assert (a is None) == (b is None)
        assert a is None or np.allclose(a.numpy(), b.numpy(), equal_nan=True)


def with_signatures():
    """Ops in place that a user may call by keywords: those whose twin names its operands."""
    entries = {name: TABLE.get(TWINS.get(name, name[:-1])) for name in OPERANDS}
    return [name for name, entry in entries.items() if entry is not None and OPERANDS[name]]


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", with_signatures())
def test_its_operands_have_the_names_and_the_number_of_its_twins(name, recorded):
    op, args = TABLE[TWINS.get(name, name[:-1])].op, operands(name)
    parameters = list(inspect.signature(inspect.unwrap(op)).parameters)[1:]
    x = fn.asarray(values()).requires_grad_(recorded)
    named = dict(zip(parameters, args, strict=False))
    assert np.array_equal(getattr(x * 1, name)(**named).numpy(), twin(name, x, *args).numpy())
    with pytest.raises(TypeError):
        getattr(x * 1, name)(*args, *[1] * (len(parameters) - len(args)), 1)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda x: x.fill_(None), fn.DTypeError, "fill_: expected a number, got None"),
        (lambda x: x.fill_("1"), fn.DTypeError, "fill_: expected a number, got '1'"),
        (lambda x: x.fill_(1j), fn.DTypeError, "fill_: expected a number"),
        (lambda x: x.fill_(10**400), fn.DTypeError, "fill_: the number 1000.* does not fit float64"),
        (lambda x: x.copy_(1.0), fn.DTypeError, "copy_: source must be a tensor, got float"),
        (lambda x: x.copy_(None), fn.DTypeError, "copy_: source must be a tensor"),
        (lambda x: x.masked_fill_(None, 1), fn.DTypeError, "masked_fill_: mask must be a tensor, got NoneType"),
        (lambda x: x.masked_fill_([True], 1), fn.DTypeError, "masked_fill_: mask must be a tensor, got list"),
        (lambda x: x.masked_fill_(MASK, fn.ones((3,))), fn.ShapeError, "masked_fill_?: the value must be a number"),
        (lambda x: x.index_add_(0, ROWS, None), fn.DTypeError, "index_add_: source must be a tensor or a number"),
        (lambda x: x.index_fill_(0, ROWS, SOURCE), fn.ShapeError, "index_fill_?: the value must be a number or 0-d"),
        (lambda x: x.uniform_(2, 1), fn.ConfigError, "uniform_: needs low ≤ high"),
        (lambda x: x.normal_(std=-1), fn.ConfigError, "normal_: needs std ≥ 0, .*got mean=0.0 and std=-1.0"),
    ],
)
def test_operands_are_checked_whether_it_is_recorded_or_not(call, error, message, recorded):
    x = fn.asarray(values()).requires_grad_(recorded) * 1
    with pytest.raises(error, match=message):
        call(x)
    assert np.array_equal(x.numpy(), values())


def test_numpy_scalars_are_numbers():
    for dtype, number in ((fn.int64, np.int64(3)), (fn.bool, np.bool_(True)), (fn.bfloat16, np.float32(3))):
        x, mask, first = fn.zeros((2,), dtype=dtype), fn.asarray([True, False]), fn.asarray([0])
        assert x.fill_(number).tolist() == [number] * 2
        assert fn.zeros_like(x).masked_fill_(mask, number).tolist() == [number, 0]
        assert fn.zeros_like(x).index_fill_(0, first, number).tolist() == [number, 0]


@pytest.mark.parametrize("dtype", [fn.int8, fn.uint8, fn.int32, fn.int64, fn.uint64])
def test_numbers_out_of_the_range_of_the_dtype_are_refused(dtype):
    """An element holds the ends of its dtype's range; what is beyond raises instead of wrapping."""
    limits = np.iinfo(dtype.numpy)
    x, mask, first = fn.zeros((2,), dtype=dtype), fn.asarray([True, True]), fn.asarray([0])
    writes = {
        "full": lambda v: fn.full((2,), v, dtype=dtype),
        "fill_": lambda v: x.clone().fill_(v),
        "masked_fill_": lambda v: x.clone().masked_fill_(mask, v),
        "index_fill": lambda v: fn.index_fill(x, 0, first, v),
        "x.key. = value": lambda v: x.clone().__setitem__(0, v),
        r"x\[key\] = value": lambda v: x.clone().__setitem__(mask, v),
    }
    for name, write in writes.items():
        for number in (int(limits.min), int(limits.max)):
            y = write(number)
            assert y is None or y[0].item() == number
        for number in (int(limits.min) - 1, int(limits.max) + 1, 10**400):
            with pytest.raises(fn.DTypeError, match=f"{name}: the number .* does not fit {dtype.name}"):
                write(number)
    for number in (float("nan"), float("inf")):
        with pytest.raises(fn.DTypeError, match="full: the number .* does not fit"):
            fn.full((2,), number, dtype=dtype)


def test_memory_of_another_library_refuses_a_recorded_change():
    """The change would go to new memory, where the other library does not see it."""
    w = fn.ones((3,), device="cpu").requires_grad_()
    host = np.zeros(3, np.float32)
    x = fn.asarray(host, copy=False, device="cpu")
    for change in (lambda: x.add_(w), lambda: x.__setitem__(0, w[0]), lambda: x.fill_(w[0])):
        with pytest.raises(fn.GradientError, match="another library shares the memory"):
            change()
    with fn.no_grad():
        x.add_(w)
    assert host.tolist() == x.tolist() == [1, 1, 1]
    assert x.clone().add_(w).requires_grad


def test_a_filled_tensor_keeps_no_gradient_of_its_old_value():
    w = fn.ones((3,)).requires_grad_()
    c = fn.asarray(2.0).requires_grad_()
    x = w * 2
    x.fill_(c)
    x.sum().backward()
    assert w.grad.tolist() == [0, 0, 0] and c.grad.item() == 3
    x = w * 2
    x.copy_(c).zero_()
    assert x.tolist() == [0, 0, 0] and x.requires_grad


@pytest.mark.parametrize("name", BITS)
def test_bits(name):
    for dtype in (np.int16, np.uint8, np.int64):
        host, other = np.array([5, 9, 14], dtype), np.array([3, 2, 1], dtype)
        x = fn.asarray(host)
        args = () if name == "bitwise_invert_" else (fn.asarray(other),)
        assert np.array_equal(getattr(x, name)(*args).numpy(), getattr(fn, name[:-1])(fn.asarray(host), *args).numpy())


def test_operators_are_named():
    assert set(OPERATORS) >= {"iadd", "isub", "imul", "itruediv", "ipow", "iand", "ior"}
    for op in OPERATORS.values():
        assert op in INPLACE.values()


def test_random_values():
    g = fn.Generator(3)
    for shape in ((1000,), (10, 10)):
        x = fn.zeros(shape)
        assert np.array_equal(x.uniform_(2, 3, generator=g).numpy() >= 2, np.ones(shape, bool))
        x[::-1].normal_(5.0, 0.0)
        assert np.all(x.numpy() == 5)
        assert x.uniform_(low=2, high=3).numpy().min() >= 2 and np.all(x.normal_(mean=5, std=0).numpy() == 5)
    a, b = fn.zeros((7,)).normal_(generator=fn.Generator(1)), fn.randn((7,), generator=fn.Generator(1))
    assert np.array_equal(a.numpy(), b.numpy())
    with pytest.raises(fn.DTypeError, match="uniform_: needs a floating dtype, got int64"):
        fn.arange(3).uniform_()


@pytest.mark.parametrize("dtype", [fn.float16, fn.bfloat16, fn.float32, fn.int8, fn.uint8, fn.int64])
def test_the_dtype_stays(dtype):
    x = fn.ones((3,), dtype=dtype)
    other = fn.asarray(np.array([1.5, 2.5, 3.0])) if dtype.is_floating else fn.asarray(np.array([1, 2, 3]))
    assert x.add_(other).dtype is dtype
    assert x.tolist() == ([2.5, 3.5, 4.0] if dtype.is_floating else [2, 3, 4])


def test_operands_that_overlap():
    host = np.arange(6.0)
    x = fn.asarray(host)
    assert x[1:].add_(x[:-1]) is not None
    assert np.array_equal(x.numpy()[1:], host[1:] + host[:-1])
    x = fn.asarray(np.arange(9.0).reshape(3, 3))
    x.add_(x.T).mul_(x)
    host = np.arange(9.0).reshape(3, 3)
    assert np.array_equal(x.numpy(), (host + host.T) ** 2)
    x.copy_(x.T[::-1])
    assert np.array_equal(x.numpy(), ((host + host.T) ** 2).T[::-1])
    x.index_add_(0, ROWS, x[:2])
    x[:2].masked_fill_(x[1:] > 0, 0)


def test_a_chain_on_a_tensor_of_the_graph():
    w = fn.asarray([0.5, 2.0]).requires_grad_()
    x = w * 3
    x.mul_(w).add_(1).sub_(w)  # 3w² + 1 − w
    x.sum().backward()
    assert np.allclose(w.grad.numpy(), 6 * np.array([0.5, 2.0]) - 1)


def test_a_tensor_without_history_gains_one():
    w = fn.asarray([1.0, 2.0]).requires_grad_()
    x = fn.zeros((2,))
    x.add_(w)
    assert x.requires_grad and not x.is_leaf
    x.exp_()
    x.sum().backward()
    assert np.allclose(w.grad.numpy(), np.exp([1, 2]))


def test_second_derivatives_pass_through():
    w = fn.asarray(values()).requires_grad_()

    def f(w):
        y = w * 2
        return y.mul_(w).exp_().sin()

    assert fn.gradcheck(f, [w], order=2)


def test_views_and_leaves_refuse_a_recorded_change():
    w = fn.ones((2, 3)).requires_grad_()
    with pytest.raises(fn.GradientError, match="add_: a leaf that requires a gradient"):
        w.add_(1)
    with fn.no_grad():
        w.add_(1)
    assert w.tolist() == [[2, 2, 2], [2, 2, 2]]
    x = w * 1
    row = x[0]
    for target in (x, row):
        with pytest.raises(fn.GradientError, match="another tensor shares memory"):
            target.mul_(2)
    del row, target
    x.mul_(2)
    buffer = fn.zeros((2, 3))
    with pytest.raises(fn.GradientError, match="another tensor shares memory"):
        buffer[0].add_(w[0])
    y = w.exp()
    with pytest.raises(fn.GradientError, match="saved for a gradient"):
        y.add_(1)
    with pytest.raises(fn.DTypeError, match="add_: a value with a gradient does not go into a tensor of int64"):
        fn.zeros((2, 3), dtype=fn.int64).add_(w)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda x: x.add_(fn.ones((2, 2, 3))), fn.ShapeError, "add_: operands"),
        (lambda x: x[:, :1].add_(x), fn.ShapeError, "do not broadcast into"),
        (lambda x: fn.arange(3).add_(1.5), fn.DTypeError, "float32 does not go into a tensor of int64"),
        (lambda x: fn.arange(3).sqrt_(), fn.DTypeError, "sqrt_: float32 does not go into a tensor of int64"),
        (lambda x: fn.arange(3).div_(2), fn.DTypeError, "divide_: float32 does not go into"),
        (lambda x: fn.arange(3).fill_(0.5), fn.DTypeError, "fill_: the number 0.5"),
        (lambda x: fn.arange(3).copy_(fn.ones((3,))), fn.DTypeError, "copy_: float32"),
        (
            lambda x: x.expand((4, 2, 3)).mul_(2),
            fn.ShapeError,
            "multiply_: the tensor is a broadcast or overlapping view",
        ),
        (lambda x: x.fill_(fn.ones((3,))), fn.ShapeError, "fill_: the value must be a number or 0-d"),
        (lambda x: x.masked_fill_(fn.ones((4, 2, 3), dtype=fn.bool), 1), fn.ShapeError, "masked_fill_"),
        (
            lambda x: x.index_add_(0, fn.asarray([0, 5]), 1),
            fn.IndexOutOfRange,
            "index_add_: .*5 at 1, for axis 0 of size 2",
        ),
        (
            lambda x: x.scatter_(1, fn.asarray([[3]]), 1),
            fn.IndexOutOfRange,
            "scatter_: .*3 at .0, 0., for axis 1 of size 3",
        ),
        (lambda x: x.index_copy_(0, LINES, 1), fn.ShapeError, "index_copy_: indices must have one axis"),
        (lambda x: x.lerp_(x, "a"), fn.DTypeError, "expected tensors and numbers"),
    ],
)
def test_errors_leave_the_tensor_as_it_was(call, error, message):
    x = fn.ones((2, 3))
    with at_once(), pytest.raises(error, match=message):
        call(x)
    assert np.array_equal(x.numpy(), np.ones((2, 3)))


def test_inside_a_checkpoint():
    w = fn.asarray([0.5, 2.0]).requires_grad_()

    def f(w):
        y = w * 3
        y.mul_(w).mul_(2)
        y[0] = w[1]
        return y * w

    grads = []
    for call in (f, lambda w: fn.checkpoint(f, w)):
        w.grad = None
        call(w).sum().backward()
        grads.append(w.grad.tolist())
    assert grads[0] == grads[1] == [2.0, 72.5]


def test_the_same_bits_as_out_of_place():
    """One rounding, also in 16 bits with an f32 operand."""
    rng = np.random.default_rng(0)
    for dtype in (fn.float16, fn.bfloat16, fn.float32):
        x, y = fn.asarray(rng.normal(size=100), dtype=dtype), fn.asarray(rng.normal(size=100), dtype=fn.float32)
        expected = (x * y).to_dtype(dtype).numpy()
        assert np.array_equal(x.mul_(y).numpy(), expected)
