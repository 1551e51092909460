"""A user's kernels on the GPU: both machines agree; CUDA C++; threads that cooperate; limits, streams and the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import flame_numba as fn
from flame_numba.devices import Device
from flame_numba.kernels.compiler import compile as compiler
from kernels_user import elements, row_sums

cuda = pytest.importorskip("numba.cuda")

SOURCE = r"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" __global__ void scale(float* __restrict__ y, const float* x, float factor, long long n) {
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += gridDim.x * (long long)blockDim.x)
        y[i] = factor * x[i];
}
__global__ void widths(double* out, bool flag, signed char a, unsigned short b, int c, unsigned d, long long e,
                       unsigned long long f, float g, double h) {
    double all[] = {(double)flag, (double)a, (double)b, (double)c, (double)d, (double)e, (double)(f >> 1), g, h};
    if (threadIdx.x < 9) out[threadIdx.x] = all[threadIdx.x];
}
__global__ void narrow(__half* y, const __nv_bfloat16* x, int n) {
    if (threadIdx.x < n) y[threadIdx.x] = __float2half(__bfloat162float(x[threadIdx.x]) * 0.5f);
}
template <typename T> __global__ void fill(T* y, T value, int n) { if (threadIdx.x < n) y[threadIdx.x] = value; }
__global__ void where_am_i(int* out) {
    int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    out[block * (blockDim.x * blockDim.y * blockDim.z) + thread] = 1000 * block + thread;
}
extern "C" __global__ void reverse(float* y, const float* x, int n) {
    extern __shared__ float shared[];
    for (int i = threadIdx.x; i < n; i += blockDim.x) shared[i] = x[i];
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = shared[n - 1 - i];
}
"""


@pytest.mark.parametrize("dtype", [fn.float16, fn.bfloat16, fn.float32, fn.float64], ids=lambda d: d.name)
def test_both_machines_agree(dtype: fn.DType, gpu: Device) -> None:
    host = np.random.default_rng(0).normal(size=5000).astype(dtype.numpy)
    found = []
    for device in (gpu, Device.cpu()):
        x = fn.asarray(host, device=device)
        y = fn.empty_like(x)
        fn.launch_kernel(fn.ensure_kernel(device, "elements", elements), (7, 96), y, x, 0.5, x.numel)
        found.append(y.numpy().astype(np.float64))
    assert np.allclose(*found, rtol=4 * max(dtype.eps, 1e-15), atol=0)


def test_a_block_adds_up(gpu: Device) -> None:
    from flame_numba.kernels.language import Array

    x, y = fn.Tensor.ones((1000,), device=gpu), fn.Tensor.zeros((1,), device=gpu)
    for threads in (32, 128, 256):
        shared = {"memory": Array(fn.float32, 256, shared=True)}
        fn.launch_kernel(fn.ensure_kernel(gpu, "row_sums", row_sums, bindings=shared), (1, threads), y, x, 1000)
        assert y.item() == 1000


def test_numba_style_with_shared_memory(real_gpu: Device) -> None:
    from numba import float32

    @cuda.jit
    def reverse_blocks(y, x):
        shared = cuda.shared.array(128, float32)
        i, t = cuda.grid(1), cuda.threadIdx.x
        shared[t] = x[i]
        cuda.syncthreads()
        y[i] = shared[127 - t]

    x = fn.arange(512, dtype=fn.float32, device=real_gpu)
    y = fn.empty_like(x)
    fn.launch_kernel(fn.ensure_kernel(real_gpu, "reverse_blocks", reverse_blocks), (4, 128), y, x)
    assert np.array_equal(y.numpy(), np.arange(512.0).reshape(4, 128)[:, ::-1].reshape(-1))


def test_numba_style_on_views(gpu: Device) -> None:
    @cuda.jit
    def plane(y, x, a):
        i, j = cuda.grid(2)
        if i < x.shape[0] and j < x.shape[1]:
            y[i, j] = a * x[i, j]

    for dtype in (fn.float32, fn.float64, fn.int32, fn.uint8):
        x = fn.arange(35).to_dtype(dtype).to_device(gpu).reshape(5, 7).T[::2]
        y = fn.Tensor.zeros((5, 4), dtype=dtype, device=gpu).T
        fn.launch_kernel(fn.ensure_kernel(gpu, "plane", plane), ((2, 2), (4, 4)), y, x, 2)
        assert np.array_equal(y.numpy(), 2 * x.numpy())


def test_cuda_source(real_gpu: Device) -> None:
    scale = fn.ensure_kernel(real_gpu, "scale", SOURCE)
    assert scale.writes == {"y"} and fn.ensure_kernel(real_gpu, "scale", SOURCE) is scale
    x = fn.arange(100_000, dtype=fn.float32, device=real_gpu)
    y = fn.empty_like(x)
    fn.launch_kernel(scale, x.numel, y, x, 0.5, x.numel)
    assert np.array_equal(y.numpy(), 0.5 * x.numpy())
    with pytest.raises(fn.DTypeError, match="x must be a tensor of float32, got int64"):
        fn.launch_kernel(scale, 4, y, fn.arange(4, device=real_gpu), 0.5, 4)
    with pytest.raises(fn.DTypeError, match="n is int64, which cannot hold"):
        fn.launch_kernel(scale, 4, y, x, 0.5, 2**63)


