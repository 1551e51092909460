"""The pool in words: holders, leaks, the text of OutOfMemory, segments as text; and the recorder of who asked."""

from __future__ import annotations

from dataclasses import replace
from types import FunctionType

import pytest

from flame_numba.errors import ConfigError
from flame_numba.memory import recorder as recorder_module
from flame_numba.memory.recorder import Recorder
from flame_numba.memory.report import (
    Holder,
    OutOfMemoryFacts,
    holder_lines,
    holders,
    leak_report,
    out_of_memory_text,
    pool_mark,
    segment_bar,
    segment_table,
)
from flame_numba.memory.views import BlockView, Frame, SegmentView, with_memory
from pool_toy import toy

MIB = 1 << 20
HERE, THERE = Frame("model.py", 10, "forward"), Frame("model.py", 20, "backward")


def block(
    start: int, size: int, state: str = "live", tag: str = "user", pins: int = 0, site: Frame | None = None
) -> BlockView:
    nbytes = size - 1 if state == "live" else 0
    return BlockView(start, size, nbytes, state, tag, 0, pins, (site,) if site else ())


def segment(*blocks: BlockView, backend: str = "segments") -> SegmentView:
    size = sum(b.size for b in blocks)
    return SegmentView(blocks[0].address, size, "large", 0, "", backend, blocks)


# --- holders and leaks ------------------------------------------------------------------------------------------------
def test_holders_are_grouped_by_tag_and_line() -> None:
    views = [
        segment(block(0, 512, tag="a", site=HERE), block(512, 256, "free"), block(768, 256, tag="a", site=HERE)),
        segment(block(4096, 1024, tag="b", site=HERE), block(5120, 256, tag="a", site=THERE), block(5376, 256)),
        segment(block(8192, 9999, "pending")),
    ]
    assert holders(views, top=3) == [
        Holder(1, 1024, "b", HERE), Holder(2, 768, "a", HERE), Holder(1, 256, "a", THERE),
    ]  # fmt: skip
    assert holders(views, top=None)[-1] == Holder(1, 256, "user", None)
    assert holder_lines(holders(views, top=2)) == [
        "    1.00 KiB       1 block   b  model.py:10 in forward",
        "   768 bytes       2 blocks  a  model.py:10 in forward",
    ]
    assert holders([]) == [] and holder_lines([]) == []


def test_a_leak_is_what_was_not_there_before() -> None:
    before = [segment(block(0, 512, site=HERE), block(512, 512, site=HERE))]
    # the blocks have moved, one of them is gone, and two are new
    after = [segment(block(4096, 512, site=HERE), block(4608, 256, site=THERE), block(4864, 1024, site=HERE))]
    report = leak_report(after, pool_mark(before))
    assert report and report == leak_report(after, before)
    assert (report.nbytes, report.blocks) == (1280, 2)
    assert report.holders == (Holder(1, 1024, "user", HERE), Holder(1, 256, "user", THERE))
    assert str(report).splitlines()[0] == "2 blocks more than at the mark, 1.25 KiB"
    assert "model.py:20 in backward" in str(report) and "record_history" not in str(report)


def test_no_leak() -> None:
    segments, _, _ = toy(0, False)
    report = leak_report(segments, pool_mark(segments))
    assert not report and str(report) == "no block more than at the mark"


def test_a_leak_without_sites_says_how_to_record_them() -> None:
    assert "pool.record_history(sites=True)" in str(leak_report([segment(block(0, 256))]))


# --- out of memory ----------------------------------------------------------------------------------------------------
FACTS = OutOfMemoryFacts(
    device="cuda:0", requested=2 * MIB, allocated=6 * MIB, reserved=8 * MIB, limit=8 * MIB,
    by_tag={"activations": MIB, "parameters": 5 * MIB}, largest_free=MIB // 2, free=2 * MIB, internal_waste=MIB // 8,
    pinned=0, device_free=70 * MIB, device_total=80 * MIB, holders=(Holder(3, 5 * MIB, "parameters", HERE),),
    tried=("the driver", "moving blocks"), blocks=5, segments=2,
)  # fmt: skip


def test_the_text_of_out_of_memory() -> None:
    assert out_of_memory_text(FACTS).splitlines() == [
        "allocate: no room for 2.00 MiB (2097152 bytes) on cuda:0: allocated 6.00 MiB in 5 blocks, reserved 8.00 MiB "
        "in 2 segments, largest free block 512.00 KiB, limit 8.00 MiB, device free 70.00 MiB of 80.00 MiB.",
        "  Free in the pool 2.00 MiB, external fragmentation 75.0%, internal 2.1%; no block is pinned.",
        "  By tag: parameters 5.00 MiB, activations 1.00 MiB",
        "  Held by:",
        "      5.00 MiB       3 blocks  parameters  model.py:10 in forward",
        "  Tried without success: the driver, moving blocks.",
        "  Free tensors that are no longer needed, work on smaller batches, or raise PoolConfig(limit=…).",
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"holders": (Holder(3, 5, "a", None),)},
            "To see which lines of code hold it: pool.record_history(",
        ),
        ({"holders": ()}, "pool.record_history(sites=True)"),
        ({"pinned": 3 * MIB}, "3.00 MiB are pinned and could not be moved.\n"),
        ({"pinned": 3 * MIB}, "in pieces between pinned blocks: release exported arrays"),
        ({"requested": 9 * MIB}, "The request alone is over the limit: raise PoolConfig(limit=…)"),
        ({"limit": None}, "no limit, device free"),
        ({"limit": None}, "work on smaller batches, or use a device with more memory."),
        ({"limit": None, "device_free": MIB}, "Most of the device is held outside this pool"),
        ({"free": 0, "largest_free": 0, "allocated": 0}, "external fragmentation 0.0%, internal 0.0%"),
        ({"by_tag": {"": 512}}, "By tag: untagged 512 bytes"),
    ],
)
def test_the_text_follows_the_facts(change: dict[str, object], expected: str) -> None:
    assert expected in out_of_memory_text(replace(FACTS, **change))  # type: ignore[arg-type]


