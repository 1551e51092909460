"""The data sets: what they hold, where they are looked for, and what is said when a file is damaged or absent."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flame_numba.data import DatasetError, fashion_mnist, idx, load_digits, load_fashion_mnist
from flame_numba.extras import MissingExtra, require

# --- digits -------------------------------------------------------------------------------------------------------


def test_digits_are_the_real_ones() -> None:
    digits = load_digits(0)
    assert digits.train_images.shape == (1437, 8, 8) and digits.test_images.shape == (360, 8, 8)
    assert digits.train_images.dtype == np.float32 and digits.train_labels.dtype == np.int64
    assert digits.train_images.min() == 0 and digits.train_images.max() == 1
    everything = np.concatenate([digits.train_images, digits.test_images])
    assert everything.sum(dtype=np.float64) * 16 == 561718  # the sum of all pixels of the published set


def test_digits_split_is_stratified_and_set_by_the_seed() -> None:
    first, again, other = load_digits(1), load_digits(1), load_digits(2)
    for a, b in zip(first, again):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first.test_labels, other.test_labels)
    assert set(Counter(first.test_labels.tolist()).values()) <= {35, 36, 37}


def test_digits_without_scikit_learn(hide_package: Callable[[str], None]) -> None:
    hide_package("sklearn")
    with pytest.raises(MissingExtra, match=r"pip install 'flame-numba\[demo\]'") as caught:
        load_digits()
    assert isinstance(caught.value, ImportError)


def test_require_passes_on_errors_from_inside_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import no_such_package_at_all", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
        require("needs_more", extra="demo", purpose="this test")


# --- the idx format -----------------------------------------------------------------------------------------------


def encode(array: np.ndarray[Any, Any]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


SMALL = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)


def test_idx_round_trip(tmp_path: Path) -> None:
    for name, content in (("raw", encode(SMALL)), ("packed.gz", gzip.compress(encode(SMALL)))):
        (tmp_path / name).write_bytes(content)
        array = idx.parse(idx.read_bytes(tmp_path / name), SMALL.shape, name)
        np.testing.assert_array_equal(array, SMALL)
        assert array.flags.writeable


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "f: truncated: 0 bytes, the header alone has 16"),
        (encode(SMALL)[:-1], r"f: truncated: 39 bytes, expected 40 for an array \(4, 3, 2\)"),
        (encode(SMALL) + b"x", "f: too long: 41 bytes, expected 40"),
        (b"\0\0\x0d\x03" + encode(SMALL)[4:], "f: wrong magic number 0x00000d03; .* begins with 0x00000803"),
        (b"<html>" + encode(SMALL), "f: wrong magic number 0x3c68746d"),
        (encode(SMALL[:2]), r"f: wrong size: it holds an array \(2, 3, 2\), expected \(4, 3, 2\)"),
    ],
)
def test_damaged_idx(content: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        idx.parse(content, SMALL.shape, "f")


@pytest.mark.parametrize("cut", [3, 20, -1])
def test_truncated_gzip(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "f.gz"
    path.write_bytes(gzip.compress(encode(SMALL))[:cut])
    with pytest.raises(DatasetError, match="f.gz: the gzip file is truncated or damaged"):
        idx.read_bytes(path)


def test_damaged_gzip(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(encode(SMALL)))
    packed[15] ^= 0xFF
    (tmp_path / "f.gz").write_bytes(packed)
    with pytest.raises(DatasetError, match="truncated or damaged"):
        idx.read_bytes(tmp_path / "f.gz")


# --- Fashion-MNIST: the search, on a small set of the same form ---------------------------------------------------

ARRAYS = {
    "train-images-idx3-ubyte": np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8),
    "train-labels-idx1-ubyte": np.array([9, 0, 3, 1, 2, 7], np.uint8),
    "t10k-images-idx3-ubyte": np.random.default_rng(1).integers(0, 256, (2, 28, 28), np.uint8),
    "t10k-labels-idx1-ubyte": np.array([4, 8], np.uint8),
}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the loader expect ARRAYS, and look in no place of this machine. Returns a folder with the packed files."""
    files = [
        fashion_mnist._File(name, array.shape, hashlib.sha256(encode(array)).hexdigest())
        for name, array in ARRAYS.items()
    ]
    monkeypatch.setattr(fashion_mnist, "FILES", tuple(files))
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr(fashion_mnist, "MIRRORS", ((tmp_path / "no mirror").as_uri(),))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FASHION_MNIST", raising=False)
    folder = tmp_path / "packed"
    folder.mkdir()
    for name, array in ARRAYS.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(encode(array)))
    return folder


