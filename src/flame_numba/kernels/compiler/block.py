"""Cooperation of a block's threads. On a machine of one thread each of these is the identity."""

from __future__ import annotations

from ..language import THREADS, Number, Pointer, barrier, combine, thread_index


def block_combine(partial: Pointer, value: Number) -> Number:
    """All threads' values combined, in a fixed order, known to every thread. `partial`: THREADS shared elements."""
    t = thread_index()
    partial[t] = value
    barrier()
    half = THREADS // 2
    while half > 0:
        if t < half:
            partial[t] = combine(partial[t], partial[t + half])
        barrier()
        half //= 2
    total = partial[0]
    barrier()  # the shared memory may be written again after this
    return total


def add(a: Number, b: Number) -> Number:
    return a + b


def largest(a: Number, b: Number) -> Number:
    """The larger; NaN if either is."""
    return a if a > b or a != a else b
