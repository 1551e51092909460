"""The op table of README.md is the one that the entries make, and a stale one is noticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "op_table.py"


def test_readme_shows_the_table() -> None:
    # in a process of its own: other tests may have added ops to this one
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_stale_page_is_noticed_and_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import op_table

    page = tmp_path / "README.md"
    page.write_text(f"before\n{op_table.BEGIN}\n| old |\n{op_table.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(op_table, "README", page)
    assert op_table.main(["--check"]) == 1
    assert "stale" in capsys.readouterr().err
    assert op_table.main([]) == 0
    assert op_table.main(["--check"]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "| old |" not in text
    assert "| `sigmoid` | Logistic function, σ(x) = 1 / (1 + e⁻ˣ). | elementwise | floats, integers | yes |" in text


def test_page_without_markers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import op_table

    with pytest.raises(ValueError, match="op-table:begin"):
        op_table.filled("no table here")
