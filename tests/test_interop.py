"""Memory shared with other libraries on the CPU: NumPy, and PyTorch and JAX where they are installed."""

from __future__ import annotations

import ast
import ctypes
import gc
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import flame_numba as fn
from flame_numba.devices import Device
from flame_numba.errors import DTypeError, ShareError
from flame_numba.interop import adopt_array, dlpack, foreign, from_cuda_array, from_dlpack
from flame_numba.interop.abi import COPIED, READ_ONLY, look_into
from flame_numba.interop.cuda_array import cuda_array_interface
from flame_numba.memory.blocks import Block

CPU = Device.cpu()
DLPACK_DTYPES = [d for d in fn.dtypes.ALL if d is not fn.bfloat16]  # those that NumPy exchanges


@pytest.fixture(autouse=True)
def on_the_cpu():
    with CPU:
        yield


def pins(x: fn.Tensor) -> int:
    return x.storage.block.pins


class Owned(np.ndarray):
    """An array that can be watched."""


class Watched:
    """An object that can be watched."""


# --- out ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DLPACK_DTYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 4), (1,)], ids=str)
def test_numpy_sees_the_same_memory(dtype, shape):
    x = fn.ones(shape, dtype=dtype)
    seen = np.from_dlpack(x)
    assert seen.dtype == dtype.numpy and seen.shape == shape
    np.testing.assert_array_equal(seen, x.numpy())
    assert not x.numel or seen.ctypes.data == x.address


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.mT,
        lambda x: x[1:, ::2],
        lambda x: x.flip(),
        lambda x: x[:, 1:2].broadcast_to((4, 5)),
        lambda x: x[2],
    ],
    ids=["transposed", "strided", "reversed", "broadcast", "row"],
)
def test_views_keep_their_strides(view):
    x = view(fn.arange(24, dtype=fn.float32).reshape(4, 6))
    seen = np.from_dlpack(x)
    np.testing.assert_array_equal(seen, x.numpy())
    assert seen.ctypes.data == x.address
    assert seen.strides == tuple(4 * s for s in x.strides)


def test_both_see_what_either_writes():
    x = fn.zeros((3,))
    seen = np.from_dlpack(x)
    x.fill_(2)
    assert seen.tolist() == [2, 2, 2]


def test_an_exported_block_is_pinned_until_its_last_user_is_gone():
    x = fn.zeros((1000,))
    first, second = np.from_dlpack(x), np.from_dlpack(x[10:])
    assert pins(x) == 2
    part = first[5:]
    del first, second
    assert pins(x) == 1
    del part
    assert pins(x) == 0


def test_the_memory_outlives_the_tensor():
    before = fn.current_pool(CPU).stats().live_blocks
    seen = np.from_dlpack(fn.full((4,), 7))
    gc.collect()
    assert seen.tolist() == [7, 7, 7, 7]
    assert fn.current_pool(CPU).stats().live_blocks == before + 1
    del seen
    assert fn.current_pool(CPU).stats().live_blocks == before


def test_defragment_leaves_exported_memory_where_it_is():
    pool = fn.MemoryPool.with_config(CPU, fn.PoolConfig(backend="segments"))
    with pool.use():
        tensors = [fn.full((70_000,), float(i)) for i in range(6)]
    seen = np.from_dlpack(tensors[3])
    place = tensors[3].address
    del tensors[:3]
    pool.defragment()
    assert tensors[0].address == place == seen.ctypes.data
    assert seen[0] == 3 and tensors[1].tolist()[:2] == [4, 4]


def test_a_capsule_that_nobody_takes_lets_go():
    x = fn.zeros((4,))
    capsules = [x.__dlpack__(), x.__dlpack__(max_version=(1, 1))]
    assert pins(x) == 2
    del capsules
    assert pins(x) == 0


def test_a_consumer_that_refuses_keeps_its_own_error():
    x = fn.zeros((4,), dtype=fn.bfloat16)
    with pytest.raises((RuntimeError, BufferError), match="dtype"):  # NumPy drops the capsule with the error pending
        np.from_dlpack(x)
    assert pins(x) == 0


