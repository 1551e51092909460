"""Kernels of the user's own: three ways to write one, what is checked, what is cached. In C++: tests/gpu."""

from __future__ import annotations

import importlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest

import flame_numba as fn
from flame_numba.kernels.compiler import compile as compiler
from flame_numba.kernels.compiler.captured import capture, written
from flame_numba.kernels.language import Array, Number, Pointer, barrier, grid, gridsize, thread_index
from flame_numba.kernels.user import cuda_source, nvrtc

FLOATS = (fn.float16, fn.bfloat16, fn.float32, fn.float64)
CPU = fn.Device.cpu()
OFFSET = 0.5


def bent(v):
    return v if v > 0 else v * v


def scale(y: Pointer, x: Pointer, factor: Number, n: int) -> None:
    for i in range(grid(), n, gridsize()):
        store_y(y, i, factor * load_x(x, i) + bent(C(OFFSET)))  # noqa: F821


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAME_NUMBA_CACHE", str(tmp_path))
    return tmp_path


# --- in the words of the language -------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_function_in_the_words_of_the_language(dtype, device):
    kernel = fn.ensure_kernel(device, "scale", scale)
    assert kernel.writes == {"y"} and kernel.parameters == ("y", "x", "factor", "n")
    x, y = fn.arange(300).to_dtype(dtype), fn.Tensor.zeros((300,), dtype=dtype)
    for config in (x.numel, (2, 64), fn.Launch((3,), 32), fn.Launch.over(10)):
        y.fill_(0)
        fn.launch_kernel(kernel, config, y, x, 2, x.numel)
        assert np.array_equal(y.numpy(), (2 * x.numpy().astype(np.float64) + 0.5).astype(dtype.numpy))


def test_the_same_code_is_the_same_kernel_and_other_code_another(device, cache):
    def maker(c):
        def add(y, x, n):
            for i in range(grid(), n, gridsize()):
                y[i] = x[i] + c

        return add

    x = fn.arange(4)
    found = []
    for c in (1, 2, 1):
        y = fn.zeros_like(x)
        kernel = fn.ensure_kernel(device, "add", maker(c))
        fn.launch_kernel(kernel, 4, y, x, 4)
        found.append((kernel, y.tolist()))
    assert [y for _, y in found] == [[1, 2, 3, 4], [2, 3, 4, 5], [1, 2, 3, 4]]
    assert found[0][0] is found[2][0] is not found[1][0]


def test_a_changed_global_is_another_kernel(device):
    scope = {"FACTOR": 2, "grid": grid, "gridsize": gridsize}
    exec("def f(y, n):\n    for i in range(grid(), n, gridsize()): y[i] = FACTOR * y[i]", scope)
    y = fn.arange(3)
    fn.launch_kernel(fn.ensure_kernel(device, "f", scope["f"]), 3, y, 3)
    scope["FACTOR"] = 5
    fn.launch_kernel(fn.ensure_kernel(device, "f", scope["f"]), 3, y, 3)
    assert y.tolist() == [0, 10, 20]


@pytest.mark.parametrize("style", ["language", "numba"])
def test_a_kernel_sees_what_its_names_stood_for_when_it_was_made(style, device):
    import types

    settings = types.ModuleType("settings")
    settings.table, settings.inner = np.array([1.0]), types.ModuleType("inner")
    settings.inner.value = 1.0
    scope = {"whole": 1, "pair": (1.0, np.array([1.0])), "array": np.array([1.0]), "settings": settings}
    scope |= {"cuda": pytest.importorskip("numba.cuda"), "__name__": "kernels"}
    total = "whole + helper(0.0) + settings.table[0] + settings.inner.value + cell"
    exec(
        "def helper(v): return v + array[0] + pair[0]\n"
        "def make():\n"
        "    cell = 1.0\n"
        f"    def language(y): y[0] = {total}\n"
        f"    def numba(y): y[cuda.grid(1)] = {total}\n"
        "    def change():\n"
        "        nonlocal cell\n"
        "        cell = 3.0\n"
        "    return language, numba, change\n",
        scope,
    )
    *functions, change = scope["make"]()
    function = functions[style == "numba"]
    y = fn.Tensor.zeros((1,), dtype=fn.float64)
    early = fn.ensure_kernel(device, "early", function)
    scope["whole"], scope["pair"], scope["array"][0], settings.table[0], settings.inner.value = 3, (3.0, 3.0), 3, 3, 3.0
    change()
    late = fn.ensure_kernel(device, "early", function)
    for kernel, due in ((early, 6), (late, 18)):
        fn.launch_kernel(kernel, (1, 1), y)
        assert y.tolist() == [due]


