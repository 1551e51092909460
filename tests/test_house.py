"""Where users find things: modules that are calls, and the names that `flame_numba.pool` and `.grad` always had."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import flame_numba as fn

POOL = (
    "Block BlockView DefragmentReport Event Frame LeakReport Mark MemoryPool PoolConfig PoolStats Scope SegmentView "
    "TagStats current_pool default_pool memory_tag parse_bytes"
)
GRAD = (
    "GradientMap GraphStats Handle Node Port Saved SavedItems Tape UnusedParameter backward current_tape detach_ "
    "detect_anomaly enable_grad follow_change grad graph_stats inference_mode is_inference is_recomputing is_recording "
    "keep no_grad record record_many register_hook register_post_accumulate_grad_hook retain_grad set_grad_enabled "
    "unused_parameters watching"
)


@pytest.mark.parametrize(("module", "names"), [("pool", POOL), ("grad", GRAD)])
def test_what_could_be_imported_still_can_be(module: str, names: str) -> None:
    found = importlib.import_module(f"flame_numba.{module}")
    assert not [name for name in names.split() if not hasattr(found, name)]
    assert found.__file__ is not None and found.__file__.endswith(f"flame_numba/{module}.py")


def test_grad_is_a_module_that_can_be_called() -> None:
    import flame_numba.grad as g

    assert isinstance(g, ModuleType) and g is fn.grad and g.Node.__module__ == "flame_numba.grad"
    x = fn.tensor([1.0, 2.0]).requires_grad_()
    (by_call,) = fn.grad((x * x).sum(), x)
    (by_name,) = g.grad((x * x).sum(), x)
    assert by_call.tolist() == by_name.tolist() == [2.0, 4.0]
    assert inspect.signature(fn.grad) == inspect.signature(g.grad)


def test_tensor_is_a_module_that_can_be_called() -> None:
    import flame_numba.tensor as t

    assert isinstance(t, ModuleType) and t is fn.tensor and t.Tensor is fn.Tensor
    assert fn.tensor([1, 2], dtype=fn.float32).tolist() == fn.asarray([1, 2], dtype=fn.float32).tolist() == [1.0, 2.0]
    assert inspect.signature(fn.tensor) == inspect.signature(fn.asarray)


def test_a_gradient_before_any_op_says_what_to_import() -> None:
    script = (
        "import flame_numba.tape.arithmetic as a\n"
        "a._SUPPLIED.clear()\n"
        "import flame_numba as fn\n"
        "x = fn.ones(2).requires_grad_()\n"
        "try: (x * x).sum().backward()\n"
        "except fn.GradientError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "gradients need the ops: import flame_numba before its parts\n"
