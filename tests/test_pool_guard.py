"""`PoolConfig(guard=True)`: writes out of bounds and after a free are found, and nothing else is."""

from __future__ import annotations

import ctypes
import random

import numpy as np
import pytest

import flame_numba as fn
from flame_numba.devices import Device
from flame_numba.errors import ConfigError, PoolError
from flame_numba.pool import Block, MemoryPool, PoolConfig
from pool_books import Contents, check_books

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture(params=["virtual", "segments", "direct"])
def pool(request: pytest.FixtureRequest, device: Device) -> MemoryPool:
    return MemoryPool(device, PoolConfig(guard=True, backend=request.param))


def write(pool: MemoryPool, address: int, nbytes: int = 1, byte: int = 7) -> None:
    source = ctypes.create_string_buffer(bytes([byte]) * nbytes, nbytes)
    pool.backend.upload(address, ctypes.addressof(source), nbytes)


def read(pool: MemoryPool, block: Block) -> bytes:
    found = ctypes.create_string_buffer(block.nbytes)
    pool.backend.download(ctypes.addressof(found), block.address, block.nbytes)
    return found.raw


def test_new_memory_is_full_of_nans(pool: MemoryPool) -> None:
    block = pool.allocate(4000)
    assert np.isnan(np.frombuffer(read(pool, block), np.float32)).all()
    assert np.isnan(np.frombuffer(read(pool, block), np.float64)).all()
    write(pool, block.address, 4000)
    block.free()
    assert np.isnan(np.frombuffer(read(pool, pool.allocate(4000)), np.float16)).all()


@pytest.mark.parametrize("nbytes", [1, 255, 256, 1000, 70_000])
def test_every_byte_inside_may_be_written(pool: MemoryPool, nbytes: int) -> None:
    block = pool.allocate(nbytes)
    write(pool, block.address, nbytes)
    pool.check()
    block.free()
    pool.check()


OUTSIDE = {
    -1: "1 bytes before its start",
    -256: "256 bytes before its start",
    1000: "1 bytes past its end",
    1200: "201 bytes past its end",
}


@pytest.mark.parametrize(("offset", "words"), OUTSIDE.items())
def test_a_write_out_of_bounds_is_found(pool: MemoryPool, offset: int, words: str) -> None:
    block, other = pool.allocate(1000), pool.allocate(1000)
    write(pool, block.address + offset)
    with pytest.raises(PoolError, match=rf"Block\(1000 bytes at .* was written {words}"):
        pool.check()
    with pytest.raises(PoolError, match=f"free: .*{words}"):
        block.free()
    assert not block.alive
    pool.check()
    check_books(pool, [other])
    other.free()


def test_a_write_after_a_free_is_found(device: Device) -> None:
    for backend in ("virtual", "segments"):
        pool = MemoryPool(device, PoolConfig(guard=True, backend=backend))
        kept, block = pool.allocate(1000), pool.allocate(5000)
        address = block.address
        block.free()
        write(pool, address + 77)
        with pytest.raises(PoolError, match="free memory at .* was written"):
            pool.check()
        with pytest.raises(PoolError, match="allocate: memory was written after it was freed"):
            pool.allocate(5000)
        check_books(pool, [kept])
        again = pool.allocate(5000)  # told once
        pool.check()
        check_books(pool, [kept, again])


def test_moving_blocks_keeps_their_zones(device: Device) -> None:
    for backend in ("virtual", "segments"):
        pool = MemoryPool(device, PoolConfig(guard=True, backend=backend, segment=("1 MiB", "1 MiB"), limit="4 MiB"))
        contents, rng = Contents(pool), random.Random(2)
        for _ in range(6):
            for _ in range(20):
                contents.allocate(rng.randint(1, 50 * KIB))
            for block in rng.sample(list(contents.written), 12):
                contents.free(block)
            pool.defragment(max_bytes=rng.choice([None, 100 * KIB]))
            pool.check()
            contents.check()
            check_books(pool, contents.written)
        assert pool.stats().moves > 0
        for block in list(contents.written):
            contents.free(block)
        pool.check()


def test_only_a_guarded_pool_can_be_checked(device: Device) -> None:
    with pytest.raises(ConfigError, match="guard=True"):
        MemoryPool(device).check()
    with pytest.raises(ConfigError, match="guard='yes'"):
        PoolConfig(guard="yes")  # type: ignore[arg-type]


def test_a_program_runs_as_ever(pool: MemoryPool) -> None:
    with pool.use():
        x = fn.asarray(np.arange(1000, dtype=np.float32)).requires_grad_()
        y = (x * x + 1).sum()
        y.backward()
        np.testing.assert_array_equal(x.grad.numpy(), 2 * np.arange(1000))
        pool.check()
        del x, y
    pool.check()