def test_all_elements_of_an_array_in_a_tuple_decide():
    def large(v):
        return v + pair[0][0]  # noqa: F821

    texts = []
    for middle in (0, 1):
        array = np.zeros(5000)
        array[2500] = middle
        texts.append(capture(type(large)(large.__code__, {"pair": (array, 1)})).text)
    assert texts[0] != texts[1]


def test_the_marks_of_the_parameters_are_part_of_a_kernel(device):
    def store(y: Pointer, a):
        y[0] = a

    y = fn.Tensor.zeros((1,))
    for mark, value, due in (("int", 2, 2), ("Number", 2.5, 2.5), (int, 3, 3)):
        store.__annotations__["a"] = mark
        fn.launch_kernel(fn.ensure_kernel(device, "store", store), 1, y, value)
        assert y.tolist() == [due]
    with pytest.raises(fn.DTypeError, match=r"a must be a whole number, got 2\.5"):
        fn.launch_kernel(fn.ensure_kernel(device, "store", store), 1, y, 2.5)


def test_marks_are_known_without_postponed_annotations(device, tmp_path, monkeypatch):
    (tmp_path / "marked_kernels.py").write_text(
        "from flame_numba.kernels import language\n"
        "from flame_numba.kernels.language import Number, Pointer, grid, gridsize\n\n\n"
        "def fill(y: Pointer, start: Number, decay: language.Number, n: int):\n"
        "    for i in range(grid(), n, gridsize()):\n"
        "        y[i] = start + decay\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    fill = importlib.import_module("marked_kernels").fill
    kernel, y = fn.ensure_kernel(device, "fill", fill), fn.zeros((2,))
    for at, right in enumerate((y, 1.0, 0.5, 2)):
        wrong = (y, 1.0, 0.5, 2)[:at] + (1 if right is y else y,) + (y, 1.0, 0.5, 2)[at + 1 :]
        kind = "tensor" if right is y else "number"
        with pytest.raises(fn.DTypeError, match=f"fill: {kernel.parameters[at]} must be a {kind}, got"):
            fn.launch_kernel(kernel, 2, *wrong)
    fn.launch_kernel(kernel, 2, y, 1.0, 0.5, 2)
    assert y.tolist() == [1.5, 1.5] and fn.ensure_kernel(device, "fill", fill) is kernel


def test_machine_code_is_kept_on_disk_also_of_functions_without_a_file(tmp_path):
    script = (
        "import flame_numba as fn\n"
        "from flame_numba.kernels.compiler import compile as c\n"
        "from flame_numba.kernels.language import grid, gridsize\n"
        "def half(v): return v * K\n"
        "K = 0.5\n"
        "def f(y, n):\n"
        "    for i in range(grid(), n, gridsize()): store_y(y, i, half(load_y(y, i)))\n"
        "fn.Device.cpu().__enter__()\n"
        "y = fn.Tensor.ones((3,))\n"
        "fn.launch_kernel(fn.ensure_kernel('cpu', 'f', f), 3, y, 3)\n"
        "import sys; print(y.tolist(), c.stats.programs, 'numba' in sys.modules)\n"
    )
    said = []
    for text in (script, script, script.replace("K = 0.5", "K = 0.25")):
        done = subprocess.run(
            [sys.executable, "-"], input=text, capture_output=True, text=True, check=True,
            env={**__import__("os").environ, "FLAME_NUMBA_CACHE": str(tmp_path)},
        )  # fmt: skip
        said.append(done.stdout.strip())
    assert "[0.5, 0.5, 0.5]" in said[0] and "'f'" in said[0]
    assert said[1] == "[0.5, 0.5, 0.5] [] False"  # nothing compiled, Numba not even imported
    assert "[0.25, 0.25, 0.25]" in said[2] and "'f'" in said[2]


def test_functions_of_numbas_own_library_are_there_after_a_warm_start(tmp_path):
    script = (
        "import math, flame_numba as fn\n"
        "def f(y, x): y[0] = math.gamma(x)\n"
        "y = fn.zeros(1, device='cpu')\n"
        "fn.launch_kernel(fn.ensure_kernel('cpu', 'f', f), 1, y, 5.0)\n"
        "print(y.tolist())\n"
    )
    environment = {**os.environ, "FLAME_NUMBA_CACHE": str(tmp_path)}
    for _ in range(2):
        done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, env=environment)
        assert (done.returncode, done.stdout.strip()) == (0, "[24.0]"), done.stderr


