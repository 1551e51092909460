"""Reverse-mode differentiation. Nothing here knows an op by name, and nothing global holds a graph.

| file | holds |
|---|---|
| `modes.py` | the switches: `no_grad`, `enable_grad`, `set_grad_enabled`, `inference_mode` |
| `graph.py` | what ops leave behind: `Node`, `Port`, `Saved`, `record` |
| `replay.py` | what a checkpointed call keeps in place of its saved tensors |
| `hooks.py` | functions that see gradients as they pass |
| `engine.py` | the sweep: `backward`, `grad`, `GradientMap` |
| `anomaly.py` | `detect_anomaly`: which op made the first NaN |
| `reports.py` | `graph_stats`, `unused_parameters` |
"""

from .anomaly import detect_anomaly, watching
from .engine import GradientMap, accumulate_with, backward, grad
from .graph import Node, Port, Saved, SavedItems, keep, record, record_many
from .hooks import Handle, detach_, follow_change, register_hook, register_post_accumulate_grad_hook, retain_grad
from .modes import enable_grad, inference_mode, is_inference, is_recording, no_grad, set_grad_enabled
from .replay import Tape, current_tape, is_recomputing
from .reports import GraphStats, UnusedParameter, graph_stats, unused_parameters

__all__ = [
    "GradientMap",
    "GraphStats",
    "Handle",
    "Node",
    "Port",
    "Saved",
    "SavedItems",
    "Tape",
    "UnusedParameter",
    "accumulate_with",
    "backward",
    "current_tape",
    "detach_",
    "detect_anomaly",
    "enable_grad",
    "follow_change",
    "grad",
    "graph_stats",
    "inference_mode",
    "is_inference",
    "is_recomputing",
    "is_recording",
    "keep",
    "no_grad",
    "record",
    "record_many",
    "register_hook",
    "register_post_accumulate_grad_hook",
    "retain_grad",
    "set_grad_enabled",
    "unused_parameters",
    "watching",
]
