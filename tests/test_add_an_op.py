"""Adding an op is one entry: kernels in all dtypes, both derivatives, docs row and property checks follow from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import flame_numba as fn
from flame_numba import dtypes
from flame_numba.kernels.elementwise import formula
from flame_numba.ops import TABLE, Entry
from flame_numba.ops.core.formula_op import Elementwise
from flame_numba.testing import LAYOUTS, check_forward, check_gradient, with_layout

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS, PAGE = ROOT / "scripts", ROOT / "docs" / "add-an-op.md"


def reference(x):
    # at ±inf the formula itself is inf / inf
    with np.errstate(invalid="ignore"):
        return x / (1 + np.abs(x))


@pytest.fixture(scope="module")
def entry() -> Iterator[Entry]:
    """The entry that docs/add-an-op.md adds; taken out of the table afterwards."""

    @fn.elementwise(reference, domain=fn.Domain(excluded=(0.0,)), result="float")
    def squash(x):
        """x / (1 + |x|): from −1 to 1, more slowly than tanh."""
        return x / (1 + abs(x))

    assert TABLE["squash"].op is squash
    yield TABLE["squash"]
    del TABLE["squash"]
    del fn.Tensor.squash


@pytest.mark.parametrize("dtype", dtypes.FLOATS, ids=lambda d: d.name)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_floating_dtype_and_layout(entry: Entry, dtype: fn.DType, layout: str) -> None:
    values = np.linspace(-4, 4, 15).reshape(3, 5).astype(dtype.numpy)
    y = entry.op(with_layout(values, layout))
    expected = reference(values.astype(np.float64))
    assert y.dtype is dtype and y.shape == (3, 5)
    np.testing.assert_allclose(y.numpy().astype(np.float64), expected, rtol=4 * dtype.eps)


@pytest.mark.parametrize("dtype", (*dtypes.INTEGERS, dtypes.bool_), ids=lambda d: d.name)
def test_integers_give_float32(entry: Entry, dtype: fn.DType) -> None:
    y = entry.op(fn.asarray(np.array([0, 1, 1]), dtype=dtype))
    assert y.dtype is fn.float32
    np.testing.assert_allclose(y.numpy(), [0, 0.5, 0.5])


def test_is_a_method(entry: Entry) -> None:
    x = fn.tensor([1.0, -3.0])
    assert x.squash().tolist() == entry.op(x).tolist() == [0.5, -0.75]


def test_both_derivatives(entry: Entry) -> None:
    x = fn.asarray(np.array([-2.0, -0.5, 0.25, 3.0])).requires_grad_()
    (first,) = fn.grad(entry.op(x).sum(), x, create_graph=True)
    (second,) = fn.grad(first.sum(), x)
    h = x.numpy()
    np.testing.assert_allclose(first.numpy(), 1 / (1 + np.abs(h)) ** 2, rtol=1e-12)
    np.testing.assert_allclose(second.numpy(), -2 * np.sign(h) / (1 + np.abs(h)) ** 3, rtol=1e-12)
    assert fn.gradcheck(entry.op, x, order=2)


@pytest.mark.parametrize("dtype", (fn.float16, fn.bfloat16, fn.float32), ids=lambda d: d.name)
def test_gradient_in_small_dtypes(entry: Entry, dtype: fn.DType) -> None:
    x = fn.tensor([-1.0, 0.5, 3.0], dtype=dtype).requires_grad_()
    entry.op(x).sum().backward()
    assert x.grad is not None and x.grad.dtype is dtype
    np.testing.assert_allclose(x.grad.numpy().astype(np.float64), [1 / 4, 4 / 9, 1 / 16], rtol=4 * dtype.eps)


def test_works_inside_other_formulas(entry: Entry) -> None:
    gated = fn.fuse(lambda x, y: entry.op(x) * y)
    x, y = fn.tensor([1.0, -3.0]), fn.tensor([2.0, 4.0])
    assert gated(x, y).tolist() == [1.0, -3.0]


def test_row_of_the_docs(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import reference

    assert reference.row(entry) == (
        "| `squash` | x / (1 + \\|x\\|): from −1 to 1, more slowly than tanh. | elementwise | all | yes |"
    )
    assert reference.row(entry) in reference.op_table()
    assert reference.row(entry) in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("seed", range(8))
def test_property_checks(entry: Entry, seed: int) -> None:
    for dtype in entry.dtypes:
        check_forward(entry, dtype, seed)
    check_gradient(entry, seed)
    check_gradient(entry, seed, order=2)


def test_property_checks_find_a_wrong_formula() -> None:
    try:

        @fn.elementwise(lambda x: x / (1 + np.abs(x)), domain=fn.Domain(special=False))
        def wrong_squash(x):
            """Wrong on purpose."""
            return x / (1 + x * x)

        @fn.elementwise(np.tanh, partials=lambda y, x: (1 - y,))
        def wrong_slope(x):
            """The derivative is wrong on purpose."""
            return fn.tanh(x)

        with pytest.raises(AssertionError, match="wrong_squash in float32"):
            for seed in range(8):
                check_forward(TABLE["wrong_squash"], fn.float32, seed)
        with pytest.raises(fn.GradientError, match="differences give"):
            for seed in range(8):
                check_gradient(TABLE["wrong_slope"], seed)
    finally:
        for name in ("wrong_squash", "wrong_slope"):
            if TABLE.pop(name, None):
                delattr(fn.Tensor, name)


def square(x, slope=2.0):
    return math.exp(x)


@pytest.mark.parametrize(
    ("define", "error", "words"),
    [
        (lambda: fn.elementwise(np.exp)(square), fn.DTypeError, "square: does more than arithmetic"),
        (lambda: fn.elementwise(np.exp, result="flot")(square), fn.ConfigError, 'must be "same", "float" or "bool"'),
        (lambda: fn.elementwise(np.exp, truths=("y",))(square), fn.ConfigError, r"truths=\('y',\) must list names"),
        (lambda: fn.elementwise(np.exp)(5), fn.DTypeError, "expected a Python function of scalars, got 5"),
        (lambda: fn.fuse(lambda x: x.sum()), fn.DTypeError, "more than arithmetic .* has no attribute 'sum'"),
        (lambda: fn.fuse(lambda *x: x[0]), fn.DTypeError, "must be plain parameters"),
        (lambda: fn.fuse(lambda x: x * 2**70), fn.DTypeError, "a constant of 71 bits does not fit int64"),
        (lambda: fn.fuse(lambda x: (x > 0) & x), fn.DTypeError, "& of a truth value and a number"),
        (lambda: fn.fuse(lambda x: (x & 1) * 0.5), fn.DTypeError, "cut it in two"),
        (lambda: fn.fuse(lambda x: x & 1)(fn.zeros(1)), fn.DTypeError, "not defined for float32"),
    ],
)
def test_what_is_no_formula_is_refused(define, error, words):
    with pytest.raises(error, match=words):
        define()
    assert "square" in TABLE and TABLE["square"].op is fn.square  # still the library's


@pytest.mark.parametrize("count", [0, 2])
def test_partials_must_be_one_an_operand(count):
    expr = formula.variable("x")
    op = Elementwise("op", ("x",), expr, partials=lambda y, x: (x,) * count)
    with pytest.raises(fn.ConfigError, match=f"op: partials gave {count} derivatives for 1 operands"):
        op(fn.tensor([1.0]).requires_grad_()).sum().backward()


def test_a_fused_function_keeps_its_defaults():
    assert fn.fuse(lambda x, slope=2.0: x * slope)(fn.tensor([1.0, 3.0])).tolist() == [2, 6]


def test_an_op_may_not_take_the_name_of_something_else_of_tensors():
    def shape(x):
        """Not an op."""
        return x + 1

    with pytest.raises(fn.ConfigError, match="Tensor has something of that name"):
        fn.elementwise(np.positive)(shape)
    assert fn.Tensor.ones((2, 3)).shape == (2, 3)
