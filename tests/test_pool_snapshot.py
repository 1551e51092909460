"""Snapshots: that PyTorch's viewer can walk them, that they come back as they were, and traces of what was recorded."""

from __future__ import annotations

import csv
import json
import os
import pickle
import pickletools
import random
from pathlib import Path
from typing import Any

import pytest

from flame_numba.devices import Device
from flame_numba.memory.snapshot import SnapshotError, memory_viz, read_snapshot, write_snapshot
from flame_numba.memory.traces import TraceError, read_trace, write_trace
from flame_numba.memory.views import BlockView, Event, Frame, SegmentView, with_memory
from flame_numba.pool import Block, MemoryPool, PoolConfig, memory_tag
from pool_toy import TAGS, toy

CASES = [(seed, virtual) for seed in range(8) for virtual in (False, True)]

# what the viewer's decoder knows of pickle
OPCODES = """
    PROTO FRAME STOP MARK MEMOIZE BINGET LONG_BINGET BINPUT LONG_BINPUT NONE NEWTRUE NEWFALSE BININT BININT1 BININT2
    LONG1 BINFLOAT SHORT_BINUNICODE BINUNICODE EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 LIST DICT
    APPEND APPENDS SETITEM SETITEMS
"""


class Viewer:
    """The viewer's walk: from the segments at the end backward through the events; fails where it would."""

    def __init__(self, snapshot: dict[str, Any], device: int = 0) -> None:
        self.events = self.joined(snapshot["device_traces"][device])
        self.segments = {s["address"]: (s["total_size"], s["stream"]) for s in snapshot["segments"]}
        self.blocks: dict[int, list[Any]] = {}  # address → [size, freed but in use]
        for segment in snapshot["segments"]:
            address = segment["address"]  # it adds up sizes, and asks no block where it is
            for block in segment["blocks"]:
                if block["state"] != "inactive":
                    self.blocks[address] = [block["size"], block["state"] == "active_pending_free"]
                address += block["size"]
            assert address == segment["address"] + segment["total_size"]

    @staticmethod
    def joined(trace: list[dict[str, Any]]) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        for event in trace:
            last = events[-1] if events else {}
            if event["action"] == "free_completed" and (
                last.get("action") == "free_requested" and last["addr"] == event["addr"]
            ):
                last["action"] = "free"
                continue
            events.append(dict(event))
        return events

    def walk(self) -> None:
        self.check()
        for event in reversed(self.events):
            getattr(self, event["action"])(event.get("addr"), event["size"], event["stream"])
            self.check()

    def check(self) -> None:
        """Every block lies in a segment, or there is nowhere to draw it; none on another."""
        end = 0
        for address, (size, _) in sorted(self.blocks.items()):
            assert address >= end
            end = address + size
            assert any(start <= address and end <= start + length for start, (length, _) in self.segments.items())

    def alloc(self, address: int, size: int, stream: int) -> None:
        assert self.blocks.pop(address)[0] == size

    def free(self, address: int, size: int, stream: int) -> None:
        assert address not in self.blocks
        self.blocks[address] = [size, False]

    def free_completed(self, address: int, size: int, stream: int) -> None:
        assert address not in self.blocks
        self.blocks[address] = [size, True]

    def free_requested(self, address: int, size: int, stream: int) -> None:
        assert self.blocks[address][1]
        self.blocks[address][1] = False

    def segment_alloc(self, address: int, size: int, stream: int) -> None:
        assert self.segments.pop(address)[0] == size

    def segment_free(self, address: int, size: int, stream: int) -> None:
        self.segments[address] = size, stream

    def segment_map(self, address: int, size: int, stream: int) -> None:
        ((start, (length, found)),) = (
            (start, segment) for start, segment in self.segments.items() if start <= address < start + segment[0]
        )
        assert found == stream and address + size <= start + length
        del self.segments[start]
        if address > start:
            self.segments[start] = address - start, stream
        if address + size < start + length:
            self.segments[address + size] = start + length - address - size, stream

    def segment_unmap(self, address: int, size: int, stream: int) -> None:
        for start, (length, found) in sorted(self.segments.items()):
            if found == stream and start + length == address:
                del self.segments[start]
                address, size = start, size + length
            elif found == stream and start == address + size:
                del self.segments[start]
                size += length
        self.segments[address] = size, stream

    def oom(self, address: int, size: int, stream: int) -> None:
        assert size > 0

    def snapshot(self, address: int, size: int, stream: int) -> None:
        pass