def test_capsules_can_be_dropped_by_any_thread():
    x = fn.zeros((4,))
    seen = [np.from_dlpack(x) for _ in range(50)]
    threads = [threading.Thread(target=seen.clear) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pins(x) == 0


@pytest.mark.parametrize(
    ("asked", "name"),
    [(None, "dltensor"), ((0, 8), "dltensor"), ((1, 0), "dltensor_versioned"), ((2, 0), "dltensor_versioned")],
)
def test_the_capsule_is_of_the_version_asked_for(asked, name):
    capsule = fn.zeros((2,)).__dlpack__(max_version=asked)
    assert f'"{name}"' in repr(capsule)


def test_flags_tell_of_copies_and_of_read_only_memory():
    x = fn.zeros((2,))
    assert look_into(x.__dlpack__(max_version=(1, 1))).flags == 0
    assert look_into(x.__dlpack__(max_version=(1, 1), copy=True)).flags == COPIED
    constant = np.zeros(2)
    constant.flags.writeable = False
    lent = from_dlpack(constant)
    assert look_into(lent.__dlpack__(max_version=(1, 1))).flags == READ_ONLY
    with pytest.raises(ShareError, match="may not be written"):
        lent.__dlpack__()


def test_copy_true_copies_and_false_does_not():
    x = fn.zeros((2,))
    assert np.from_dlpack(x, copy=True).ctypes.data != x.address
    assert np.from_dlpack(x, copy=False).ctypes.data == x.address


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: x.requires_grad_().__dlpack__(), "detach"),
        (lambda x: x.__dlpack__(stream=1), "without streams"),
        (lambda x: x.__dlpack__(dl_device=(2, 0), copy=False), "without a copy"),
        (lambda x: x.__dlpack__(dl_device=(7, 0)), "device type 7"),
        (lambda x: x.__dlpack__(dl_device="cpu"), "dl_device must be a tuple of two integers, it is 'cpu'"),
        (lambda x: x.__dlpack__(dl_device=(1, "a")), "dl_device must be"),
        (lambda x: x.__dlpack__(max_version=1), "max_version must be a tuple of two integers, it is 1"),
    ],
)
def test_what_cannot_be_exported_is_a_buffer_error(call, words):
    x = fn.zeros((2,))
    with pytest.raises(BufferError, match=words) as raised:
        call(x)
    assert isinstance(raised.value, fn.FlameError)
    assert pins(x) == 0


def test_device_numbers_are_dlpack_s():
    assert fn.zeros((2,)).__dlpack_device__() == (1, 0)
    assert Device.cuda(3).kind == "cuda"  # (2, ordinal): see tests/gpu/test_interop.py


def test_a_tensor_of_the_cpu_has_no_cuda_array_interface():
    assert not hasattr(fn.zeros((2,)), "__cuda_array_interface__")


# --- in -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DLPACK_DTYPES, ids=lambda d: d.name)
def test_numpy_s_memory_becomes_a_tensor(dtype):
    host = np.arange(6).reshape(2, 3).astype(dtype.numpy)
    x = from_dlpack(host)
    assert x.dtype is dtype and x.address == host.ctypes.data
    np.testing.assert_array_equal(x.numpy(), host)


@pytest.mark.parametrize(
    "host",
    [np.arange(24.0).reshape(4, 6).T, np.arange(24.0)[::-1], np.arange(24.0)[3::4], np.zeros((0, 3)), np.array(2.5),
     np.broadcast_to(np.arange(3.0), (4, 3)), np.arange(40, dtype=np.int8)[3:]],
    ids=["transposed", "reversed", "strided", "empty", "0-d", "broadcast", "offset"],
)  # fmt: skip
def test_any_layout_comes_in(host):
    x = from_dlpack(host)
    np.testing.assert_array_equal(x.numpy(), host)
    np.testing.assert_array_equal((x + x).numpy(), host + host)
    assert x.sum().item() == host.sum()


def test_the_owner_is_held_until_the_last_view_is_gone():
    host = np.arange(5.0).view(Owned)
    alive = weakref.ref(host)
    x = from_dlpack(host)
    view = x[2:]
    del host, x
    assert alive() is not None and view.tolist() == [2, 3, 4]
    del view
    assert alive() is None


