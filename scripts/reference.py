"""The tables of docs/reference.md, made from `flame_numba.__all__` and `flame_numba.ops.TABLE`.

python scripts/reference.py            write them
python scripts/reference.py --check    exit with status 1 if docs/reference.md does not show them
"""

from __future__ import annotations

import argparse
import inspect
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import flame_numba as fn
from flame_numba import dtypes
from flame_numba.ops import MODULES, TABLE, Entry

PAGE = ROOT / "docs" / "reference.md"
OPS, NAMES = "op-table", "names"
HEADING = "| op | what it is | kind | dtypes | derivative |\n|---|---|---|---|---|"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def first_sentence(doc: str) -> str:
    """The first line of a docstring, as a table cell."""
    return cell(doc.strip().partition("\n")[0])


# --- the ops ------------------------------------------------------------------------------------------------------
def accepted(entry: Entry) -> frozenset[dtypes.DType]:
    """The dtypes an elementwise op takes; for others, those that its entry is tested in."""
    return getattr(entry.op, "accepts", None) or frozenset(entry.dtypes)


def summary(kinds: frozenset[dtypes.DType]) -> str:
    """Dtypes in words: `floats`, `floats, integers`, `all`."""
    if kinds >= set(dtypes.ALL):
        return "all"
    groups = {"floats": set(dtypes.FLOATS), "integers": set(dtypes.INTEGERS), "bool": {dtypes.bool_}}
    words = []
    for word, members in groups.items():
        if kinds >= members:
            words.append(word)
        else:
            words += [d.name for d in dtypes.ALL if d in members and d in kinds]
    return ", ".join(words)


def row(entry: Entry) -> str:
    """One line of the table."""
    derivative = f"none: {entry.non_differentiable}" if entry.non_differentiable else "yes"
    cells = (f"`{entry.name}`", first_sentence(entry.doc), entry.kind, summary(accepted(entry)), derivative)
    return f"| {' | '.join(cells)} |"


def lines_of(entry: Entry) -> int:
    """Lines of the entry's decorated function, and of the rules that only it names are not among them."""
    op: Any = entry.op
    function = getattr(op, "function", None) or inspect.unwrap(op)
    try:
        return len(inspect.getsource(function).splitlines())
    except TypeError:  # an elementwise op does not keep the function that its formula was traced from
        return 0


def op_table() -> str:
    """The whole table in Markdown, in the order of the alphabet."""
    sizes = {name: n for name, entry in TABLE.items() if (n := lines_of(entry))}
    longest = max(sizes, key=sizes.__getitem__)
    differentiable = sum(1 for entry in TABLE.values() if not entry.non_differentiable)
    median = statistics.median(sizes.values())
    head = (
        f"{len(TABLE)} ops, {differentiable} of them differentiable. The functions of primitives and composites, with\n"
        f"their decorators, have {median:.0f} lines in the median; the longest, `{longest}`, {sizes[longest]}.\n"
    )
    return "\n".join([head, HEADING, *(row(TABLE[name]) for name in sorted(TABLE))])


# --- the public names ---------------------------------------------------------------------------------------------
def sections() -> Iterator[tuple[str, list[str]]]:
    """(heading, public names) in the order of the modules of ops, and the rest by what they are."""
    left = dict.fromkeys(fn.__all__)
    for module in MODULES:
        names = [name for name in module.__all__ if name in left]
        for name in names:
            del left[name]
        if names:
            yield first_sentence(module.__doc__ or "").rstrip("."), sorted(names, key=str.lower)
    kinds: dict[str, list[str]] = {"Classes": [], "Errors": [], "Dtypes": [], "Modules": [], "Other functions": []}
    for name in left:
        kinds[_kind(public(name))].append(name)
    for kind, names in kinds.items():
        if names:
            yield kind, sorted(names, key=str.lower)


def public(name: str) -> Any:
    """What stands behind a name; of a module that is a call, the function."""
    value = getattr(fn, name)
    return getattr(value, "__wrapped__", value) if inspect.ismodule(value) else value


def _kind(value: Any) -> str:
    if inspect.ismodule(value):
        return "Modules"
    if isinstance(value, type):
        return "Errors" if issubclass(value, BaseException) else "Classes"
    return "Dtypes" if isinstance(value, dtypes.DType) else "Other functions"


def signature(name: str) -> str:
    """`name(a, b, axis=None)`, without types."""
    value = public(name)
    entry = TABLE.get(name)
    if entry is not None and entry.kind == "elementwise":
        return f"{name}({', '.join(entry.parameters)})"
    if inspect.ismodule(value) or not callable(value) or isinstance(value, type):
        return name
    try:
        parameters = inspect.signature(inspect.unwrap(value)).parameters.values()
    except (TypeError, ValueError):
        return name
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    return name + str(inspect.Signature(plain))


def description(name: str) -> str:
    value = public(name)
    if isinstance(value, dtypes.DType):
        return f"{value.itemsize} bytes an element; computed in {value.accumulator.name}"
    return first_sentence(inspect.getdoc(value) or "")


def name_table() -> str:
    parts = []
    for heading, names in sections():
        rows = [f"| `{cell(signature(name))}` | {description(name)} |" for name in names]
        parts.append("\n".join([f"### {heading}\n", "| name | what it is |\n|---|---|", *rows]))
    return "\n\n".join(parts)


# --- the page -----------------------------------------------------------------------------------------------------
def filled(page: str) -> str:
    """The page with the tables between their markers. Raises ValueError if it lacks them."""
    for mark, table in ((NAMES, name_table()), (OPS, op_table())):
        begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
        before, found, rest = page.partition(begin)
        _, ended, after = rest.partition(end)
        if not found or not ended:
            raise ValueError(f"the page needs {begin} and {end}")
        page = f"{before}{begin}\n{table}\n{end}{after}"
    return page


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the tables of docs/reference.md.")
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 if the tables are stale")
    check = parser.parse_args(argv).check
    page = PAGE.read_text(encoding="utf-8")
    wanted = filled(page)
    if check and wanted != page:
        print("docs/reference.md: the tables are stale; run python scripts/reference.py", file=sys.stderr)
        return 1
    if not check:
        PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
