"""New tensors: which dtype values bring, what counts as an int or a number, and what is refused."""

from __future__ import annotations

import array

import numpy as np
import pytest

import flame_numba as fn
from flame_numba import nn

FORMS = {"np.int64": np.int64, "np.uint8": np.uint8, "0-d array": np.asarray, "0-d tensor": fn.asarray}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    "make",
    [
        lambda n: fn.ones(n(3)),
        lambda n: fn.full((n(2), n(3)), 1.5),
        lambda n: fn.Tensor.empty(n(3)) * 0,
        lambda n: fn.arange(n(3)),
        lambda n: fn.arange(n(1), n(7), n(2)),
        lambda n: fn.linspace(0, 1, n(4)),
        lambda n: fn.eye(n(2), n(3), k=n(1)),
        lambda n: fn.rand(n(3), generator=fn.Generator(n(5))),
        lambda n: fn.randint(n(0), n(9), n(4), generator=fn.Generator(5)),
        lambda n: fn.permutation(n(4), generator=fn.Generator(5)),
        lambda n: fn.multinomial(fn.ones(4), n(3), generator=fn.Generator(5)),
        lambda n: fn.split(fn.arange(6), n(4))[1],
        lambda n: fn.split(fn.arange(6), (n(4), n(2)))[1],
        lambda n: fn.chunk(fn.arange(6), n(3))[1],
        lambda n: fn.unstack(fn.ones((2, 3)), n(1))[0],
        lambda n: fn.stack([fn.ones(2)], n(1)),
        lambda n: fn.concat([fn.ones((2, 1))], n(1)),
        lambda n: fn.ones((2, 3)).sum(n(1)).reshape(n(2), n(1)),
        lambda n: fn.bincount(fn.tensor([1, 1, 0]), minlength=n(3)),
        lambda n: fn.bincount(fn.tensor([1, 1, 0]), length=n(3)),
        lambda n: fn.histogram(fn.tensor([1.0, 2.0]), n(2))[1],
        lambda n: fn.repeat(fn.ones(3), n(2)),
        lambda n: fn.ones(3)[n(0) : n(2)],
        lambda n: nn.Linear(n(2), n(3)).weight * 0,
        lambda n: (
            nn.Conv2d(n(2), n(4), n(3), stride=(n(1), n(2)), padding=n(1), groups=n(2))(fn.ones((1, 2, 4, 4))) * 0
        ),
        lambda n: nn.MaxPool2d(n(2))(fn.ones((1, 1, 4, 4))),
        lambda n: nn.LayerNorm(n(3)).weight,
        lambda n: nn.Embedding(n(3), n(2)).weight * 0,
        lambda n: nn.Flatten(n(1))(fn.ones((2, 3))),
    ],
)
def test_ints_of_other_libraries_are_ints(make, form):
    due, got = make(int), make(form)
    assert (due.shape, due.dtype) == (got.shape, got.dtype) and due.tolist() == got.tolist()
    assert all(type(n) is int for n in got.shape)


def test_layers_keep_and_show_pythons_ints():
    one = np.int64(1)
    layer = nn.Conv2d(np.int64(2), np.int64(2), (np.int64(3), one), stride=(one, np.int64(2)))
    assert "np." not in repr(nn.Sequential(layer, nn.MaxPool2d(np.int64(2)), nn.LayerNorm(np.int64(3))))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (True, fn.bool), (3, fn.int64), (3.0, fn.float32), (np.int64(3), fn.int64), (np.int8(3), fn.int8),
        (np.bool_(True), fn.bool), (np.float32(3), fn.float32), (np.float64(3), fn.float64), (np.asarray(3), fn.int64),
    ],
)  # fmt: skip
def test_the_dtype_of_full_is_that_of_its_value(value, dtype):
    for given in (value, fn.asarray(value)):
        x = fn.full(2, given)
        assert x.dtype is dtype is fn.asarray(given).dtype and x.tolist() == [value, value]


class Exporter:
    def __array__(self, dtype=None, copy=None):
        return np.arange(3.0)


