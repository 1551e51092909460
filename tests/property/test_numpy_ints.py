"""Every op of the table takes NumPy's ints wherever it takes Python's, and names what is no int where it wants one."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import flame_numba as fn
from flame_numba.ops import TABLE, Entry
from flame_numba.ops.core.table import Booleans, Case, Floats, Integers
from flame_numba.tensor import Tensor

# what only our own ops call is given ints of our own
PUBLIC = [e for e in TABLE.values() if e.name in fn.__all__ or hasattr(Tensor, e.name)]
KINDS = (tuple, Integers, Booleans, Floats, np.ndarray)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _holds_int(value: Any) -> bool:
    return _is_int(value) or (isinstance(value, (tuple, list)) and any(map(_holds_int, value)))


def _numpy_ints(value: Any) -> Any:
    """The same with np.int64 for each int, also within tuples."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(_numpy_ints, value))
    return (np.int64 if value < 1 << 63 else np.uint64)(value) if _is_int(value) else value


def _tensors(entry: Entry, case: Case) -> list[Any]:
    """The operands of a case: the same numbers at each call, positive, so that every op is defined there."""
    dtype = fn.float64 if fn.float64 in entry.dtypes else entry.dtypes[0]
    made: list[Any] = []
    for o in case.operands:
        if isinstance(o, Integers):
            made.append(fn.asarray(np.resize(np.arange(o.low, max(o.high, o.low + 1)), o.shape)))
        elif isinstance(o, Booleans):
            made.append(fn.asarray(np.resize([True, False, True], o.shape)))
        elif isinstance(o, (tuple, Floats)):
            low, high, shape = (o.low, o.high, o.shape) if isinstance(o, Floats) else (0.1, 0.9, o)
            n = int(np.prod(shape))
            values = low + (high - low) * (np.arange(n) * 7 % 11 + 1) / 13
            made.append(fn.asarray(values.reshape(shape), dtype=dtype))
        else:
            made.append(fn.asarray(o) if isinstance(o, np.ndarray) else o)
    return made


def _cases() -> list[Any]:
    """The cases with ints, apart from operands: a tuple among those is the shape of a tensor."""
    found = []
    for entry in PUBLIC:
        for i, case in enumerate(entry.cases):
            given = [o for o in case.operands if not isinstance(o, KINDS)]
            if any(map(_holds_int, [*given, *case.keywords.values()])):
                found.append(pytest.param(entry, case, id=f"{entry.name}-{i}"))
    return found


def _flat(value: Any) -> list[Tensor]:
    return [t for part in value for t in _flat(part)] if isinstance(value, (tuple, list)) else [value]


def _call(entry: Entry, operands: list[Any], keywords: dict[str, Any]) -> list[Tensor]:
    return _flat((entry.example or entry.op)(*operands, **keywords))


@pytest.mark.parametrize(("entry", "case"), _cases())
def test_numpy_ints_are_ints(entry: Entry, case: Case) -> None:
    due = _call(entry, _tensors(entry, case), case.keywords)
    operands = [_numpy_ints(o) if _is_int(o) else o for o in _tensors(entry, case)]
    got = _call(entry, operands, {name: _numpy_ints(value) for name, value in case.keywords.items()})
    for x, y in zip(due, got, strict=True):
        assert (x.shape, x.strides, x.offset, x.dtype) == (y.shape, y.strides, y.offset, y.dtype)
        assert all(type(n) is int for n in (*y.shape, *y.strides, y.offset)), "shapes hold Python's ints"
        np.testing.assert_array_equal(x.numpy(), y.numpy())


def _int_arguments() -> list[Any]:
    """(entry, name) of each argument that a case gives an int, or that has one by default."""
    found = []
    for entry in PUBLIC:
        if entry.example:
            continue
        parameters = inspect.signature(inspect.unwrap(entry.op)).parameters
        for name, p in parameters.items():
            by_place = list(parameters).index(name)
            values = [p.default, *(c.keywords.get(name) for c in entry.cases)]
            values += [c.operands[by_place] for c in entry.cases if by_place < len(c.operands)]
            given = [v for v in values if v is not None and v is not p.empty]
            no_number = not any(word in str(p.annotation) for word in ("float", "Any", "Tensor"))
            if entry.cases and no_number and any(map(_holds_int, given)):
                found.append(pytest.param(entry, name, id=f"{entry.name}-{name}"))
    return found


@pytest.mark.parametrize("wrong", [1.5, "a"])
@pytest.mark.parametrize(("entry", "name"), _int_arguments())
def test_what_is_no_int_is_refused(entry: Entry, name: str, wrong: Any) -> None:
    parameters = list(inspect.signature(inspect.unwrap(entry.op)).parameters)
    at = parameters.index(name)
    case = next((c for c in entry.cases if len(c.operands) > at or name in c.keywords), entry.cases[0])
    operands, keywords = _tensors(entry, case), dict(case.keywords)
    if at < len(operands):
        operands[at] = wrong
    else:
        keywords[name] = wrong
    with pytest.raises(fn.FlameError) as caught:
        _call(entry, operands, keywords)
    assert str(caught.value).startswith(f"{entry.name}: ") and repr(wrong) in str(caught.value)


def test_sizes_of_parts_may_be_any_ints() -> None:
    for sizes in ([1, 3], np.array([1, 3]), (np.int64(1), 3), fn.tensor([1, 3])):
        assert [part.tolist() for part in fn.split(fn.arange(4), sizes)] == [[0], [1, 2, 3]]
    assert [len(part) for part in fn.split(fn.arange(5), np.int64(2))] == [2, 2, 1]


def test_sizes_are_not_nested() -> None:
    for call in (lambda: fn.reshape(fn.ones((6,)), ((2,), (3,))), lambda: fn.sum(fn.ones((2, 3)), axis=((0,), 1))):
        with pytest.raises(fn.DTypeError, match=r"must be an int.* or .*, got \(\("):
            call()


def test_lists_of_what_is_no_tensor_are_refused() -> None:
    x = fn.ones((2,))
    for name, call in (
        ("concat", lambda: fn.concat([x, [1.0]])), ("stack", lambda: fn.stack([x, np.ones(2)])),
        ("split", lambda: fn.split([1, 2], 1)), ("split", lambda: fn.split(x, "a")),
        ("chunk", lambda: fn.chunk([1], 1)),
    ):  # fmt: skip
        with pytest.raises(fn.DTypeError, match=f"^{name}: "):
            call()
