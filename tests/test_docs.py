"""The docs cannot lie: every code block of README.md and docs/ runs, and every link to a file leads to one.

run_page.py says what runs and how a block is left out. Each page runs in its own process and folder.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from run_page import blocks, same_output

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s#]+)")


def run(page: Path, folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, TESTS / "run_page.py", page, "--folder", folder, "--name", name, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "MPLBACKEND": "Agg"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_runs(page: Path, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    name = str(page.relative_to(ROOT))
    done = run(page, tmp_path, name, "--device", pytestconfig.getoption("--device"))
    if done.returncode:
        pytest.fail(done.stderr or done.stdout, pytrace=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^(```|~~~).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    broken = [target for target in LINK.findall(prose) if not (page.parent / target).exists()]
    assert not broken, f"{page.relative_to(ROOT)} links to files that are not there: {broken}"


# of other packages, the page names the files without the folder
ROOMS = ("devices", "kernels", "memory", "tape", "ops")


def test_the_architecture_names_every_module_and_no_other() -> None:
    package = ROOT / "src" / "flame_numba"
    files = {path.relative_to(package).with_suffix("") for path in package.rglob("*.py") if path.stem != "__init__"}
    modules = {str(path) if path.parts[0] in ROOMS else path.stem for path in files}
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = {name.removesuffix(".py") for name in re.findall(r"`([a-z_0-9/]+(?:\.py)?)`", page)}
    assert not modules - named, f"docs/architecture.md does not say what these are for: {sorted(modules - named)}"
    house = re.findall(r"`([a-z_0-9]+/[a-z_0-9/]*[a-z_0-9])(?:\.py)?`", page.partition("## From a Python")[0])
    paths = {path for path in house if (package / path.split("/")[0]).is_dir()}
    absent = {path for path in paths if not (package / path).is_dir() and not (package / f"{path}.py").exists()}
    assert not absent, f"docs/architecture.md names what is not there: {sorted(absent)}"


# The harness itself: each kind of lie must be caught, with its place.

TRUE_PAGE = """
# A page
```python
import inspect

def double(x):
    return 2 * x
```
Later blocks see earlier names, and functions have their source.
```python
print(double(4), "at", object())
assert inspect.getsource(double) == "def double(x):\\n    return 2 * x\\n"
```

```output
8 at <object ...>
```
<!-- no-run: needs eight GPUs -->
```python
raise SystemExit("never")
```
1. A block in a list:
   ```python
   if double(1) == 2:
       print("two")
   ```
   ```output
   two
   ```
```console
$ make test
```
```json
{"not": "Python"}
```
"""


def test_true_page_passes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(TRUE_PAGE, encoding="utf-8")
    done = run(page, tmp_path, "page.md")
    assert done.returncode == 0, done.stderr
    assert "3 blocks run" in done.stdout


LIES = {
    "wrong output": (
        "text\n```python\nprint(1)\nprint(2)\n```\n```output\n1\n3\n```\n",
        "page.md:7: the output differs",
    ),
    "error": ("```python\nx = 1\n\nx / 0\n```\n", "page.md:4: ZeroDivisionError"),
    "error in a function of an earlier block": (
        "```python\ndef f():\n    return missing\n```\n\n```python\nf()\n```\n",
        "page.md:7: NameError",
    ),
    "failed assertion": ("```python\nassert 1 == 2, 'no'\n```\n", "page.md:2: AssertionError: no"),
    "syntax error": ("```python\nx = 1\nx = = 2\n```\n", "page.md:3: SyntaxError"),
    "exit": ("```python\nraise SystemExit(0)\n```\n", "page.md:2: SystemExit"),
    "no reason": ("<!-- no-run -->\n```python\nx\n```\n", "page.md:3: a block that is not run needs a reason"),
    "empty reason": ("<!-- no-run: -->\n```python\nx\n```\n", "page.md:3: a block that is not run needs a reason"),
    "interpreter session": ("```pycon\n>>> 1\n2\n```\n", "page.md:2: write a ```python block"),
    "unmarked command": ("```console\n$ flame-numba info\n```\n", "page.md:2: a flame-numba command needs"),
    "unmarked command without prompt": ("```bash\nflame-numba info\n```\n", "page.md:2: a flame-numba command needs"),
    "foreign command": ("<!-- run -->\n```console\n$ true\n```\n", "page.md:3: only flame-numba commands can be run"),
    "name of another page": ("```python\nprint(double(4))\n```\n", "page.md:2: NameError"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lie_is_caught(lie: str, tmp_path: Path) -> None:
    text, message = LIES[lie]
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    done = run(page, tmp_path, "page.md")
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith(message), done.stderr


CLI = """
import sys
def main():
    print("hello", *sys.argv[1:])
    return 3 if "--fail" in sys.argv else 0
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("$ flame-numba a 'b c' \\\n    d\nhello a b c d\n$ flame-numba\nhel...", ""),
        ("$ flame-numba\nhello\n$ flame-numba x\nhello y", "page.md:6: the output differs"),
        ("$ flame-numba\n$ flame-numba --fail", "page.md:4: exit status 3"),
    ],
)
def test_console_blocks_run(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "flame_numba"  # a stand-in, so that this tests the harness and nothing else
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "cli.py").write_text(CLI, encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(f"<!-- run -->\n```console\n{text}\n```\n", encoding="utf-8")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path / "elsewhere")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = run(page, tmp_path, "page.md")
    assert done.stderr.startswith(message) and bool(done.returncode) == bool(message), done.stderr


def test_blocks_keep_longer_fences_and_marks() -> None:
    page = "````markdown\n```python\nx\n```\n````\n<!-- run -->\n\n~~~bash\ny\n~~~\n"
    outer, inner = blocks(page)
    assert (outer.language, outer.lines, outer.line) == ("markdown", ["```python", "x", "```"], 2)
    assert (inner.language, inner.mark, inner.line) == ("bash", "run", 9)


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("a\nb", "a  \nb\n\n", True),
        ("a\n...\nd", "a\nb\nc\nd\n", True),
        ("loss 0....", "loss 0.12", True),
        ("accuracy 0.9…", "accuracy 0.97", True),
        ("a.c", "abc", False),
        ("a", "a\nb", False),
        ("a ...", "b c", False),
    ],
)
def test_same_output(expected: str, printed: str, same: bool) -> None:
    assert same_output(expected, printed) is same
