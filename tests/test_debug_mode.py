"""`debug_mode`: an error of a kernel is raised by the op that launched it, and says what was wrong.

The CPU device always says so at once; here it is made to look as slow to tell as a GPU.
"""

from __future__ import annotations

import numpy as np
import pytest

import flame_numba as fn
from flame_numba.ops.core import launch
from flame_numba.ops.core.debug import debug_mode, is_debugging
from flame_numba.ops.index import launches

BAD = fn.asarray([0, 7, 1, -9])


@pytest.fixture
def quiet(monkeypatch):
    """Faults stay where kernels leave them."""
    monkeypatch.setattr(launch, "raise_fault", lambda device: None)
    monkeypatch.setattr(launches, "known_at_once", lambda device: launches.is_debugging())


def test_it_is_a_block_and_a_decorator():
    assert not is_debugging()
    with debug_mode():
        assert is_debugging()
        with debug_mode(False):
            assert not is_debugging()
    assert debug_mode()(is_debugging)() and not is_debugging()


def test_without_it_the_error_comes_late_and_says_less(quiet):
    y = fn.take(fn.ones((3,)), BAD)
    z = y + 1
    with pytest.raises(fn.IndexOutOfRange, match="take: an index was out of range in a kernel queued before"):
        z.numpy()
    assert y.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda x: fn.take(x, BAD), "take"),
        (lambda x: x[BAD], "index"),
        (lambda x: x.__setitem__(BAD, 1), "index"),
        (lambda x: x.reshape(3, 1)[BAD, [0]], "index"),
        (lambda x: fn.gather(x, 0, BAD[:3]), "gather"),
        (lambda x: fn.index_add(x, 0, BAD, fn.ones((4,))), "index_add"),
        (lambda x: x.index_add_(0, BAD, 1), "index_add_"),
        (lambda x: x.scatter_(0, BAD, 1), "scatter_"),
        (lambda x: fn.embedding(BAD, x.reshape(3, 1)), "embedding"),
    ],
)
def test_with_it_the_op_raises_and_nothing_is_written(quiet, call, name):
    x = fn.ones((3,))
    with debug_mode(), pytest.raises(fn.IndexOutOfRange, match=rf"^{name}: .*7 at 1.*, for axis 0 of size 3"):
        call(x)
    assert x.tolist() == [1, 1, 1]


def test_it_waits_after_each_launch(monkeypatch):
    x, waits = fn.ones((3, 4)), []
    monkeypatch.setattr(launch, "settle", lambda backend, name: waits.append(name))
    with debug_mode():
        (x + 1).sum()
        fn.take(x, fn.asarray([0]))
    assert waits[0] == "add" and "gather" in waits and len(waits) >= 3


def test_an_error_of_the_device_names_the_kernel(monkeypatch):
    def fail():
        raise fn.DeviceError("an illegal address")

    x = fn.ones((3,))
    monkeypatch.setattr(x.device.backend, "synchronize", fail)
    with debug_mode(), pytest.raises(fn.DeviceError, match="multiply: an illegal address"):
        x * 2


def test_a_fault_of_an_earlier_kernel_is_not_taken_for_this_ones(quiet):
    fn.take(fn.ones((3,)), BAD)
    with debug_mode(), pytest.raises(fn.IndexOutOfRange, match="queued before this point"):
        fn.take(fn.ones((3,)), fn.asarray(np.array([0])))
