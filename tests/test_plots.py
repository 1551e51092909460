"""The pictures: real PNGs and pages with the right things in them, and a clear sentence without matplotlib."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from flame_numba import plots
from flame_numba.extras import MissingExtra
from flame_numba.memory.views import BlockView, Event, Frame, SegmentView
from flame_numba.plots import png
from flame_numba.plots.layout import colours, layout, timeline
from pool_toy import toy

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
    save = png._save

    def keep(figure: Any, path: Any) -> Path:
        figures.append(figure)
        return save(figure, path)

    monkeypatch.setattr(png, "_save", keep)
    return figures


def pixels(path: Path) -> Any:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    return imread(path)


# --- PNG --------------------------------------------------------------------------------------------------------------
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


def test_pool_timeline_is_stacked_by_tag(tmp_path: Path, drawn: list[Any]) -> None:
    _, events, _ = toy(3, False)
    pixels(plots.pool_timeline(events, tmp_path / "tags.png"))
    pixels(plots.pool_timeline(events, tmp_path / "plain.png", by_tag=False))
    names = [[text.get_text() for text in figure.axes[0].get_legend().get_texts()] for figure in drawn]
    assert {"parameters", "gradients", "activations", "user", "not recorded"} <= set(names[0])
    assert len(names[1]) == 2


def test_pool_picture(tmp_path: Path, drawn: list[Any]) -> None:
    segments, events, _ = toy(2, True)
    image = pixels(plots.pool_picture(segments, tmp_path / "pool.png", events, "toy"))
    shades = {tuple((pixel[:3] * 255).round().astype(int)) for pixel in image.reshape(-1, image.shape[-1])}
    assert {(0x44, 0x77, 0xAA), (0xEE, 0x66, 0x77), (0x22, 0x88, 0x33)} <= shades  # three of the tags
    above, below = drawn[0].axes
    assert above.get_title() == "toy" and above.get_xlabel() == "MiB" and below.get_xlabel() == "seconds"
    assert len(drawn[0].axes) == 2
    pixels(plots.pool_picture(segments, tmp_path / "segments.png"))
    assert len(drawn[1].axes) == 1


def test_empty_histories_give_empty_pictures(tmp_path: Path) -> None:
    pixels(plots.loss_curve([], tmp_path / "loss.png"))
    pixels(plots.pool_timeline([], tmp_path / "pool.png"))
    pixels(plots.pool_picture([], tmp_path / "segments.png"))


def test_without_matplotlib_the_error_names_the_extra(tmp_path: Path, hide_package: Any) -> None:
    hide_package("matplotlib")
    with pytest.raises(MissingExtra, match=r"drawing a picture needs matplotlib: pip install 'flame-numba\[demo\]'"):
        plots.loss_curve([1.0], tmp_path / "loss.png")
    assert not list(tmp_path.iterdir())
    plots.pool_picture([], tmp_path / "pool.html")  # a page needs nothing


# --- pages ------------------------------------------------------------------------------------------------------------
def drawings(path: Path) -> list[ElementTree.Element]:
    """The pictures of a page, which are well-formed XML."""
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", path.read_text("utf-8"), re.S)]


def test_a_page_has_a_rectangle_a_block(tmp_path: Path) -> None:
    site = (Frame("a<b>.py", 3, "f"), Frame("main.py", 9, "<module>"))
    blocks = (
        BlockView(0, 1000, 900, "live", "mine & yours", 0, 0, site), BlockView(1000, 1000, 0, "free", "", 0, 0, ()),
        BlockView(2000, 1000, 900, "live", "user", 0, 2, ()), BlockView(3000, 1000, 0, "pending", "user", 0, 0, ()),
    )  # fmt: skip
    path = plots.pool_picture([SegmentView(0, 4000, "large", 7, "eval", "segments", blocks)], tmp_path / "p.html")
    text = path.read_text("utf-8")
    assert "http" not in text and "<script" not in text  # it needs nothing else
    (svg,) = drawings(path)
    shown = [(r.get("class"), float(r.get("x", 0)), float(r.get("width", 0))) for r in svg.iter("rect")]
    assert shown == [
        ("segment", 0, 1000), ("block", 0, 250), ("block", 500, 250), (None, 500, 250), ("block", 750, 250),
        (None, 750, 250),
    ]  # fmt: skip
    titles = [title.text for title in svg.iter("title")]
    assert titles[0] == "3.91 KiB large · 50% used · 0x0 · stream 7 · scope eval"
    assert titles[1] == "900 bytes at 0x0 · mine & yours · live\na<b>.py:3 f\nmain.py:9 <module>"
    assert "pinned" in str(titles[2]) and "pending" in str(titles[4])


def test_a_page_with_a_timeline(tmp_path: Path) -> None:
    segments, events, _ = toy(3, False)
    above, below = drawings(plots.pool_picture(segments, tmp_path / "p.html", events))
    assert len(list(above.iter("rect"))) > 10
    assert len(list(below.iter("polygon"))) >= 4 and len(list(below.iter("polyline"))) == 1
    for shape in below:
        for x, y in (point.split(",") for point in shape.get("points", "").split()):
            assert 0 <= float(x) <= 1000 and 0 <= float(y) <= 260
    assert len(drawings(plots.pool_timeline(HISTORY, tmp_path / "t.htm"))) == 1


def test_pages_of_nothing(tmp_path: Path) -> None:
    assert len(drawings(plots.pool_picture([], tmp_path / "a.html"))) == 1
    assert len(drawings(plots.pool_timeline([], tmp_path / "b.html"))) == 1


# --- where things go --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_drawn_over_another_thing(seed: int) -> None:
    segments, _, pool = toy(seed, bool(seed % 2))
    drawn = layout(segments, columns=100_000)
    for row in drawn.rows:
        end = 0.0
        for bar in row:
            assert end <= bar.start and bar.start + bar.size <= drawn.width
            end = bar.start
            for patch in bar.patches:
                assert end <= patch.start
                end = patch.start + patch.size
            assert end <= bar.start + bar.size
    shown = sum(patch.size for row in drawn.rows for bar in row for patch in bar.patches)
    assert shown == sum(block.size for block in pool.blocks.values())


def test_blocks_too_narrow_to_see_are_drawn_together() -> None:
    dust = [BlockView(256 * i, 256, 200, "live", "user", 0, 0, ()) for i in range(10_000)]
    large = BlockView(256 * 10_000, 1 << 24, 1 << 24, "live", "user", 0, 0, ())
    size = large.address + large.size
    ((bar,),) = layout([SegmentView(0, size, "large", 0, "", "segments", (*dust, large))]).rows
    assert [patch.size for patch in bar.patches] == [256 * 10_000, 1 << 24]
    assert bar.patches[0].text.startswith("10000 blocks, 2.44 MiB")


def test_small_segments_share_a_row() -> None:
    def segment(address: int, size: int) -> SegmentView:
        free = BlockView(address, size, 0, "free", "", 0, 0, ())
        return SegmentView(address, size, "small", 0, "", "direct", (free,))

    free = [segment(1 << (i + 30), size) for i, size in enumerate([1000] + [100] * 20)]
    assert [len(row) for row in layout(free).rows] == [1, 9, 9, 2]


def test_colours_are_stable_and_apart() -> None:
    palette = colours(["user", "mine", "", "yours", "parameters"])
    assert len(set(palette.values())) == 5
    assert colours(["parameters"]) == {"parameters": palette["parameters"]}


@pytest.mark.parametrize("seed", range(4))
def test_tags_add_up_to_what_is_allocated(seed: int) -> None:
    _, events, _ = toy(seed, False, after=500)
    line = timeline(events)
    assert [sum(sizes) for sizes in zip(*line.by_tag.values(), strict=True)] == line.allocated
    assert line.allocated == [event.allocated_bytes for event in events]


def test_a_long_history_is_thinned_and_keeps_its_peaks() -> None:
    events = [
        Event(float(i), "alloc", i, 1, 0, "user", i % 977, 2 * (i % 1009), (), 0, 1) for i in range(50_000)
    ]  # fmt: skip
    line = timeline(events)
    assert len(line.seconds) <= 2100 and line.seconds == sorted(line.seconds)
    assert max(line.allocated) == line.peak_allocated == 976 and max(line.reserved) == line.peak_reserved == 2016
    assert line.seconds[0] == 0 and line.seconds[-1] == 49_999
