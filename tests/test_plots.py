"""The pictures: real PNGs with the right lines, and a clear sentence without matplotlib."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flame_numba import plots
from flame_numba.extras import MissingExtra

MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Sample:
    seconds: float
    allocated_bytes: int
    reserved_bytes: int


HISTORY = [Sample(0.0, 0, 0), Sample(0.5, 3 * MEBIBYTE, 8 * MEBIBYTE), Sample(2.0, MEBIBYTE, 8 * MEBIBYTE)]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures saved during the test."""
    figures: list[Any] = []
    save = plots._save

    def keep(figure: Any, path: Any) -> Path:
        figures.append(figure)
        return save(figure, path)

    monkeypatch.setattr(plots, "_save", keep)
    return figures


def pixels(path: Path) -> Any:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    return imread(path)


def test_loss_curve(tmp_path: Path, drawn: list[Any]) -> None:
    path = plots.loss_curve([(10, 2.5), (20, 1.0), (30, 0.5)], tmp_path / "new" / "loss.png", "digits")
    image = pixels(path)
    assert image.shape[0] > 300 and image.shape[1] > 600
    assert len({tuple(pixel) for pixel in image.reshape(-1, image.shape[-1])}) > 10  # not a blank sheet
    (axes,) = drawn[0].axes
    assert axes.get_title() == "digits"
    assert axes.lines[0].get_xydata().tolist() == [[10, 2.5], [20, 1.0], [30, 0.5]]


def test_loss_curve_counts_steps_itself(tmp_path: Path, drawn: list[Any]) -> None:
    plots.loss_curve([3.0, 2.0], str(tmp_path / "loss.png"))
    assert drawn[0].axes[0].lines[0].get_xydata().tolist() == [[0, 3.0], [1, 2.0]]


def test_pool_timeline_is_in_mebibytes(tmp_path: Path, drawn: list[Any]) -> None:
    pixels(plots.pool_timeline(HISTORY, tmp_path / "pool.png", "pool"))
    (axes,) = drawn[0].axes
    reserved, allocated = axes.lines
    assert reserved.get_xydata().tolist() == [[0, 0], [0.5, 8], [2, 8]]
    assert allocated.get_xydata().tolist() == [[0, 0], [0.5, 3], [2, 1]]
    assert len(axes.collections) == 2  # both areas are filled
    assert axes.get_ylabel() == "MiB" and axes.get_ylim()[0] == 0
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "reserved (peak 8.0 MiB)",
        "allocated (peak 3.0 MiB)",
    ]


def test_empty_histories_give_empty_pictures(tmp_path: Path) -> None:
    pixels(plots.loss_curve([], tmp_path / "loss.png"))
    pixels(plots.pool_timeline([], tmp_path / "pool.png"))


def test_without_matplotlib_the_error_names_the_extra(tmp_path: Path, hide_package: Any) -> None:
    hide_package("matplotlib")
    with pytest.raises(MissingExtra, match=r"drawing a picture needs matplotlib: pip install 'flame-numba\[demo\]'"):
        plots.loss_curve([1.0], tmp_path / "loss.png")
    assert not list(tmp_path.iterdir())