@pytest.mark.parametrize(("seed", "virtual"), CASES)
def test_the_viewer_can_walk_it(seed: int, virtual: bool) -> None:
    segments, events, _ = toy(seed, virtual)
    Viewer(memory_viz(segments, events)).walk()


@pytest.mark.parametrize("virtual", [False, True])
def test_the_walk_ends_where_the_recording_began(virtual: bool) -> None:
    segments, events, _ = toy(3, virtual, before=0)
    viewer = Viewer(memory_viz(segments, events))
    viewer.walk()
    assert viewer.segments == {} and viewer.blocks == {}


@pytest.mark.parametrize(("seed", "virtual"), CASES)
def test_what_is_dropped_at_the_front_is_not_missed(seed: int, virtual: bool) -> None:
    segments, events, _ = toy(seed, virtual)
    Viewer(memory_viz(segments, events[len(events) // 2 :])).walk()


@pytest.mark.parametrize("backend", ["virtual", "segments", "direct"])
@pytest.mark.parametrize("seed", range(3))
def test_the_viewer_can_walk_what_a_pool_recorded(seed: int, backend: str, tmp_path: Path) -> None:
    pool, live = recorded(seed, backend)
    segments, events = pool.segments(), pool.history()
    actions = {event.action for event in events}
    assert {"alloc", "free", "segment_alloc"} <= actions and ("move" in actions or backend == "direct")
    Viewer(memory_viz(segments, events)).walk()
    write_trace(tmp_path / "trace.csv.gz", events, segments)
    trace = read_trace(tmp_path / "trace.csv.gz")
    assert len(trace.streams) - sum(step < 0 for step in trace.steps) == pool.stats().live_blocks == len(live)
    frames = {frame for event in events for frame in event.site[:1]}
    assert {Path(frame.filename).name for frame in frames} == {"test_pool_snapshot.py"}


def recorded(seed: int, backend: str) -> tuple[MemoryPool, list[Block]]:
    """A pool that did a bit of everything, on three streams, most of it recorded."""
    rng = random.Random(seed)
    device = Device.simulated(1 << 30)
    pool = MemoryPool(device, PoolConfig(backend=backend, limit="256 MiB"))
    streams = [0, device.backend.new_stream(), device.backend.new_stream()]
    live: list[Block] = []
    for step in range(300):
        if step == 40:
            pool.record_history(sites=True)
        chance = rng.random()
        if chance < 0.45 and len(live) < 60:
            with memory_tag(rng.choice(TAGS)):
                live.append(pool.allocate(int(2 ** rng.uniform(8, 22)), rng.choice(streams)))
        elif chance < 0.9 and live:
            block = live.pop(rng.randrange(len(live)))
            if rng.random() < 0.3:
                block.record_stream(rng.choice(streams))
            block.free()
        elif chance < 0.95:
            pool.defragment()
        else:
            pool.trim()
    return pool, live


@pytest.mark.parametrize("virtual", [False, True])
def test_fields_and_sums_are_those_of_pytorch(virtual: bool) -> None:
    views, events, pool = toy(5, virtual)
    snapshot = memory_viz(views, events, device_index=1)
    assert set(snapshot) == {"segments", "device_traces", "allocator_settings", "external_annotations"}
    assert [bool(trace) for trace in snapshot["device_traces"]] == [False, True]
    assert sum(s["total_size"] for s in snapshot["segments"]) == sum(part.size for part in with_memory(views))
    for segment in snapshot["segments"]:
        assert segment["device"] == 1 and segment["is_expandable"] is virtual
        assert segment["segment_type"] in ("small", "large") and segment["segment_pool_id"] == (0, 0)
        states = {state: [b for b in segment["blocks"] if b["state"] == state] for state in (
            "active_allocated", "active_pending_free", "inactive")}  # fmt: skip
        assert sum(map(len, states.values())) == len(segment["blocks"])
        sizes = {state: sum(b["size"] for b in blocks) for state, blocks in states.items()}
        assert segment["allocated_size"] == sizes["active_allocated"]
        assert segment["active_size"] == sizes["active_allocated"] + sizes["active_pending_free"]
        assert segment["requested_size"] == sum(b["requested_size"] for b in states["active_allocated"])
        assert segment["total_size"] == sum(sizes.values())
        assert all(frame.keys() == {"filename", "line", "name"} for b in segment["blocks"] for frame in b["frames"])
    live = [block for block in pool.blocks.values() if block.state == "live"]
    shown = [b for s in snapshot["segments"] for b in s["blocks"] if b["state"] == "active_allocated"]
    assert {(b["address"], b["size"], b["requested_size"], b["tag"], b["pins"]) for b in shown} == {
        (b.address, b.size, b.nbytes, b.tag, b.pins) for b in live
    }
    for entry in snapshot["device_traces"][1]:
        assert {"action", "size", "stream", "time_us", "frames"} <= entry.keys()
        assert ("device_free" if entry["action"] == "oom" else "addr") in entry


def test_the_viewer_colours_by_tag() -> None:
    trace = memory_viz(*toy(0, False)[:2])["device_traces"][0]
    categories = {entry["category"] for entry in trace if "category" in entry}
    assert "unknown" in categories and {"parameters", "activations"} <= categories
    assert memory_viz([], [])["device_traces"] == [[]]


def test_scopes_are_private_pools() -> None:
    block = BlockView(256, 256, 0, "free", "", 0, 0, ())
    views = [SegmentView(256, 256, "small", 0, scope, "segments", (block,)) for scope in ("", "eval", "eval", "a")]
    ids = [segment["segment_pool_id"] for segment in memory_viz(views)["segments"]]
    assert ids[0] == (0, 0) and ids[1] == ids[2] and len(set(ids)) == 3


@pytest.mark.parametrize("virtual", [False, True])
def test_the_pickle_is_one_that_the_viewer_decodes(virtual: bool, tmp_path: Path) -> None:
    segments, events, _ = toy(1, virtual, after=2000)
    path = write_snapshot(tmp_path / "new" / "pool.pickle", segments, events)
    used = [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(path.read_bytes())]
    assert {name for name, _ in used} <= set(OPCODES.split())
    assert used[0][0] == "PROTO" and 2 <= used[0][1] <= 4
    assert pickle.loads(path.read_bytes()) == memory_viz(segments, events)


@pytest.mark.parametrize("suffix", [".pickle", ".json"])
@pytest.mark.parametrize("virtual", [False, True])
def test_a_snapshot_comes_back(virtual: bool, suffix: str, tmp_path: Path) -> None:
    segments, events, _ = toy(2, virtual)
    path = write_snapshot(tmp_path / f"pool{suffix}", segments, events)
    assert read_snapshot(path) == with_memory(segments)


def test_snapshots_of_pytorch_can_be_read(tmp_path: Path) -> None:
    blocks = [
        {"size": 512, "requested_size": 400, "state": "active_allocated", "address": 0x7000,
         "frames": [{"filename": "a.py", "line": 3, "name": "f"}]},
        {"size": 512, "requested_size": 400, "state": "active_awaiting_free", "frames": []},
        {"size": 1024, "state": "inactive"},
    ]  # fmt: skip
    torch = [
        {"device": 0, "address": 0x7000, "total_size": 2048, "stream": 0, "segment_type": "small", "blocks": blocks}
    ]
    for saved in (torch, {"segments": torch, "device_traces": []}):
        (tmp_path / "torch.pickle").write_bytes(pickle.dumps(saved))
        (segment,) = read_snapshot(tmp_path / "torch.pickle")
        assert [(b.address, b.size, b.nbytes, b.state) for b in segment.blocks] == [
            (0x7000, 512, 400, "live"), (0x7200, 512, 0, "pending"), (0x7400, 1024, 0, "free"),
        ]  # fmt: skip
        assert segment.blocks[0].site == (Frame("a.py", 3, "f"),)


class _Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("exit 1",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.pickle",
            pickle.dumps({"segments": [_Attack()]}),
            r"asks for \w+\.system; a snapshot holds plain values only",
        ),
        ("a.pickle", b"\x80\x04nonsense", r"is no memory snapshot"),
        ("a.pickle", b"", r"is no memory snapshot"),
        ("a.pickle", pickle.dumps([{"address": 0}]), r"is no memory snapshot \(KeyError"),
        ("a.pickle", pickle.dumps(7), r"is no memory snapshot"),
        ("a.json", b"{", r"is no memory snapshot \(JSONDecodeError"),
        ("a.json", b"\xff\xfe\xff", r"is no memory snapshot"),
        ("a.txt", b"", r"expected a .pickle or .json file"),
    ],
)
def test_other_files_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SnapshotError, match=message):
        read_snapshot(tmp_path / name)


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match=r"'pool.zip': the name must end in .pickle, .json, .csv or .csv.gz"):
        write_snapshot(tmp_path / "pool.zip", [])
    assert not list(tmp_path.iterdir())


