"""Every op of the table × dtype × layout against NumPy in f64, and its gradients against differences. Generated."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame_numba import DType, float32
from flame_numba.ops import TABLE, Entry
from flame_numba.testing import check_forward, check_gradient, check_related, check_repeats

SEEDS = st.integers(0, 2**32 - 1)
ENTRIES = list(TABLE.values())


def _often(index: int, entry: Entry) -> set[DType]:
    """What `make test` has time for of an entry: float32, and another of its dtypes, in turn. `slow` has them all."""
    others = [d for d in entry.dtypes if d is not float32]
    return {float32, *others[index % len(others) :][:1]} if others else {float32}


FORWARD = [
    pytest.param(e, d, id=f"{e.name}-{d.name}", marks=() if d in _often(i, e) else pytest.mark.slow)
    for i, e in enumerate(ENTRIES)
    for d in e.dtypes
]
FORMULAS = [p for p in FORWARD if p.values[0].kind == "elementwise"]
OTHERS = [p for p in FORWARD if p.values[0].kind != "elementwise"]
DIFFERENTIABLE = [pytest.param(e, id=e.name) for e in ENTRIES if not e.non_differentiable]
# a composite's second gradient is that of its parts
TWICE = [
    pytest.param(e, id=e.name, marks=pytest.mark.slow if e.kind == "composite" else ())
    for e in ENTRIES
    if not e.non_differentiable
]

# a formula's rule knows no operands but by their edges
RELATED = [
    pytest.param(e, id=e.name, marks=pytest.mark.slow if e.kind == "elementwise" else ())
    for e in ENTRIES
    if not e.non_differentiable and len(e.parameters) > 1
]


@pytest.mark.parametrize(("entry", "dtype"), FORMULAS)
@given(seed=SEEDS)
def test_equals_its_reference(entry, dtype, seed):
    check_forward(entry, dtype, seed)


@pytest.mark.parametrize(("entry", "dtype"), OTHERS)
@settings(max_examples=max(5, settings().max_examples // 3))  # each example runs all of the entry's cases
@given(seed=SEEDS)
def test_cases_equal_their_reference(entry, dtype, seed):
    check_forward(entry, dtype, seed)


@pytest.mark.parametrize("entry", DIFFERENTIABLE)
@settings(max_examples=4)
@given(seed=SEEDS)
def test_gradient_equals_differences(entry, seed):
    check_gradient(entry, seed)


@pytest.mark.parametrize("entry", TWICE)
@settings(max_examples=2)
@given(seed=SEEDS)
def test_second_gradient_equals_differences(entry, seed):
    check_gradient(entry, seed, order=2)


@pytest.mark.parametrize("entry", RELATED)
def test_gradients_of_related_operands_do_not_depend_on_create_graph(entry):
    check_related(entry, seed=0)


@pytest.mark.parametrize("entry", [e for e in TABLE.values() if float32 in e.dtypes], ids=lambda e: e.name)
def test_two_runs_have_the_same_bits(entry):
    check_repeats(entry, float32, seed=0)


@pytest.mark.parametrize("entry", TABLE.values(), ids=lambda e: e.name)
def test_entry_is_complete(entry):
    assert entry.doc, f"{entry.name} has no docstring"
    assert callable(entry.reference)
    assert entry.kind != "elementwise" or len(entry.domain) == len(entry.parameters)
    assert entry.kind == "elementwise" or entry.cases, f"{entry.name} has no cases to test"
