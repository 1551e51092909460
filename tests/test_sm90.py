"""Every kernel compiles for sm_90a, without a GPU, and its machine code is what it should be.

Ops are rehearsed here (`devices/rehearsal.py`) on a machine that they take for a GPU: each kernel they would launch is
compiled and linked, forward and first derivative, contiguous and strided. What is looked at:

- no f64 instruction in a kernel that names no f64 (a literal that was not typed would bring them in);
- no spill: ptxas reports 0 bytes, and no stack frame either;
- vectors: a contiguous elementwise kernel reads and writes 16 bytes at once.

By default every formula in every floating dtype for contiguous operands, every fourth in f32 for strided ones (the
formula in another frame), and the kernels written by hand in f32 and bf16. The rest, and the disassembly of all, is
`slow` (pytest -m slow). All is compiled anew, whatever the kernel cache holds: some five minutes on two cores.
"""

from __future__ import annotations

import gc
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import flame_numba as fn
from flame_numba.devices import Device
from flame_numba.devices.rehearsal import RehearsalDevice, RehearsalGpu
from flame_numba.dtypes import DType
from flame_numba.errors import KernelError
from flame_numba.kernels.compiler import listing
from flame_numba.kernels.compiler.compile import Program
from flame_numba.kernels.compiler.listing import Listing
from flame_numba.kernels.language import LoadVector, StoreVector
from flame_numba.kernels.moves.mover import Mover
from flame_numba.ops import TABLE
from flame_numba.ops.attention.attention import Setting, dropout_factors
from flame_numba.pool import MemoryPool, PoolConfig
from flame_numba.tensor import Tensor
from kernels_indexing import BY_HAND as indexing_kernels
from kernels_norms_losses import BY_HAND as norm_kernels
from kernels_scans_sorts import scans_and_sorts
from kernels_user import user_kernels

pytest.importorskip("flame_numba.kernels.compiler.machine_cuda", reason="needs flame-numba[cu13]")

pytestmark = pytest.mark.sm90
ARCHITECTURE = "sm_90a"
QUICK, SLOW = (fn.float32, fn.bfloat16), (fn.float16, fn.float64)
DTYPES = [
    *(pytest.param(d, id=d.name) for d in QUICK),
    *(pytest.param(d, id=d.name, marks=pytest.mark.slow) for d in SLOW),
]

# A large argument is reduced modulo π/2 in integer words: libdevice keeps them in an array on the stack, and has one
# f64 product at the end. Only |x| > 105615 takes that branch.
REDUCES_ARGUMENTS = re.compile(r"\b(sin|cos|tan)\(")


STACK_FRAMES = {
    "random_uniform": "a loop, which is not unrolled, picks from the four words of a counter",
}


@dataclass(frozen=True)
class Compiled:
    """A kernel, and what the compiler makes and says of it."""

    program: Program
    listing: Listing

    @property
    def ptx(self) -> str:
        return self.listing.ptx

    @property
    def sass(self) -> str:
        try:
            return listing.disassemble(self.listing.cubin)
        except KernelError as error:
            if "not installed" in str(error):
                pytest.skip(str(error))
            raise

    @property
    def text(self) -> str:
        """The source of the kernel."""
        return self.program.source or inspect.getsource(self.program.function)  # type: ignore[arg-type]


class FakeGpu(RehearsalGpu):
    """Looks like an H200 to the ops; launches nothing, and compiles each kernel that it is asked to load."""

    def __init__(self) -> None:
        super().__init__(ARCHITECTURE)
        self._compiled: dict[str, Compiled] = {}  # two choices may give one program

    @property
    def compiled(self) -> list[Compiled]:
        return list(self._compiled.values())

    def load_program(self, program: Program) -> Any:
        if (text := program.text()) not in self._compiled:
            self._compiled[text] = Compiled(program, listing.cuda_listing(program, ARCHITECTURE))
        return super().load_program(program)


@pytest.fixture
def gpu() -> FakeGpu:
    return FakeGpu()  # a new one for each test: what was launched on another counts for nothing


@pytest.fixture
def device(gpu: FakeGpu) -> Iterator[Device]:
    fake = RehearsalDevice(gpu)
    # a pool that only grows: there is no memory whose contents could be moved
    with fake, MemoryPool(fake, PoolConfig(slack=None)).use():
        yield fake


def check(gpu: FakeGpu) -> None:
    """All that is wrong with the kernels compiled since the test began, in one message."""
    wrong = [f"{c.program.name}{_names(c.program)}: {what}" for c in gpu.compiled for what in faults(c)]
    assert not wrong, "\n".join(wrong)


