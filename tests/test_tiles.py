"""What tiled kernels share: arguments written down once, kernels made of pieces, tiles of several threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from block_of_threads import launch
from flame_numba.devices import Device, LaunchConfig
from flame_numba.dtypes import bfloat16, float32, int64
from flame_numba.errors import KernelError
from flame_numba.kernels.compiler import compile as compiler
from flame_numba.kernels.language import Helper, Inline, Load, Number, Pointer, Store, load_x, store_y
from flame_numba.kernels.products.matmul import MATMUL
from flame_numba.kernels.tile.arguments import Arguments, group, integers, operand
from flame_numba.kernels.tile.micro import LARGE_TILE, SMALL_TILE, Tile
from flame_numba.kernels.tile.pieces import pieces


# --- arguments -------------------------------------------------------------------------------------------------------
def scaled(y: Pointer, x: Any, factor: Number, size: Any) -> None:
    """y = factor·x, doubled."""
    for i in range(size.box.rows):
        for j in range(size.box.columns):
            store_y(y, i * size.box.columns + j, finished(factor * element(x, i, j), doubled))


def element(x: Any, i: int, j: int) -> Number:
    return load_x(x.data, i * x.row + j * x.column)


def finished(value: Number, epilogue: Any) -> Number:
    return epilogue(value)


def doubled(value: Number) -> Number:
    return value + value


SCALED = Arguments(
    scaled, y="y", x=operand("x", "row column"), factor="number", size=group(box=integers("rows columns"))
)


def test_signature_launch_and_kernel_follow_from_one_list() -> None:
    assert SCALED.flat == (
        ("y", "y"), ("x_data", "x"), ("x_row", "int"), ("x_column", "int"), ("factor", "number"),
        ("size_box_rows", "int"), ("size_box_columns", "int"),
    )  # fmt: skip
    assert SCALED.types({"x": bfloat16, "y": float32}) == (float32, bfloat16, "int", "int", "number", "int", "int")
    assert SCALED.pack(size=((2, 3),), y=100, x=(200, 3, 1), factor=0.5) == (100, 200, 3, 1, 0.5, 2, 3)
    call = SCALED.source.partition("\n")[0]
    assert call == "def kernel(y, x_data, x_row, x_column, factor, size_box_rows, size_box_columns):"


def test_the_kernel_of_a_list_runs() -> None:
    x, y = np.arange(6, dtype=np.float32).reshape(3, 2), np.zeros((2, 3), np.float32)
    bindings = {"load_x": Load(float32, float32), "store_y": Store(float32, float32)}
    program = SCALED.program("scaled", {"x": float32, "y": float32}, float32, bindings)
    kernel = compiler.load(program, Device.cpu().backend)
    arguments = SCALED.pack(y=y.ctypes.data, x=(x.ctypes.data, 1, 2), factor=0.25, size=((2, 3),))
    kernel.launch(LaunchConfig(1), arguments, 0)
    assert np.array_equal(y, x.T / 2)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"x": (200, 3)}, r"scaled.x: expected 3 values \(data, row, column\), got 2"),
        ({"size": ((2, 3, 4),)}, r"scaled.size.box: expected 2 values \(rows, columns\), got 3"),
        ({"size": (2, 3)}, "scaled.size: expected 1 values"),
        ({"y": None}, "scaled: y is missing"),
        ({"z": 1}, "scaled: takes no z"),
    ],
)
def test_a_wrong_count_is_refused(change: dict[str, Any], said: str) -> None:
    values = {"y": 100, "x": (200, 3, 1), "factor": 0.5, "size": ((2, 3),)} | change
    with pytest.raises(KernelError, match=said):
        SCALED.pack(**{name: value for name, value in values.items() if value is not None})


def test_a_list_that_is_not_the_bodys_is_refused() -> None:
    with pytest.raises(KernelError, match="scaled takes"):
        Arguments(scaled, y="y", x="x", size=integers("rows"))
    with pytest.raises(KernelError, match="needs dtypes for"):
        SCALED.types({"x": float32})


# --- pieces ----------------------------------------------------------------------------------------------------------
def test_pieces_are_found_by_the_names_that_a_body_uses() -> None:
    found = pieces(scaled, float32, {}, {})
    assert set(found) == {"element", "finished", "doubled", "scaled"}
    assert list(found).index("doubled") < list(found).index("scaled") == 3  # the called first
    assert found["doubled"] == Helper(doubled, 1, float32) and found["scaled"] == Helper(scaled, 4, None)
    assert "element" not in pieces(scaled, float32, {"element": 1}, {})


def both(a: int, b: int) -> tuple[int, int]:
    return larger(a, b), a + b


def larger(a: int, b: int) -> int:
    return a if a > b else b


def uses_both(y: Pointer, n: int) -> None:
    store_y(y, n, both(n, larger(n, 1))[0])


def test_a_piece_of_unknown_result_is_inferred_and_so_is_what_it_calls() -> None:
    found = pieces(uses_both, int64, {}, {})
    assert found == {"larger": Inline(larger), "both": Inline(both), "uses_both": Helper(uses_both, 2, None)}


def test_two_pieces_of_one_name_are_refused() -> None:
    scope = {"larger": lambda a, b: a, "larger_of_both": both}
    exec("def other(a):\n    return larger(a, a) + larger_of_both(a, a)", scope)
    with pytest.raises(KernelError, match="two pieces are called larger"):
        pieces(scope["other"], int64, {}, {})


# --- tiles of several threads -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("tile", [SMALL_TILE, LARGE_TILE])
def test_threads_share_out_the_stages_of_matmul_evenly(tile: Tile) -> None:
    assert tile.threads % tile.m == tile.threads % tile.n == tile.threads % tile.k == 0
    assert tile.m * tile.k % tile.threads == tile.n * tile.k % tile.threads == 0


@pytest.mark.parametrize("tile", [Tile(4, 4, 2, 2, 2), Tile(4, 4, 4, 2, 1), Tile(4, 2, 2, 2, 1)], ids=str)
def test_matmul_by_several_threads(tile: Tile) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-5, 5, (2, 5, 7)).astype(float), rng.integers(-5, 5, (2, 6, 7)).astype(float)
    y = np.full((2, 5, 6), np.nan)
    private = {"own_left": tile.tm, "own_right": tile.tn, "own_sum": tile.tm * tile.tn}
    names: dict[str, Any] = {name: lambda n=n: np.full(n, np.nan) for name, n in private.items()}
    names |= {name: (lambda p, i: p[i]) for name in ("load_a", "load_b")}
    names |= {"store_y": lambda p, i, value: p.__setitem__(i, value), "C": float}
    names |= {"BM": tile.m, "BN": tile.n, "BK": tile.k, "TM": tile.tm, "TN": tile.tn, "ACROSS": tile.n // tile.tn}
    names |= {label: part.form for part, label in MATMUL.groups.forms()}
    shared = {"shared_a": (tile.m * tile.k, float), "shared_b": (tile.n * tile.k, float)}
    helpers = {name: piece.function for name, piece in pieces(MATMUL.body, float32, names, {}).items()}
    scope: dict[str, Any] = {}
    exec(MATMUL.source, scope)
    arguments = MATMUL.pack(
        y=y.reshape(-1), a=(a.reshape(-1), 0, 35, 7, 1), b=(b.reshape(-1), 0, 42, 1, 7), size=(2, 2, 5, 6, 7)
    )
    launch(scope["kernel"], arguments, 3, tile.threads, names, shared, helpers)
    assert np.array_equal(y, a @ b.transpose(0, 2, 1))
