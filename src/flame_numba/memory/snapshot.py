"""Pictures of a pool as files: in PyTorch's snapshot schema, which its viewer opens, and back; events as CSV.

The viewer (https://pytorch.org/memory_viz) reads pickles of protocol ≤ 4 made of plain values, walks the events
backward from the segments at the end, and stops where they do not fit each other. What it needs for that is said
where it is done.
"""

from __future__ import annotations

import io
import json
import os
import pickle
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..errors import FlameError
from .traces import write_csv
from .views import BlockView, Event, Frame, SegmentView, with_memory

_TORCH_STATES = {"live": "active_allocated", "pending": "active_pending_free", "free": "inactive"}
_STATES = {name: state for state, name in _TORCH_STATES.items()} | {"active_awaiting_free": "pending"}
EVENT_COLUMNS = (
    "seconds", "action", "address", "bytes", "requested", "stream", "tag", "target", "allocated", "reserved", "site"
)  # fmt: skip


class SnapshotError(FlameError, ValueError):
    """A file is not a snapshot of a pool, or its name does not say which kind it should become."""


# --- as PyTorch's viewer wants it -------------------------------------------------------------------------------------
def memory_viz(
    segments: Sequence[SegmentView], events: Sequence[Event] = (), device_index: int = 0, started: float = 0.0
) -> dict[str, Any]:
    """What `torch.cuda.memory._snapshot()` would return for this pool, with our tags and pins as additional keys.

    started: when the recording began, in seconds as `time.time()` counts them.
    """
    expandable = any(segment.backend == "virtual" for segment in segments)
    scopes = {scope: (0, i) for i, scope in enumerate(sorted({"", *(segment.scope for segment in segments)}))}
    # to PyTorch, too, each run of pages that have memory is a segment
    shown = [_segment(segment, device_index, scopes[segment.scope]) for segment in with_memory(segments)]
    pending = {block.address for segment in segments for block in segment.blocks if block.state == "pending"}
    dated = [event._replace(seconds=started + event.seconds) for event in events]
    trace = [entry for event, waits in _with_waits(dated, pending) for entry in _entries(event, waits, expandable)]
    _take_streams(trace, segments)
    if trace:
        # the viewer colours by category, and fails if there are some and "unknown" is not among them
        trace.append(
            {"action": "snapshot", "addr": 0, "size": 0, "stream": 0, "time_us": trace[-1]["time_us"], "frames": [],
             "category": "unknown"}
        )  # fmt: skip
    return {
        "segments": shown,
        "device_traces": [[] for _ in range(device_index)] + [trace],
        "allocator_settings": {"expandable_segments": expandable},
        "external_annotations": [],
    }


def _segment(segment: SegmentView, device: int, pool_id: tuple[int, int]) -> dict[str, Any]:
    live = [block for block in segment.blocks if block.state == "live"]
    allocated = sum(block.size for block in live)
    return {
        "device": device,
        "address": segment.address,
        "total_size": segment.size,
        "allocated_size": allocated,
        "active_size": allocated + sum(block.size for block in segment.blocks if block.state == "pending"),
        "requested_size": sum(block.nbytes for block in live),
        "stream": segment.stream,
        "segment_type": segment.kind,
        "segment_pool_id": pool_id,
        "is_expandable": segment.backend == "virtual",
        "frames": [],
        "blocks": [_block(block) for block in segment.blocks],
        "scope": segment.scope,
        "backend": segment.backend,
    }


def _block(block: BlockView) -> dict[str, Any]:
    return {
        "address": block.address,
        "size": block.size,
        "requested_size": block.size if block.state == "pending" else block.nbytes,
        "state": _TORCH_STATES[block.state],
        "frames": _frames(block.site),
        "user_metadata": block.tag,  # the viewer shows it
        "tag": block.tag,
        "stream": block.stream,
        "pins": block.pins,
    }


def _frames(site: tuple[Frame, ...]) -> list[dict[str, Any]]:
    return [{"filename": frame.filename, "line": frame.line, "name": frame.name} for frame in site]


def _with_waits(events: Sequence[Event], pending: set[int]) -> list[tuple[Event, bool]]:
    """Each event, and of a free whether a stream still used the block, so that "free_completed" comes later."""
    unfinished = set(pending)
    told = []
    for event in reversed(events):
        waits = event.action == "free" and event.address in unfinished
        if event.action == "free_completed":
            unfinished.add(event.address)
        elif event.action in ("alloc", "free"):
            unfinished.discard(event.address)
        elif event.action == "move":
            unfinished.discard(event.target)
        told.append((event, waits))
    return told[::-1]


