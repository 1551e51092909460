"""Published results on Fashion-MNIST, to be reproduced: PyTorch's quickstart and d2l's LeNet."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from .. import nn
from ..data import FashionMNIST, load_fashion_mnist
from ..devices import Device, current_device
from ..errors import ConfigError
from ..ops.random import manual_seed
from ..ops.shape.creation import asarray
from ..optim import SGD
from .loop import Data, Epoch, batch_count, fit, one_blas_thread
from .progress import progress


def quickstart() -> nn.Sequential:
    """(N, 1, 28, 28) → (N, 10): the network of PyTorch's quickstart tutorial."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


def lenet() -> nn.Sequential:
    """(N, 1, 28, 28) → (N, 10): LeNet as in chapter 7.6 of Dive into Deep Learning. (LeCun et al. 1998)"""
    net = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Sigmoid(), nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5), nn.Sigmoid(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.Sigmoid(), nn.Linear(120, 84), nn.Sigmoid(), nn.Linear(84, 10),
    )  # fmt: skip
    for layer in net:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight)
    return net


@dataclass(frozen=True)
class Recipe:
    """A published training: network, rate, batches, and how long."""

    network: Callable[[], nn.Sequential]
    lr: float
    batch_size: int
    shuffle: bool
    epochs: int


RECIPES = {
    "quickstart": Recipe(quickstart, lr=1e-3, batch_size=64, shuffle=False, epochs=5),
    "lenet": Recipe(lenet, lr=0.9, batch_size=256, shuffle=True, epochs=10),
}


def on_device(images: FashionMNIST) -> Data:
    """The set on the default device, pixels as f32 in 0 … 1, images (n, 1, 28, 28)."""
    train, test = (asarray(x).reshape(-1, 1, 28, 28) / 255 for x in (images.train_images, images.test_images))
    return Data(train, asarray(images.train_labels), test, asarray(images.test_labels))


def train_fashion_mnist(
    recipe: str, *, precision: str = "f32", epochs: int | None = None, seed: int = 0,
    folder: str | os.PathLike[str] | None = None, images: FashionMNIST | None = None,
    device: Device | str | None = None,
) -> list[Epoch]:  # fmt: skip
    """Follow a recipe of RECIPES for its number of epochs, or for another one.

    The data comes from `folder`, from where `load_fashion_mnist` finds it, or is `images`. Raises ConfigError for an
    unknown recipe and DatasetError if there is no data.
    """
    if recipe not in RECIPES:
        raise ConfigError(f"recipe: expected one of {', '.join(RECIPES)}, got {recipe!r}")
    plan = RECIPES[recipe]
    count = plan.epochs if epochs is None else epochs
    manual_seed(seed)
    with current_device() if device is None else Device.parse(device), one_blas_thread():
        data = on_device(load_fashion_mnist(folder) if images is None else images)
        model = plan.network()
        optimizer = SGD(model.parameters(), lr=plan.lr)
        with progress(recipe, count * batch_count(data.train_labels.numel, plan.batch_size)) as report:
            return fit(
                model, optimizer, data, epochs=count, batch_size=plan.batch_size, shuffle=plan.shuffle,
                precision=precision, report=report,
            )  # fmt: skip
