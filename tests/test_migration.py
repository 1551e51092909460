"""Each row of docs/migration-from-flame.md does what it says, and no name of FLAME's has two rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import flame_numba as fn

PAGE = Path(__file__).resolve().parent.parent / "docs" / "migration-from-flame.md"
TEXT = PAGE.read_text()
SETUP = re.search(r"```python\n(.*?)```", TEXT, re.S).group(1)  # type: ignore[union-attr]


def rows() -> list[tuple[str, str, str]]:
    """(FLAME's names, the code here, what it gives) of each row of the tables."""
    found = []
    for line in TEXT.splitlines():
        cells = [c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 3 and cells[0].startswith("`"):
            found.append((cells[0], cells[1], cells[2]))
    return found


ROWS = rows()


def test_rows_are_found() -> None:
    assert len(ROWS) > 100
    names = [row[0] for row in ROWS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("flame", "here", "gives"), ROWS, ids=[row[0] for row in ROWS])
def test_row(flame: str, here: str, gives: str) -> None:
    if here.startswith("see ["):
        assert (PAGE.parent / re.search(r"\((.*?)\)", here).group(1)).exists()  # type: ignore[union-attr]
        return
    scope: dict[str, Any] = {}
    exec(SETUP, scope)
    code = here.strip("`").replace("\\|", "|")
    *statements, last = code.split("; ") if not code.startswith("with ") else [code]
    for statement in statements:
        exec(statement, scope)
    if not gives:
        exec(last, scope)
    else:
        assert repr(eval(last, scope)) == gives.strip("`"), code
    fn.current_pool(fn.default_device()).record_history(False)
