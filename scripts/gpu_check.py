"""Everything that needs a GPU, with the Python at hand and nothing installed: what `make gpu` runs.

    python scripts/gpu_check.py [--only STAGE,…] [--skip STAGE,…] [--checks CHECK,…] [--out DIR] [--jobs N]

Stages: info; gpu (tests/gpu); property and unit (the generated and the other tests, on CUDA); sanitizer (memcheck over
tests/gpu, racecheck and initcheck over every op: --checks picks); recipes (Fashion-MNIST, its folder in
$FASHION_MNIST); digits. Each stage writes its output to DIR; the end is one table. The exit status is 0 if nothing
failed. What could not run is `absent` or `skipped`, and is no pass.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SHIM = Path(__file__).resolve().parent / "gpu_shim"  # see its sitecustomize.py
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--device", "cuda"]
CLI = [sys.executable, "-u", "-m", "flame_numba.cli"]


class Row(NamedTuple):
    """A line of the table."""

    what: str
    result: str  # "pass", "FAIL", "absent" or "skipped"
    detail: str
    seconds: float = 0.0


@dataclass
class Run:
    """Where this run writes, and how wide it may spread."""

    out: Path
    jobs: int
    environment: dict[str, str] = field(default_factory=dict)
    checks: Sequence[str] = ("memcheck", "racecheck", "initcheck")

    def log(self, name: str) -> Path:
        return self.out / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.log"

    def workers(self, most: int) -> list[str]:
        """Options for pytest-xdist, if it is here."""
        count = min(most, self.jobs)
        return ["-n", str(count)] if count > 1 and importlib.util.find_spec("xdist") else []

    def start(self, name: str, command: Sequence[str], **extra: str) -> subprocess.Popen[bytes]:
        with self.log(name).open("wb") as log:
            log.write((" ".join(command) + "\n\n").encode())
            log.flush()
            return subprocess.Popen(
                command, cwd=ROOT, env={**self.environment, **extra}, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def text(self, name: str) -> str:
        return self.log(name).read_text(errors="replace")


def finish(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Wait; '' if it ended with status 0, else what happened. A process out of time is stopped with its children."""
    try:
        status = process.wait(max(seconds, 1))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return "out of time"
    return "" if status == 0 else f"exit status {status}"


def command(run: Run, name: str, argv: Sequence[str], limit: float, judge: Callable[[str], str], **extra: str) -> Row:
    """Run one command. judge: its output → what is wrong with it, or '' and what to show after a `|`."""
    start = time.monotonic()
    wrong = finish(run.start(name, argv, **extra), limit)
    found = judge(run.text(name))
    problem, _, detail = found.partition("|")
    wrong = ", ".join(filter(None, (wrong, problem)))
    shown = "; ".join(filter(None, (wrong, detail)))
    return Row(name, "FAIL" if wrong else "pass", shown, time.monotonic() - start)


# --- what an output says -------------------------------------------------------------------------------------------
def pytest_counts(text: str) -> str:
    """pytest's closing line: failures and errors are problems, and so is a run without a test."""
    counts: dict[str, int] = {}
    for line in reversed(text.splitlines()):
        found = re.findall(r"(\d+) (passed|failed|skipped|errors?|xfailed|xpassed)\b", line)
        if found and re.search(r" in [\d.]+s", line):
            counts = {word.removesuffix("s") if word.startswith("error") else word: int(n) for n, word in found}
            break
    bad = [f"{counts[word]} {word}" for word in ("failed", "error") if counts.get(word)]
    if not counts.get("passed"):
        bad.append("no test passed")
    shown = ", ".join(f"{n} {word}" for word, n in counts.items() if word not in ("failed", "error"))
    return f"{', '.join(bad)}|{shown}"