def test_the_text_leaves_out_what_there_is_not() -> None:
    text = out_of_memory_text(replace(FACTS, by_tag={}, tried=()))
    assert "By tag" not in text and "Tried" not in text


# --- segments as text -------------------------------------------------------------------------------------------------
def test_a_bar_shows_what_most_of_each_part_is() -> None:
    view = segment(
        block(0, 400), block(400, 200, "free"), block(600, 200, pins=1), block(800, 100, "pending"), block(900, 100)
    )
    assert segment_bar(view, 10) == "####..PP~#"
    assert segment_bar(view, 2) == "#P"
    assert len(segment_bar(view, 333)) == 333
    assert segment_bar(segment(block(0, 7)), 5) == "#####"


def test_the_table_names_states_tags_and_holders() -> None:
    view = segment(
        block(1 << 21, MIB, tag="parameters", site=HERE), block(3 << 20, MIB, "free"), block(4 << 20, MIB, pins=1),
        block(5 << 20, 8 * MIB, "unmapped"), block(13 << 20, MIB, "pending"), backend="virtual",
    )  # fmt: skip
    lines = segment_table([view]).splitlines()
    assert lines[0] == (
        "segments 2, live blocks 2, reserved 4.00 MiB: live 2.00 MiB, "
        "of which pinned 1.00 MiB, pending 1.00 MiB, free 1.00 MiB"
    )
    assert "3.00 MiB large  67% |" + "#" * 20 + "." * 20 + "P" * 20 + "| stream 0" in lines[1]
    assert "~" * 60 in lines[2]
    assert "      1.00 MiB  parameters" in lines and "  " + holder_lines(holders([view]))[0] in lines
    assert segment_table([]) == "no segments"


@pytest.mark.parametrize("seed", range(6))
def test_tables_and_bars_hold_for_any_pool(seed: int) -> None:
    segments, _, _ = toy(seed, bool(seed % 2))
    parts = with_memory(segments)
    assert len(segment_table(segments).splitlines()) >= len(parts)
    assert all(len(segment_bar(part)) == 60 for part in parts)
    assert sum(row.nbytes for row in holders(segments, None)) == sum(
        b.size for part in parts for b in part.blocks if b.state == "live"
    )


# --- the recorder -----------------------------------------------------------------------------------------------------
def test_the_recorder_keeps_the_last_events() -> None:
    recorder = Recorder(max_events=2)
    for i in range(3):
        recorder.note("alloc", 256 * i, 256, 0, "user", 256 * i, 1024, requested=200)
    first, last = recorder.events()
    assert (first.address, last.address, last.requested, last.site, last.target) == (256, 512, 200, (), 0)
    assert 0 <= first.seconds <= last.seconds
    assert recorder.site() == ()


@pytest.mark.parametrize("events", [0, -1, 1.5, True, "many"])
def test_the_recorder_wants_room(events: object) -> None:
    with pytest.raises(ConfigError, match="max_events=.*must be an int ≥ 1"):
        Recorder(max_events=events)  # type: ignore[arg-type]


def inner(recorder: Recorder) -> tuple[Frame, ...]:
    return recorder.site()


def test_a_site_is_innermost_first() -> None:
    recorder = Recorder(sites=True)
    sites = [inner(recorder) for _ in range(2)]
    assert sites[0] == sites[1]
    assert sites[0][0].name == "inner" and sites[0][1].name.startswith("test_a_site_is_innermost_first")
    assert sites[0][0].filename == __file__ and sites[0][0].line == inner.__code__.co_firstlineno + 1


def test_a_site_has_twelve_lines_at_most() -> None:
    recorder = Recorder(sites=True)

    def deeper(n: int) -> tuple[Frame, ...]:
        return deeper(n - 1) if n else recorder.site()

    assert len(deeper(30)) == 12


def test_lines_of_this_package_are_left_out_unless_all_are(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(sites=True)
    code = inner.__code__.replace(co_filename=recorder_module.__file__)
    own = FunctionType(code, globals())
    assert own(recorder)[0].filename == __file__
    monkeypatch.setattr(recorder_module, "_PACKAGE", "")  # now everything is
    site = own(Recorder(sites=True))
    assert site[0].filename == recorder_module.__file__ and len(site) == 12
