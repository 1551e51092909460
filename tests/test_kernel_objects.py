"""`fn.kernels.get`: any kernel of the library as an object. Compiled for sm_90a; no GPU is needed, or used."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import flame_numba as fn
from flame_numba.devices import Device
from flame_numba.dtypes import DType
from flame_numba.errors import ConfigError, DTypeError, GradientError, KernelError
from flame_numba.kernel_objects import LibraryKernel
from flame_numba.kernel_objects.stage import stage
from flame_numba.kernels.compiler import compile as compiler
from flame_numba.kernels.compiler import listing
from flame_numba.ops import TABLE

SM90 = {"architecture": "sm_90a"}  # whatever GPU is here
FLOATS = (fn.float32, fn.bfloat16, fn.float16, fn.float64)
SLOW = pytest.mark.slow  # they compile as many kernels again
MOST = (fn.float32, fn.bfloat16, pytest.param(fn.float16, marks=SLOW), pytest.param(fn.float64, marks=SLOW))


@pytest.fixture(scope="module", autouse=True)
def compiler_for_cuda() -> None:
    pytest.importorskip("flame_numba.kernels.compiler.machine_cuda", reason="needs flame-numba[cu13]")


def names(kernels: list[LibraryKernel]) -> list[str]:
    return [k.name for k in kernels]


# --- asking --------------------------------------------------------------------------------------------------------
def test_a_kernel_by_name_and_by_op_is_the_same() -> None:
    by_name = fn.kernels.get("softmax", fn.bfloat16, (8, 4096), **SM90)
    by_op = fn.kernels.get(fn.softmax, fn.bfloat16, (8, 4096), **SM90)
    assert by_name.program.text() == by_op.program.text()
    assert repr(by_name) == "<kernel softmax(y: bfloat16, x: bfloat16, rows: int, n: int) for sm_90a>"
    assert (by_name.blocks, by_name.threads, by_name.numbers) == (8, 256, (8, 4096))
    assert [(p.name, p.kind, p.value) for p in by_name.parameters] == [
        ("y", fn.bfloat16, None), ("x", fn.bfloat16, None), ("rows", "int", 8), ("n", "int", 4096),
    ]  # fmt: skip


def test_without_operands_the_table_has_an_example() -> None:
    for name in ("add", "softmax", "matmul", "sum", "conv2d", "sort", "attention", "cross_entropy", "layer_norm"):
        kernel = fn.kernels.get(name, fn.float32, **SM90)
        assert kernel.program.arguments and kernel.blocks


def test_operands_and_keywords_reach_the_op() -> None:
    rows = fn.kernels.get("sum", fn.float32, (64, 8192), axis=1, **SM90)
    columns = fn.kernels.get("sum", fn.float32, (8192, 64), axis=0, **SM90)
    assert rows.numbers != columns.numbers
    like = fn.Tensor.empty((3, 5), dtype=fn.float64)
    given = fn.kernels.get(lambda x, factor: x * factor, fn.float32, like, 2.0, **SM90)
    assert given.parameters[0].kind is fn.float64 and given.numbers == (2.0, 15)


def test_all_kernels_of_a_function_in_order() -> None:
    def layer(x: Any, w: Any) -> Any:
        return fn.softmax(fn.relu(x @ w))

    found = names(fn.kernels.list(layer, fn.bfloat16, (64, 32), (32, 10), **SM90))
    assert found[0] == "matmul" and found[1].startswith("map_relu") and found[-1] == "softmax"
    assert fn.kernels.get(layer, fn.bfloat16, (64, 32), (32, 10), **SM90).name == "softmax"


def test_gradient_kernels_are_those_of_the_backward_pass() -> None:
    assert names(fn.kernels.list("softmax", fn.float32, (8, 64), gradient=True, **SM90)) == ["softmax_gradient"]
    with fn.no_grad():  # the caller's modes do not count
        assert fn.kernels.get("silu", fn.float32, gradient=True, **SM90).name.startswith("map_")
    with pytest.raises(GradientError, match="argmax has no derivative"):
        fn.kernels.get("argmax", fn.float32, gradient=True, **SM90)


def test_strided_operands_have_a_kernel_of_their_own() -> None:
    plain = fn.kernels.get("exp", fn.float32, **SM90)
    strided = fn.kernels.get("exp", fn.float32, (64, 32), layout="strided", **SM90)
    assert plain.name != strided.name and len(strided.parameters) > len(plain.parameters)
    assert fn.kernels.get("exp", fn.float32, (64,), layout="strided", **SM90).name == "map_exp_r1"


def test_the_callers_modes_and_devices_do_not_count() -> None:
    before = fn.current_pool(fn.default_device()).stats().live_blocks
    with fn.autocast(fn.bfloat16), fn.inference_mode(), fn.debug_mode(), Device.cpu():
        kernel = fn.kernels.get("matmul", fn.float32, (64, 32), (32, 16), **SM90)
    assert kernel.parameters[0].kind is fn.float32
    assert fn.current_pool(fn.default_device()).stats().live_blocks == before


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        (("sofmax",), {}, KernelError, "no op named 'sofmax'; did you mean softmax"),
        ((3,), {}, KernelError, "op must be the name of an op or a function, got 3"),
        (("reshape",), {}, KernelError, "reshape launches no kernel"),
        (("bitwise_and", fn.float32), {}, DTypeError, "not defined for float32"),
        (("exp", "float32"), {}, ConfigError, "dtype must be a DType"),
        (("exp",), {"layout": "diagonal"}, ConfigError, "layout must be one of contiguous, strided"),
        (("exp",), {"architecture": "H100"}, ConfigError, "'cpu' or a name such as 'sm_90a'"),
    ],
    ids=lambda v: str(v)[:20],
)
def test_what_makes_no_sense_is_refused(arguments: Any, keywords: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        fn.kernels.get(*arguments, **{**SM90, **keywords})


@pytest.mark.parametrize("architecture", ["sm_90a", "cpu"])
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize("gradient", [False, True])
def test_every_op_can_be_asked(architecture: str, layout: str, gradient: bool) -> None:
    """All of the table: each launches something that has a source, or is a view, or is not for this dtype."""
    found = 0
    for name, entry in TABLE.items():
        if gradient and entry.non_differentiable:
            continue
        dtype = fn.float32 if fn.float32 in entry.dtypes else entry.dtypes[0]
        try:
            kernels = fn.kernels.list(name, dtype, gradient=gradient, layout=layout, architecture=architecture)
        except KernelError as error:
            assert "launches no kernel" in str(error), name
            continue
        found += 1
        for k in kernels:
            assert len(k.parameters) == len(k.program.arguments), name
    assert found > 150


# --- looking -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("op", ["softmax", "silu", "sum", "matmul", "sort", "max_pool2d", "attention"])
def test_source_is_python_with_all_that_the_kernel_calls(op: str) -> None:
    kernel = fn.kernels.get(op, fn.bfloat16, **SM90)
    tree = ast.parse(kernel.source)
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert compiler.body(kernel.program).__name__ in functions
    assert f"# THREADS = {kernel.program.threads}" in kernel.source
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    for name in called & set(kernel.program.bindings):
        assert re.search(rf"^(# {name} = |def {name}\(|{name} = )", kernel.source, re.M), name


def test_helpers_stand_under_the_names_that_the_kernel_calls() -> None:
    source = fn.kernels.get("sum", fn.float32, (64, 64), axis=1, **SM90).source
    assert "def combine(a, b): return" in source and "def call(" not in source


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
def test_ptx_sass_and_resources(dtype: DType) -> None:
    kernel = fn.kernels.get("softmax", dtype, (8, 4096), **SM90)
    assert f".entry {kernel.entry}(" in kernel.ptx and ".target sm_90a" in kernel.ptx
    assert kernel.cubin.startswith(b"\x7fELF")
    taken = kernel.resources
    assert 8 <= taken.registers <= 255 and taken.spill_bytes == taken.stack_bytes == taken.dynamic_shared_bytes == 0
    assert taken.shared_bytes == kernel.program.threads * dtype.accumulator.itemsize
    assert taken.cubin_bytes == len(kernel.cubin)
    assert kernel.ptx is kernel.ptx  # compiled once


def test_sass_is_the_machine_code() -> None:
    kernel = fn.kernels.get("exp", fn.float32, **SM90)
    try:
        sass = kernel.sass
    except KernelError as error:
        if "not installed" not in str(error):
            raise
        pytest.skip(str(error))
    assert "LDG.E.128" in sass and "EXIT" in sass and kernel.entry in sass


def test_without_a_disassembler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> None:
        raise listing.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(listing.metadata, "files", missing)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(KernelError, match="pip install nvidia-cuda-nvdisasm"):
        _ = fn.kernels.get("exp", fn.float32, **SM90).sass


def test_other_architectures() -> None:
    assert ".target sm_80" in fn.kernels.get("exp", fn.float32, architecture="sm_80").ptx


def test_a_kernel_of_the_cpu_device_has_source_and_assembly() -> None:
    kernel = fn.kernels.get("exp", fn.float32, architecture="cpu")
    ast.parse(kernel.source)
    assert f"{kernel.name}_" in kernel.assembly
    for wanted in ("ptx", "sass", "resources", "jit"):
        with pytest.raises(KernelError, match="of the CPU device has source and assembly"):
            getattr(kernel, wanted)


def test_asking_again_and_again_keeps_nothing() -> None:
    def books() -> tuple[int, int]:
        here = stage("sm_90a").backend
        return here.memory_info().free, len(here.launches)

    fn.kernels.get("add", fn.float32, (1 << 20, 1 << 20), (1 << 20, 1 << 20), **SM90)
    before = books()
    for _ in range(20):  # 12 TiB each, of the 64 TiB that there are
        fn.kernels.get("add", fn.float32, (1 << 20, 1 << 20), (1 << 20, 1 << 20), **SM90)
    assert books() == before


def test_threads_may_ask_at_once() -> None:
    def ask(n: int) -> list[Any]:
        return [fn.kernels.get("softmax", fn.float32, (n, 64), **SM90).numbers for _ in range(20)]

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ask, (2, 3, 4, 5))) == [[(n, 64)] * 20 for n in (2, 3, 4, 5)]


def test_asking_needs_no_numba() -> None:
    code = (
        "import sys, flame_numba as fn; k = fn.kernels.get('softmax', fn.bfloat16, architecture='sm_90a'); "
        "k.source, k.parameters; assert not {'numba', 'llvmlite'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- Numba's dispatcher --------------------------------------------------------------------------------------------
def ptx_of_jit(kernel: LibraryKernel, number: str = "") -> str:
    """What Numba makes of the dispatcher's function for row-major arrays, of one axis and of two by turns.

    number: Numba's type of the numbers given; by default the one that the kernel computes in.
    """
    from numba import cuda
    from numba.cuda import types

    elements = {fn.bfloat16: types.uint16, fn.float16: types.float16, fn.bool: types.boolean}
    given: list[Any] = []
    for at, p in enumerate(kernel.parameters):
        if isinstance(p.kind, DType):
            given.append(types.Array(elements.get(p.kind) or getattr(types, p.kind.name), 1 + at % 2, "C"))
        else:
            given.append(types.int64 if p.kind == "int" else getattr(types, number or kernel.program.compute.name))
    ptx, _ = cuda.compile(
        kernel.jit.py_func, types.void(*given), device=False, abi="numba", cc=(9, 0, "a"), output="ptx",
        launch_bounds=kernel.program.threads,
    )  # fmt: skip
    return str(ptx)


FLOAT = re.compile(
    r"^\s+((?:add|sub|mul|fma|div|rcp|sqrt|rsqrt|ex2|lg2|max|min|neg|abs|cvt|setp)\.[\w.]*f\d\d\b)", re.M
)


def arithmetic(ptx: str) -> Counter[str]:
    """How often each instruction on floating numbers occurs: they, in the order of the source, decide the bits."""
    return Counter(FLOAT.findall(ptx))


@pytest.mark.parametrize("dtype", MOST, ids=lambda d: d.name)
@pytest.mark.parametrize(
    ("op", "operands", "keywords"),
    [
        ("softmax", ((8, 4096),), {}),
        ("silu", ((1000,),), {}),
        ("sum", ((64, 8192),), {"axis": -1}),
        ("matmul", ((100, 70), (70, 30)), {}),
        ("layer_norm", (), {}),
        ("greater", ((64,), (64,)), {}),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_jit_compiles_to_the_same_arithmetic(op: str, operands: Any, keywords: Any, dtype: DType) -> None:
    kernel = fn.kernels.get(op, dtype, *operands, **keywords, **SM90)
    found, expected = arithmetic(ptx_of_jit(kernel)), arithmetic(kernel.ptx)
    assert found == expected and expected


def test_jit_takes_numbers_as_python_has_them() -> None:
    kernel = fn.kernels.get(lambda x: x * 2.5, fn.bfloat16, (1000,), **SM90)
    assert kernel.numbers[0] == 2.5
    extra = arithmetic(ptx_of_jit(kernel, "float64")) - arithmetic(kernel.ptx)
    assert extra == {"cvt.rn.f32.f64": 1}


def test_jit_of_a_backward_pass() -> None:
    kernel = fn.kernels.get("softmax", fn.bfloat16, (8, 64), gradient=True, **SM90)
    assert arithmetic(ptx_of_jit(kernel)) == arithmetic(kernel.ptx)


def test_jit_is_an_ordinary_dispatcher() -> None:
    from numba.cuda.dispatcher import CUDADispatcher

    kernel = fn.kernels.get("softmax", fn.bfloat16, **SM90)
    assert isinstance(kernel.jit, CUDADispatcher) and kernel.jit is kernel.jit
    assert kernel.jit.py_func.__doc__.startswith("softmax(y, x, rows, n): arrays on the device")


@pytest.mark.parametrize("wrong", ["float32", "columns", "number"])
def test_jit_refuses_other_arrays(wrong: str) -> None:
    from numba import cuda
    from numba.cuda import types

    kernel = fn.kernels.get("softmax", fn.bfloat16, **SM90)
    right = types.Array(types.uint16, 2, "C")
    given = {
        "float32": types.Array(types.float32, 2, "C"),
        "columns": types.Array(types.uint16, 2, "F"),
        "number": types.int64,
    }[wrong]
    with pytest.raises(Exception, match="softmax: x: expected an array of uint16 or .* in row-major order"):
        signature = types.void(right, given, types.int64, types.int64)
        cuda.compile(kernel.jit.py_func, signature, device=False, abi="numba", cc=(9, 0))
