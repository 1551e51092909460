"""This library beside PyTorch and CuPy (on the CPU device: beside PyTorch and NumPy), as Markdown tables.

    make bench
    PYTHONPATH=src python benchmarks/run.py [--only small,add,…] [--device cpu] [--json FILE]

`harness.py` says how it is measured, `ops.py` and `kernels.py` what; `RESULTS.md` holds a run and how to read it.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from time import perf_counter

import numpy as np

if not hasattr(np, "row_stack"):  # numba-cuda 0.30 asks for it; NumPy 2.5 removed it. Nothing is installed here
    np.row_stack = np.vstack  # type: ignore[attr-defined]

sys.path.insert(0, str(Path(__file__).resolve().parent))

import kernels
import ops
from harness import Bench, Job, Result, tables

import flame_numba as fn


def rows(on_gpu: bool) -> dict[str, Callable[[], Iterator[Job]]]:
    return {**ops.rows(on_gpu), **kernels.rows(on_gpu)}


def heading(device: fn.Device, bench: Bench) -> str:
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    for package in ("numba", "numba-cuda", "torch", "cupy", "cupy-cuda13x", "cupy-cuda12x"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    lines = [f"{device.name}; " + ", ".join(f"{name} {version}" for name, version in versions.items())]
    lines += [f"{name} {why}" for name, why in bench.absent.items() if name in bench.names]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Benchmarks beside PyTorch and CuPy.")
    parser.add_argument("--only", default="", metavar="NAME,…", help=f"of {', '.join(rows(True))}")
    parser.add_argument("--device", default=None, help="cuda, cuda:N or cpu (default: the first GPU, else cpu)")
    parser.add_argument("--rounds", type=int, default=15, help="timings of each contender (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the numbers, in seconds")
    given = parser.parse_args(argv)
    device = fn.Device.parse(given.device) if given.device else fn.default_device()
    jobs = rows(device.kind == "cuda")
    names = [name for name in given.only.split(",") if name] or list(jobs)
    if unknown := [name for name in names if name not in jobs]:
        parser.error(f"no such row: {', '.join(unknown)} (there are {', '.join(jobs)})")
    with device:
        bench = Bench(device, given.rounds)
        print(heading(device, bench), flush=True)
        results: list[Result] = []
        for name in names:
            start = perf_counter()
            for job in jobs[name]():
                results.append(bench.run(job))
                bench.clean()
            print(f"{name}: {perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    print("\n".join(tables(results, bench.names)))
    if given.json:
        report = {"device": device.name, "results": [result.as_json() for result in results]}
        given.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