def test_what_needs_python_or_raises_is_said_by_the_kernels_name():
    def says(y, n):
        print(n)

    def raises(y, n):
        if n > 0:
            raise ValueError("no")

    y = fn.zeros(1, device=CPU)
    with pytest.raises(fn.KernelError, match="^says: needs Python while it runs"):
        fn.launch_kernel(fn.ensure_kernel(CPU, "says", says), 1, y, 1)
    with pytest.raises(fn.KernelError, match="^raises: the kernel stopped with status 1"):
        fn.launch_kernel(fn.ensure_kernel(CPU, "raises", raises), 1, y, 1)


def test_shared_memory_and_integers(device):
    def reverse(y: Pointer, x: Pointer) -> None:
        shared = tile()  # noqa: F821
        t = thread_index()
        for k in range(t, 8, THREADS):  # noqa: F821
            shared[k] = x[7 - k]
        barrier()
        for k in range(t, 8, THREADS):  # noqa: F821
            y[k] = shared[k]

    kernel = fn.ensure_kernel(device, "reverse", reverse, bindings={"tile": Array(fn.int32, 8, shared=True)})
    assert kernel.writes >= {"y"}
    x, y = fn.arange(8, dtype=fn.int32), fn.Tensor.zeros((8,), dtype=fn.int32)
    fn.launch_kernel(kernel, (1, 4), y, x)
    assert y.tolist() == [7, 6, 5, 4, 3, 2, 1, 0]


def test_views_by_their_strides(device):
    def double(y: Pointer, n: int, step: int) -> None:
        for i in range(grid(), n, gridsize()):
            store_y(y, i * step, 2 * load_y(y, i * step))  # noqa: F821

    x = fn.arange(6, dtype=fn.float32)
    view = x[1::2]
    with pytest.raises(fn.ShapeError, match="y must be contiguous"):
        fn.launch_kernel(fn.ensure_kernel(device, "double", double), 3, view, 3, 2)
    kernel = fn.ensure_kernel(device, "double", double, any_layout=True)
    fn.launch_kernel(kernel, 3, view, view.numel, view.strides[0])
    assert x.tolist() == [0, 2, 2, 6, 4, 10]


# --- in Numba's style -------------------------------------------------------------------------------------------------
cuda = pytest.importorskip("numba.cuda")


@cuda.jit(device=True)
def twice(v):
    return v + v


@cuda.jit
def axpy(y, x, a):
    i = cuda.grid(1)
    if i < x.shape[0]:
        y[i] = a * x[i] + math.sin(x[i]) + twice(OFFSET)


def plane(y, x):
    i, j = cuda.grid(2)
    if i < x.shape[0] and j < x.shape[1]:
        y[i, j] = 100 * x[i, j] + 10 * cuda.blockIdx.x + cuda.threadIdx.y


def count(counts, x):
    for k in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        cuda.atomic.add(counts, x[k], 1)