def test_foreign_memory_is_in_no_book_of_the_pool():
    pool = fn.current_pool(CPU)
    before = pool.stats().allocated_bytes
    x = from_dlpack(np.zeros(100_000))
    assert pool.stats().allocated_bytes == before
    pool.defragment()
    fn.Parameter(x)  # counts its memory under a tag, where a pool has it
    assert x.tolist()[0] == 0


def test_writes_go_to_the_owner_and_are_counted():
    host = np.zeros(3)
    x = from_dlpack(host)
    x.fill_(4)
    assert host.tolist() == [4, 4, 4] and x.storage.version == 1


def test_read_only_memory_is_not_written():
    host = np.arange(3.0)
    host.flags.writeable = False
    x = from_dlpack(host)
    with pytest.raises(ShareError, match="another library"):
        x.fill_(4)
    with pytest.raises(ShareError, match="another library"):
        x[1] = 4
    assert host.tolist() == [0, 1, 2] and (x + 1).tolist() == [1, 2, 3]
    own = x.clone()
    own.fill_(4)
    assert own.tolist() == [4, 4, 4]


def test_gradients_flow_to_a_tensor_over_foreign_memory():
    host = np.array([1.0, 2.0])
    x = from_dlpack(host).requires_grad_()
    (x * x).sum().backward()
    assert x.grad.tolist() == [2, 4]


def test_copy_and_device_of_from_dlpack():
    host = np.zeros(3)
    assert from_dlpack(host, copy=True).address != host.ctypes.data
    assert from_dlpack(host, copy=False, device="cpu").address == host.ctypes.data
    x = fn.zeros((2,))
    assert from_dlpack(x).address == x.address
    assert from_dlpack(x, copy=True).address != x.address


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (np.zeros(2, complex), DTypeError, "complex128"),
        (3, AttributeError, "__dlpack__"),
    ],
)
def test_what_cannot_come_in(value, error, words):
    with pytest.raises(error, match=words):
        from_dlpack(value)


class Producer:
    """An array that hands out a capsule prepared by a test."""

    def __init__(self, capsule: object) -> None:
        self.capsule = capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self) -> object:  # as before 2023: no keywords
        return self.capsule


def test_producers_of_before_2023_are_understood():
    x = fn.arange(3)
    assert from_dlpack(Producer(x.__dlpack__())).tolist() == [0, 1, 2]
    assert pins(x) == 0


def test_a_capsule_is_used_once():
    x = fn.zeros((3,))
    producer = Producer(x.__dlpack__())
    y = from_dlpack(producer)
    with pytest.raises(ShareError, match="not used before"):
        from_dlpack(producer)
    assert pins(x) == 1
    del y
    assert pins(x) == 0


def test_another_major_version_is_refused_and_given_back():
    x = fn.zeros((3,))
    capsule = x.__dlpack__(max_version=(1, 1))
    look_into(capsule).major = 2
    with pytest.raises(ShareError, match=r"version 2\.1"):
        from_dlpack(Producer(capsule))
    del capsule
    gc.collect()
    assert pins(x) == 0


def test_strides_may_be_left_out():
    x = fn.arange(6).reshape(2, 3)
    capsule = x.__dlpack__()
    look_into(capsule).view.strides = ctypes.POINTER(ctypes.c_int64)()
    assert from_dlpack(Producer(capsule)).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_elements_must_be_aligned():
    x = fn.zeros((4,))
    capsule = x.__dlpack__()
    look_into(capsule).view.byte_offset = 2
    with pytest.raises(ShareError, match="aligned to 4"):
        from_dlpack(Producer(capsule))
    assert pins(x) == 0


def _negative_size(view):
    view.shape[0] = -4


def _no_memory(view):
    view.data = None


@pytest.mark.parametrize("spoil", [_negative_size, _no_memory])
def test_exporters_that_describe_no_memory_are_refused(spoil):
    x = fn.zeros((4,))
    capsule = x.__dlpack__()
    spoil(look_into(capsule).view)
    with pytest.raises(ShareError, match="describes no memory"):
        from_dlpack(Producer(capsule))
    del capsule
    gc.collect()
    assert pins(x) == 0


