"""Every op of the table refuses what it cannot take: another device, an axis that is not there, what is no tensor."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import numpy as np
import pytest

import flame_numba as fn
from flame_numba.ops import TABLE, Entry
from flame_numba.ops.core.table import Booleans, Floats, Integers
from flame_numba.tensor import Tensor

ELSEWHERE = fn.Device.simulated(1 << 30)
# the examples of these look into an operand, or change it, before the op sees it
CASTING = ("cosine_embedding_loss", "largest_windows_gradient", "to_device", "view")


def _tensor(operand: Any, dtype: fn.DType, device: fn.Device) -> Any:
    """An operand of a case, with elements that are never read; what is no tensor stays as it is."""
    kinds = {Integers: fn.int64, Booleans: fn.bool, Floats: dtype}
    if type(operand) in kinds:
        return _zeros(operand.shape, kinds[type(operand)], device)
    if isinstance(operand, np.ndarray):
        return _zeros(operand.shape, fn.asarray(operand).dtype, device)
    return _zeros(operand, dtype, device) if isinstance(operand, tuple) else operand


def _zeros(shape: tuple[int, ...], dtype: fn.DType, device: fn.Device) -> Tensor:
    return Tensor.empty(shape, dtype=dtype, device=device) if device is ELSEWHERE else fn.zeros(shape, dtype=dtype)


def _operands(entry: Entry) -> tuple[list[Any], dict[str, Any]]:
    if entry.kind == "elementwise":
        return [(3, 4)] * len(entry.parameters), {}
    best = max(entry.cases, key=lambda c: sum(isinstance(o, (tuple, Integers, Booleans, Floats)) for o in c.operands))
    return list(best.operands), dict(best.keywords)


def _call(entry: Entry, operands: list[Any], keywords: dict[str, Any]) -> Any:
    call = entry.op if entry.name in CASTING else (entry.example or entry.op)
    return call(*operands, **keywords)


def _places(operands: list[Any]) -> list[int]:
    return [i for i, o in enumerate(operands) if isinstance(o, (tuple, Integers, Booleans, Floats, np.ndarray))]


def _with_several() -> list[Any]:
    several = (e for e in TABLE.values() if len(_places(_operands(e)[0])) > 1)
    return [pytest.param(e, id=e.name) for e in several]


@pytest.mark.parametrize("entry", _with_several())
def test_operands_on_two_devices_are_refused(entry: Entry) -> None:
    operands, keywords = _operands(entry)
    here = fn.default_device()
    for at in _places(operands)[1:]:
        given = [_tensor(o, entry.dtypes[0], ELSEWHERE if i == at else here) for i, o in enumerate(operands)]
        with pytest.raises(fn.DeviceMismatch):
            _call(entry, given, keywords)


def _with_axis() -> list[Any]:
    named = (e for e in TABLE.values() if e.kind != "elementwise" and e.name in fn.__all__)  # others are called by ours
    return [pytest.param(e, id=e.name) for e in named if "axis" in inspect.signature(inspect.unwrap(e.op)).parameters]


@pytest.mark.parametrize("entry", _with_axis())
def test_an_axis_that_is_not_there_is_refused(entry: Entry) -> None:
    operands, keywords = _operands(entry)
    names = list(inspect.signature(inspect.unwrap(entry.op)).parameters)
    given = [_tensor(o, entry.dtypes[0], fn.default_device()) for o in operands]
    if "axis" in names[: len(given)] and not entry.example:
        given[names.index("axis")] = 17
    else:
        keywords["axis"] = 17
    with pytest.raises((fn.AxisError, fn.ShapeError)) as caught:
        _call(entry, given, keywords)
    assert "17" in str(caught.value), "the message names the axis"


@pytest.mark.parametrize("entry", TABLE.values(), ids=lambda e: e.name)
def test_what_is_no_tensor_is_refused(entry: Entry) -> None:
    operands, keywords = _operands(entry)
    given = [_tensor(o, entry.dtypes[0], fn.default_device()) for o in operands]
    for at in _places(operands):
        for wrong in (object(), "text", np.ones(3)):
            with pytest.raises(fn.FlameError) as caught:
                _call(entry, [*given[:at], wrong, *given[at + 1 :]], keywords)
            assert entry.name in str(caught.value), "the message names the op"


A, B, V = (fn.ones(shape) for shape in ((2, 3), (3, 2), (3,)))
WRONG_VALUES = {
    "tensordot": [
        lambda: fn.tensordot(A, B, axes=(0,)), lambda: fn.tensordot(A, B, axes=1.0),
        lambda: fn.tensordot(A, B, axes=((0, 0), (1, 1))), lambda: fn.tensordot(A, A, axes=(0, None)),
    ],
    "broadcast_to": [
        lambda: fn.broadcast_to(A, (2, -1)), lambda: A.expand(-1, 2, 3), lambda: A.expand(-1), lambda: A.expand(2, -2),
        lambda: A.expand("a"), lambda: A.expand(2, "a"),
    ],
    "vecdot": [lambda: fn.vecdot(A, A, axis="a"), lambda: fn.vecdot(A, A, axis=-1.0)],
    "quantile": [
        lambda: fn.quantile(A, "a"), lambda: fn.quantile(A, None), lambda: fn.quantile(A, [[1], [0.1, 0.2]]),
        lambda: fn.quantile(A, float("nan")), lambda: fn.quantile(A, 0.5, method=[1]),
    ],
    "diff": [lambda: fn.diff(A, n=1.5)],
    "var": [lambda: fn.var(A, correction="a")],
    "std": [lambda: fn.std(A, correction=None)],
    "linear": [
        lambda: fn.linear(A, A, activation=[1]), lambda: fn.linear(A, fn.ones((1, 3)), fn.ones((5,))),
        lambda: fn.linear(A, A, fn.ones((7, 2, 2))), lambda: fn.linear(A, A, fn.ones(())),
    ],
    "addmm": [lambda: fn.addmm(fn.ones((7, 2, 2)), A, B), lambda: fn.addmm(V, A, B)],
    "einsum": [lambda: fn.einsum(None, A), lambda: fn.einsum(b"ij", A), lambda: fn.einsum("ii->i", fn.ones((1, 3)))],
    "isclose": [lambda: fn.isclose(A, A, rtol="a"), lambda: fn.isclose(A, A, atol=None)],
    "add": [lambda: A + 10**400],
    "norm": [lambda: fn.norm(A, "fro"), lambda: fn.norm(A, None)],
    "vector_norm": [lambda: fn.vector_norm(A, ord="x")],
    "histogram": [
        lambda: fn.histogram(V, 3, range=(1,)), lambda: fn.histogram(V, 3, range="ab"),
        lambda: fn.histogram(A, 3, weights=B),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("op", "call"), [(op, call) for op, calls in WRONG_VALUES.items() for call in calls])
def test_a_wrong_value_is_refused_by_the_name_of_the_op(op: str, call: Any) -> None:
    with pytest.raises(fn.FlameError, match=f"^{op}: "):
        call()


@pytest.mark.parametrize("wrong", [61.0, True])
def test_a_wrong_size_is_not_remembered(wrong: Any) -> None:
    n = int(wrong)
    made = fn.zeros((n, 3)).alias((wrong, 3), (3, 1), 0)  # as an op that did not look at its operands might make it
    for op in (fn.exp, lambda x: fn.where(x > 0, x, 1), lambda x: x.clone()):
        with contextlib.suppress(fn.ShapeError):  # or it finds what (1, 3) left, which is right
            op(made)
        assert [type(k) for k in op(fn.zeros((n, 3))).shape] == [int, int]