def test_numba_style_runs_each_thread_of_the_launch(device):
    kernel = fn.ensure_kernel(device, "axpy", axpy)
    assert kernel.writes >= {"y"} and "x" not in kernel.writes
    x, y = fn.arange(100, dtype=fn.float64), fn.Tensor.zeros((100,), dtype=fn.float64)
    fn.launch_kernel(kernel, (2, 32), y, fn.flip(x), 3.0)  # a view with a negative stride; 64 threads of 100
    host = np.arange(100.0)[::-1]
    expected = np.where(np.arange(100) < 64, 3 * host + np.sin(host) + 1, 0)
    assert np.allclose(y.numpy(), expected, rtol=1e-14)


def test_numba_style_in_two_dimensions_on_any_layout(device):
    x = fn.arange(6, dtype=fn.int64).reshape(2, 3)
    y = fn.Tensor.zeros((3, 2), dtype=fn.int32).T
    fn.launch_kernel(fn.ensure_kernel(device, "plane", plane), ((2, 1), (1, 4)), y, x)
    assert y.tolist() == [[0, 101, 202], [310, 411, 512]]


def test_numba_style_atomics(device):
    counts = fn.Tensor.zeros((3,), dtype=fn.int32)
    fn.launch_kernel(fn.ensure_kernel(device, "count", count), (2, 4), counts, fn.tensor([0, 1, 1, 2, 2, 2]))
    assert counts.tolist() == [1, 2, 3]


def test_numba_style_by_any_spelling(device):
    import numba
    from numba.cuda import grid as position  # of threadIdx and the like, Numba knows no other name on CUDA

    def by_name(y):
        y[position(1)] = cuda.threadIdx.x + 10 * cuda.blockIdx.x

    def by_package(y):
        y[numba.cuda.grid(1)] = numba.float32(2) * numba.cuda.threadIdx.x

    y = fn.Tensor.zeros((4,))
    fn.launch_kernel(fn.ensure_kernel(device, "by_name", by_name), (2, 2), y)
    assert y.tolist() == [0, 1, 10, 11]
    fn.launch_kernel(fn.ensure_kernel(device, "by_package", by_package), (2, 2), y)
    assert y.tolist() == [0, 2, 0, 2]


def test_numba_style_limits_of_the_cpu_are_said():
    def together(x):
        cuda.syncthreads()
        x[cuda.grid(1)] = 1

    def warps(x):
        x[0] = cuda.warpsize

    x = fn.Tensor.zeros((3,), device=CPU)
    kernel = fn.ensure_kernel(CPU, "together", together)
    fn.launch_kernel(kernel, (3, 1), x)
    assert x.tolist() == [1, 1, 1]
    with pytest.raises(
        fn.KernelError, match="syncthreads with 2 threads a block: the CPU device runs threads one after"
    ):
        fn.launch_kernel(kernel, (1, 2), x)
    with pytest.raises(fn.KernelError, match="warpsize has no meaning on the CPU device, where a kernel has grid, "):
        fn.ensure_kernel(CPU, "warps", warps)
    with pytest.raises(fn.KernelError, match="no bfloat16 arrays"):
        fn.launch_kernel(kernel, (3, 1), x.to_dtype(fn.bfloat16))


# --- CUDA C++: what needs no GPU --------------------------------------------------------------------------------------
SOURCE = r"""
#include <cuda_fp16.h>
extern "C" __global__ void __launch_bounds__(256)
scale(float* __restrict__ y, const float *x, float a, const long long n /* items, all */) {
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += gridDim.x * (long long)blockDim.x)
        y[i] = a * x[i];
}
template <typename T> __global__ void fill(T* y, T v, unsigned n) { if (threadIdx.x < n) y[threadIdx.x] = v; }
"""