# --- NumPy without DLPack -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", fn.dtypes.ALL, ids=lambda d: d.name)
def test_numpy_without_a_copy(dtype):
    x = fn.ones((3, 4), dtype=dtype).mT[::-1]
    seen = x.numpy(copy=False)
    assert seen.dtype == dtype.numpy and seen.ctypes.data == x.address and pins(x) == 1
    np.testing.assert_array_equal(seen, x.numpy())
    del seen
    assert pins(x) == 0


def test_numpy_without_a_copy_refuses():
    with pytest.raises(ShareError, match="detach"):
        fn.ones((2,)).requires_grad_().numpy(copy=False)
    with pytest.raises(ValueError, match="float64"):
        fn.ones((2,)).__array__(np.float64, copy=False)
    assert np.asarray(fn.ones((2,)), copy=False).tolist() == [1, 1]
    assert fn.ones((0, 2)).numpy(copy=False).shape == (0, 2)


def test_asarray_shares_a_numpy_array_when_told_to():
    host = np.arange(4.0)
    assert fn.asarray(host).address != host.ctypes.data
    x = fn.asarray(host, copy=False)
    assert x.address == host.ctypes.data
    x.fill_(1)
    assert host.tolist() == [1, 1, 1, 1]
    low = np.ones(3, ml_dtypes.bfloat16)
    assert adopt_array(low).dtype is fn.bfloat16 and adopt_array(low).address == low.ctypes.data


@pytest.mark.parametrize(
    "call",
    [
        lambda: fn.asarray([1, 2], copy=False),
        lambda: fn.asarray(np.zeros(2), dtype="float32", copy=False),
        lambda: fn.asarray(fn.zeros((2,)), dtype="float64", copy=False),
        lambda: fn.asarray([fn.zeros(())], copy=False),
        lambda: fn.asarray(np.zeros(2, ">f8"), copy=False),
    ],
)
def test_copy_false_raises_where_a_copy_is_needed(call):
    with pytest.raises((ShareError, DTypeError)):
        call()


def test_asarray_keeps_what_python_numbers_hold():
    assert fn.asarray(0.1, dtype=fn.float64).item() == 0.1
    assert fn.asarray([2**63], dtype=fn.uint64).item() == 2**63
    assert fn.asarray([[fn.ones(()), fn.zeros(())]]).tolist() == [[1, 0]]
    with pytest.raises(DTypeError, match="asarray"):
        fn.asarray([300], dtype=fn.uint8)
    with pytest.raises(DTypeError):
        fn.asarray([1j])
    with pytest.raises(fn.ShapeError):
        fn.asarray([[1, 2], [3]])


# --- __cuda_array_interface__, as far as there is no GPU --------------------------------------------------------------
class Interface:
    def __init__(self, **changes: object) -> None:
        self.__cuda_array_interface__ = {
            "shape": (2,), "typestr": "<f4", "data": (256, False), "version": 3, "strides": None, "stream": None,
            **changes,
        }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"mask": object()}, ShareError, "masked"),
        ({"typestr": "<c8"}, DTypeError, "complex"),
        ({"typestr": ">f4"}, DTypeError, "byte order"),
        ({"typestr": None}, ShareError, "typestr must be a string such as '<f4', it is None"),
        ({"typestr": 3}, ShareError, "typestr must be a string"),
        ({"version": 4}, ShareError, "version 4 of the interface is not one of 0 to 3"),
        ({"version": None}, ShareError, "version None"),
        ({"shape": None}, ShareError, "shape must be a tuple of integers, it is None"),
        ({"shape": (2.5,)}, ShareError, "shape must be a tuple of integers"),
        ({"shape": (-2,)}, ShareError, "negative size"),
        ({"strides": 4}, ShareError, "strides must be a tuple of integers"),
        ({"strides": (4, 4)}, ShareError, "as many axes"),
        ({"strides": (3,)}, ShareError, "no multiples of 4 bytes"),
        ({"data": None}, ShareError, r"data must be \(address, read only\), it is None"),
        ({"data": ("a", False)}, ShareError, "data must be"),
        ({"data": (0, False)}, ShareError, "there is no memory"),
        ({"stream": 0}, ShareError, "stream 0 is not allowed"),
        ({"stream": "a"}, ShareError, "stream 'a' is not allowed"),
    ],
)
def test_cuda_arrays_that_cannot_come_in(changes, error, words):
    with pytest.raises(error, match=words):
        from_cuda_array(Interface(**changes))