def check(found: fashion_mnist.FashionMNIST) -> None:
    assert found.train_images.dtype == np.uint8 and found.train_labels.dtype == np.int64
    for array, expected in zip(found, ARRAYS.values()):
        np.testing.assert_array_equal(array, expected)


def test_given_folder(small: Path) -> None:
    check(load_fashion_mnist(small))
    for path in list(small.iterdir())[:2]:  # a mixture of raw and packed files
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    check(load_fashion_mnist(str(small)))


def test_environment_variable_then_debian(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("FASHION_MNIST", str(small))
        check(load_fashion_mnist())
    small.rename(fashion_mnist.DEBIAN_FOLDER)
    check(load_fashion_mnist())


def test_a_named_folder_is_the_only_place(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", small)  # complete, but not what was asked for
    with pytest.raises(DatasetError, match="no such folder: .*absent"):
        load_fashion_mnist(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("FASHION_MNIST", str(tmp_path / "empty"))
    with pytest.raises(DatasetError, match="FASHION_MNIST.* lacks train-images-idx3-ubyte, train-labels-idx1-ubyte"):
        load_fashion_mnist()


def test_damaged_file_is_named(small: Path) -> None:
    path = small / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DatasetError, match=r"t10k-labels-idx1-ubyte\.gz: the gzip file is truncated or damaged"):
        load_fashion_mnist(small)


@pytest.fixture
def server(small: Path) -> Iterator[tuple[str, Counter[str]]]:
    """A mirror on this machine's loopback address, and how often each file was asked for."""
    asked: Counter[str] = Counter()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked[self.path] += 1
            super().do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=small)) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", asked
        httpd.shutdown()
        thread.join()


def test_download_is_cached_and_a_damaged_cache_is_mended(
    server: tuple[str, Counter[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = server
    monkeypatch.setattr(fashion_mnist, "MIRRORS", (url + "/absent", url))  # the first one has nothing
    check(load_fashion_mnist())
    before = sum(asked.values())
    assert before == 8  # four times a failed request, then a good one
    check(load_fashion_mnist())
    assert sum(asked.values()) == before
    damaged = fashion_mnist.cache_folder() / "train-images-idx3-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:100])
    check(load_fashion_mnist())
    assert sum(asked.values()) == before + 2
    assert len(list(fashion_mnist.cache_folder().iterdir())) == 4  # no temporary files are left


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"another file"), "wrong checksum: SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64}"),
        (gzip.compress(b"cut short")[:-3], "truncated or damaged: 26 bytes"),
    ],
    ids=["another file", "cut short"],  # the bytes hold the time of day: as names they differ between test processes
)
def test_bad_download_is_refused(content: bytes, message: str, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small / "train-images-idx3-ubyte.gz").write_bytes(content)
    monkeypatch.setattr(fashion_mnist, "MIRRORS", (small.as_uri(),))
    with pytest.raises(DatasetError, match=message):
        load_fashion_mnist()
    assert not list(fashion_mnist.cache_folder().iterdir())


def test_the_message_lists_every_place(small: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        load_fashion_mnist()
    message = str(caught.value)
    for place in (
        "FASHION_MNIST",
        "apt install dataset-fashion-mnist",
        str(fashion_mnist.cache_folder()),
        "no%20mirror",
    ):
        assert place in message
    assert message.count("\n") == 5


def test_the_real_files_if_here() -> None:
    """The published set, where this machine has it (Debian's package or the cache); a download is not tried."""
    here = next(
        (
            path
            for path in (fashion_mnist.DEBIAN_FOLDER, fashion_mnist.cache_folder())
            if fashion_mnist._holds_all(path)
        ),
        None,
    )
    if here is None:
        pytest.skip("Fashion-MNIST is not on this machine")
    for file in fashion_mnist.FILES:
        path = fashion_mnist._find(here, file.name)
        assert path is not None
        assert hashlib.sha256(idx.read_bytes(path)).hexdigest() == file.sha256
    found = load_fashion_mnist(here)
    assert found.train_images.shape == (60000, 28, 28) and found.test_images.shape == (10000, 28, 28)
    assert np.bincount(found.train_labels).tolist() == [6000] * 10
    assert len(fashion_mnist.CLASSES) == 10
