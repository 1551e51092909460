"""No file, and no folder, imports in a circle: python scripts/circles.py [package folder]

Every import counts, also one inside a function or for the type checker alone. Of folders: at each level, what stands
side by side in one folder, files and folders, must have an order in which each imports only what comes before.
Prints each circle with the imports that tie it; exit status 1 if there is one. Used by `make check`.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

Graph = Mapping[str, set[str]]
ROOT = Path(__file__).resolve().parent.parent / "src" / "flame_numba"


def modules(root: Path) -> dict[str, Path]:
    """The modules of a package by name; a package by that of its `__init__.py`."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = (root.name, *path.relative_to(root).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: Iterable[str]) -> set[str]:
    """The modules of the package that a module imports, itself not among them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".")
                up = node.level - (path.name == "__init__.py")
                base = ".".join([*parts[: len(parts) - up], *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in known else base)
    return (found & set(known)) - {name}


def import_graph(root: Path) -> dict[str, set[str]]:
    known = modules(root)
    return {name: imported(name, path, known) for name, path in known.items()}


def circles(graph: Graph) -> list[list[str]]:
    """Strongly connected components of more than one node. (Tarjan 1972)"""
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        numbers[node] = lowest[node] = len(numbers)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in numbers:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], numbers[other])
        if lowest[node] == numbers[node]:
            at = stack.index(node)
            component = sorted(stack[at:])
            del stack[at:]
            if len(component) > 1:
                found.append(component)

    for node in graph:
        if node not in numbers:
            visit(node)
    return found


def folder_graphs(graph: Graph) -> dict[str, dict[str, set[str]]]:
    """For each folder, by its module name: the graph of what stands in it. `__init__.py`, its face, is left out."""
    folders: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name, targets in graph.items():
        for target in targets:
            a, b = name.split("."), target.split(".")
            common = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
            if common < len(a) and common < len(b):
                place = ".".join(a[:common])
                folders[place][".".join(a[: common + 1])].add(".".join(b[: common + 1]))
    return folders


def report(graph: Graph) -> list[str]:
    """A line for each circle and for each import in it."""
    lines = []
    for circle in circles(graph):
        lines.append(f"circle of files: {', '.join(circle)}")
        lines += [f"  {a} -> {b}" for a in circle for b in sorted(graph[a]) if b in circle]
    for place, inner in sorted(folder_graphs(graph).items()):
        for circle in circles(inner):
            lines.append(f"circle of folders in {place}: {', '.join(circle)}")
            inside = {name: next((c for c in circle if f"{name}.".startswith(f"{c}.")), "") for name in graph}
            lines += [
                f"  {a} -> {b}" for a in graph for b in sorted(graph[a])
                if inside[a] and inside[b] and inside[a] != inside[b]
            ]  # fmt: skip
    return lines


def main() -> int:
    root = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT
    graph = import_graph(root)
    lines = report(graph)
    print("\n".join(lines) if lines else f"{len(graph)} files, {sum(map(len, graph.values()))} imports, no circle")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
