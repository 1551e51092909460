"""Fashion-MNIST: 70,000 real pictures of clothes, 28×28 grey pixels, in ten classes. (Xiao, Rasul & Vollgraf 2017)"""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .idx import DatasetError, parse, read_bytes

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

ENVIRONMENT_VARIABLE = "FASHION_MNIST"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist
# The authors' own bucket (its website address has no TLS), and their repository.
MIRRORS = (
    "https://fashion-mnist.s3.eu-central-1.amazonaws.com",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
)
DOWNLOAD_TIMEOUT_S = 30


class _File(NamedTuple):
    name: str
    shape: tuple[int, ...]
    sha256: str  # of the unpacked content, so that it holds for raw and gzipped files alike


FILES = (
    _File(
        "train-images-idx3-ubyte", (60000, 28, 28), "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
    ),
    _File("train-labels-idx1-ubyte", (60000,), "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    _File(
        "t10k-images-idx3-ubyte", (10000, 28, 28), "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
    ),
    _File("t10k-labels-idx1-ubyte", (10000,), "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
)


class FashionMNIST(NamedTuple):
    """Images: (n, 28, 28) uint8. Labels: (n,) int64, an index into CLASSES. 60,000 to train on, 10,000 to test with."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


def load_fashion_mnist(folder: str | os.PathLike[str] | None = None) -> FashionMNIST:
    """The four idx files (raw or .gz) as arrays, from the first place that has them.

    Places: `folder` if given; else the folder in the environment variable FASHION_MNIST; else Debian's package
    dataset-fashion-mnist; else the cache folder; else a download of 30 MB into the cache, checked by SHA-256.
    A folder that you name is the only place looked at. Raises DatasetError, listing the places, if none works.
    """
    named = folder or os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        origin = "" if folder else f" (from the environment variable {ENVIRONMENT_VARIABLE})"
        return _read_folder(Path(named).expanduser(), origin)
    if _holds_all(DEBIAN_FOLDER):
        return _read_folder(DEBIAN_FOLDER)
    return _assemble(_cached_or_downloaded(file) for file in FILES)


def cache_folder() -> Path:
    """Where downloads are kept: $XDG_CACHE_HOME/flame-numba/fashion-mnist, by default below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "flame-numba" / "fashion-mnist"


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _holds_all(folder: Path) -> bool:
    return all(_find(folder, file.name) for file in FILES)


def _read_folder(folder: Path, origin: str = "") -> FashionMNIST:
    if not folder.is_dir():
        raise DatasetError(f"fashion-mnist: no such folder: {folder}{origin}")
    missing = [file.name for file in FILES if not _find(folder, file.name)]
    if missing:
        raise DatasetError(f"fashion-mnist: {folder}{origin} lacks {', '.join(missing)} (raw or .gz)")
    return _assemble(_read(folder, file) for file in FILES)


def _read(folder: Path, file: _File) -> NDArray[np.uint8]:
    path = _find(folder, file.name)
    assert path is not None  # every caller has looked
    return parse(read_bytes(path), file.shape, str(path))


def _assemble(arrays: Iterator[NDArray[np.uint8]]) -> FashionMNIST:
    train_images, train_labels, test_images, test_labels = arrays
    return FashionMNIST(train_images, train_labels.astype(np.int64), test_images, test_labels.astype(np.int64))


def _cached_or_downloaded(file: _File) -> NDArray[np.uint8]:
    path = cache_folder() / f"{file.name}.gz"
    try:
        content = read_bytes(path)
    except DatasetError:  # not there, or cut short
        content = b""
    if hashlib.sha256(content).hexdigest() != file.sha256:
        _download(file, path)
        content = read_bytes(path)
    return parse(content, file.shape, str(path))


def _download(file: _File, path: Path) -> None:
    """Put the checked file at `path`, from the first mirror that has it, in one step: readers never see half a file."""
    failures = []
    for mirror in MIRRORS:
        url = f"{mirror}/{file.name}.gz"
        try:
            with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_S) as response:
                packed = response.read()
        except OSError as error:  # URLError, HTTPError and time-outs are OSErrors
            failures.append(f"{url}: {error}")
            continue
        problem = _store(packed, file, path)
        if not problem:
            return
        failures.append(f"{url}: {problem}")
    raise DatasetError(_nowhere(failures))


def _store(packed: bytes, file: _File, path: Path) -> str:
    """Write `packed` to `path` if its content is right; else say what is wrong with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as stream:
        stream.write(packed)
    temporary = Path(stream.name)
    try:
        found = hashlib.sha256(read_bytes(temporary)).hexdigest()
        if found != file.sha256:
            return f"wrong checksum: SHA-256 {found}, expected {file.sha256}"
        temporary.replace(path)
        return ""
    except DatasetError:
        return f"truncated or damaged: {len(packed)} bytes"
    finally:
        temporary.unlink(missing_ok=True)


def _nowhere(failures: list[str]) -> str:
    places = [
        f"environment variable {ENVIRONMENT_VARIABLE}: not set",
        f"Debian's package dataset-fashion-mnist: no complete set in {DEBIAN_FOLDER}",
        f"cache: no complete set in {cache_folder()}",
        *(f"download: {failure}" for failure in failures),
    ]
    files = ", ".join(f"{file.name}.gz" for file in FILES)
    return "\n  ".join(
        [
            "fashion-mnist: the data set was not found. Places tried:",
            *places,
            f"Put the files {files} into a folder and give its path, or: apt install dataset-fashion-mnist",
        ]
    )
