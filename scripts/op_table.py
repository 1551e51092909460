"""The op table of README.md, made from `flame_numba.ops.TABLE`.

python scripts/op_table.py            write it
python scripts/op_table.py --check    exit with status 1 if README.md does not show it
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from flame_numba import dtypes
from flame_numba.ops import TABLE, Entry

README = ROOT / "README.md"
BEGIN, END = "<!-- op-table:begin -->", "<!-- op-table:end -->"
HEADING = "| op | what it is | kind | dtypes | derivative |\n|---|---|---|---|---|"


def first_sentence(doc: str) -> str:
    """The first line of a docstring, as a table cell."""
    return doc.strip().partition("\n")[0].replace("|", "\\|")


def accepted(entry: Entry) -> frozenset[dtypes.DType]:
    """The dtypes an elementwise op takes; for others, those that its entry is tested in."""
    return getattr(entry.op, "accepts", None) or frozenset(entry.dtypes)


def summary(kinds: frozenset[dtypes.DType]) -> str:
    """Dtypes in words: `floats`, `floats, integers`, `all`."""
    if kinds >= set(dtypes.ALL):
        return "all"
    groups = {
        "floats": set(dtypes.FLOATS),
        "integers": set(dtypes.INTEGERS),
        "bool": {dtypes.bool_},
    }
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


def table() -> str:
    """The whole table in Markdown, in the order of the alphabet."""
    return "\n".join([f"{len(TABLE)} ops.\n", HEADING, *(row(TABLE[name]) for name in sorted(TABLE))])


def filled(page: str) -> str:
    """The page with the table between its markers. Raises ValueError if it lacks them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the op table of README.md.")
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 if the table is stale")
    check = parser.parse_args(argv).check
    page = README.read_text(encoding="utf-8")
    wanted = filled(page)
    if check and wanted != page:
        print("README.md: the op table is stale; run python scripts/op_table.py", file=sys.stderr)
        return 1
    if not check:
        README.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
