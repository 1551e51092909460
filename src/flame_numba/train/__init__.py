"""Whole trainings on real data, as `flame-numba train` runs them."""

from .digits import train_digits
from .fashion_mnist import RECIPES, Recipe, train_fashion_mnist
from .loop import PRECISIONS, Data, Epoch, evaluate, fit

__all__ = [
    "PRECISIONS",
    "RECIPES",
    "Data",
    "Epoch",
    "Recipe",
    "evaluate",
    "fit",
    "train_digits",
    "train_fashion_mnist",
]