def sanitizer_counts(text: str) -> str:
    """compute-sanitizer's summaries: one a process, each of which must say 0."""
    summaries = re.findall(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", text)
    found = sum(int(a or b) for a, b in summaries)
    problem, _, shown = pytest_counts(text).partition("|")
    if not summaries:
        problem = ", ".join(filter(None, (problem, "the sanitizer gave no summary")))
    elif found:
        problem = ", ".join(filter(None, (problem, f"{found} reported by the sanitizer")))
    return f"{problem}|{shown}, {found} reported"


def within(**bands: tuple[float, float]) -> Callable[[str], str]:
    """Judge the closing lines of a training: `test_loss=(1.06, 1.11)` reads the line `test loss: …`."""

    def judge(text: str) -> str:
        wrong, shown = [], []
        for key, (low, high) in bands.items():
            label = key.replace("_", " ")
            found = re.findall(rf"^{label}: ([-+.\deinfa]+)", text, re.M)
            value = float(found[-1]) if found else float("nan")
            shown.append(f"{label} {value:.4f}")
            if not low <= value <= high:
                wrong.append(f"{label} is not in {low} … {high}")
        return f"{', '.join(wrong)}|{', '.join(shown)}"

    return judge


# --- the stages ----------------------------------------------------------------------------------------------------
def info(run: Run) -> Iterator[Row]:
    def judge(text: str) -> str:
        found = re.search(r"cuda:0\s+(.*)", text)
        return f"|{found[1].split(',')[0]}" if found else "no GPU is listed|"

    yield command(run, "info", [*CLI, "info"], 120, judge)


def gpu(run: Run) -> Iterator[Row]:
    yield command(run, "gpu tests", [*PYTEST, "-m", "gpu", "tests/gpu", *run.workers(8)], 900, pytest_counts)


def generated(run: Run) -> Iterator[Row]:
    # the slow ones too: without them each op would be tested in two of its dtypes only
    every = ["-m", "not gpu and not sm90"]
    yield command(run, "property tests", [*PYTEST, *every, "tests/property", *run.workers(16)], 1200, pytest_counts)


def unit(run: Run) -> Iterator[Row]:
    # these say nothing about a GPU: they are `make test`'s
    leave = ("property", "gpu", "test_docs.py", "test_packaging.py", "test_sm90.py", "test_data.py", "test_plots.py")
    ignore = [f"--ignore=tests/{name}" for name in leave]
    yield command(run, "unit tests", [*PYTEST, "tests", *ignore, *run.workers(12)], 1200, pytest_counts)


_SHARING = (
    "(sums or truth or arg or softmax or norms or cross_entropy or matmul_layouts)"
    " and (float32 or truth) and not bfloat16 and not long"
)  # kernels that share memory
MEMCHECK = {  # shards, run side by side: the sanitizer serves one process. File, and pytest's -k
    "f32": ("test_kernels.py", "float32 and not bfloat16"),
    "bf16": ("test_kernels.py", "bfloat16"),
    "f16, f64": ("test_kernels.py", "(float16 or float64) and not bfloat16"),
    "integers": ("test_kernels.py", "not float"),
    "runtime": ("test_runtime.py", "not pytorch"),
    "training": ("test_training.py", "test"),
    "moves": ("test_moves.py", "as_memmove or checkerboard or places or batch"),
    "pool": ("test_pool.py", "test"),
    "streams": ("test_streams.py", "mappings or refused or bits or reused or moving or foreign or locked"),
}
RACECHECK = {
    "kernels": ("test_kernels.py", _SHARING),
    "moves": ("test_moves.py", "as_memmove"),
}
_SHARDS = {f"ops {i}": ("test_every_op.py", f"shard{i}") for i in range(8)}
CHECKS = {
    "memcheck": MEMCHECK | _SHARDS,
    "racecheck": RACECHECK | _SHARDS,
    "initcheck": _SHARDS,
}


def sanitizer(run: Run) -> Iterator[Row]:
    tool = _find_sanitizer()
    if tool is None:
        yield Row("sanitizer", "absent", "compute-sanitizer is not on PATH or in the CUDA toolkit")
        return
    # failed driver calls are made on purpose by the tests (too much memory, too many threads)
    base = [tool, "--error-exitcode", "9", "--target-processes", "all", "--report-api-errors", "no"]
    # a backtrace keeps the Python frames of each launch alive, and with them every tensor: no memory would be freed
    base += ["--show-backtrace", "no", "--tool"]
    pytest = [*PYTEST, "-p", "no:xdist", "-o", "timeout=0", "-x", "-m", "gpu"]
    start = time.monotonic()
    running = {}
    for check in run.checks:
        for shard, (file, words) in CHECKS[check].items():
            argv = [*base, check, *pytest, f"tests/gpu/{file}", "-k", words]
            name = f"{check} {shard}"
            running[name] = run.start(name, argv, FLAME_NUMBA_SANITIZED=check, OMP_NUM_THREADS="1")
    for name, process in running.items():
        wrong = finish(process, 1500 - (time.monotonic() - start))
        problem, _, shown = sanitizer_counts(run.text(name)).partition("|")
        wrong = ", ".join(filter(None, (wrong, problem)))
        detail = "; ".join(filter(None, (wrong, shown)))
        yield Row(name, "FAIL" if wrong else "pass", detail, time.monotonic() - start)


def _find_sanitizer() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


RECIPES = {
    "quickstart": within(test_accuracy=(0.64, 0.66), test_loss=(1.06, 1.11)),
    "lenet": within(train_loss=(0.45, 0.50)),
}


def recipes(run: Run) -> Iterator[Row]:
    folder = os.environ.get("FASHION_MNIST", "")
    if not folder:
        yield Row("recipes", "skipped", "no data: set FASHION_MNIST to the folder of its four files")
        return
    for recipe, judge in RECIPES.items():
        for precision in ("f32", "bf16"):
            argv = [*CLI, "train", "fashion-mnist", "--device", "cuda", "--data", str(Path(folder).resolve())]
            argv += ["--recipe", recipe, "--precision", precision]
            yield command(run, f"{recipe} {precision}", argv, 900, judge)


def digits(run: Run) -> Iterator[Row]:
    if missing := [name for name in ("sklearn", "matplotlib", "rich") if importlib.util.find_spec(name) is None]:
        yield Row("digits", "absent", f"not installed: {', '.join(missing)}")
        return
    argv = [*CLI, "train", "digits", "--device", "cuda", "--out", str(run.out / "digits")]
    yield command(run, "digits", argv, 600, within(test_accuracy=(0.97, 1.0)))


STAGES: dict[str, Callable[[Run], Iterator[Row]]] = {
    "info": info,
    "gpu": gpu,
    "property": generated,
    "unit": unit,
    "sanitizer": sanitizer,
    "recipes": recipes,
    "digits": digits,
}


# --- the run -------------------------------------------------------------------------------------------------------
def tail(run: Run, row: Row, lines: int = 30) -> str:
    path = run.log(row.what)
    if not path.exists():
        return ""
    end = path.read_text(errors="replace").splitlines()[-lines:]
    return "\n".join([f"--- the end of {path}", *end, "---"])


def table(rows: Sequence[Row]) -> str:
    width = max(len(row.what) for row in rows)
    return "\n".join(f"{r.what:<{width}}  {r.result:<7}  {r.seconds:>7.1f} s  {r.detail}" for r in rows)


def parse(argv: Sequence[str] | None) -> tuple[list[str], Run]:
    parser = argparse.ArgumentParser(description="Check everything that needs a GPU.")
    parser.add_argument("--only", default="", metavar="STAGE,…", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--skip", default="", metavar="STAGE,…")
    parser.add_argument("--checks", default=",".join(CHECKS), metavar="CHECK,…", help="of the sanitizer's")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the logs (default: a new temporary folder)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once (default: cores)")
    given = parser.parse_args(argv)
    only, skip = ([name for name in value.split(",") if name] for value in (given.only, given.skip))
    if unknown := [name for name in (*only, *skip) if name not in STAGES]:
        parser.error(f"no such stage: {', '.join(unknown)} (there are {', '.join(STAGES)})")
    out = given.out or Path(tempfile.mkdtemp(prefix="gpu_check_"))
    out.mkdir(parents=True, exist_ok=True)
    path = [str(SHIM), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
    stages = [name for name in STAGES if (not only or name in only) and name not in skip]
    return stages, Run(out.resolve(), given.jobs, environment, given.checks.split(","))


def main(argv: Sequence[str] | None = None) -> int:
    stages, run = parse(argv)
    print(f"{sys.version.split()[0]} at {sys.executable}; logs in {run.out}", flush=True)
    rows: list[Row] = []
    for name in stages:
        print(f"{name} …", flush=True)
        for row in STAGES[name](run):
            rows.append(row)
            print(table([row]), flush=True)
            if row.result == "FAIL":
                print(tail(run, row), flush=True)
    failed = [row.what for row in rows if row.result == "FAIL"]
    unrun = [row.what for row in rows if row.result in ("absent", "skipped")]
    print(f"\n{table(rows)}\n" if rows else "nothing to do")
    if unrun:
        print(f"not run: {', '.join(unrun)}")
    print(f"FAILED: {', '.join(failed)}" if failed else "nothing failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