def _names(program: Program) -> str:
    return "(" + ", ".join(a.name if isinstance(a, DType) else a for a in program.arguments if a != "int") + ")"


def names_f64(program: Program) -> bool:
    """Whether f64 is asked for: as the type of elements, or to compute in."""
    return "float64" in repr((program.compute, program.arguments, program.bindings))


def faults(c: Compiled) -> Iterator[str]:
    reduces = bool(REDUCES_ARGUMENTS.search(c.text))
    if not names_f64(c.program) and not reduces and ".f64" in c.ptx:
        lines = [line.strip() for line in c.ptx.splitlines() if ".f64" in line and not line.strip().startswith(".reg")]
        yield f"{len(lines)} f64 instructions, such as {lines[:2]}"
    taken = listing.resources(c.listing)
    if taken.spill_bytes:
        yield f"spills {taken.spill_bytes} bytes"
    if taken.stack_bytes and not reduces and c.program.name not in STACK_FRAMES:
        yield f"a stack frame of {taken.stack_bytes} bytes"
    for word, kind in (("ld", LoadVector), ("st", StoreVector)):
        if _wants_vectors(c, kind) and not _has_vectors(c.ptx, word):
            yield f"no 16-byte {word}.global"


def _wants_vectors(c: Compiled, kind: type) -> bool:
    return any(
        isinstance(spec, kind) and spec.width * spec.dtype.itemsize == 16 and f"{name}(" in c.text
        for name, spec in c.program.bindings.items()
    )  # fmt: skip


def _has_vectors(ptx: str, word: str) -> bool:
    found = re.findall(rf"\b{word}\.global(?:\.nc)?\.v(\d)\.[bufs](\d+)", ptx)
    return any(int(count) * int(bits) == 128 for count, bits in found)


def floating(dtype: DType, *shape: int) -> Tensor:
    return Tensor.empty(shape, dtype=dtype).requires_grad_()


def backward(y: Tensor) -> None:
    y.backward(Tensor.empty(y.shape, dtype=y.dtype))


def test_compiling_keeps_no_tensor_alive(gpu: FakeGpu, device: Device) -> None:
    """Numba leaves frames behind in cycles. The caller's must not be among them."""
    x = Tensor.empty((1000,)).requires_grad_()
    pool = fn.current_pool(device)
    gc.collect()
    gc.disable()
    try:
        before = pool.stats().live_blocks
        backward(x.tanh().exp().softmax().sum())
        x.grad = None
        assert gpu.compiled and pool.stats().live_blocks == before
    finally:
        gc.enable()


# --- elementwise: from the table -----------------------------------------------------------------------------------
ELEMENTWISE = sorted(name for name, entry in TABLE.items() if entry.kind == "elementwise")


CONTIGUOUS = [(name, "contiguous", dtype) for name in ELEMENTWISE for dtype in (*QUICK, *SLOW)]
STRIDED = [(name, "strided", dtype) for dtype in (*QUICK, *SLOW) for name in ELEMENTWISE]
# the strided kernel is one frame around any formula: by default every fourth, in f32
OFTEN = {(name, "strided", fn.float32) for name in ELEMENTWISE[::4]}


@pytest.mark.parametrize(
    "name, layout, dtype",
    [
        pytest.param(*case, marks=pytest.mark.slow if case[1] == "strided" and case not in OFTEN else ())
        for case in (*CONTIGUOUS, *STRIDED)
    ],
    ids=lambda v: getattr(v, "name", v),
)
def test_elementwise(name: str, layout: str, dtype: DType, gpu: FakeGpu, device: Device) -> None:
    entry = TABLE[name]
    if dtype not in entry.dtypes:
        pytest.skip(f"{name} is not defined for {dtype.name}")
    xs = [Tensor.empty((64, 32), dtype=dtype) for _ in entry.parameters]
    xs = [(x.T if layout == "strided" else x).requires_grad_() for x in xs]
    y = entry.op(*xs)
    if not entry.non_differentiable and y.requires_grad:
        backward(y)
    assert any(("_r2" if layout == "strided" else "_v") in c.program.name for c in gpu.compiled)
    check(gpu)


# --- the kernels written by hand: the calls that launch each of them, in each variant ------------------------------
def reductions(dtype: DType) -> None:
    for reduce in (fn.sum, fn.prod, fn.max, fn.min, fn.any, fn.all):
        reduce(floating(dtype, 8, 64).detach(), axis=1)
        reduce(floating(dtype, 4096, 4096).detach(), axis=1)
    for shape, axis in (((512, 64), 0), ((64, 8192), -1), ((1 << 22,), None), ((8, 1 << 20), 1), ((1 << 20, 32), 0)):
        fn.sum(floating(dtype, *shape).detach(), axis=axis)
        fn.mean(floating(dtype, *shape).detach(), axis=axis)


