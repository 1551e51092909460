"""numba-cuda's own tests on a GPU, twice: with Numba's memory manager, and with ours. What fails only with ours?

    python scripts/numba_suite.py --out DIR [--jobs 12] [-k EXPRESSION] [--only default|plugin]

Needs pytest and pytest-xdist. Both runs are written to DIR, and a run with `--only` is compared with what lies there
from the other. Tests that fail with our manager alone are repeated, each in a process of its own, with both managers:
a kernel that is wrong on purpose leaves its process without a GPU, and so fails tests that come after it there.
The exit status is 1 if one still fails with ours alone.

This file is also the pytest plugin of the runs: the fixture that Numba's tests ask for, a time limit, and the log.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SUITE = "numba.cuda.tests"
MANAGERS = {"default": "default", "plugin": "flame_numba.plugins.numba_memory"}
FAILURES = ("failed", "error", "crashed")
LOG, LIMIT = "NUMBA_SUITE_LOG", "NUMBA_SUITE_TEST_SECONDS"  # from this script to the plugin

Outcomes = dict[str, str]  # by the id of the test


# --- the plugin ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="class")
def initialize_from_pytest_config(request: pytest.FixtureRequest) -> None:
    """Numba's test cases ask for it; the file that defines it is not in the wheel."""
    request.cls._dump_failed_filechecks = False


def pytest_configure(config: pytest.Config) -> None:
    if LOG in os.environ and importlib.util.find_spec("filecheck") is None:
        _stand_in_for_filecheck()


