"""Every op of the table refuses what it cannot take: another device, an axis that is not there, what is no tensor."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import flame_numba as fn
from flame_numba.ops import TABLE, Entry
from flame_numba.ops.table import Booleans, Floats, Integers
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
