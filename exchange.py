from flame_numba.kernels.language import Pointer, grid, gridsize, load_x, store_y


def exchange_pairs(y: Pointer, x: Pointer, n: int) -> None:
    """y[2i], y[2i + 1] = x[2i + 1], x[2i]. n is even."""
    for i in range(grid(), n, gridsize()):
        store_y(y, i, load_x(x, i ^ 1))
