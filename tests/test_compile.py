"""Compiling and its cache: what is kept, what is rebuilt, what may not be confused."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from flame_numba import dtypes
from flame_numba.devices import Device, LaunchConfig
from flame_numba.kernels import language
from flame_numba.kernels.compiler import compile as compiler
from flame_numba.kernels.elementwise import map as maps
from flame_numba.kernels.elementwise.formula import trace
from flame_numba.kernels.moves import mover
from flame_numba.kernels.products.matmul import MATMUL, matmul_program
from flame_numba.kernels.reduce.associative import Associative
from flame_numba.kernels.reduce.reduce import reduce_program
from flame_numba.kernels.tile.micro import Tile


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLAME_NUMBA_CACHE", str(tmp_path))
    return tmp_path


def double(factor: float) -> compiler.Program:
    job = maps.Map(
        "twice", (trace(lambda x: x * factor, ["x"]),), (dtypes.float32,), (maps.Operand("x", dtypes.float32),),
        dtypes.float32,
    )  # fmt: skip
    return maps.contiguous(job, 1)


def run(program: compiler.Program, host: np.ndarray) -> np.ndarray:
    out = np.empty_like(host)
    kernel = compiler.load(program, Device.cpu().backend)
    kernel.launch(LaunchConfig(1), (out.ctypes.data, host.ctypes.data, host.size), 0)
    return out


def test_a_kernel_is_compiled_once_and_then_read(cache):
    compiled, loaded = compiler.stats.compiled, compiler.stats.loaded
    x = np.arange(5, dtype=np.float32)
    assert np.array_equal(run(double(2.0), x), 2 * x)
    assert np.array_equal(run(double(2.0), x), 2 * x)
    assert compiler.stats.compiled == compiled + 1 and compiler.stats.loaded == loaded + 1
    assert np.array_equal(run(double(3.0), x), 3 * x)  # another constant is another kernel
    assert compiler.stats.compiled == compiled + 2


@pytest.mark.parametrize(
    "damage", [lambda b: b[:40], lambda b: b[:-1] + b"x", lambda b: b"", lambda b: b"\x80\x04junk"]
)
def test_a_damaged_cache_file_is_rebuilt(cache, damage):
    x = np.arange(5, dtype=np.float32)
    run(double(5.0), x)
    (path,) = cache.rglob("*.o")
    path.write_bytes(damage(path.read_bytes()))
    rebuilt = compiler.stats.compiled
    assert np.array_equal(run(double(5.0), x), 5 * x)
    assert compiler.stats.compiled == rebuilt + 1


def test_reductions_compiled_apart_are_not_confused_when_loaded_together(cache):
    """Their combining functions have one name in the source; as symbols in one process they must differ."""
    script = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent)]!r}; import test_compile as t\n"
        "from flame_numba.kernels.compiler import compile as c\n"
        "c.machine_code(t.reduction(sys.argv[1]), 'cpu', t.Device.cpu().backend.architecture)"
    )
    for name in ("sum", "max"):
        subprocess.run([sys.executable, "-c", script, name], check=True)
    compiled = compiler.stats.compiled
    x = np.array([1.0, 5.0, 2.0], np.float32)
    found = []
    for name in ("sum", "max"):
        out = np.zeros(1, np.float32)
        kernel = compiler.load(reduction(name), Device.cpu().backend)
        kernel.launch(LaunchConfig(1), (out.ctypes.data, x.ctypes.data, 1.0, 1, 1, 0, 1, 0, 3, 3, 1), 0)
        found.append(out[0])
    assert found == [8.0, 5.0]
    assert compiler.stats.compiled == compiled


def reduction(name: str) -> compiler.Program:
    combine = {"sum": ("a + b", "0"), "max": ("a if a > b else b", "lowest")}[name]
    what = Associative("either", "a", *combine)
    return reduce_program(what, dtypes.float32, dtypes.float32, dtypes.float32, 32, 0)


def test_importing_and_a_warm_start_need_no_numba(tmp_path):
    script = (
        "import sys, flame_numba as fn; assert 'numba' not in sys.modules, 'import'\n"
        "x = (fn.Tensor.ones((4,), device='cpu') * 2).sum(); assert x.item() == 8\n"
        "print('numba' in sys.modules)"
    )
    environment = {
        "FLAME_NUMBA_CACHE": str(tmp_path),
        **{k: v for k, v in __import__("os").environ.items() if k != "FLAME_NUMBA_CACHE"},
    }
    said = [
        subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert [s.strip() for s in said] == ["True", "False"]


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.bfloat16, dtypes.float64], ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 7), (17, 67, 33), (1, 1, 1), (9, 64, 8)])
def test_the_general_matmul_agrees_with_blas(dtype, shape):
    """The CPU device multiplies with BLAS; the kernel that any machine can run must give the same."""
    m, k, n = shape
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=s).astype(dtype.numpy) for s in ((m, k), (k, n)))
    y = np.zeros((m, n), dtype.numpy)
    program = matmul_program(dtype, dtype, dtype, dtype.accumulator, Tile(8, 8, 64, 8, 8))
    arguments = MATMUL.pack(
        y=y.ctypes.data, a=(a.ctypes.data, 0, 0, k, 1), b=(b.ctypes.data, 0, 0, n, 1), size=(1, 1, m, n, k)
    )
    kernel = compiler.load(program, Device.cpu().backend)
    kernel.launch(LaunchConfig(1), arguments, 0)
    expected = a.astype(np.float64) @ b.astype(np.float64)
    assert np.abs(y.astype(np.float64) - expected).max() <= 4 * max(dtype.eps, 1e-15) * np.abs(expected).max()


OUTER = """
from flame_numba.kernels.language import Pointer, grid, gridsize, load_x, store_y
from made_of_inner import FACTOR, shifted

