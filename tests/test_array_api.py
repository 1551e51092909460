"""The array API namespace: what it says of itself, and libraries written for it working on our tensors."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import flame_numba as fn
from flame_numba import array_api as xp
from flame_numba.errors import ConfigError, DeviceError, DTypeError

SOURCE = Path(fn.__file__).parent.parent
# https://data-apis.org/array-api/2024.12/API_specification/
NAMES = """
    e inf nan newaxis pi bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float32 float64 arange asarray empty
    empty_like eye from_dlpack full full_like linspace meshgrid ones ones_like tril triu zeros zeros_like astype
    can_cast finfo iinfo isdtype result_type abs acos acosh add asin asinh atan atan2 atanh bitwise_and
    bitwise_left_shift bitwise_invert bitwise_or bitwise_right_shift bitwise_xor ceil clip conj copysign cos cosh
    divide equal exp expm1 floor floor_divide greater greater_equal hypot imag isfinite isinf isnan less less_equal
    log log1p log2 log10 logaddexp logical_and logical_not logical_or logical_xor maximum minimum multiply negative
    nextafter not_equal positive pow real reciprocal remainder round sign signbit sin sinh square sqrt subtract tan
    tanh trunc take take_along_axis __array_namespace_info__ matmul matrix_transpose tensordot vecdot
    broadcast_arrays broadcast_to concat expand_dims flip moveaxis permute_dims repeat reshape roll squeeze stack
    tile unstack argmax argmin count_nonzero nonzero searchsorted where unique_all unique_counts unique_inverse
    unique_values argsort sort cumulative_prod cumulative_sum max mean min prod std sum var all any diff
    __array_api_version__
""".split()  # noqa: SIM905
METHODS = """
    __abs__ __add__ __and__ __array_namespace__ __bool__ __complex__ __dlpack__ __dlpack_device__ __eq__ __float__
    __floordiv__ __ge__ __getitem__ __gt__ __index__ __int__ __invert__ __le__ __lshift__ __lt__ __matmul__ __mod__
    __mul__ __ne__ __neg__ __or__ __pos__ __pow__ __rshift__ __setitem__ __sub__ __truediv__ __xor__ to_device
    __iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __ipow__ __imod__ __iand__ __ior__ __ixor__ __ilshift__
    __irshift__ __radd__ __rsub__ __rmul__ __rtruediv__ __rfloordiv__ __rpow__ __rmod__ __rand__ __ror__ __rxor__
    __rlshift__ __rrshift__ __matmul__ __rmatmul__ __imatmul__ dtype device mT ndim shape size T