def test_parameters_are_read_off_the_source():
    y, x, a, n = cuda_source.parameters("scale", SOURCE)
    assert (y.dtype, y.is_pointer, y.is_const, y.letter) == (fn.float32, True, False, "p")
    assert (x.name, x.is_const, a.letter, n.dtype, n.letter) == ("x", True, "f", fn.int64, "q")
    assert cuda_source.parse("k", "void") == () == cuda_source.parse("k", "")
    (halves,) = cuda_source.parse("k", "const __half * __restrict__ x")
    assert halves.dtype is fn.float16
    with pytest.raises(fn.KernelError, match=r"the type of `T\* y` is not known"):
        cuda_source.parameters("fill<float>", SOURCE)
    with pytest.raises(fn.KernelError, match="no `__global__ void nope"):
        cuda_source.parameters("nope", SOURCE)
    with pytest.raises(fn.KernelError, match="pass a 2-byte number as float"):
        cuda_source.parse("k", "__half h")


def test_cuda_source_compiles_without_a_gpu_and_is_kept(cache):
    pytest.importorskip("cuda.bindings.nvrtc")
    image, entry = nvrtc.machine_code("scale", SOURCE, "sm_90a")
    assert image[:4] == b"\x7fELF" and entry == "scale"
    compiled = compiler.stats.compiled
    assert nvrtc.machine_code("scale", SOURCE, "sm_90a") == (image, entry) and compiler.stats.compiled == compiled
    assert "fill" in nvrtc.machine_code("fill<float>", SOURCE, "sm_90a")[1]
    with pytest.raises(fn.KernelError, match='identifier "b" is undefined'):
        nvrtc.machine_code("scale", SOURCE.replace("a * x", "b * x"), "sm_90a")


def test_cuda_source_needs_a_gpu():
    with pytest.raises(fn.KernelError, match=r"runs on CUDA devices, not on cpu; a Python function runs on both"):
        fn.ensure_kernel(CPU, "scale", SOURCE)


# --- bad input --------------------------------------------------------------------------------------------------------
def bad_launches():
    x = fn.arange(6, dtype=fn.float32)
    w = fn.tensor([1.0, 2.0]).requires_grad_()
    return [
        ((6, x, x, 2), fn.KernelError, r"takes \(y, x, factor, n\), got 3"),
        ((6, x, 1.0, 2, 6), fn.DTypeError, "x must be a tensor, got 1.0"),
        ((6, x, x, 2, 6.5), fn.DTypeError, "n must be a whole number, got 6.5"),
        ((6, x, x, 2, x), fn.DTypeError, "n must be a number, got a tensor"),
        ((6, x, np.ones(6), 2, 6), fn.DTypeError, "x must be a tensor or a number, got ndarray"),
        ((6, x, x[::2], 2, 3), fn.ShapeError, r"x must be contiguous, its shape is \(3,\)"),
        ((6, x, w, 2, 2), fn.GradientError, "x requires a gradient, but launch_kernel records nothing"),
        (((1, 4096), x, x, 2, 6), fn.ConfigError, r"a block of \(4096, 1, 1\) is larger"),
        (((1, (32, 64)), x, x, 2, 6), fn.ConfigError, "2048 threads in a block"),
        (((0, 4), x, x, 2, 6), fn.ConfigError, "grid must be one to three whole numbers from 1, got 0"),
        ((-1, x, x, 2, 6), fn.ConfigError, "items must be a whole number from 0, got -1"),
        (("8", x, x, 2, 6), fn.ConfigError, "expected Launch"),
        (((1, 32, 1 << 30), x, x, 2, 6), fn.ConfigError, "bytes of shared memory"),
        (((1, (8, 8)), x, x, 2, 6), fn.ConfigError, "one axis of blocks"),
    ]


@pytest.mark.parametrize(
    ("dtype", "value", "words"),
    [
        (fn.int32, 2**63, "a: the number 9223372036854775808 does not fit int64"),
        (fn.int64, -(2**70), "a: the number .* does not fit int64"),
        (fn.uint8, -1, "a: the number -1 does not fit uint64"),
        (fn.int32, 0.5, "a must be a whole number beside tensors of integers, got 0.5"),
        (fn.int32, np.float32(2.5), "a must be a whole number"),
        (fn.float32, 10**400, "a: the number .* does not fit float32"),
    ],
)
@pytest.mark.parametrize("mark", ["Number", "int"])
def test_numbers_that_a_kernel_cannot_hold_are_refused(mark, dtype, value, words, device):
    def put(y, a):
        y[0] = a

    put.__annotations__["a"] = mark
    y = fn.Tensor.zeros((1,), dtype=dtype)
    version = y.storage.version
    kernel = fn.ensure_kernel(device, "put", put)
    if mark == "int" and value == -1:
        return  # an int is an int64 beside whatever tensors
    with pytest.raises(fn.DTypeError, match=f"^put: {words}" if mark == "Number" else "^put: a"):
        fn.launch_kernel(kernel, 1, y, value)
    assert y.storage.version == version