def test_events_as_csv(tmp_path: Path) -> None:
    _, events, _ = toy(4, False)
    path = write_snapshot(tmp_path / "events.csv", [], events)
    with path.open(newline="") as text:
        rows = list(csv.DictReader(text))
    assert len(rows) == len(events)
    for row, event in zip(rows, events, strict=True):
        assert row["action"] == event.action and int(row["address"]) == event.address and row["tag"] == event.tag
        assert int(row["allocated"]) == event.allocated_bytes and int(row["reserved"]) == event.reserved_bytes
    first = next(row for row in rows if row["site"])
    assert first["site"] in {f"model.py:{line} forward < train.py:7 <module>" for line in (10, 20, 30)}


def test_json_is_json(tmp_path: Path) -> None:
    segments, events, _ = toy(6, True)
    snapshot = json.loads(write_snapshot(tmp_path / "pool.json", segments, events).read_text())
    assert snapshot["device_traces"][0][-1]["action"] == "snapshot"


# --- traces -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
@pytest.mark.parametrize(("seed", "virtual"), CASES[:4])
def test_a_recording_becomes_a_trace(seed: int, virtual: bool, suffix: str, tmp_path: Path) -> None:
    segments, events, pool = toy(seed, virtual)
    path = tmp_path / f"trace{suffix}"
    written = write_trace(path, events, segments)
    trace = read_trace(path)
    assert written == len(trace.streams)
    frees = [step for step in trace.steps if step < 0]
    assert len(frees) == sum(event.action == "free" for event in events)
    live = {i: size for i, size in enumerate(step for step in trace.steps if step >= 0) if ~i not in frees}
    assert sorted(live.values()) == sorted(block.nbytes for block in pool.blocks.values() if block.state == "live")