@pytest.mark.parametrize(
    "value",
    [
        np.arange(3.0), [np.arange(3.0)], [[0.0, np.float64(1)]], memoryview(np.arange(3.0)),
        array.array("d", [0.0, 1.0]), Exporter(), np.arange(3.0).astype(">f8"),
    ],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_what_has_a_dtype_keeps_it(value):
    x = fn.asarray(value)
    assert x.dtype is fn.float64 and np.array_equal(x.numpy(), np.asarray(value))


@pytest.mark.parametrize("value", [1.5, [1.5], [[1, 2.5]], [[1.5], (2,)], [1.5, np.float32(2)], [np.int64(1), 2.5], []])
def test_python_floats_are_float32(value):
    assert fn.asarray(value).dtype is fn.float32


@pytest.mark.parametrize("kind", ["f4", "f8", "i2", "u8", "f2"])
def test_arrays_of_the_other_byte_order_are_converted(kind):
    host = np.arange(5).astype(">" + kind)
    for x in (fn.asarray(host), fn.Tensor.from_numpy(host)):
        assert x.dtype.numpy == np.dtype(kind) and x.tolist() == host.tolist()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: fn.arange(np.nan), fn.ConfigError, "arange: .*finite"),
        (lambda x: fn.arange(0, np.inf), fn.ConfigError, "arange: .*stop=inf"),
        (lambda x: fn.arange(None), fn.DTypeError, "arange: stop must be a number, got None"),
        (lambda x: fn.arange("3"), fn.DTypeError, "arange: stop .*'3'"),
        (lambda x: fn.arange(1, "3"), fn.DTypeError, "arange: stop .*'3'"),
        (lambda x: fn.linspace(0, 1, 5.0), fn.DTypeError, "linspace: num must be an int, got 5.0"),
        (lambda x: fn.linspace("a", 1, 5), fn.DTypeError, "linspace: start"),
        (lambda x: fn.eye(-1), fn.ShapeError, "eye: rows=-1"),
        (lambda x: fn.eye(2, -1), fn.ShapeError, "columns=-1"),
        (lambda x: fn.eye(2.5), fn.DTypeError, "eye: rows"),
        (lambda x: fn.ones(2.5), fn.ShapeError, "shape: .*2.5"),
        (lambda x: fn.ones("12"), fn.ShapeError, "shape: .*'12'"),
        (lambda x: fn.full(2, "a"), fn.DTypeError, "full: value must be a number, got 'a'"),
        (lambda x: fn.full(2, 1j), fn.DTypeError, "full: value"),
        (lambda x: fn.full(2, np.complex64(1)), fn.DTypeError, "full: value"),
        (lambda x: fn.full(2, x), fn.DTypeError, "full: value must be one number"),
        (lambda x: fn.full(2, np.nan, dtype=fn.int32), fn.DTypeError, "full: .*nan does not fit int32"),
        (lambda x: fn.full(2, 300, dtype=fn.int8), fn.DTypeError, "full: .*300 does not fit int8"),
        (lambda x: fn.full(2, -1, dtype=fn.uint8), fn.DTypeError, "full: .*-1 does not fit uint8"),
        (lambda x: fn.asarray([300], dtype=fn.uint8), fn.DTypeError, "asarray: .*300"),
        (lambda x: fn.asarray([np.nan], dtype=fn.int32), fn.DTypeError, "asarray: .*NaN"),
        (lambda x: fn.asarray("abc", dtype=fn.float32), fn.DTypeError, "asarray: .*abc"),
        (lambda x: fn.asarray([[1, 2], [3]]), fn.ShapeError, "asarray: "),
        (lambda x: fn.rand(4, -1.7e308, 1.7e308, dtype=fn.float64), fn.ConfigError, "rand: high − low must be at most"),
        (lambda x: fn.rand(2, generator=3), fn.DTypeError, "generator must be a Generator"),
        (lambda x: fn.dropout(x.to_dtype(fn.float32), generator=3), fn.DTypeError, "generator must be a Generator"),
        (lambda x: fn.rand(2, low=2, high=1), fn.ConfigError, "rand: needs low ≤ high"),
        (lambda x: fn.randn(2, mean=np.nan), fn.ConfigError, "randn: needs .* got mean=nan and std=1"),
        (lambda x: fn.randn(2, mean=-np.inf), fn.ConfigError, "randn: needs .* got mean=-inf"),
        (lambda x: fn.randn(2, std=np.inf), fn.ConfigError, "randn: needs .* got mean=0.0 and std=inf"),
        (lambda x: fn.randn(2, std=np.nan), fn.ConfigError, "randn: needs .* std=nan"),
        (lambda x: fn.randn(2, std=-1), fn.ConfigError, "randn: needs .* std=-1"),
        (lambda x: fn.randn(2, 1e5, dtype=fn.float16), fn.ConfigError, "randn: needs .* that float16 holds"),
        (lambda x: fn.ones(2).normal_(np.nan), fn.ConfigError, "normal_: needs"),
        (lambda x: fn.randint(0.5, 3, 2), fn.DTypeError, "randint: low must be an int, got 0.5"),
        (lambda x: fn.permutation(2.0), fn.DTypeError, "permutation: n"),
        (lambda x: fn.multinomial(fn.ones(3), 2.0), fn.DTypeError, "multinomial: n"),
        (lambda x: fn.manual_seed(1.5), fn.DTypeError, "manual_seed: seed must be an int, got 1.5"),
        (lambda x: fn.manual_seed("a"), fn.DTypeError, "manual_seed: seed"),
        (lambda x: x.to_dtype(None), fn.DTypeError, "None is not one of"),
        (lambda x: nn.Linear(2, 2).to_dtype(None), fn.DTypeError, "None is not one of"),
        (lambda x: x.sum(axis=1.0), fn.DTypeError, r"sum: axis must be an int, a sequence of ints or None, got 1\.0"),
        (lambda x: x.sum(axis=("0", 1)), fn.DTypeError, "sum: axis"),
        (lambda x: x.reshape("32"), fn.DTypeError, "reshape: shape must be an int or a sequence of ints, got '32'"),
        (lambda x: x.reshape(None), fn.DTypeError, "reshape: shape .*None"),
        (lambda x: x.reshape((2, None)), fn.DTypeError, "reshape: shape .*None"),
        (lambda x: x.reshape((3.7, 2)), fn.DTypeError, "reshape: shape .*3.7"),
        (lambda x: x.view(3.2, 2), fn.DTypeError, "view: shape .*3.2"),
        (lambda x: x.permute((0,)), fn.AxisError, "permute: axes"),
        (lambda x: fn.repeat(x, [1, 2], 1), fn.ShapeError, r"repeat: repeats of shape \(2,\)"),
        (lambda x: fn.repeat(x, 1.5), fn.DTypeError, "repeat: repeats must be an int, a sequence of ints or a tensor"),
        (lambda x: fn.pad(x, 1), fn.DTypeError, "pad: widths must be a sequence of pairs of ints, got 1"),
        (lambda x: fn.pad(x, (1, 1)), fn.ShapeError, "pad: widths"),
        (lambda x: fn.pad_border(x, ((1, 1), (1,)), "edge"), fn.ShapeError, "pad_border: widths"),
        (lambda x: fn.narrow(x, 0, 0.5, 1), fn.DTypeError, "narrow: start must be an int, got 0.5"),
        (lambda x: fn.rot90(x, axes=(0, 1, 1)), fn.AxisError, "rot90: axes"),
        (lambda x: fn.tensordot(x, x, ((0,),)), fn.AxisError, "tensordot: axes"),
        (lambda x: fn.patchify(fn.ones((1, 1, 2, 2)), (1, 1, 1)), fn.ShapeError, "patchify: size"),
        (lambda x: fn.split(x, 1.5), fn.DTypeError, "split: size"),
        (lambda x: fn.chunk(x, "2"), fn.DTypeError, "chunk: chunks"),
        (lambda x: x[1.5:3], fn.IndexOutOfRange, r"index: slice\(1.5, 3, None\)"),
        (lambda x: x[::0], fn.IndexOutOfRange, "step 0"),
        (lambda x: fn.bincount(fn.tensor([1]), minlength=3.0), fn.DTypeError, "bincount: minlength"),
        (lambda x: nn.Linear(2.0, 2), fn.DTypeError, "Linear: in_features"),
        (lambda x: nn.Conv2d(2, 2, "a"), fn.DTypeError, "Conv2d: kernel_size"),
    ],
)
def test_what_is_no_int_or_number_is_refused_by_name(call, error, words):
    x = fn.asarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    with pytest.raises(error, match=words):
        call(x)


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (1 - 1e-12, 1.0, fn.float32),
        (1000.1, 1000.2, fn.float16),
        (0.3, 0.7, fn.bfloat16),
        (-1.0, 1e-30 - 1, fn.float32),
    ],
)
def test_random_numbers_are_not_below_low(low, high, dtype):
    x = fn.rand((1000,), low, high, dtype=dtype).numpy().astype(float)
    least = float(np.asarray(low, dtype.numpy))
    assert x.min() >= least and x.max() < max(high, np.nextafter(least, np.inf))


def test_repeats_may_be_a_list_as_in_numpy():
    x = np.arange(6).reshape(2, 3)
    assert np.array_equal(fn.repeat(fn.asarray(x), [1, 0, 2], 1).numpy(), np.repeat(x, [1, 0, 2], 1))
