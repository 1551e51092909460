"""1,797 real handwritten digits, which scikit-learn ships: no download, small enough for a demo."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..extras import require

TEST_SHARE = 0.2


class Digits(NamedTuple):
    """Images: (n, 8, 8) float32 in [0, 1]. Labels: (n,) int64 in 0…9. 1,437 to train on, 360 to test with."""

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]


def load_digits(seed: int = 0) -> Digits:
    """The digits, split 80/20 with the same share of each digit in both parts; `seed` picks the split.

    Raises MissingExtra if scikit-learn is absent. (Alpaydin & Kaynak 1998, by way of scikit-learn)
    """
    datasets = require("sklearn.datasets", extra="demo", purpose="the digits data set")
    selection = require("sklearn.model_selection", extra="demo", purpose="the digits data set")
    bunch: Any = datasets.load_digits()
    images = (bunch.images / 16).astype(np.float32)  # pixels are whole numbers 0…16
    labels = bunch.target.astype(np.int64)
    train, test = selection.train_test_split(
        np.arange(len(labels)), test_size=TEST_SHARE, random_state=seed, stratify=labels
    )
    return Digits(images[train], labels[train], images[test], labels[test])