""".split()  # noqa: SIM905


def test_every_name_of_the_standard_is_there():
    assert [n for n in NAMES if not hasattr(xp, n)] == []
    assert set(NAMES) == set(xp.__all__)
    missing = [n for n in NAMES if n in xp.elementwise._UNARY + xp.elementwise._BINARY and not hasattr(fn, n)]
    assert missing == []


def test_every_method_of_the_standard_is_there():
    # x @= y is x = x @ y, by Python's own rule
    assert [n for n in METHODS if not hasattr(fn.Tensor, n) and n != "__imatmul__"] == []


def test_functions_say_what_they_are():
    for name in NAMES:
        function = getattr(xp, name)
        if inspect.isfunction(function):
            assert function.__doc__ and function.__name__ == name


def test_a_tensor_knows_its_namespace():
    x = fn.ones((2,))
    assert x.__array_namespace__() is xp
    assert x.__array_namespace__(api_version="2023.12") is xp
    with pytest.raises(ConfigError, match="1999"):
        x.__array_namespace__(api_version="1999.12")


def test_inspection():
    info = xp.__array_namespace_info__()
    assert info.default_device() == fn.current_device()
    assert info.default_dtypes()["real floating"] is xp.float32
    assert fn.Device.cpu() in info.devices()
    assert list(info.dtypes(kind="bool")) == ["bool"]
    assert info.dtypes(kind=("real floating", "bool")) == {
        "bool": xp.bool,
        "float32": fn.float32,
        "float64": fn.float64,
    }
    assert info.dtypes(kind="complex floating") == {}
    assert info.dtypes(device=fn.Device.cpu()) == info.dtypes() and info.default_dtypes(device="cpu")
    for call in (info.dtypes, info.default_dtypes):
        with pytest.raises(DeviceError, match="'tpu'"):
            call(device="tpu")


def test_as_many_axes_as_are_said_work():
    x = fn.ones((1,) * xp.__array_namespace_info__().capabilities()["max dimensions"])
    assert (x + 1).item() == 2 and x.numpy().ndim == x.ndim and "1." in repr(x)


def test_a_move_on_a_stream():
    x = fn.ones((2,))
    assert x.to_device(x.device, stream=x.device.new_stream()).tolist() == [1, 1]
    with pytest.raises(DeviceError, match="stream must be a Stream .* got 1"):
        x.to_device(x.device, stream=1)


def test_kinds_and_casts():
    assert xp.isdtype(fn.bfloat16, "real floating") and not xp.isdtype(fn.bfloat16, "integral")
    assert xp.isdtype(fn.uint8, ("bool", "unsigned integer")) and xp.isdtype(fn.uint8, fn.uint8)
    assert xp.can_cast(fn.int8, fn.int64) and not xp.can_cast(fn.int64, fn.int8)
    assert not xp.can_cast(fn.uint64, fn.int64) and not xp.can_cast(fn.int8, fn.float32)
    assert xp.result_type(fn.ones((1,)), fn.int8, 1) is fn.float32
    assert xp.result_type(fn.int8, 2.0) is fn.float32
    for call in (
        lambda: xp.isdtype(fn.int8, "number"),
        lambda: xp.isdtype(fn.ones((1,)), "numeric"),
        lambda: xp.isdtype(fn.int8, fn.ones((1,))),
        lambda: xp.astype(np.ones(1), fn.int8),
        lambda: xp.result_type(1, 2),
        lambda: xp.result_type(fn.float32, 1j),
        lambda: xp.finfo(fn.int8),
        lambda: xp.iinfo(fn.float32),
    ):
        with pytest.raises(DTypeError):
            call()


def test_limits():
    assert xp.finfo(fn.float32).max == np.finfo(np.float32).max and xp.finfo(fn.float32).bits == 32
    assert xp.finfo(fn.ones((1,), dtype=fn.bfloat16)).eps == 2.0**-7
    assert xp.iinfo(fn.uint64).max == 2**64 - 1 and isinstance(xp.iinfo(fn.int8).min, int)


def test_copies_are_made_where_asked_for():
    x = fn.ones((2, 3))
    assert xp.astype(x, fn.float32).storage is not x.storage
    assert xp.astype(x, fn.float32, copy=False) is xp.astype(x, fn.float32, copy=False, device=x.device) is x
    assert xp.reshape(x, (6,), copy=True).storage is not x.storage
    assert xp.reshape(x, (6,), copy=False).storage is x.storage
    with pytest.raises(ValueError, match="view"):
        xp.reshape(x.mT, (6,), copy=False)


def test_gradients_flow_through_the_namespace():
    x = fn.asarray([1.0, 2.0]).requires_grad_()
    xp.sum(xp.multiply(x, xp.exp(x))).backward()
    np.testing.assert_allclose(x.grad.numpy(), (1 + x.numpy()) * np.exp(x.numpy()), rtol=1e-6)


def test_a_scalar_is_not_iterable():
    with pytest.raises(TypeError, match="0-d"):
        iter(fn.ones(()))
    assert not np.iterable(fn.ones(()))


# --- libraries --------------------------------------------------------------------------------------------------------
def in_a_process(code: str) -> None:
    """SciPy reads its switch once, when it is imported."""
    path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    prelude = """
