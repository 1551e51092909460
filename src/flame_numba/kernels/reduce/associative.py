"""Associative operations: what reductions and scans do with scalars."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...dtypes import DType, bool_
from ..language import Binding, Function, Load


@dataclass(frozen=True)
class Associative:
    """An operation on elements a, b (b comes after a), as expressions of them."""

    name: str
    transform: str  # of an element a, before anything is combined
    combine: str  # of two results a and b
    identity: str  # a number, or "lowest" / "highest" of the compute type
    truth: bool = False  # elements are read as truth values
    rounds: bool = False  # each step rounds, in a floating dtype

    @property
    def of_results(self) -> Associative:
        """The same for results of the operation, which are transformed already."""
        return replace(self, transform="a", truth=False)

    def bindings(self, source: DType, compute: DType) -> dict[str, Binding]:
        """`load_x`, `transform`, `combine` and `IDENTITY` of a kernel over elements of dtype `source`."""
        given = bool_ if self.truth else compute
        return {
            "load_x": Load(source, given),
            "transform": Function(f"def call(a): return {self.transform}", 1, compute, given),
            "combine": Function(f"def call(a, b): return {self.combine}", 2, compute),
            "IDENTITY": self._identity(compute),
        }

    def _identity(self, compute: DType) -> float | int:
        if self.identity not in ("lowest", "highest"):
            return int(self.identity)
        lowest = self.identity == "lowest"
        if compute.is_floating:
            return float("-inf") if lowest else float("inf")
        if compute.kind == "uint":
            return 0 if lowest else 2**64 - 1
        return -(2**63) if lowest else 2**63 - 1


_TRUTH = "C(1) if a else C(0)"

SUM = Associative("sum", "a", "a + b", "0", rounds=True)
PRODUCT = Associative("prod", "a", "a * b", "1", rounds=True)
MAXIMUM = Associative("max", "a", "a if a > b or a != a else b", "lowest")
MINIMUM = Associative("min", "a", "a if a < b or a != a else b", "highest")
ANY = Associative("any", _TRUTH, "a if a > b else b", "0", truth=True)
ALL = Associative("all", _TRUTH, "a if a < b else b", "1", truth=True)
COUNT = Associative("count", _TRUTH, "a + b", "0", truth=True)
LOGSUMEXP = Associative(
    "logsumexp",
    "a",
    # the larger plus log(1 + e^−distance); equal ones, both −∞ too, have no distance
    "a if a != a else b if b != b else a + log1p(C(1)) if a == b else "
    "a + log1p(exp(b - a)) if a > b else b + log1p(exp(a - b))",
    "lowest",
)