def test_numbers_of_the_largest_size_arrive(device):
    def put(y: Pointer, a: Number, b: int) -> None:
        y[0], y[1] = a, b

    kernel = fn.ensure_kernel(device, "put", put)
    for dtype, number in ((fn.int64, -(2**63)), (fn.uint64, 2**64 - 1), (fn.float32, 10**37)):
        y = fn.Tensor.zeros((2,), dtype=dtype)
        fn.launch_kernel(kernel, 1, y, number, 2**53)
        assert y.tolist() == [dtype.numpy.type(number), 2**53]
    with pytest.raises(fn.DTypeError, match="axpy: a: the number .* does not fit int64"):
        fn.launch_kernel(fn.ensure_kernel(device, "axpy", axpy), 1, fn.zeros(1), fn.ones(1), 2**64)


@pytest.mark.parametrize("at", range(14))
def test_bad_launches(at, device):
    arguments, error, message = bad_launches()[at]
    kernel = fn.ensure_kernel(device, "scale", scale)
    version = arguments[1].storage.version
    with pytest.raises(error, match=message):
        fn.launch_kernel(kernel, *arguments)
    assert arguments[1].storage.version == version  # nothing was written


def test_bad_code(device):
    def undefined(y):
        y[0] = nothing_of_this_name(y)  # noqa: F821

    def recursive(y):
        recursive(y)

    y = fn.Tensor.zeros((3,))
    with pytest.raises(fn.KernelError, match="nothing_of_this_name"):
        fn.launch_kernel(fn.ensure_kernel(device, "undefined", undefined), 1, y)
    with pytest.raises(fn.KernelError, match="calls itself"):
        fn.ensure_kernel(device, "recursive", recursive)
    with pytest.raises(fn.KernelError, match="no defaults"):
        fn.ensure_kernel(device, "k", lambda y, n=3: None)
    with pytest.raises(fn.KernelError, match=r"must be a Python function or CUDA C\+\+ text, got int"):
        fn.ensure_kernel(device, "k", 3)
    with pytest.raises(fn.ConfigError, match="name must be a text"):
        fn.ensure_kernel(device, "", scale)
    with pytest.raises(fn.ConfigError, match="must list names of its parameters"):
        fn.ensure_kernel(device, "scale", scale, writes=["z"])
    for settings, words in (
        ({"writes": 5}, "writes=5 must be a list of texts"),
        ({"writes": [5]}, r"writes=\[5\] must be a list"),
        ({"bindings": 5}, "bindings=5 must map names"),
        ({"options": 5}, "options=5 must be a list of texts"),
    ):
        with pytest.raises(fn.ConfigError, match=words):
            fn.ensure_kernel(device, "scale", scale, **settings)
    for threads in (0, 2.5):
        with pytest.raises(fn.ConfigError, match=f"threads must be a whole number from 1, got {threads}"):
            fn.Launch.over(5, threads)
    with pytest.raises(fn.KernelError, match="unfilled: cell has no value yet"):

        def unfilled(y):
            y[0] = cell

        fn.ensure_kernel(device, "unfilled", unfilled)
        cell = 1
    with pytest.raises(fn.KernelError, match="expected a kernel of ensure_kernel"):
        fn.launch_kernel(scale, 1, y)  # type: ignore[arg-type]


