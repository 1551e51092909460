"""What the source says of itself is so."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import flame_numba

PACKAGE = Path(flame_numba.__file__).parent
# a file, in backquotes or not; or a path in backquotes: `ops/core/launch`, `memory/`
MENTION = re.compile(r"[\w./]*\w\.py\b|`([a-z_]\w*(?:/[a-z_]\w*)+|(?:[a-z_]\w*/)+)`")


def prose(path: Path) -> Iterator[str]:
    """The docstrings and comments of a file."""
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node, clean=False) or ""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    yield from (token.string for token in tokens if token.type == tokenize.COMMENT)


def test_each_file_that_the_source_mentions_exists() -> None:
    """By its path in the package, or as seen from the file that mentions it."""
    missing = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for found in (match for text in prose(path) for match in MENTION.finditer(text)):
            name = found.group(1) or found.group(0)
            places = [folder / (name + end) for folder in (PACKAGE, path.parent) for end in ("", ".py")]
            if not any(place.exists() for place in places):
                missing.append(f"{path.relative_to(PACKAGE)}: {name}")
    assert not missing, "\n".join(missing)