import numpy as np
import flame_numba as fn
fn.Device.cpu().__enter__()
rng = np.random.default_rng(0)
host = rng.normal(size=(30, 4))
data = fn.asarray(host)

def same(found, expected):
    assert isinstance(found, fn.Tensor), type(found)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", prelude + textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path, "SCIPY_ARRAY_API": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr


def test_scipy():
    pytest.importorskip("scipy", "1.15")
    in_a_process("""
        import scipy.cluster.vq, scipy.integrate, scipy.signal, scipy.special, scipy.stats
        for call in (
            lambda x: scipy.special.logsumexp(x, axis=0),
            lambda x: scipy.special.softmax(x, axis=1),
            lambda x: scipy.special.expit(x),
            lambda x: scipy.stats.zscore(x),
            lambda x: scipy.stats.skew(x),
            lambda x: scipy.stats.kurtosis(x),
            lambda x: scipy.stats.pearsonr(x[:, 0], x[:, 1]).statistic,
            lambda x: scipy.stats.ttest_ind(x[:, 0], x[:, 1]).statistic,
            lambda x: scipy.integrate.trapezoid(x[:, 0]),
            lambda x: scipy.signal.detrend(x[:, 0]),
            lambda x: scipy.cluster.vq.whiten(x),
        ):
            same(call(data), call(host))
    """)


def test_scipy_calls_back_with_tensors():
    pytest.importorskip("scipy", "1.15")
    in_a_process("""
        from scipy.differentiate import derivative
        places = fn.asarray([0.1, 0.5], dtype=fn.float64)
        same(derivative(fn.sin, places).df, np.cos(places.numpy()))
    """)


def test_scikit_learn():
    pytest.importorskip("sklearn", "1.6")
    in_a_process("""
        import sklearn
        from sklearn.metrics import accuracy_score, r2_score
        from sklearn.metrics.pairwise import cosine_similarity, euclidean_distances
        from sklearn.model_selection import train_test_split
        from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, Normalizer, StandardScaler

        with sklearn.config_context(array_api_dispatch=True):
            for scaler in (MaxAbsScaler, MinMaxScaler, Normalizer, StandardScaler):
                same(scaler().fit_transform(data), scaler().fit_transform(host))
            same(cosine_similarity(data, data), cosine_similarity(host, host))
            np.testing.assert_allclose(
                euclidean_distances(data, data).numpy(), euclidean_distances(host, host), rtol=1e-6, atol=1e-6
            )
            np.testing.assert_allclose(r2_score(data[:, 0], data[:, 1]), r2_score(host[:, 0], host[:, 1]))
            assert abs(accuracy_score(fn.asarray([1, 0, 1]), fn.asarray([1, 1, 1])) - 2 / 3) < 1e-6
            parts = train_test_split(data, random_state=0)
            same(parts[0], train_test_split(host, random_state=0)[0])
    """)


def test_einops():
    einops = pytest.importorskip("einops.array_api")
    host = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    x = fn.asarray(host).requires_grad_()
    y = einops.rearrange(x, "(a b) c -> a c b", a=3)
    np.testing.assert_array_equal(y.numpy(), host.reshape(3, 2, 4).transpose(0, 2, 1))
    np.testing.assert_allclose(
        einops.reduce(x, "(a b) c -> a c", "mean", a=3).numpy(), host.reshape(3, 2, 4).mean(1), rtol=1e-6
    )
    assert einops.repeat(x, "a b -> a b c", c=2).shape == (6, 4, 2)
    (y * y).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * host)


def test_array_api_compat():
    compat = pytest.importorskip("array_api_compat")
    x = fn.ones((2,))
    assert compat.is_array_api_obj(x) and compat.array_namespace(x) is xp
    assert compat.device(x) == x.device and compat.size(x) == 2
    assert compat.to_device(x, "cpu").device == fn.Device.cpu()