def test_a_tensor_of_another_device_is_refused(device):
    other = fn.Device.simulated(1 << 20)
    with pytest.raises(fn.DeviceMismatch, match=r"x is on simulated, the kernel on"):
        x = fn.Tensor.empty((4,), device=other)
        fn.launch_kernel(fn.ensure_kernel(device, "scale", scale), 4, fn.Tensor.zeros((4,)), x, 2, 4)


# --- what a kernel writes ---------------------------------------------------------------------------------------------
def test_a_saved_tensor_that_a_kernel_changed_raises(device):
    kernel = fn.ensure_kernel(device, "scale", scale)
    x = fn.tensor([1.0, 2.0, 3.0]).requires_grad_()
    hidden = x * 1
    loss = (hidden * hidden).sum()
    fn.launch_kernel(kernel, 3, fn.Tensor.zeros((3,)), hidden.detach(), 2, 3)  # only read: fine
    fn.launch_kernel(kernel, 3, hidden.detach(), fn.Tensor.zeros((3,)), 2, 3)
    with pytest.raises(fn.GradientError, match="changed in place"):
        loss.backward()


def test_a_broadcast_view_cannot_be_written(device):
    kernel = fn.ensure_kernel(device, "axpy", axpy)
    with pytest.raises(fn.ShapeError, match="broadcast"):
        fn.launch_kernel(kernel, 4, fn.tensor([1.0]).broadcast_to((4,)), fn.Tensor.ones((4,)), 1.0)


def test_what_is_written_is_read_off_the_source_or_else_everything():
    def through_a_row(y, x, z):
        row = z[0]
        row[1] = x[0] + y.shape[0]

    def helped(y, x):
        bent(y)
        x[0] += 1

    def only_reads(y, x, n):
        s = 0
        for i in range(n):
            if x[i] > 0:
                s += x[i] * y.size

    assert written(through_a_row) == {"x", "y", "z"}  # through another name: cannot be told
    assert written(helped) == {"x", "y"}
    assert written(only_reads) == set()
    scope = {}
    exec("def unseen(y, x): y[0] = x[0]", scope)
    assert written(scope["unseen"]) == {"x", "y"}
    assert fn.ensure_kernel(CPU, "unseen", scope["unseen"], writes=["y"]).writes == {"y"}


def test_capturing():
    def uses(y):
        y[0] = np.float32(1) + OFFSET

    assert capture(uses).text != capture(scale).text
    assert set(capture(scale).functions) == {"bent"}
    table = [1, 2]

    def bad(y):
        y[0] = len(object_of(table))

    def object_of(t):
        return cell

    cell = object()
    with pytest.raises(fn.KernelError, match="a kernel cannot use a object"):
        capture(bad)


# --- differentiable ---------------------------------------------------------------------------------------------------
def test_a_kernel_inside_a_custom_op(device):
    def cube(y, x, n):
        for i in range(grid(), n, gridsize()):
            v = load_x(x, i)  # noqa: F821
            store_y(y, i, v * v * v)  # noqa: F821

    kernel = fn.ensure_kernel(device, "cube", cube)

    def forward(ctx, x):
        ctx.save(x)
        x, y = x.contiguous(), fn.empty_like(x)
        fn.launch_kernel(kernel, x.numel, y, x, x.numel)
        return y

    def backward(ctx, g):
        (x,) = ctx.saved
        return g * 3 * x * x

    op = fn.custom_op(forward, backward)
    x = fn.tensor([1.0, -2.0, 0.5], dtype=fn.float64).requires_grad_()
    assert op(x).tolist() == [1, -8, 0.125]
    assert fn.gradcheck(op, x) and fn.gradcheck(op, x, order=2)


def test_elementwise_and_fuse_of_functions_without_a_file(device):
    scope = {"fn": fn}
    exec("op = fn.fuse(lambda x, y: fn.tanh(x) * y + 1)", scope)
    x = fn.tensor([0.0, 1.0], dtype=fn.float64).requires_grad_()
    assert np.allclose(scope["op"](x, 2.0).numpy(), np.tanh([0, 1.0]) * 2 + 1)
    assert fn.gradcheck(lambda x: scope["op"](x, 2.0), x, order=2)
