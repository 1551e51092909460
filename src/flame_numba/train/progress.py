"""What a run shows while it works: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ..extras import MissingExtra, require


class Report(NamedTuple):
    """`advance()`: a batch is queued. `line(text)`: something to keep on the screen."""

    advance: Callable[[], None]
    line: Callable[[str], None]


def _nothing() -> None:
    pass


SILENT = Report(_nothing, lambda text: None)


def _print(text: str) -> None:
    print(text, flush=True)


@contextmanager
def progress(title: str, batches: int) -> Iterator[Report]:
    """A bar of `batches` steps if standard output is a terminal and rich is installed; else only the lines."""
    try:
        bars = require("rich.progress", extra="demo", purpose="a progress bar") if sys.stdout.isatty() else None
    except MissingExtra:
        bars = None
    if bars is None:
        yield Report(_nothing, _print)
        return
    columns = (
        bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeElapsedColumn()
    )  # fmt: skip
    with bars.Progress(*columns) as bar:
        task = bar.add_task(title, total=batches)
        yield Report(lambda: bar.advance(task), lambda text: bar.console.print(text, highlight=False))
