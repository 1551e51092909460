"""Real data sets as NumPy arrays. Importing this reads nothing."""

from .digits import Digits, load_digits
from .fashion_mnist import FashionMNIST, load_fashion_mnist
from .idx import DatasetError

__all__ = ["DatasetError", "Digits", "FashionMNIST", "load_digits", "load_fashion_mnist"]
