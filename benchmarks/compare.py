"""This checkout beside another one, in one process: is any kernel slower than it was?

    git worktree add ../before REVISION
    python benchmarks/compare.py ../before [--only matmul,conv,…] [--rounds 9] [--warm I/N]

Both packages are loaded under one name, and their modules exchanged before each timing. They take turns on the same
operands, so the clocks of the card and its neighbours meet both. Prints the medians in µs of the device's time between
two events, and their ratio; below 1 this checkout is faster. --warm only compiles every N-th row: run N of those at
once first, as a cold compile takes longer than the timings.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np

if not hasattr(np, "row_stack"):  # numba-cuda 0.30 asks for it; NumPy 2.5 removed it. Nothing is installed here
    np.row_stack = np.vstack  # type: ignore[attr-defined]

HERE = Path(__file__).resolve().parent.parent
NAME = "flame_numba"
Row = tuple[str, Callable[["Tree"], Callable[[], Any]]]


class Tree:
    """One checkout's package, and the way to make it the one that `import` finds."""

    def __init__(self, root: Path) -> None:
        for name in [n for n in sys.modules if n.split(".")[0] == NAME]:
            del sys.modules[name]
        sys.path.insert(0, str(root / "src"))
        self.fn: Any = __import__(NAME)
        sys.path.pop(0)
        assert Path(self.fn.__file__).is_relative_to(root), f"{root} holds no {NAME}"
        self.modules: dict[str, ModuleType] = {}
        self.device = self.fn.default_device()
        self.name: str = self.device.name  # opens it
        self.leave()

    def enter(self) -> None:
        sys.modules.update(self.modules)

    def leave(self) -> None:
        """Also what was imported meanwhile, by a function."""
        self.modules = {n: m for n, m in sys.modules.items() if n.split(".")[0] == NAME}
        for name in self.modules:
            del sys.modules[name]

    def time(self, call: Callable[[], Any], calls: int) -> float:
        """µs a call on the device."""
        self.enter()
        stream = self.device.current_stream()
        start = stream.record(timing=True)
        for _ in range(calls):
            call()
        elapsed: float = start.elapsed_ms(stream.record(timing=True))
        self.leave()
        return elapsed * 1e3 / calls

    def draw(self, *shape: int, dtype: str, gradient: bool = False) -> Any:
        values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        x = self.fn.asarray(values, device=self.device).to_dtype(dtype).detach()
        return x.requires_grad_() if gradient else x


def gradients(tree: Tree, result: Callable[[], Any], *xs: Any) -> Callable[[], Any]:
    """The whole of a backward pass, with its forward."""
    grad = getattr(tree.fn.grad, "grad", tree.fn.grad)
    seed = tree.fn.ones(result().shape, dtype=xs[0].dtype, device=tree.device)
    return lambda: grad([result()], list(xs), [seed])


def matmul(dtype: str, n: int, turned: bool) -> Row:
    def make(tree: Tree) -> Callable[[], Any]:
        a, b = tree.draw(n, n, dtype=dtype), tree.draw(n, n, dtype=dtype)
        return (lambda: a.T @ b.T) if turned else (lambda: a @ b)

    return f"matmul {n}{' transposed' * turned} {dtype}", make


