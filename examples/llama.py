"""A transformer in the manner of Llama 2, small enough to read, that loads the checkpoints of llama2.c.

    python examples/llama.py MODEL.bin --tokenizer TOKENIZER.bin --prompt "Once upon a time"

RMSNorm before each part, rotary embedding of neighbours, grouped heads, SwiGLU, no biases. (Touvron et al. 2023)

A checkpoint is seven int32 (dim, hidden, layers, heads, kv_heads, vocabulary, longest context; a negative vocabulary
says that the classifier is not the embedding's table), then float32 weights in the order of `_order`.
"""

from __future__ import annotations

import argparse
import itertools
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import flame_numba as fn
from flame_numba import nn


@dataclass(frozen=True)
class Config:
    """Sizes of a model. kv_heads divides heads, heads divides dim."""

    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    shared: bool = True  # the classifier is the embedding's table

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


class Attention(nn.Module):
    """Causal attention with grouped heads: (batch, S, dim) → (batch, S, dim)."""

    def __init__(self, config: Config) -> None:
        self.config = config
        kv = config.kv_heads * config.head_dim
        self.q = nn.Linear(config.dim, config.dim, bias=False)
        self.k = nn.Linear(config.dim, kv, bias=False)
        self.v = nn.Linear(config.dim, kv, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: fn.Tensor) -> fn.Tensor:
        n, s, _ = x.shape

        def heads(y: fn.Tensor) -> fn.Tensor:  # (n, S, heads·d) → (n, heads, S, d), as a view
            return y.reshape(n, s, -1, self.config.head_dim).permute(0, 2, 1, 3)

        q, k, v = fn.rope(heads(self.q(x))), fn.rope(heads(self.k(x))), heads(self.v(x))
        y = fn.attention(q, k, v, causal=True)
        return self.out(y.permute(0, 2, 1, 3).reshape(n, s, -1))


class FeedForward(nn.Module):
    """down(silu(gate(x))·up(x))"""

    def __init__(self, config: Config) -> None:
        self.gate = nn.Linear(config.dim, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.dim, bias=False)
        self.up = nn.Linear(config.dim, config.hidden, bias=False)

    def forward(self, x: fn.Tensor) -> fn.Tensor:
        return self.down(_silu_times(self.gate(x), self.up(x)))


_silu_times = fn.fuse(lambda gate, up: fn.silu(gate) * up)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed(norm(x))."""

    def __init__(self, config: Config) -> None:
        self.attention_norm = nn.RMSNorm(config.dim, eps=1e-5)
        self.attention = Attention(config)
        self.feed_norm = nn.RMSNorm(config.dim, eps=1e-5)
        self.feed = FeedForward(config)

    def forward(self, x: fn.Tensor) -> fn.Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed(self.feed_norm(x))


class Llama(nn.Module):
    """Logits of the next token: integer tokens (batch, S) → (batch, S, vocabulary)."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.dim)
        self.blocks = [Block(config) for _ in range(config.layers)]
        self.norm = nn.RMSNorm(config.dim, eps=1e-5)
        self.classifier = None if config.shared else nn.Linear(config.dim, config.vocabulary, bias=False)

    def states(self, tokens: fn.Tensor) -> Iterator[fn.Tensor]:
        """What enters the first block, what leaves each block, and the normed result."""
        x = self.embedding(tokens)
        yield x
        for block in self.blocks:
            x = block(x)
            yield x
        yield self.norm(x)

    def forward(self, tokens: fn.Tensor) -> fn.Tensor:
        if tokens.shape[-1] > self.config.context:
            raise fn.ShapeError(f"Llama: {tokens.shape[-1]} tokens are more than the context of {self.config.context}")
        *_, x = self.states(tokens)
        table = self.embedding.weight if self.classifier is None else self.classifier.weight
        return fn.linear(x, table)

    def generate(self, tokens: list[int], count: int, temperature: float = 0.0, seed: int = 0) -> list[int]:
        """`count` more tokens, the likeliest (temperature 0) or drawn. What precedes is computed again for each."""
        rng = np.random.default_rng(seed)
        with fn.no_grad():
            for _ in range(count):
                logits = self(fn.tensor([tokens[-self.config.context :]]))[0, -1].to_dtype(fn.float64).numpy()
                if temperature == 0:
                    choice = int(logits.argmax())
                else:
                    p = np.exp((logits - logits.max()) / temperature)
                    choice = int(rng.choice(p.size, p=p / p.sum()))
                tokens = [*tokens, choice]
        return tokens


