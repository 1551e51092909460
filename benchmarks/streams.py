"""What streams cost the host: work in a new one, after many that are gone, and an operand that another one owns.

    PYTHONPATH=src python benchmarks/streams.py [--device cpu]

`new stream`: made, entered, a small op run in it, dropped. `all at once`: the same after so many lived together.
`launch`: a small op in a stream, on an operand of that stream or of stream 0; `new operand`: made for each launch, and
timed with it. `block`: `Block.record_stream` alone, said again. Each is the median of 200, of the best of five rounds;
the short-lived streams of the rounds themselves come on top of those that a row names.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter_ns

import flame_numba as fn
from flame_numba.devices import Device, Stream
from flame_numba.pool import MemoryPool

ROUNDS, CALLS = 5, 200
SHORT_LIVED = (10, 400, 100_000)
AT_ONCE = 1000


def microseconds(call: Callable[[], object]) -> float:
    medians = []
    for _ in range(ROUNDS):
        times = []
        for _ in range(CALLS):
            start = perf_counter_ns()
            call()
            times.append(perf_counter_ns() - start)
        medians.append(median(times))
    return min(medians) / 1e3


def once(device: Device, x: fn.Tensor) -> None:
    """An op in a stream of its own."""
    with device.new_stream():
        x + 1.0


def fresh(device: Device, stream: Stream) -> fn.Tensor:
    with stream:
        return fn.empty((16,), device=device)


def report(row: str, value: float, pool: MemoryPool) -> None:
    ladder = pool._ladder
    print(f"{row:<48} {value:>8.2f} µs   {len(ladder.lanes)} lanes, {len(ladder.streams.known)} streams known")


def new_streams(device: Device, most: int) -> None:
    with MemoryPool(device).use() as pool:
        x, gone = fn.ones((16,), device=device), 0
        for wanted in SHORT_LIVED:
            if wanted > most:
                break
            while gone < wanted:
                once(device, x)
                gone += 1
            report(f"new stream, after {gone:,} short-lived", microseconds(lambda: once(device, x)), pool)
            gone += ROUNDS * CALLS
    with MemoryPool(device).use() as pool:
        x = fn.ones((16,), device=device)
        streams = [device.new_stream() for _ in range(AT_ONCE)]
        for stream in streams:
            with stream:
                x + 1.0
        del stream
        streams.clear()
        report(f"new stream, after {AT_ONCE:,} all at once", microseconds(lambda: once(device, x)), pool)


def launches(device: Device) -> None:
    stream = device.new_stream()
    with MemoryPool(device).use() as pool:
        theirs = fn.ones((16,), device=device)
        stream.wait(device.current_stream())
        with stream:
            ours = fn.ones((16,), device=device)
            report("launch, operand of the same stream", microseconds(lambda: ours + 1.0), pool)
            report("launch, operand of stream 0", microseconds(lambda: theirs + 1.0), pool)
            report("reduction, operand of the same stream", microseconds(ours.sum), pool)
            report("reduction, operand of stream 0", microseconds(theirs.sum), pool)
            report("launch, new operand of the same stream", microseconds(lambda: fresh(device, stream) + 1.0), pool)
            zero = fn.cuda.default_stream(device)
            report("launch, new operand of stream 0", microseconds(lambda: fresh(device, zero) + 1.0), pool)
        block, number = theirs.storage.block, stream.handle
        report("block, record_stream again", microseconds(lambda: block.record_stream(number)), pool)


def main() -> None:
    parser = argparse.ArgumentParser(description="What streams cost the host.")
    parser.add_argument("--device", default="")
    parser.add_argument("--most", type=int, default=max(SHORT_LIVED), help="short-lived streams")
    given = parser.parse_args()
    device = Device.parse(given.device) if given.device else fn.default_device()
    launches(device)
    new_streams(device, given.most)


if __name__ == "__main__":
    main()
