"""Replaying traces: the numbers of small programs, many streams, limits, and the smallest limit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from flame_numba.devices import Device
from flame_numba.errors import ConfigError
from flame_numba.memory.traces import TraceError, read_trace
from flame_numba.pool import PoolConfig
from flame_numba.replay import replay, smallest_limit

MIB = 1 << 20
HEADER = "op,id,bytes,stream"


def write(path: Path, *rows: str) -> Path:
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


def checkerboard(path: Path, n: int = 64, nbytes: int = 4 * MIB) -> Path:
    """n blocks, every second freed, then one as large as all the holes: reserved is live again only by moving."""
    rows = [f"a,{i},{nbytes},0" for i in range(n)] + [f"f,{i},0,0" for i in range(0, n, 2)]
    return write(path, *rows, f"a,big,{n // 2 * nbytes},0")


def test_a_program_of_one_block(tmp_path: Path) -> None:
    result = replay(write(tmp_path / "t.csv", "a,0,67108864,0", "f,0,0,0"))
    assert (result.peak_live, result.allocations, result.out_of_memory, result.failed_at) == (64 * MIB, 1, False, None)
    assert result.ratio == result.peak_reserved / result.peak_live >= 1
    assert result.ratio_after_defragment == 1.0
    assert result.driver_calls >= 1 and result.seconds > 0


def test_an_empty_program(tmp_path: Path) -> None:
    result = replay(write(tmp_path / "t.csv"))
    assert (result.peak_live, result.peak_reserved, result.ratio, result.ratio_after_defragment) == (0, 0, 1.0, 1.0)


def test_blocks_without_bytes(tmp_path: Path) -> None:
    result = replay(write(tmp_path / "t.csv", "a,0,0,0", "a,1,256,0", "f,0,0,0"))
    assert result.peak_live == 256 and not result.out_of_memory


def test_defragment_brings_the_checkerboard_together(tmp_path: Path) -> None:
    result = replay(checkerboard(tmp_path / "t.csv"), config=PoolConfig(limit=256 * MIB))
    assert result.peak_live == 256 * MIB and not result.out_of_memory
    assert result.ratio <= 1.0 and result.ratio_after_defragment == 1.0


def test_several_streams(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows, live = [], []
    for i in range(400):
        rows.append(f"a,{i},{rng.randint(1, 4 * MIB)},{rng.choice((0, 3, 9))}")
        live.append(i)
        if len(live) > 20:
            rows.append(f"f,{live.pop(rng.randrange(len(live)))},0,0")
    result = replay(write(tmp_path / "t.csv", *rows))
    assert result.allocations == 400 and not result.out_of_memory
    assert result.ratio_after_defragment is not None and result.ratio_after_defragment >= 1


def test_running_out_of_memory_says_where(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "a,0,1048576,0", "a,1,1048576,0", "f,0,0,0", "a,2,4194304,0", "f,2,0,0")
    result = replay(path, config=PoolConfig(limit="4 MiB"))
    assert result.out_of_memory and result.failed_at == 3
    assert result.peak_live == 5 * MIB and result.peak_reserved <= 4 * MIB
    assert result.ratio_after_defragment is None
    assert not replay(path, config=PoolConfig(limit="5 MiB")).out_of_memory


def test_the_device_is_as_it_was(tmp_path: Path) -> None:
    device = Device.simulated(1 << 33)
    path = checkerboard(tmp_path / "t.csv", n=16)
    assert replay(path, device).peak_reserved == replay(path, device).peak_reserved
    replay(path, device, PoolConfig(limit="8 MiB"))
    assert device.memory_info().free == 1 << 33


def test_on_the_cpu(tmp_path: Path) -> None:
    result = replay(checkerboard(tmp_path / "t.csv", n=8, nbytes=65536), Device.cpu())
    assert result.peak_live == 8 * 65536 and not result.out_of_memory


def test_reads_ids_of_any_kind(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path / "t.csv", "a,x,5,0", "f,x,0,0", "a,x,7,2", "a,y,7,0"))
    assert list(trace.steps) == [5, ~0, 7, 7] and list(trace.streams) == [0, 2, 0]
    assert (trace.peak_live, trace.peak_step) == (14, 3)


def test_the_peak_is_taken_where_it_is_last_reached(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path / "t.csv", "a,0,8,0", "f,0,0,0", "a,1,8,0", "f,1,0,0", "a,2,4,0"))
    assert (trace.peak_live, trace.peak_step) == (8, 2)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"t.csv, line 2: id 0 is freed and not live"):
        replay(write(tmp_path / "t.csv", "f,0,0,0"))
    with pytest.raises(FileNotFoundError):
        replay(tmp_path / "absent.csv")
    with pytest.raises(ConfigError, match="limit='0'"):
        replay(write(tmp_path / "t.csv"), config=PoolConfig(limit="0"))


def test_the_smallest_limit(tmp_path: Path) -> None:
    path = checkerboard(tmp_path / "t.csv", n=16, nbytes=5000)  # 5120 in the pool
    limit = smallest_limit(path)
    assert limit == max(16 * 5120, 8 * 5120 + -(-8 * 5000 // 256) * 256)
    assert not replay(path, config=PoolConfig(limit=limit)).out_of_memory
    assert replay(path, config=PoolConfig(limit=limit - 256)).out_of_memory
    assert smallest_limit(write(tmp_path / "e.csv")) == 256