def conv(dtype: str, what: str, backward: bool = False, **keywords: int) -> Row:
    def make(tree: Tree) -> Callable[[], Any]:
        groups = keywords.get("groups", 1)
        x = tree.draw(8, 128, 64, 64, dtype=dtype, gradient=backward)
        w = tree.draw(128, 128 // groups, 3, 3, dtype=dtype, gradient=backward)

        def call() -> Any:
            return tree.fn.conv2d(x, w, padding=1, **keywords)

        return gradients(tree, call, x, w) if backward else call

    return f"conv2d{what}{', with gradients' * backward} {dtype}", make


def attention(dtype: str, d: int, causal: bool, backward: bool = False, masked: bool = False) -> Row:
    def make(tree: Tree) -> Callable[[], Any]:
        xs = [tree.draw(2, 8, 1024, d, dtype=dtype, gradient=backward) for _ in range(3)]
        mask = tree.draw(1024, 1024, dtype="float32") > 0 if masked else None

        def call() -> Any:
            return tree.fn.attention(*xs, mask=mask, causal=causal)

        return gradients(tree, call, *xs) if backward else call

    words = " causal" * causal + " masked" * masked + ", with gradients" * backward
    return f"attention {d}{words} {dtype}", make


def windows(dtype: str, op: str, backward: bool, **keywords: Any) -> Row:
    def make(tree: Tree) -> Callable[[], Any]:
        x = tree.draw(16, 64, 128, 128, dtype=dtype, gradient=backward)

        def call() -> Any:
            return getattr(tree.fn, op)(x, **keywords)

        return gradients(tree, call, x) if backward else call

    return f"{op} {keywords}{', with gradients' * backward} {dtype}", make


def group_norm(dtype: str, backward: bool) -> Row:
    def make(tree: Tree) -> Callable[[], Any]:
        x = tree.draw(16, 320, 64, 64, dtype=dtype, gradient=backward)
        w, b = (tree.draw(320, dtype=dtype, gradient=backward) for _ in range(2))

        def call() -> Any:
            return tree.fn.group_norm(x, 32, w, b)

        return gradients(tree, call, x, w, b) if backward else call

    return f"group_norm{', with gradients' * backward} {dtype}", make


def layer(dtype: str, op: str, backward: bool) -> Row:
    def make(tree: Tree) -> Callable[[], Any]:
        x = tree.draw(16384, 4096, dtype=dtype, gradient=backward)
        w = tree.draw(4096, dtype=dtype, gradient=backward)

        def call() -> Any:
            return tree.fn.softmax(x, -1) if op == "softmax" else tree.fn.rms_norm(x, w)

        return gradients(tree, call, x, *([] if op == "softmax" else [w])) if backward else call

    return f"{op}{', with gradients' * backward} {dtype}", make


def rows() -> Iterator[Row]:
    for dtype in ("float32", "bfloat16", "float64"):
        for n in (1024, 2048):
            yield from (matmul(dtype, n, turned) for turned in (False, True))
        for backward in (False, True):
            yield conv(dtype, "", backward)
            yield conv(dtype, " stride 2", backward, stride=2)
            yield conv(dtype, " depthwise", backward, groups=128)
            for d in (64, 128):
                yield attention(dtype, d, True, backward)
            yield attention(dtype, 64, False, backward, masked=True)
            if dtype == "float64":
                continue
            yield windows(dtype, "avg_pool2d", backward, kernel=2)
            yield windows(dtype, "max_pool2d", backward, kernel=2)
            yield windows(dtype, "upsample", backward, scale_factor=2, mode="bilinear")
            yield group_norm(dtype, backward)
            yield from (layer(dtype, op, backward) for op in ("softmax", "rms_norm"))


def main() -> int:
    parser = argparse.ArgumentParser(description="Two checkouts side by side.")
    parser.add_argument("before", type=Path)
    parser.add_argument("--only", default="", help="rows that hold one of these words, with commas between")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warm", default="", metavar="I/N", help="compile every N-th row and time none")
    given = parser.parse_args()
    trees = [Tree(given.before.resolve()), Tree(HERE)]
    part, of = (int(n) for n in (given.warm or "0/1").split("/"))
    words = [word for word in given.only.split(",") if word]
    chosen = [row for row in rows() if not words or any(word in row[0] for word in words)]
    if not given.warm:
        print(f"{trees[1].name}\n\n| row | before µs | now µs | now ÷ before |\n|---|---|---|---|", flush=True)
    for label, make in chosen[part::of]:
        calls = []
        for tree in trees:
            tree.enter()
            calls.append(make(tree))
            calls[-1]()
            tree.device.synchronize()
            tree.leave()
        if given.warm:
            continue
        guess = trees[0].time(calls[0], 3)
        count = max(3, min(50, int(4000 / guess)))
        times = [[tree.time(call, count) for tree, call in zip(trees, calls, strict=True)] for _ in range(given.rounds)]
        before, now = (median(column) for column in zip(*times, strict=True))
        print(f"| {label} | {before:,.1f} | {now:,.1f} | {now / before:.3f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