def arguments(dtype: DType) -> None:
    for op in (fn.argmax, fn.argmin):
        op(floating(dtype, 8, 4096).detach(), axis=1)
        op(floating(dtype, 8, 64).detach(), axis=1)


def softmax(dtype: DType) -> None:
    for op in (fn.softmax, fn.log_softmax):
        for n in (64, 4096):
            backward(op(floating(dtype, 8, n)))


def cross_entropy(dtype: DType) -> None:
    for n in (10, 50_000):
        backward(fn.cross_entropy(floating(dtype, 64, n), Tensor.empty((64,), dtype=fn.int64)))


def matmul(dtype: DType) -> None:
    backward(fn.matmul(floating(dtype, 3, 100, 70), floating(dtype, 70, 30)))
    fn.matmul(floating(dtype, 2100, 70), floating(dtype, 70, 2060))  # the large tile


def mixed_matmul(dtype: DType) -> None:
    fn.matmul(floating(fn.float32, 100, 70), floating(dtype, 70, 30))


def convolutions(dtype: DType) -> None:
    """Every tile of the kernel, in its three products, whole and in parts, over one to three axes."""
    for rows in (1, 8, 32, 64):
        backward(fn.conv2d(floating(dtype, 2, 3, 20, 20), floating(dtype, rows, 3, 3, 3), floating(dtype, rows)))
    backward(fn.conv3d(floating(dtype, 2, 8, 6, 6, 6), floating(dtype, 8, 1, 3, 3, 3), stride=2, groups=8))
    fn.conv1d(floating(dtype, 1, 1, 33_000), floating(dtype, 128, 1, 1))  # the large tile
    fn.conv_transpose1d(floating(dtype, 1, 1, 33_000), floating(dtype, 1, 128, 1))


def pools(dtype: DType) -> None:
    x = floating(dtype, 2, 3, 20, 20)
    for size in ((3, 7), (20, 40)):
        backward(fn.adaptive_avg_pool2d(x, size))
        backward(fn.adaptive_max_pool2d(x, size))
    for y in (fn.max_pool2d(x, 2), fn.avg_pool2d(x, 2), fn.avg_pool2d(x, 3, 2, 1, count_include_pad=False)):
        backward(y)


def upsampling(dtype: DType) -> None:
    for mode in ("nearest", "bilinear", "bicubic"):
        backward(fn.upsample(floating(dtype, 2, 3, 20, 20), scale_factor=2, mode=mode))
    backward(fn.upsample(floating(dtype, 2, 3, 20), size=30, mode="linear"))
    backward(fn.upsample(floating(dtype, 2, 3, 4, 5, 6), size=9, mode="trilinear"))


def random(dtype: DType) -> None:
    fn.rand((1000,), dtype=dtype)
    fn.randn((1000,), dtype=dtype)
    fn.dropout(floating(dtype, 1000), 0.1)


def creation(dtype: DType) -> None:
    fn.arange(10, dtype=dtype)
    fn.full((10,), 1.5, dtype=dtype)
    fn.full((10, 10), 1.5, dtype=dtype).T.fill_(0)


def casts(dtype: DType) -> None:
    for other in (fn.float32, fn.float64, fn.float16, fn.bfloat16, fn.int8, fn.int64, fn.uint8, fn.uint64, fn.bool):
        for shape in ((1000,), (10, 10)):
            for x in (Tensor.empty(shape, dtype=dtype), Tensor.empty(shape, dtype=other)):
                (x if len(shape) == 1 else x.T).to_dtype(other if x.dtype is dtype else dtype)


def optimizers(dtype: DType) -> None:
    for make in (lambda p: fn.optim.SGD([p], lr=0.1, momentum=0.9), lambda p: fn.optim.AdamW([p])):
        p = fn.Parameter(Tensor.empty((1000,), dtype=dtype))
        optimizer = make(p)
        p.grad = Tensor.empty((1000,), dtype=dtype)
        optimizer.step()
        optimizer.step()


def integers(dtype: DType) -> None:
    """Integer kernels beside the floating ones (they do not depend on `dtype`: one run of them is enough)."""
    if dtype is not fn.float32:
        pytest.skip("once is enough")
    for kind in (fn.int32, fn.uint8):
        x = Tensor.empty((64, 300), dtype=kind)
        fn.randint(0, 10, (100,), dtype=kind)
        fn.arange(10, dtype=kind)
        fn.sum(x, axis=1), fn.max(x, axis=1), fn.argmax(x, axis=1), x // x, x % x, x @ x.T
        fn.take(x, Tensor.empty((7,), dtype=kind))


