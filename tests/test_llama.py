"""examples/llama.py against NumPy in f64, layer by layer, forward and backward, with random weights."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

import flame_numba as fn
import llama_numpy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import llama

CONFIGS = {
    "grouped": llama.Config(dim=24, hidden=40, layers=3, heads=6, kv_heads=2, vocabulary=31, context=16),
    "own classifier": llama.Config(16, 24, layers=2, heads=2, kv_heads=2, vocabulary=20, context=9, shared=False),
}


def model_of(config: llama.Config, dtype: fn.DType) -> tuple[llama.Llama, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    model = llama.Llama(config)
    weights = {name: rng.normal(0, 0.3, p.shape) + ("norm" in name) for name, p in model.named_parameters()}
    model.load_state_dict({name: w.astype(np.float32) for name, w in weights.items()})
    return model.to_dtype(dtype), {name: w.astype(np.float32).astype(np.float64) for name, w in weights.items()}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(fn.float64, 1e-12), (fn.float32, 2e-5), (fn.bfloat16, 0.06)], ids=str
)
def test_equals_numpy_layer_by_layer(config: llama.Config, dtype: fn.DType, tolerance: float) -> None:
    model, weights = model_of(config, dtype)
    tokens = np.random.default_rng(1).integers(0, config.vocabulary, (2, 9))
    states, logits, loss, grads = llama_numpy.run(tokens, weights, config.heads, config.kv_heads, config.layers)
    x = fn.tensor(tokens)
    for i, (found, expected) in enumerate(zip(model.states(x), states, strict=True)):
        off = np.abs(found.to_dtype(fn.float64).numpy() - expected).max()
        assert off <= tolerance * np.abs(expected).max(), f"layer {i}: off by {off}"
    y = model(x)
    assert np.abs(y.to_dtype(fn.float64).numpy() - logits).max() <= tolerance * np.abs(logits).max()
    found_loss = fn.cross_entropy(y[:, :-1], x[:, 1:])
    assert abs(found_loss.item() - loss) <= tolerance * loss
    found_loss.backward()
    for name, p in model.named_parameters():
        found = p.grad.to_dtype(fn.float64).numpy()
        assert cosine(found, grads[name]) >= 1 - tolerance, name
        assert np.abs(found - grads[name]).max() <= 4 * tolerance * np.abs(grads[name]).max(), name


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_checkpoint_comes_back(config: llama.Config, tmp_path: Path) -> None:
    model, _ = model_of(config, fn.float32)
    llama.save(model, tmp_path / "model.bin")
    again = llama.load(tmp_path / "model.bin")
    assert again.config == config
    tokens = fn.tensor([[1, 5, 3]])
    assert fn.array_equal(again(tokens), model(tokens))
    assert again.generate([1], 4) == model.generate([1], 4)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    for content in (
        b"short",
        struct.pack("7i", 7, 1, 1, 2, 1, 5, 4),
        struct.pack("7i", 8, 8, 1, 2, 1, 5, 4) + b"\0" * 40,
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="model.bin"):
            llama.load(path)


def test_a_tokenizer_merges_the_best_pairs(tmp_path: Path) -> None:
    pieces = [(b"<unk>", 0), (b"<s>", 0), (b"</s>", 0), *((b"<0x%02X>" % i, 0) for i in range(256))]
    pieces += [(b" ", -1), (b"a", -2), (b"b", -3), (b"ab", -0.5), (b" ab", -0.2), (b"ba", -0.6)]
    data = struct.pack("i", 8) + b"".join(struct.pack("fi", s, len(p)) + p for p, s in pieces)
    (tmp_path / "tokenizer.bin").write_bytes(data)
    tokenizer = llama.Tokenizer(tmp_path / "tokenizer.bin", len(pieces))
    tokens = tokenizer.encode("abab é")
    assert [tokenizer.pieces[t] for t in tokens[:3]] == [b"<s>", b" ab", b"ab"]
    assert tokenizer.decode(tokens) == "abab é"