def test_cuda_arrays_need_a_gpu():
    if fn.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(fn.DeviceError, match="driver|cuda-bindings"):
        from_cuda_array(Interface())
    with pytest.raises(ShareError, match="must be a dict"):
        from_cuda_array(SimpleNamespace(__cuda_array_interface__=3))


# --- an address leaves only with its pin ----------------------------------------------------------------------------
@pytest.fixture
def moving(monkeypatch):
    """A pool on the CPU with a tensor behind a hole, and a pass of moves that ends just when a block is pinned."""
    pool, pin = fn.MemoryPool.with_config(CPU, fn.PoolConfig(backend="segments")), Block.pin
    with pool.use():
        hole = fn.full((70_000,), -1.0)
        x = fn.arange(70_000, dtype=fn.float32)
    before = x.address

    def late(block):
        hole.storage = None  # frees it
        pool.defragment()
        return pin(block)

    monkeypatch.setattr(Block, "pin", late)
    yield x
    assert x.address != before, "nothing was moved"


def test_dlpack_reads_the_address_behind_the_pin(moving):
    seen = np.from_dlpack(moving)
    assert seen.ctypes.data == moving.address and seen[5] == 5


def test_a_window_reads_the_address_behind_the_pin(moving):
    seen = moving[10:].numpy(copy=False)
    assert seen.ctypes.data == moving.address + 40 and seen[5] == 15


def test_the_cuda_array_interface_reads_the_address_behind_the_pin(moving):
    device = Device.cpu()
    device.backend.streams_used = device.backend.streams_used  # opens it
    device.kind = "cuda"
    moving.storage.device = device
    assert cuda_array_interface(moving[10:])["data"] == (moving.address + 40, False)


def test_streams_are_ordered_behind_the_pin(monkeypatch):
    """Moves that a pin waits for are work that the consumer has to wait for."""
    steps, pin = [], Block.pin
    monkeypatch.setattr(Block, "pin", lambda block: steps.append("pin") or pin(block))
    monkeypatch.setattr(dlpack, "_make_wait", lambda *arguments: steps.append("order"))
    np.from_dlpack(fn.ones((3,)))
    assert steps == ["pin", "order"]


def test_our_stream_waits_for_the_moves_until_now():
    device, block = FakeDevice(), FakeBlock(5)
    dlpack._make_wait(device, block, 1)
    assert block.users == [0]


def test_exports_beside_moves():
    pool, stop = fn.MemoryPool(CPU), threading.Event()

    def move():
        while not stop.is_set():
            pool.defragment()

    mover = threading.Thread(target=move)
    mover.start()
    try:
        with pool.use():
            tensors = [fn.full((1 << 10,), float(i)) for i in range(16)]
            for _ in range(20):
                holes = [fn.full((1 << 10,), -1.0) for _ in range(16)]
                tensors = [x.clone() for x in tensors]
                del holes
                for i, x in enumerate(tensors):
                    seen = np.from_dlpack(x)
                    assert seen.ctypes.data == x.address and seen[0] == i
    finally:
        stop.set()
        mover.join()


# who reads where a block is now: under the machine's lock until the work is queued, or as the one that pins
MAY_READ = {
    "tensor.py": {"address", "from_numpy"},
    "host_values.py": {"numpy", "numpy_async"},
    "ops/core/launch.py": {"run", "__call__"},
    "ops/products/linalg.py": {"_host_view"},
    "user_kernels/styles.py": {"prepare", "pack"},
    "interop/foreign.py": {"__init__", "pin", "__repr__"},  # a block that never moves
}
OWN_ADDRESSES = ("devices", "memory", "kernels", "plots")  # rooms in which it means something else


