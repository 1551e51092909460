"""Run a page of the docs: `python tests/run_page.py docs/tutorial.md`. The first lie stops it, with file and line.

What runs, in page order, in one namespace and one empty folder:

- every ```python block. If an ```output block follows, what the Python block printed must equal it, where a
  line or a piece of a line in the page that reads `...` or `…` stands for anything;
- a ```console or ```bash block marked `<!-- run -->` on the line above: its `flame-numba` commands, each
  followed by its expected output, if any.

`<!-- no-run: why not -->` above a block leaves it out; the reason is required. A console block that holds a
`flame-numba` command must carry one of the two marks, so that leaving it out is a decision.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import linecache
import re
import shlex
import subprocess
import sys
import tempfile
import traceback
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PYTHON = ("python", "py", "python3")
CONSOLE = ("console", "bash", "sh", "shell")
FENCE = re.compile(r"^(?P<indent>\s*)(?P<ticks>`{3,}|~{3,})\s*(?P<language>[\w+-]*)(?P<rest>[^`]*)$")
MARK = re.compile(r"^\s*<!--\s*(?P<word>run|no-run)\b\s*:?\s*(?P<reason>.*?)\s*-->\s*$")
ELLIPSIS = re.compile(r"\.\.\.(?!\.)|…")  # the last three of four dots: `0....` is `0.` and then anything
RUN_CLI = "import sys; from flame_numba.cli import main; sys.exit(main())"
COMMAND_TIMEOUT_S = 240


class Lie(Exception):
    """The page says something that is not so. The message begins with file and line."""


@dataclass(frozen=True)
class Block:
    """A fenced block. line: that of its first line of content, from 1. mark: 'run', 'no-run' or ''."""

    language: str
    lines: list[str]
    line: int
    mark: str = ""
    reason: str = ""
    follows_block: bool = False  # nothing but blank lines since the block before

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a Markdown text, in order."""
    found: list[Block] = []
    lines = page.splitlines()
    at, before, adjacent = 0, "", False  # `before`: the last line that is not blank
    while at < len(lines):
        fence = FENCE.match(lines[at])
        if not fence:
            if lines[at].strip():
                before, adjacent = lines[at], False
            at += 1
            continue
        end = at + 1
        closing = re.compile(rf"^\s*{re.escape(fence['ticks'][0])}{{{len(fence['ticks'])},}}\s*$")
        while end < len(lines) and not closing.match(lines[end]):
            end += 1
        indent = len(fence["indent"])
        content = [line[indent:] if not line[:indent].strip() else line for line in lines[at + 1 : end]]
        mark = MARK.match(before)
        word, reason = (mark["word"], mark["reason"]) if mark else ("", "")
        found.append(Block(fence["language"].lower(), content, at + 2, word, reason, adjacent))
        at, before, adjacent = end + 1, "", True
    return found


def same_output(expected: str, printed: str) -> bool:
    """Whether they agree, trailing blanks aside; `...` or `…` in `expected` stands for anything, also several lines."""
    wanted, got = (
        "\n".join(line.rstrip() for line in text.strip("\n").splitlines()).rstrip() for text in (expected, printed)
    )
    pattern = ".*".join(re.escape(piece) for piece in ELLIPSIS.split(wanted))
    return re.fullmatch(pattern, got, re.DOTALL) is not None


def run_page(path: Path, name: str) -> int:
    """Run the page at `path`, called `name` in messages; the number of blocks run. Raises Lie."""
    text = path.read_text(encoding="utf-8")
    page = blocks(text)
    module = _module(name, text, page)
    ran = 0
    for number, block in enumerate(page):
        where = f"{name}:{block.line}"
        following = page[number + 1] if number + 1 < len(page) else None
        output = following if following and following.language == "output" and following.follows_block else None
        if _left_out(block, where):
            continue
        if block.language in PYTHON:
            printed = _run_python(block, module, where)
            if output is not None:
                _compare(output.text, printed, f"{name}:{output.line}")
            ran += 1
        elif block.language in CONSOLE and block.mark == "run":
            _run_console(block, name)
            ran += 1
    return ran


def _left_out(block: Block, where: str) -> bool:
    """Whether the page says not to run the block. Raises Lie if the reason, or a mark that it needs, is missing."""
    if block.language in ("pycon", "doctest"):
        raise Lie(f"{where}: write a ```python block with an ```output block below it instead of ```{block.language}")
    if block.mark == "no-run":
        if not block.reason:
            raise Lie(f"{where}: a block that is not run needs a reason: <!-- no-run: why not -->")
        return True
    if block.language in CONSOLE and not block.mark and any(_is_ours(command) for _, command, _ in _commands(block)):
        raise Lie(f"{where}: a flame-numba command needs <!-- run --> or <!-- no-run: why not --> above its block")
    return False


