"""Several threads, and forked processes, on the CPU device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest

import flame_numba as fn
from flame_numba.devices import host, native
from flame_numba.devices.locks import LLVM
from flame_numba.kernels.compiler import compile as compiler
from flame_numba.tape import accumulate


def together(work, count=8):
    """Run `work` in threads that begin at once; what they raised."""
    start, errors = threading.Barrier(count), []

    def go():
        start.wait()
        try:
            work()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=go) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_the_first_kernels_of_all_threads_are_linked_by_one_linker(monkeypatch):
    made = []

    class Linker:
        def __init__(self):
            time.sleep(0.01)
            made.append(self)

        def load(self, image, entry):
            return 1

    monkeypatch.setattr(host, "_Linker", Linker)
    monkeypatch.setattr(host, "_LINKERS", [])
    assert not together(lambda: host.HostExecutable(b"", "entry", "p"))
    assert len(made) == 1


def test_the_first_exports_of_all_threads_share_one_callback(monkeypatch):
    compiled = []

    def compile(name, body):
        time.sleep(0.01)  # all threads are here by now, if they can be
        compiled.append(name)
        return len(compiled)

    monkeypatch.setattr(native, "_compile", compile)
    monkeypatch.setattr(native, "_MADE", {})
    found = []

    def callback(address):
        """What a library would call."""

    assert not together(lambda: found.append(native.shielded(callback)))
    assert found == [1] * 8 and len(compiled) == 1


def test_the_first_exports_of_a_process_may_come_from_many_threads():
    code = """
import threading
import numpy as np, flame_numba as fn
with fn.Device.cpu():
    tensors = [fn.full((100,), float(i)) for i in range(8)]
gate, wrong = threading.Barrier(8), []
def work(i):
    gate.wait()
    wrong.extend(i for _ in range(20) if np.from_dlpack(tensors[i])[0] != i)
threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not wrong and all(x.storage.block.pins == 0 for x in tensors)
"""
    for _ in range(3):  # without the lock, nearly all processes crashed
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and not done.stderr, (done.returncode, done.stderr)


def test_a_fault_is_raised_in_the_thread_that_made_it(monkeypatch):
    x, bad, nothing = fn.ones((3,), device="cpu"), fn.asarray([1, 99], device="cpu"), fn.ones((0,), device="cpu")
    launch, done, innocent = host.HostExecutable.launch, threading.Event(), []

    def slowly(self, *args):
        launch(self, *args)
        time.sleep(0.01)

    def read():
        while not done.is_set():
            try:
                nothing.numpy()
            except fn.IndexOutOfRange as error:
                innocent.append(error)

    monkeypatch.setattr(host.HostExecutable, "launch", slowly)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        for call in (lambda: x[bad], lambda: fn.cross_entropy(x.reshape(1, 3), bad[1:]).item()):
            with pytest.raises(fn.IndexOutOfRange):
                call()
        with pytest.raises(fn.ConfigError, match="weights must be"):
            fn.multinomial(-x, 2)
    finally:
        done.set()
        reader.join()
    assert not innocent


LOCKS = [
    lambda: fn.Device.cpu().backend.lock,
    lambda: LLVM,
    lambda: accumulate._GRADIENTS,
    lambda: compiler._compiling(),
]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_process_may_be_forked_while_a_thread_computes(lock):
    x = fn.ones((3,), device="cpu").requires_grad_()
    (x + 1).sum().backward()
    held = threading.Event()

    def compute():
        with lock():
            held.set()
            time.sleep(0.1)

    thread = threading.Thread(target=compute)
    thread.start()
    held.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
        child = os.fork()
    if child == 0:
        signal.alarm(5)  # ends it if it hangs
        failed = True
        try:
            with lock():
                pass
            (x + 1).sum().backward()
            failed = x.grad.tolist() != [2, 2, 2]
        finally:
            os._exit(failed)
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