def test_nobody_else_reads_an_address():
    root = Path(fn.__file__).parent
    found = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name.split("/")[0] in OWN_ADDRESSES or name == "pool.py":
            continue
        readers = _readers(ast.parse(path.read_text()), "the module")
        if readers:
            found[name] = readers
    extra = {name: readers - MAY_READ.get(name, set()) for name, readers in found.items()}
    assert not any(extra.values()), f"take a Pin: {extra}"
    pins = [p.name for p in root.rglob("*.py") if ".pin()" in p.read_text() and "memory" not in p.parts]
    assert pins == ["storage.py"], "pins are made by `Pin`"


def _readers(node, function):
    """The functions in which `.address` is read."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        function = node.name
    here = {function} if isinstance(node, ast.Attribute) and node.attr == "address" else set()
    return here.union(*(_readers(child, function) for child in ast.iter_child_nodes(node)))


# --- the order of streams, on a machine that only writes down what it is told ---------------------------------------
DESTROYED = 0x7F00  # the consumer's stream, when it lets go


class FakeMachine:
    """Events of a GPU: `done` says whether they have happened."""

    kind = "cuda"

    def __init__(self) -> None:
        self.log: list[tuple[str, int, int | str]] = []
        self.done = True
        self.events = 0  # alive

    def owns_stream(self, stream: int) -> bool:
        return stream in (5, 7)

    def record_all(self) -> str:
        self.events += 1
        return "all"

    def record_event(self, stream: int) -> int:
        assert stream != DESTROYED, "a driver would crash"
        self.events += 1
        return stream

    def wait_event(self, stream: int, event: int | str) -> None:
        self.log.append(("wait", stream, event))

    def event_done(self, event: int) -> bool:
        return self.done

    def destroy_event(self, event: int | str) -> None:
        self.events -= 1


class FakeBlock:
    """Of a stream; `users`: the others that it was told of."""

    def __init__(self, stream: int = 0) -> None:
        self.stream = stream
        self.users: list[int] = []

    def record_stream(self, stream: int) -> None:
        self.users.append(stream)


class FakeDevice:
    kind = "cuda"
    ordinal = 0

    def __init__(self) -> None:
        self.backend = FakeMachine()


@pytest.mark.parametrize(
    ("asked", "waits"),
    [(None, []), (1, []), (-1, []), (2, [("wait", 2, 0)]), (0x7F00, [("wait", 0x7F00, 0)])],
)
def test_the_consumer_s_stream_waits_for_ours(asked, waits):
    device = FakeDevice()
    dlpack._make_wait(device, FakeBlock(), dlpack._consumers_stream(SimpleNamespace(device=device), asked))
    assert device.backend.log == waits and device.backend.events == 0


@pytest.mark.parametrize(
    ("asked", "home", "waits"),
    [
        (None, 0, []),
        (1, 0, []),
        (-1, 0, [("wait", 0, "all")]),  # it may have used any
        (2, 0, [("wait", 0, "all")]),  # another one in every thread
        (DESTROYED, 0, [("wait", 0, "all")]),  # another library's may be gone by now
        (None, 5, [("wait", 5, 1)]),
        (5, 5, []),
        (7, 5, [("wait", 5, 7)]),  # ours, which is never destroyed
    ],
)
def test_what_gets_the_memory_next_waits_for_the_consumer(asked, home, waits):
    device = FakeDevice()
    stream = dlpack._consumers_stream(SimpleNamespace(device=device), asked)
    dlpack._make_reuse_wait(device, FakeBlock(home), stream)
    assert device.backend.log == waits and device.backend.events == 0


def test_an_owner_is_held_until_the_work_that_uses_its_memory_is_done():
    device, owner = FakeDevice(), Watched()
    alive = weakref.ref(owner)
    block = foreign.ForeignBlock(device, 0x1000, 4, owner)
    block.record_stream(7)
    device.backend.done = False
    del owner
    block.pool.free(block)
    foreign.settle()
    assert alive() is not None and device.backend.events == 2
    device.backend.done = True
    foreign.settle()
    assert alive() is None and device.backend.events == 0


def test_streams_are_checked_before_anything_is_done():
    x = SimpleNamespace(device=FakeDevice())
    for wrong in (0, -2, "x", 1.5):
        with pytest.raises(BufferError, match="stream="):
            dlpack._consumers_stream(x, wrong)
    for right, number in ((None, 1), (-1, -1), (1, 1), (2, 2), (0x7F00, 0x7F00)):
        assert dlpack._consumers_stream(x, right) == number


# --- other libraries ------------------------------------------------------------------------------------------------
def test_torch_both_ways():
    torch = pytest.importorskip("torch")
    assert fn.zeros(2, device=torch.device("cpu")).device == fn.Device.cpu()
    for dtype in (fn.float32, fn.bfloat16, fn.float16, fn.int64, fn.bool):
        x = fn.ones((2, 3), dtype=dtype)
        there = torch.from_dlpack(x.mT)
        assert there.data_ptr() == x.address and there.stride() == (1, 3)
        back = from_dlpack(there)
        assert back.address == x.address and back.dtype is dtype
        del there, back
        assert pins(x) == 0
    source = torch.arange(6.0).reshape(2, 3).T
    taken = fn.asarray(source)
    assert taken.address == source.data_ptr() and taken.strides == source.stride()
    for take in (from_dlpack, fn.asarray):
        with pytest.raises(ShareError, match="from_dlpack: Tensor does not share its memory: .*detach"):
            take(torch.ones(2, requires_grad=True))


def test_jax_both_ways():
    jax = pytest.importorskip("jax")
    x = fn.arange(6, dtype=fn.float32).reshape(2, 3)
    np.testing.assert_array_equal(np.asarray(jax.numpy.from_dlpack(x)), x.numpy())
    array = jax.numpy.arange(4.0)
    assert from_dlpack(array).address == array.unsafe_buffer_pointer()


def test_a_process_may_end_while_others_hold_memory():
    code = """