# --- checkpoints ----------------------------------------------------------------------------------------------------
def _order(model: Llama) -> Iterator[fn.Parameter | int]:
    """The parameters in the order of a file; a number stands for floats to skip."""
    config, blocks = model.config, model.blocks
    yield model.embedding.weight
    for pick in (
        lambda b: b.attention_norm, lambda b: b.attention.q, lambda b: b.attention.k, lambda b: b.attention.v,
        lambda b: b.attention.out, lambda b: b.feed_norm, lambda b: b.feed.gate, lambda b: b.feed.down,
        lambda b: b.feed.up,
    ):  # fmt: skip
        for block in blocks:
            yield pick(block).weight
    yield model.norm.weight
    yield config.context * config.head_dim  # tables of cos and sin, half a head each, that nobody reads any more
    if model.classifier is not None:
        yield model.classifier.weight


def load(path: str | Path) -> Llama:
    """The model of a llama2.c checkpoint, on the current device. Raises ValueError if the file is not one."""
    data = np.memmap(path, np.uint8, mode="r")
    if data.size < 28:
        raise ValueError(f"{path}: too short for a header")
    dim, hidden, layers, heads, kv_heads, vocabulary, context = struct.unpack("7i", data[:28].tobytes())
    sizes = (dim, hidden, layers, heads, kv_heads, abs(vocabulary), context)
    if min(sizes) < 1 or dim % heads or heads % kv_heads:
        raise ValueError(f"{path}: not a model's header: {sizes}")
    model = Llama(Config(*sizes, shared=vocabulary > 0))
    floats, at = data[28:].view(np.float32), 0
    total = sum(p if isinstance(p, int) else p.numel for p in _order(model))
    if floats.size != total:
        raise ValueError(f"{path}: {floats.size} weights, but {sizes} make {total}")
    for p in _order(model):
        if isinstance(p, int):
            at += p
            continue
        with fn.no_grad():
            p[...] = fn.asarray(np.array(floats[at : at + p.numel]).reshape(p.shape))
        at += p.numel
    return model


def save(model: Llama, path: str | Path) -> None:
    """Write a checkpoint that `load`, and llama2.c, can read."""
    c = model.config
    with Path(path).open("wb") as file:
        file.write(struct.pack(
            "7i", c.dim, c.hidden, c.layers, c.heads, c.kv_heads, c.vocabulary if c.shared else -c.vocabulary, c.context
        ))  # fmt: skip
        for p in _order(model):
            part = np.zeros(p) if isinstance(p, int) else p.to_dtype(fn.float32).numpy()
            file.write(part.astype("<f4").tobytes())


class Tokenizer:
    """llama2.c's tokenizer file: scored pieces, merged greedily, the best pair first."""

    def __init__(self, path: str | Path, vocabulary: int) -> None:
        data = Path(path).read_bytes()
        self.pieces, self.scores, at = [], [], 4
        for _ in range(vocabulary):
            score, length = struct.unpack_from("fi", data, at)
            self.pieces.append(data[at + 8 : at + 8 + length])
            self.scores.append(score)
            at += 8 + length
        self.number = {piece: i for i, piece in enumerate(self.pieces)}

    def encode(self, text: str) -> list[int]:
        """Tokens, after the mark (1) that begins a text. Characters without a piece become their bytes."""
        tokens = []
        for character in (" " + text) if text else "":
            piece = character.encode()
            known = self.number.get(piece)
            tokens += [known] if known is not None else [byte + 3 for byte in piece]
        while True:
            pairs = [self.number.get(self.pieces[a] + self.pieces[b], -1) for a, b in itertools.pairwise(tokens)]
            best = max(range(len(pairs)), key=lambda i: self.scores[pairs[i]] if pairs[i] >= 0 else -1e10, default=-1)
            if best < 0 or pairs[best] < 0:
                return [1, *tokens]
            tokens[best : best + 2] = [pairs[best]]

    def decode(self, tokens: list[int]) -> str:
        pieces = [self.pieces[t] for t in tokens if t > 2]
        raw = [bytes([int(p[3:5], 16)]) if p.startswith(b"<0x") and len(p) == 6 else p for p in pieces]
        return b"".join(raw).decode(errors="replace").strip()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write text with a llama2.c model.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--prompt", default="")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    model = load(options.model)
    tokenizer = Tokenizer(options.tokenizer, model.config.vocabulary)
    tokens = model.generate(tokenizer.encode(options.prompt), options.tokens, options.temperature, options.seed)
    print(tokenizer.decode(tokens))
    return 0


if __name__ == "__main__":
    sys.exit(main())
