"""The door to Numba: decision 12 lists every module that imports it, and every name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "flame_numba"
PAGE = ROOT / "docs" / "decisions" / "0012-the-compiler-behind-a-door.md"
BEHIND = {"numba", "llvmlite"}


def imports(path: Path) -> set[str]:
    """Names of Numba's and llvmlite's that a file imports, wherever it does: `numba.cuda.types`, `llvmlite.ir`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.partition(".")[0] in BEHIND}


def test_the_page_lists_all_that_is_imported_of_numba() -> None:
    used = {str(path.relative_to(PACKAGE)): imports(path) for path in PACKAGE.rglob("*.py")}
    section = PAGE.read_text(encoding="utf-8").partition("## What we use of it")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w/]+\.py)` \| (.*?) \|", section, re.M)
    listed = {path: set(re.findall(r"`([\w.]+)`", names)) for path, names in rows}
    assert listed == {path: names for path, names in used.items() if names}


def test_no_name_of_numba_is_reached_in_another_way() -> None:
    """No `import_module("numba")` or `__import__`, which the list would not see."""
    hidden = re.compile(r"(?:import_module|__import__|find_spec)\(\s*f?[\"'](?:numba|llvmlite)")
    found = [path for path in PACKAGE.rglob("*.py") if hidden.search(path.read_text(encoding="utf-8"))]
    assert not found
