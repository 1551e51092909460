"""`scripts/circles.py`: it finds circles of files and of folders, wherever the import stands."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "circles.py"

FILES = {
    "__init__.py": "from .top import x\n",
    "ground.py": "",
    "a/__init__.py": "from .one import y\n",
    "a/one.py": "from ..ground import z\n",
    "a/two.py": "from . import one\n",
    "b/three.py": "from ..a.two import w\n",
    "top.py": "import house.b.three\nfrom .a import y\n",
}


def write(root: Path, changed: dict[str, str]) -> Path:
    for name, text in (FILES | changed).items():
        path = root / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "house"


def found(root: Path) -> str:
    done = subprocess.run([sys.executable, str(SCRIPT), str(root)], capture_output=True, text=True)
    assert done.returncode == (0 if "no circle" in done.stdout else 1), done.stderr
    return done.stdout


def test_a_house_without_circles(tmp_path: Path) -> None:
    assert found(write(tmp_path, {})) == "7 files, 7 imports, no circle\n"


@pytest.mark.parametrize(
    "text",
    [
        "from .a import two\n",
        "from house.a.two import w\n",
        "import house.a.two\n",
        "def late():\n    from .a.two import w\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a.two import w\n",
    ],
)
def test_a_circle_of_files(tmp_path: Path, text: str) -> None:
    told = found(write(tmp_path, {"ground.py": text}))
    assert "circle of files: house.a.one, house.a.two, house.ground" in told and "house.ground -> house.a.two" in told


def test_a_circle_of_folders_whose_files_have_none(tmp_path: Path) -> None:
    told = found(write(tmp_path, {"b/four.py": "", "a/one.py": "from ..b.four import z\n"}))
    assert "circle of files" not in told
    assert "circle of folders in house: house.a, house.b" in told
    assert "house.a.one -> house.b.four" in told and "house.b.three -> house.a.two" in told


def test_the_library_has_none() -> None:
    spec = importlib.util.spec_from_file_location("circles", SCRIPT)
    assert spec is not None and spec.loader is not None
    circles = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(circles)
    graph = circles.import_graph(circles.ROOT)
    assert len(graph) > 200 and sum(map(len, graph.values())) > 1000  # it reads them
    assert not circles.report(graph)
