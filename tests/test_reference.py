"""docs/reference.md shows the names and ops that there are; what the pages name exists; a stale page is noticed."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import flame_numba as fn

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "reference.py"
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import reference

    return reference


def test_the_page_is_fresh() -> None:
    # in a process of its own: other tests may have added ops to this one
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", fn.__all__)
def test_a_public_name_is_described(name: str, reference) -> None:
    value = getattr(fn, name)
    assert reference.description(name), f"{name} has no docstring"
    if inspect.isfunction(value) or inspect.isclass(value):
        assert value.__module__.startswith("flame_numba"), f"{name} is not ours"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_names_on_a_page_exist(page: Path) -> None:
    missing = set()
    for dotted in re.findall(r"\bfn\.([A-Za-z_][\w.]*)", page.read_text(encoding="utf-8")):
        value = fn
        for part in dotted.rstrip(".").split("."):
            if not inspect.ismodule(value) and not inspect.isclass(value):
                break  # an attribute of a value: the page's own code checks it
            if not hasattr(value, part):
                missing.add(dotted)
                break
            value = getattr(value, part)
    assert not missing


def test_stale_page_is_noticed_and_repaired(
    reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "reference.md"
    marks = "".join(f"<!-- {m}:begin -->\n| old |\n<!-- {m}:end -->\n" for m in ("names", "op-table"))
    page.write_text(f"before\n{marks}after\n", encoding="utf-8")
    monkeypatch.setattr(reference, "PAGE", page)
    assert reference.main(["--check"]) == 1
    assert "stale" in capsys.readouterr().err
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and "| old |" not in text
    assert "| `sigmoid` | Logistic function, σ(x) = 1 / (1 + e⁻ˣ). | elementwise | floats, integers | yes |" in text


def test_page_without_markers_is_refused(reference) -> None:
    with pytest.raises(ValueError, match="names:begin"):
        reference.filled("no table here")