def _stand_in_for_filecheck() -> None:
    """All of Numba's test modules import it; the few tests that use it are skipped."""

    def skip(*args: object, **kwargs: object) -> None:
        pytest.skip("filecheck is not installed")

    sys.modules["filecheck"] = types.ModuleType("filecheck")
    for name in ("matcher.Matcher", "options.Options", "parser.Parser", "parser.pattern_for_opts", "finput.FInput"):
        module, _, attribute = name.partition(".")
        made = sys.modules.setdefault(f"filecheck.{module}", types.ModuleType(f"filecheck.{module}"))
        setattr(made, attribute, skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """End a test that takes too long, if it is in Python; else the limit of the whole run does."""
    seconds = float(os.environ.get(LIMIT, 0))
    if not seconds or threading.current_thread() is not threading.main_thread():
        return (yield)

    def stop(*args: object) -> None:
        raise TimeoutError(f"{item.nodeid} took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    outcome: str = report.outcome
    if outcome == "failed":
        crashed = report.when == "???"  # xdist's word for a process that ended in the middle of a test
        outcome = "crashed" if crashed else "failed" if report.when == "call" else "error"
    elif hasattr(report, "wasxfail"):
        outcome = "xfailed" if outcome == "skipped" else "xpassed"
    elif outcome == "passed" and report.when != "call":
        return
    row = {"test": report.nodeid, "outcome": outcome, "seconds": round(report.duration, 2)}
    _write({**row, "text": str(report.longrepr)[-1500:]} if outcome in FAILURES else row)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A module that cannot be imported counts as one test."""
    if report.failed:
        _write({"test": report.nodeid, "outcome": "error", "seconds": 0, "text": str(report.longrepr)[-1500:]})


def _write(row: dict[str, object]) -> None:
    if LOG in os.environ and "PYTEST_XDIST_WORKER" not in os.environ:  # workers send theirs to the process above
        with open(os.environ[LOG], "a") as log:
            log.write(json.dumps(row) + "\n")


# --- a run ---------------------------------------------------------------------------------------------------------
def environment(manager: str, log: Path, seconds: float) -> dict[str, str]:
    paths = [
        ROOT / "scripts" / "gpu_shim",
        ROOT / "src",
        ROOT / "scripts",
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONHASHSEED": "0",  # every process must collect the same tests in the same order
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "NUMBA_CUDA_MEMORY_MANAGER": MANAGERS[manager],
        LOG: str(log),
        LIMIT: str(seconds),
    }


def suite_command(out: Path, *arguments: str) -> list[str]:
    settings = out / "pytest.ini"
    settings.write_text("[pytest]\nconsider_namespace_packages = true\n")
    base = [sys.executable, "-m", "pytest", "-c", str(settings), "--rootdir", str(out), "-p", "numba_suite"]
    return [*base, "-p", "no:cacheprovider", "-q", "--tb=short", "-W", "ignore", "--pyargs", *arguments]


def run(manager: str, given: argparse.Namespace) -> float:
    """Run the suite with a manager; its outcomes are in DIR/MANAGER.jsonl as they come. Seconds."""
    out: Path = given.out
    log = out / f"{manager}.jsonl"
    log.unlink(missing_ok=True)
    argv = suite_command(out, given.suite, "--continue-on-collection-errors", "-n", str(given.jobs))
    argv += ["--dist", given.dist, "--max-worker-restart", "64", *(["-k", given.k] if given.k else [])]
    start = time.monotonic()
    with open(out / f"{manager}.txt", "w") as text:
        process = subprocess.Popen(
            argv,
            cwd=out,
            env=environment(manager, log, given.test_seconds),
            stdin=subprocess.DEVNULL,
            stdout=text,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(given.seconds)
        except subprocess.TimeoutExpired:
            print(f"{manager}: stopped after {given.seconds:g} s; what did not run is left out of the comparison")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its own processes: it began a session
                process.wait()
    return time.monotonic() - start


def read(log: Path) -> tuple[Outcomes, dict[str, float], dict[str, str]]:
    """What a run wrote: outcomes, seconds and texts of failures, by test. The worst outcome of a test counts."""
    worst = (*FAILURES, "xpassed", "passed", "xfailed", "skipped")
    outcomes: Outcomes = {}
    seconds: dict[str, float] = {}
    texts: dict[str, str] = {}
    for line in log.read_text().splitlines() if log.exists() else ():
        row = json.loads(line)
        test, outcome = row["test"], row["outcome"]
        seconds[test] = seconds.get(test, 0.0) + row["seconds"]
        if test not in outcomes or worst.index(outcome) < worst.index(outcomes[test]):
            outcomes[test] = outcome
        if "text" in row:
            texts[test] = row["text"]
    return outcomes, seconds, texts


@functools.cache
def suite_folder(suite: str) -> Path:
    """Where the tests lie: ids of tests are paths from there."""
    code = f"import {suite} as suite; print(suite.__path__[0])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment("default", Path(), 0), capture_output=True, text=True
    )
    return Path(done.stdout.strip())


def alone(test: str, manager: str, given: argparse.Namespace) -> str:
    """The outcome of one test in a process of its own."""
    log = given.out / "alone" / f"{uuid.uuid4().hex}.jsonl"
    log.parent.mkdir(exist_ok=True)
    file, _, name = test.partition("::")
    argv = suite_command(given.out, "::".join(filter(None, (f"{suite_folder(given.suite)}/{file}", name))))
    try:
        done = subprocess.run(
            argv,
            cwd=given.out,
            env=environment(manager, log, given.test_seconds),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=2 * given.test_seconds + 60,
        )
    except subprocess.TimeoutExpired:
        return "failed"
    outcomes, _, _ = read(log)
    return next(iter(outcomes.values()), "crashed" if done.returncode < 0 else "error")


# --- the comparison ------------------------------------------------------------------------------------------------
def describe(manager: str, outcomes: Outcomes, seconds: dict[str, float]) -> None:
    counts = Counter(outcomes.values())
    print(f"{manager:<8} {len(outcomes):>5} tests: " + ", ".join(f"{n} {word}" for word, n in counts.most_common()))
    scopes: Counter[str] = Counter()
    for test, took in seconds.items():
        scopes[test.rpartition("::")[0]] += took  # type: ignore[assignment]
    longest = ", ".join(f"{scope.rpartition('/')[2]} {took:.0f} s" for scope, took in scopes.most_common(5))
    print(f"{'':<8} {sum(seconds.values()):.0f} s in all; longest: {longest}")


def compare(given: argparse.Namespace) -> int:
    (before, before_s, _), (after, after_s, texts) = (read(given.out / f"{name}.jsonl") for name in MANAGERS)
    describe("default", before, before_s)
    describe("plugin", after, after_s)
    both = before.keys() & after.keys()
    one = sorted(before.keys() ^ after.keys())
    print(f"{len(both)} tests have an outcome in both runs; in one of them only: {len(one)} {' '.join(one[:10])}")
    fixed = sorted(t for t in both if before[t] in FAILURES and after[t] not in FAILURES)
    suspects = sorted(t for t in both if after[t] in FAILURES and before[t] not in FAILURES)
    skipped = sorted(t for t in both if after[t] == "skipped" != before[t])
    print(f"skipped with the plugin only: {len(skipped)}; failed with the default only: {len(fixed)}")
    print(f"failed with the plugin only: {len(suspects)}" + (", repeated alone:" if suspects else ""))
    failed = []
    with ThreadPoolExecutor(given.jobs) as workers:
        jobs = {t: [workers.submit(alone, t, name, given) for name in MANAGERS] for t in suspects}
        for test, (default, plugin) in jobs.items():
            print(f"  {test}: default {default.result()}, plugin {plugin.result()}")
            if plugin.result() in FAILURES and default.result() not in FAILURES:
                failed.append(test)
    for test in failed:
        print(f"\n--- {test}\n{texts.get(test, '')}")
    summary = {"fails_only_with_plugin": failed, "suspects": suspects, "skipped_only_with_plugin": skipped}
    counts = {name: Counter(o.values()) for name, o in (("default", before), ("plugin", after))}
    (given.out / "summary.json").write_text(
        json.dumps({**counts, **summary, "fails_only_with_default": fixed}, indent=1)
    )
    print(f"\nFAIL ONLY WITH THE PLUGIN: {len(failed)}")
    return 1 if failed or not both else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="numba-cuda's tests with its memory manager and with ours.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the logs and the outcomes")
    parser.add_argument("--jobs", type=int, default=max(2, (os.cpu_count() or 2) * 3 // 4), help="processes at once")
    parser.add_argument("--seconds", type=float, default=210, help="the most that one run may take")
    parser.add_argument("--test-seconds", type=float, default=60, help="the most that one test may take")
    parser.add_argument("--suite", default=SUITE, help="a package of tests, such as numba.cuda.tests.cudadrv")
    parser.add_argument(
        "--dist",
        default="worksteal",
        help="pytest-xdist's way to hand out tests (loadscope repeats a scope that crashes)",
    )
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="only tests whose names match, as pytest's -k")
    parser.add_argument("--only", choices=MANAGERS, help="run with one manager")
    given = parser.parse_args(argv)
    given.out = given.out.resolve()
    given.out.mkdir(parents=True, exist_ok=True)
    return given


def main(argv: Sequence[str] | None = None) -> int:
    given = parse(argv)
    for manager in [given.only] if given.only else MANAGERS:
        print(f"{manager} …", flush=True)
        print(f"{manager}: {run(manager, given):.0f} s; see {given.out / manager}.txt", flush=True)
    if all((given.out / f"{name}.jsonl").exists() for name in MANAGERS):
        return compare(given)
    print(f"{given.only} alone has run: run the other one too")
    return 0


if __name__ == "__main__":
    sys.exit(main())