def moves(dtype: DType) -> None:
    """The kernel that the pool compacts memory with; it knows no dtype."""
    if dtype is not fn.float32:
        pytest.skip("once is enough")
    Mover(fn.default_device().backend).prepare()


def attention(dtype: DType) -> None:
    """Each kernel, with and without dropout; results of 32, 64 and 128 columns a block."""
    for size in (24, 64, 100):
        for dropout in (0.0, 0.1):
            q, k, v = (floating(dtype, 1, heads, 70, size) for heads in (2, 1, 1))
            backward(fn.attention(q, k, v, causal=True, bias=floating(dtype, 2, 1, 70), dropout=dropout))
    dropout_factors(floating(dtype, 3, 5), Setting(5, 1.0, 0.1, 0, 0))


def positions(dtype: DType) -> None:
    for layout in ("interleaved", "half"):
        backward(fn.rope(floating(dtype, 2, 3, 6, 20), floating(dtype, 6, 8), floating(dtype, 6, 8), layout=layout))


BY_HAND = (
    reductions, arguments, softmax, cross_entropy, matmul, mixed_matmul, random, creation, casts, optimizers, integers,
    moves, *indexing_kernels, *norm_kernels, scans_and_sorts, user_kernels, convolutions, pools, upsampling,
    attention, positions,
)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("launches", BY_HAND, ids=lambda f: f.__name__)
def test_by_hand(launches: Callable[[DType], None], dtype: DType, gpu: FakeGpu, device: Device) -> None:
    launches(dtype)
    check(gpu)


# --- the machine code itself ---------------------------------------------------------------------------------------
# DADD, DMUL, DFMA, DSETP, DMNMX; conversions from and to F64; the seeds of f64 reciprocals and roots
F64_SASS = re.compile(r"\b(D(?:ADD|MUL|FMA|SETP|MNMX)\b\S*|\w+\.[\w.]*F64[\w.]*|MUFU\.\w+64H)")
LOCAL_SASS = re.compile(r"\b(?:STL|LDL)\b")


def test_a_chunk_is_read_before_it_is_called_read(gpu: FakeGpu, device: Device) -> None:
    """Moving: eight loads in flight, a barrier that depends on them, then the flag; 1,024 threads a multiprocessor."""
    moves(fn.float32)
    (compiled,) = gpu.compiled
    steps = re.findall(r"LDG\.E\.128|STG\.E\.128|BAR\.RED\.OR\S* 0x0, !?P\d|STG\.E\.64\.STRONG\.GPU", compiled.sass)
    loads, stores = ["LDG.E.128"] * 8, ["STG.E.128"] * 8
    assert [s.partition(" ")[0].partition(".DEFER")[0] for s in steps] == [
        *loads, "BAR.RED.OR", "STG.E.64.STRONG.GPU", *stores,
    ]  # fmt: skip
    assert 512 * listing.resources(compiled.listing).registers * 2 <= 65536


def check_sass(gpu: FakeGpu) -> None:
    for c in gpu.compiled:
        if REDUCES_ARGUMENTS.search(c.text):
            continue
        sass = c.sass
        assert not LOCAL_SASS.search(sass), f"{c.program.name}: local memory"
        if not names_f64(c.program):
            assert not F64_SASS.findall(sass), c.program.name
        for text, kind in (("LDG.E.128", LoadVector), ("STG.E.128", StoreVector)):
            if _wants_vectors(c, kind):
                assert text in sass, f"{c.program.name}: no {text}"


SASS_OPS: dict[str, Callable[[DType], Any]] = {
    "silu": lambda dtype: backward(fn.silu(floating(dtype, 1000))),
    "matmul": lambda dtype: fn.matmul(floating(dtype, 100, 70), floating(dtype, 70, 30)),
    "softmax": lambda dtype: fn.softmax(floating(dtype, 8, 4096)),
    "sum": lambda dtype: fn.sum(floating(dtype, 64, 8192), axis=-1),
}


@pytest.mark.parametrize("dtype", QUICK, ids=lambda d: d.name)
@pytest.mark.parametrize("op", SASS_OPS)
def test_machine_code(op: str, dtype: DType, gpu: FakeGpu, device: Device) -> None:
    SASS_OPS[op](dtype)
    assert gpu.compiled
    check_sass(gpu)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", (*QUICK, *SLOW), ids=lambda d: d.name)
@pytest.mark.parametrize("launches", BY_HAND, ids=lambda f: f.__name__)
def test_all_machine_code(launches: Callable[[DType], None], dtype: DType, gpu: FakeGpu, device: Device) -> None:
    launches(dtype)
    check_sass(gpu)
