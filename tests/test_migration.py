"""Each row of the tables of the pages for newcomers does what it says, and no name has two rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import flame_numba as fn

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = {"migration-from-flame.md": 100, "coming-from-pytorch.md": 30}  # at least so many rows


def setup(page: str) -> str:
    """The page's first block, which makes the names that its rows use."""
    return re.search(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S).group(1)  # type: ignore[union-attr]


def rows(page: str) -> list[tuple[str, str, str]]:
    """(the names there, the code here, what it gives) of each row of the tables."""
    found = []
    for line in (DOCS / page).read_text().splitlines():
        cells = [c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 3 and cells[0].startswith("`"):
            found.append((cells[0], cells[1], cells[2]))
    return found


ROWS = [pytest.param(page, *row[1:], id=row[0]) for page in PAGES for row in rows(page)]


@pytest.mark.parametrize("page", PAGES)
def test_rows_are_found(page: str) -> None:
    names = [row[0] for row in rows(page)]
    assert len(names) > PAGES[page]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("page", "here", "gives"), ROWS)
def test_row(page: str, here: str, gives: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if here.startswith("see ["):
        assert (DOCS / re.search(r"\((.*?)\)", here).group(1)).exists()  # type: ignore[union-attr]
        return
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(setup(page), scope)
    code = here.strip("`").replace("\\|", "|")
    *statements, last = code.split("; ") if not code.startswith("with ") else [code]
    for statement in statements:
        exec(statement, scope)
    if not gives:
        exec(last, scope)
    else:
        assert repr(eval(last, scope)) == gives.strip("`"), code
    fn.current_pool(fn.default_device()).record_history(False)
