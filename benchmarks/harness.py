"""Times the same work of this library and of its peers, in turns, in one process.

Each measurement: all contenders get the same data; their results are compared before any is timed; then they are
called in turns, round after round, so that what the machine does meanwhile (clocks, neighbours) meets all alike. A
round times a batch of calls: with CUDA events for the device's time, with the host's clock for what a call costs the
caller. Reported is the median of the rounds, and the ratio to ours: above 1 the peer is slower.

Warmed up, and memory in use only after it was written: no first touch, no compilation is timed.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from time import perf_counter
from typing import Any

import ml_dtypes
import numpy as np

import flame_numba as fn

US = "flame_numba"
Call = Callable[[], Any]


@dataclass(frozen=True)
class Peer:
    """Another library: how data comes to it, how results come back, and how its queue is waited for."""

    name: str
    module: Any
    put: Callable[[np.ndarray[Any, Any]], Any]
    get: Callable[[Any], np.ndarray[Any, Any]]
    wait: Call
    on_device: bool


@dataclass(frozen=True)
class Job:
    """One row of the tables.

    make: (library's name, its module, operands put there) → the call to time, or None where it cannot do that.
    nbytes and flops are the least that the work needs, for the rates. host: time the caller, not the device.
    """

    group: str
    name: str
    operands: Sequence[np.ndarray[Any, Any]]
    make: Callable[[str, Any, Sequence[Any]], Call | None]
    nbytes: int = 0
    flops: int = 0
    host: bool = False
    tolerance: float = 1e-5  # ‖result − ours‖ / ‖ours‖ that is taken for the same answer


@dataclass
class Result:
    """Median seconds a call, by library; `notes` says why one is missing."""

    group: str
    name: str
    unit: str
    seconds: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    spread: float = 0.0  # of our rounds: (third quartile − first) / median
    nbytes: int = 0
    flops: int = 0

    def rate(self, name: str) -> str:
        seconds = self.seconds[name]
        if self.flops:
            return f"{self.flops / seconds / 1e12:.1f} TFLOP/s"
        return f"{self.nbytes / seconds / 1e12:.2f} TB/s" if self.nbytes else ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Bench:
    """The contenders of this machine: ours on `device`, and the peers that are installed."""

    def __init__(self, device: fn.Device, rounds: int = 15) -> None:
        self.device = device
        self.rounds = rounds
        self.absent: dict[str, str] = {}
        self.peers = [peer for name, find in FINDERS.items() if (peer := self._find(name, find))]

    def _find(self, name: str, find: Callable[[fn.Device], Peer]) -> Peer | None:
        try:
            return find(self.device)
        except Exception as error:  # a peer may fail to start in any way: it is then absent, and says why
            self.absent[name] = f"absent: {error}"
            return None

    @property
    def names(self) -> list[str]:
        """All columns, the absent ones too."""
        wanted = ["torch", "cupy" if self.device.kind == "cuda" else "numpy"]
        return [US, *wanted]

    def run(self, job: Job) -> Result:
        result = Result(job.group, job.name, "µs", nbytes=job.nbytes, flops=job.flops)
        result.notes.update(self.absent)
        calls: dict[str, Call] = {}
        with self.device, fn.no_grad():
            ours = [fn.asarray(x, device=self.device) for x in job.operands]
        made = job.make(US, fn, ours)
        assert made is not None
        calls[US] = made
        expected = _wide(made().numpy())
        for peer in self.peers:
            made = job.make(peer.name, peer.module, [peer.put(x) for x in job.operands])
            if made is None:
                result.notes[peer.name] = "has none"
                continue
            error = _distance(_wide(peer.get(made())), expected)
            if error <= job.tolerance:
                calls[peer.name] = made
            else:
                result.notes[peer.name] = f"another answer ({error:.1e} off)"
        times = self._time(calls, job.host)
        result.seconds = {name: median(values) for name, values in times.items()}
        ordered = sorted(times[US])
        result.spread = (ordered[3 * len(ordered) // 4] - ordered[len(ordered) // 4]) / result.seconds[US]
        return result

    def clean(self) -> None:
        """Give cached memory back between jobs, so that every library finds the same room."""
        gc.collect()
        self.device.synchronize()
        fn.default_pool(self.device).trim()
        for peer in self.peers:
            if peer.name == "torch" and peer.on_device:
                peer.module.cuda.empty_cache()
            if peer.name == "cupy":
                peer.module.get_default_memory_pool().free_all_blocks()

    def _time(self, calls: dict[str, Call], host: bool) -> dict[str, list[float]]:
        """Seconds a call, one value a round."""
        waits = {US: self.device.synchronize, **{peer.name: peer.wait for peer in self.peers}}
        clock = self._host_clock if host or self.device.kind != "cuda" else self._device_clock
        counts = {}
        for name, call in calls.items():
            for _ in range(3):
                call()
            waits[name]()
            counts[name] = _count(call, waits[name], few=64 if host else 1)
        times: dict[str, list[float]] = {name: [] for name in calls}
        gc.collect()
        gc.disable()
        try:
            for turn in range(self.rounds):
                order = list(calls) if turn % 2 == 0 else list(reversed(calls))
                for name in order:
                    times[name].append(clock(calls[name], counts[name], waits[name]))
        finally:
            gc.enable()
        return times

    def _host_clock(self, call: Call, count: int, wait: Call) -> float:
        wait()
        start = perf_counter()
        for _ in range(count):
            call()
        if self.device.kind != "cuda":
            wait()  # on the CPU the call is the work
        seconds = perf_counter() - start
        wait()
        return seconds / count

    def _device_clock(self, call: Call, count: int, wait: Call) -> float:
        """Between two events on the default stream, which all contenders use."""
        backend = self.device.backend
        wait()
        start = backend.record_event(timing=True)
        for _ in range(count):
            call()
        return backend.elapsed_ms(start, backend.record_event(timing=True)) / 1e3 / count


def _count(call: Call, wait: Call, few: int) -> int:
    """Calls a round: some 20 ms of them."""
    start = perf_counter()
    for _ in range(few):
        call()
    wait()
    return max(few, min(2000, int(0.02 / ((perf_counter() - start) / few))))


def _wide(x: Any) -> np.ndarray[Any, Any]:
    """In f64; of a large result some four million elements, spread over all of it."""
    host = np.asarray(x)
    return host.reshape(-1)[:: (host.size >> 22) + 1].astype(np.float64) if host.size >> 22 else host.astype(np.float64)


def _distance(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    if a.shape != b.shape:
        return float("inf")
    scale = float(np.linalg.norm(b)) or 1.0
    return float(np.linalg.norm(a - b)) / scale


# --- the peers -----------------------------------------------------------------------------------------------------
def _torch(device: fn.Device) -> Peer:
    torch = importlib.import_module("torch")
    where = "cuda" if device.kind == "cuda" else "cpu"
    if where == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("this PyTorch sees no GPU")
    if where == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False  # f32 is f32, as ours
    torch.set_grad_enabled(True)

    def put(x: np.ndarray[Any, Any]) -> Any:
        if x.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16).to(where)
        return torch.from_numpy(x.copy()).to(where)

    def get(y: Any) -> np.ndarray[Any, Any]:
        y = y.detach()
        return (y.float() if y.dtype == torch.bfloat16 else y).cpu().numpy()  # type: ignore[no-any-return]

    return Peer("torch", torch, put, get, torch.cuda.synchronize if where == "cuda" else _nothing, where == "cuda")


def _cupy(device: fn.Device) -> Peer:
    if device.kind != "cuda":
        raise RuntimeError("needs a GPU")
    cupy = importlib.import_module("cupy")

    def put(x: np.ndarray[Any, Any]) -> Any:
        if x.dtype == ml_dtypes.bfloat16:
            return None
        return cupy.asarray(x)

    return Peer("cupy", cupy, put, cupy.asnumpy, cupy.cuda.get_current_stream().synchronize, True)


def _numpy(device: fn.Device) -> Peer:
    if device.kind != "cpu":
        raise RuntimeError("runs on the CPU only")
    return Peer("numpy", np, np.copy, np.asarray, _nothing, False)


def _nothing() -> None:
    return


FINDERS: dict[str, Callable[[fn.Device], Peer]] = {"torch": _torch, "cupy": _cupy, "numpy": _numpy}


# --- the tables ----------------------------------------------------------------------------------------------------
def tables(results: Sequence[Result], names: Sequence[str]) -> Iterator[str]:
    """A Markdown table a group: µs a call, and how many times ours each peer takes."""
    for group in dict.fromkeys(r.group for r in results):
        yield f"### {group}\n"
        peers = [name for name in names if name != US]
        yield f"| | {US} µs | spread | rate | " + " | ".join(f"{p} µs | {p} ÷ ours" for p in peers) + " |"
        yield "|---" * (4 + 2 * len(peers)) + "|"
        for r in results:
            if r.group == group:
                cells = [r.name, f"{r.seconds[US] * 1e6:,.2f}", f"{100 * r.spread:.1f} %", r.rate(US)]
                for p in peers:
                    if p in r.seconds:
                        cells += [f"{r.seconds[p] * 1e6:,.2f}", f"{r.seconds[p] / r.seconds[US]:.2f}"]
                    else:
                        cells += [r.notes.get(p, "absent").partition(":")[0], ""]
                yield "| " + " | ".join(cells) + " |"
        yield ""