def test_what_was_live_before_comes_first(tmp_path: Path) -> None:
    def event(action: str, address: int, nbytes: int, stream: int = 0, target: int = 0, requested: int = 0) -> Event:
        return Event(0.0, action, address, nbytes, stream, "", 0, 0, (), target, requested)

    events = [
        event("alloc", 1024, 512, stream=0x7F00, requested=500),
        event("free", 256, 768),  # older than the recording
        event("move", 1024, 512, target=256),
        event("free", 256, 512),
        event("alloc", 256, 256, requested=7),
    ]
    blocks = (
        BlockView(256, 256, 7, "live", "", 0, 0, ()), BlockView(512, 512, 0, "free", "", 0, 0, ()),
        BlockView(1024, 1024, 1000, "live", "", 0, 0, ()),  # nothing happened to it
    )  # fmt: skip
    write_trace(tmp_path / "t.csv", events, [SegmentView(256, 1792, "small", 0, "", "segments", blocks)])
    assert (tmp_path / "t.csv").read_text().splitlines() == [
        "op,id,bytes,stream", "a,1,768,0", "a,3,1000,0", "a,0,500,1", "f,1,0,0", "f,0,0,0", "a,2,7,0",
    ]  # fmt: skip
    assert read_trace(tmp_path / "t.csv").peak_live == 2268


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "line 1: expected the header op,id,bytes,stream"),
        ("op;id\n", "line 1: expected the header"),
        (
            "op,id,bytes,stream\na,0,256\n",
            r"line 2: expected a or f, an id, bytes and a stream, got \['a', '0', '256'\]",
        ),
        ("op,id,bytes,stream\na,0,256,0\nx,0,0,0\n", "line 3: expected a or f"),
        ("op,id,bytes,stream\na,0,-5,0\n", "line 2: expected a whole number ≥ 0, got '-5'"),
        ("op,id,bytes,stream\na,0,1e3,0\n", "line 2: expected a whole number ≥ 0, got '1e3'"),
        ("op,id,bytes,stream\na,0,99999999999999999999,0\n", "line 2: expected a whole number"),
        ("op,id,bytes,stream\na,0,1,0\na,0,1,0\n", "line 3: id 0 is allocated twice"),
        ("op,id,bytes,stream\nf,0,0,0\n", "line 2: id 0 is freed and not live"),
        ("op,id,bytes,stream\na,0,1,0\nf,0,0,0\nf,0,0,0\n", "line 4: id 0 is freed and not live"),
        ("op,id,bytes,stream\na,,1,0\n", "line 2: expected a or f"),
    ],
)
def test_bad_traces_say_where(rows: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(rows)
    with pytest.raises(TraceError, match=message):
        read_trace(tmp_path / "t.csv")


def test_a_truncated_trace_is_refused(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.csv.gz", toy(0, False)[1])
    (tmp_path / "t.csv.gz").write_bytes((tmp_path / "t.csv.gz").read_bytes()[:-40])
    with pytest.raises(TraceError, match="not a CSV file"):
        read_trace(tmp_path / "t.csv.gz")