def kernel(y: Pointer, x: Pointer, n: int) -> None:
    for i in range(grid(), n, gridsize()):
        store_y(y, i, shifted(load_x(x, i)) * FACTOR)
"""
INNER = "FACTOR = 2.0\n\ndef shifted(value):\n    return value + 1.0\n"


@pytest.mark.parametrize(
    "edited", [INNER.replace("1.0", "3.0"), INNER.replace("2.0", "5.0"), INNER + "# a remark is reason enough\n"]
)
def test_the_key_of_a_kernel_covers_every_file_that_it_is_made_of(tmp_path, monkeypatch, edited):
    """Helpers and constants from another file count: as a bound part, by name, or both."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def keys(inner: str) -> tuple[str, str]:
        (tmp_path / "made_of_outer.py").write_text(OUTER)
        (tmp_path / "made_of_inner.py").write_text(inner)
        for name in ("made_of_outer", "made_of_inner"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        compiler._file_digest.cache_clear()
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        outer, part = importlib.import_module("made_of_outer"), importlib.import_module("made_of_inner").shifted
        f32 = dtypes.float32
        bindings = {"load_x": language.Load(f32, f32), "store_y": language.Store(f32, f32)}
        bound = bindings | {"shifted": language.Helper(part, 1, f32)}
        programs = (compiler.Program("made", (f32, f32, "int"), f32, b, outer.kernel) for b in (bindings, bound))
        by_name, as_part = (program.text() for program in programs)
        return by_name, as_part

    before = keys(INNER)
    assert keys(INNER) == before
    after = keys(edited)
    assert after[0] != before[0] and after[1] != before[1]


def test_a_constant_that_a_kernel_names_is_part_of_its_key(monkeypatch):
    """The moves' kernel names columns of a table that another file numbers: another number is another kernel."""
    before = mover.move_program(256, 1, 1024).text()
    monkeypatch.setattr(mover, "COLUMNS", mover.COLUMNS + 1)
    assert mover.move_program(256, 1, 1024).text() != before


class _Interrupted(threading.Thread):
    """A thread whose first waiter gets Ctrl-C."""

    interrupted = False

    def join(self, timeout: float | None = None) -> None:
        if not self.interrupted:
            self.interrupted = True
            raise KeyboardInterrupt
        super().join(timeout)


def test_an_interrupted_compilation_is_waited_for_by_the_next(monkeypatch):
    """Ctrl-C ends the wait, not the compiler: what is compiled next waits for it."""
    begun, go, done = threading.Event(), threading.Event(), []

    def first() -> None:
        begun.set()
        assert go.wait(10)
        done.append("first")

    with monkeypatch.context() as patch:
        patch.setattr(compiler.threading, "Thread", _Interrupted)
        with pytest.raises(KeyboardInterrupt):
            compiler._apart(first)
    assert begun.wait(10)
    following = [threading.Thread(target=lambda: compiler._apart(lambda: done.append("next"))) for _ in range(2)]
    for thread in following:
        thread.start()
    following[0].join(0.05)
    assert not done and sum(thread.name == "flame_numba compiler" for thread in threading.enumerate()) == 1
    go.set()
    for thread in following:
        thread.join(10)
    assert done == ["first", "next", "next"] and not compiler._LEFT


def test_what_is_interrupted_before_it_begins_is_never_compiled(monkeypatch):
    def start(thread: threading.Thread) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(KeyboardInterrupt):
            compiler._apart(lambda: 1)
    assert compiler._apart(lambda: 2) == 2 and not compiler._LEFT


def test_an_error_of_the_compiler_gives_its_lock_back():
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            compiler._apart(lambda: 1 // 0)