def test_cuda_numbers_of_every_width(real_gpu: Device) -> None:
    out = fn.Tensor.zeros((9,), dtype=fn.float64, device=real_gpu)
    given = (True, -100, 65535, -(2**31), 2**32 - 1, -(2**53), 2**64 - 2, 0.1, 0.1)
    fn.launch_kernel(fn.ensure_kernel(real_gpu, "widths", SOURCE), (1, 32), out, *given)
    expected = [1, -100, 65535, -(2**31), 2**32 - 1, -(2**53), float(2**63 - 1), float(np.float32(0.1)), 0.1]
    assert out.tolist() == expected


def test_cuda_narrow_floats_and_templates(real_gpu: Device) -> None:
    x = fn.arange(8, device=real_gpu).to_dtype(fn.bfloat16)
    y = fn.Tensor.zeros((8,), dtype=fn.float16, device=real_gpu)
    fn.launch_kernel(fn.ensure_kernel(real_gpu, "narrow", SOURCE), (1, 32), y, x, 8)
    assert y.tolist() == [i / 2 for i in range(8)]
    z = fn.Tensor.zeros((8,), dtype=fn.float64, device=real_gpu)
    fill = fn.ensure_kernel(real_gpu, "fill<double>", SOURCE, parameters="double* y, double value, int n")
    fn.launch_kernel(fill, (1, 32), z, 2.5, 8)
    assert z.tolist() == [2.5] * 8


def test_three_axes(real_gpu: Device) -> None:
    out = fn.Tensor.zeros((24 * 30,), dtype=fn.int32, device=real_gpu)
    fn.launch_kernel(fn.ensure_kernel(real_gpu, "where_am_i", SOURCE), ((2, 3, 4), (5, 3, 2)), out)
    assert out.tolist() == [1000 * b + t for b in range(24) for t in range(30)]


def test_much_shared_memory_and_its_limit(real_gpu: Device) -> None:
    n = 15_000  # 60,000 bytes: more than a launch gets unasked
    x = fn.arange(n, dtype=fn.float32, device=real_gpu)
    y = fn.empty_like(x)
    kernel = fn.ensure_kernel(real_gpu, "reverse", SOURCE)
    fn.launch_kernel(kernel, fn.Launch(1, 256, 4 * n), y, x, n)
    assert np.array_equal(y.numpy(), np.arange(n, dtype=np.float32)[::-1])
    with pytest.raises(fn.ConfigError, match="bytes of shared memory, a block has at most"):
        fn.launch_kernel(kernel, fn.Launch(1, 256, 1 << 20), y, x, n)
    assert fn.sum(y).item() == fn.sum(x).item()  # the device is well


def test_a_launch_on_a_stream(real_gpu: Device) -> None:
    stream = real_gpu.new_stream()
    x = fn.Tensor.ones((1 << 20,), device=real_gpu)
    y = fn.empty_like(x)
    stream.wait(real_gpu.current_stream())
    fn.launch_kernel(fn.ensure_kernel(real_gpu, "scale", SOURCE), fn.Launch(256, 256, 0, stream), y, x, 3.0, x.numel)
    stream.synchronize()
    assert fn.sum(y).item() == 3 * x.numel


def test_cuda_source_that_does_not_compile(real_gpu: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(fn.KernelError, match='identifier "b" is undefined'):
        fn.ensure_kernel(real_gpu, "scale", SOURCE.replace("factor * x[i]", "b * x[i]"))
    monkeypatch.setenv("FLAME_NUMBA_CACHE", str(tmp_path))
    before = compiler.stats.compiled
    fn.ensure_kernel(real_gpu, "scale", SOURCE + "// again")
    assert compiler.stats.compiled == before + 1 and list(tmp_path.rglob("scale-*.cubin"))


def test_the_written_part_of_a_graph_is_noticed(real_gpu: Device) -> None:
    x = fn.Tensor.ones((4,), device=real_gpu).requires_grad_()
    hidden = x * 1
    loss = (hidden * hidden).sum()
    kernel = fn.ensure_kernel(real_gpu, "scale", SOURCE)
    fn.launch_kernel(kernel, 4, fn.Tensor.zeros((4,), device=real_gpu), hidden.detach(), 2.0, 4)  # const: only read
    fn.launch_kernel(kernel, 4, hidden.detach(), fn.Tensor.ones((4,), device=real_gpu), 2.0, 4)
    with pytest.raises(fn.GradientError, match="changed in place"):
        loss.backward()