def _module(name: str, text: str, page: list[Block]) -> types.ModuleType:
    """The namespace of the page: a __main__ whose source, for inspect and tracebacks, is the page's Python."""
    source = ["\n"] * (text.count("\n") + 2)
    for block in page:
        if block.language in PYTHON:
            for offset, line in enumerate(block.lines):
                source[block.line - 1 + offset] = line + "\n"
    linecache.cache[name] = (sum(map(len, source)), None, source, name)
    module = types.ModuleType("__main__")
    module.__file__ = name
    sys.modules["__main__"] = module
    return module


def _run_python(block: Block, module: types.ModuleType, where: str) -> str:
    name = str(module.__file__)
    stdout = io.StringIO()
    try:
        # as many empty lines before it as in the page, so that line numbers are the page's
        code = compile("\n" * (block.line - 1) + block.text + "\n", name, "exec")
        with contextlib.redirect_stdout(stdout):
            exec(code, module.__dict__)
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
        if isinstance(error, SyntaxError) and error.filename == name:
            lines = [error.lineno]
        where = f"{name}:{lines[0]}" if lines else where
        raise Lie(f"{where}: {type(error).__name__}: {error}\n\n{traceback.format_exc()}") from error
    return stdout.getvalue()


def _commands(block: Block) -> Iterator[tuple[int, str, str]]:
    """(offset of its line, command, the output shown below it) for each command of a console block."""
    prompted = any(line.startswith("$ ") for line in block.lines)
    at = 0
    while at < len(block.lines):
        start, line = at, block.lines[at]
        at += 1
        if prompted != line.startswith("$ ") or not line.strip() or line.startswith("#"):
            continue
        command = line.removeprefix("$ ")
        while command.endswith("\\") and at < len(block.lines):
            command = command[:-1] + block.lines[at]
            at += 1
        output = []
        while prompted and at < len(block.lines) and not block.lines[at].startswith("$ "):
            output.append(block.lines[at])
            at += 1
        yield start, command.strip(), "\n".join(output)


def _is_ours(command: str) -> bool:
    return command.split(maxsplit=1)[:1] == ["flame-numba"]


def _run_console(block: Block, name: str) -> None:
    for offset, command, expected in _commands(block):
        where = f"{name}:{block.line + offset}"
        if not _is_ours(command):
            raise Lie(f"{where}: only flame-numba commands can be run, not: {command}")
        arguments = [sys.executable, "-c", RUN_CLI, *shlex.split(command, comments=True)[1:]]
        done = subprocess.run(
            arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
        )
        if done.returncode:
            raise Lie(f"{where}: exit status {done.returncode}: {command}\n\n{done.stdout}{done.stderr}")
        if expected.strip():
            _compare(expected, done.stdout, f"{name}:{block.line + offset + 1}")


def _compare(expected: str, printed: str, where: str) -> None:
    if not same_output(expected, printed):
        difference = difflib.unified_diff(
            expected.strip("\n").splitlines(),
            printed.rstrip("\n").splitlines(),
            "the page",
            "what was printed",
            lineterm="",
        )
        raise Lie(f"{where}: the output differs\n\n" + "\n".join(difference))


def _on_device(name: str | None) -> contextlib.AbstractContextManager[object]:
    if name is None:
        return contextlib.nullcontext()
    from flame_numba.devices import Device

    return Device.parse(name)


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[None]:
    """The current folder while a page runs: what it writes stays out of the project."""
    with tempfile.TemporaryDirectory() as empty, contextlib.chdir(given or empty):
        yield


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the code blocks of a Markdown page.")
    parser.add_argument("page", type=Path)
    parser.add_argument("--device", help="the default device: cpu or cuda")
    parser.add_argument("--folder", type=Path, help="run in this folder instead of an empty one that is removed")
    parser.add_argument("--name", help="what to call the page in messages")
    options = parser.parse_args()
    path = options.page.resolve()
    try:
        with _folder(options.folder), _on_device(options.device):
            ran = run_page(path, options.name or str(options.page))
    except Lie as lie:
        print(lie, file=sys.stderr)
        return 1
    print(f"{options.page}: {ran} blocks run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