def _entries(event: Event, waits: bool, expandable: bool) -> Iterator[dict[str, Any]]:
    """An event as PyTorch tells it: a free has two steps, and a move is a free and an allocation."""
    common = {
        "size": event.nbytes, "stream": event.stream, "time_us": int(event.seconds * 1e6),
        "user_metadata": event.tag,
    }  # fmt: skip
    block = common | {"category": event.tag or "unknown"}
    frames = _frames(event.site)
    if event.action in ("free", "move"):
        yield {"action": "free_requested", "addr": event.address, "frames": frames} | block
        if not waits:
            yield {"action": "free_completed", "addr": event.address, "frames": frames} | block
    if event.action == "move":
        yield {"action": "alloc", "addr": event.target, "frames": frames} | block
    elif event.action in ("alloc", "free_completed"):
        yield {"action": event.action, "addr": event.address, "frames": frames} | block
    elif event.action in ("segment_alloc", "segment_free"):
        # pages of one range of addresses come and go on their own: only "map" and "unmap" join them in the viewer
        names = {"segment_alloc": "segment_map", "segment_free": "segment_unmap"}
        action = names[event.action] if expandable else event.action
        yield {"action": action, "addr": event.address, "frames": frames} | common
    elif event.action == "oom":
        asked = {"size": event.requested or event.nbytes, "device_free": event.target}
        yield {"action": "oom", "frames": frames} | common | asked


def _take_streams(trace: list[dict[str, Any]], segments: Sequence[SegmentView]) -> None:
    """Give memory that came or went the stream of its segment: the viewer joins only pages of one stream."""
    ranges = sorted((segment.address, segment.address + segment.size, segment.stream) for segment in segments)
    for entry in trace:
        if entry["action"].startswith("segment_"):
            i = bisect_right(ranges, entry["addr"], key=lambda found: found[0]) - 1
            if i >= 0 and entry["addr"] < ranges[i][1]:
                entry["stream"] = ranges[i][2]


# --- files ------------------------------------------------------------------------------------------------------------
def write_snapshot(
    path: str | os.PathLike[str],
    segments: Sequence[SegmentView],
    events: Sequence[Event] = (),
    device_index: int = 0,
    started: float = 0.0,
) -> Path:
    """Write a pool's picture, by the suffix: .pickle (PyTorch's viewer), .json (the same), .csv[.gz] (the events).

    Returns the path. Raises SnapshotError for another suffix.
    """
    target = Path(path)
    if target.name.endswith((".csv", ".csv.gz")):
        write_events(target, events)
    elif target.suffix == ".pickle":
        # protocol 4: the viewer's own decoder knows no later one
        _write(target, pickle.dumps(memory_viz(segments, events, device_index, started), protocol=4))
    elif target.suffix == ".json":
        _write(target, json.dumps(memory_viz(segments, events, device_index, started)).encode())
    else:
        raise SnapshotError(f"snapshot: {target.name!r}: the name must end in .pickle, .json, .csv or .csv.gz")
    return target


def write_events(path: str | os.PathLike[str], events: Iterable[Event]) -> None:
    """Write events as CSV, one a row, with the columns EVENT_COLUMNS; the site as "file:line name < file:line name"."""
    write_csv(Path(path), EVENT_COLUMNS, (_event_row(event) for event in events))


def _event_row(event: Event) -> tuple[object, ...]:
    site = " < ".join(f"{frame.filename}:{frame.line} {frame.name}" for frame in event.site)
    return (
        f"{event.seconds:.6f}", event.action, event.address, event.nbytes, event.requested, event.stream, event.tag,
        event.target, event.allocated_bytes, event.reserved_bytes, site,
    )  # fmt: skip


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


# --- and back ---------------------------------------------------------------------------------------------------------
def read_snapshot(path: str | os.PathLike[str]) -> list[SegmentView]:
    """The segments of a file that `write_snapshot` made as .pickle or .json, or that PyTorch dumped.

    A pickle may hold plain values only; nothing in it is executed. Raises SnapshotError for anything else.
    """
    source = Path(path)
    if source.suffix not in (".pickle", ".json"):
        raise SnapshotError(f"snapshot: {source.name!r}: expected a .pickle or .json file")
    data = source.read_bytes()
    try:
        snapshot = json.loads(data) if source.suffix == ".json" else _PlainUnpickler(io.BytesIO(data)).load()
        segments = snapshot["segments"] if isinstance(snapshot, dict) else snapshot
        return [_segment_view(segment) for segment in segments]
    except (SnapshotError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise SnapshotError(f"snapshot: {source} is no memory snapshot ({type(error).__name__}: {error})") from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise SnapshotError(f"snapshot: the pickle asks for {module}.{name}; a snapshot holds plain values only")


def _segment_view(segment: dict[str, Any]) -> SegmentView:
    blocks = []
    address = int(segment["address"])
    for block in segment["blocks"]:
        blocks.append(_block_view(block, address, segment))
        address += blocks[-1].size
    return SegmentView(
        int(segment["address"]), int(segment["total_size"]), str(segment["segment_type"]), int(segment["stream"]),
        str(segment.get("scope", "")), str(segment.get("backend", "")), tuple(blocks),
    )  # fmt: skip


def _block_view(block: dict[str, Any], address: int, segment: dict[str, Any]) -> BlockView:
    state, size = _STATES[block["state"]], int(block["size"])
    site = tuple(Frame(str(f["filename"]), int(f["line"]), str(f["name"])) for f in block.get("frames", ()))
    nbytes = int(block.get("requested_size", size)) if state == "live" else 0
    return BlockView(
        address, size, nbytes, state, str(block.get("tag", "")), int(block.get("stream", segment["stream"])),
        int(block.get("pins", 0)), site,
    )  # fmt: skip