import numpy as np, flame_numba as fn
with fn.Device.cpu():
    x = fn.ones((1000,)); a = np.from_dlpack(x); b = x.numpy(copy=False); c = x.__dlpack__(); y = fn.from_dlpack(a)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=_environment())
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.parametrize("held_by", ["sys", "builtins", "a cycle", "a thread", "numpy"])
@pytest.mark.parametrize("what", ["theirs", "ours"])
def test_no_order_of_teardown_prints_or_crashes(held_by, what):
    """`theirs`: memory of a library whose deleter is Python, as it ends with Python; `ours`: arrays over our memory."""
    code = """
import builtins, ctypes, sys, threading, time
import numpy as np, flame_numba as fn
from flame_numba.interop import abi

class Library:
    def __init__(self):
        self.source = np.ones(1000, np.float32).__dlpack__()
        self.managed = abi.look_into(self.source)
        self.deleter = abi._Deleter(lambda address: helper())
        self.managed.deleter = ctypes.cast(self.deleter, ctypes.c_void_p).value
    def __dlpack_device__(self):
        return (1, 0)
    def __dlpack__(self, **keywords):
        return self.source

def helper():
    pass  # one of the names that go

with fn.Device.cpu():
    if sys.argv[2] == "theirs":
        library = Library()
        held = [fn.from_dlpack(library), library]
        held += [held[0] * 2, held[0].numpy(copy=False)]
    else:
        x = fn.ones((1000,))
        held = [np.from_dlpack(x), x.numpy(copy=False), x.__dlpack__(), fn.pinned_empty((3,))]
        held.append(x.device.new_stream().record())
        del x
owner = sys.argv[1]
if owner == "a thread":
    running = threading.Event()
    def loop(held):
        device = fn.Device.cpu()
        y = fn.ones((1 << 16,), device=device)
        running.set()
        while True:
            y = y + 1
    threading.Thread(target=loop, args=(held,), daemon=True).start()
    running.wait()
elif owner == "a cycle":
    held.append(held)
else:
    sys.modules[owner].held = held
del held
"""
    command = [sys.executable, "-c", code, held_by, what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=_environment())
    assert done.returncode == 0 and not done.stderr, (done.returncode, done.stderr)


def _environment() -> dict[str, str]:
    import os
    from pathlib import Path

    source = Path(fn.__file__).parent.parent
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")])}
