"""The transformer of examples/llama.py in plain NumPy, f64, forward and backward by hand: what it is held to."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
EPS = 1e-5


def norm(x: Array, w: Array) -> tuple[Array, Any]:
    r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + EPS)
    return x * r * w, (x, w, r)


def norm_back(g: Array, kept: Any) -> tuple[Array, Array]:
    x, w, r = kept
    gw = g * w
    dx = r * gw - x * r**3 * (gw * x).mean(-1, keepdims=True)
    return dx, (g * x * r).reshape(-1, x.shape[-1]).sum(0)


def turn(x: Array, sign: int) -> Array:
    """Rotary embedding of neighbouring pairs: (n, heads, S, d)."""
    s, d = x.shape[-2:]
    angle = sign * np.arange(s)[:, None] * 10000.0 ** (-np.arange(0, d, 2) / d)
    y = np.empty_like(x)
    a, b, c, t = x[..., 0::2], x[..., 1::2], np.cos(angle), np.sin(angle)
    y[..., 0::2], y[..., 1::2] = a * c - b * t, a * t + b * c
    return y


def split(x: Array, d: int) -> Array:
    return x.reshape(*x.shape[:2], -1, d).transpose(0, 2, 1, 3)


def merge(x: Array) -> Array:
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def attention(x: Array, w: dict[str, Array], heads: int, kv_heads: int) -> tuple[Array, Any]:
    d = x.shape[-1] // heads
    q, k, v = turn(split(x @ w["q"].T, d), 1), turn(split(x @ w["k"].T, d), 1), split(x @ w["v"].T, d)
    group = heads // kv_heads
    kk, vv = np.repeat(k, group, 1), np.repeat(v, group, 1)
    logits = q @ kk.transpose(0, 1, 3, 2) / np.sqrt(d)
    logits = np.where(np.tril(np.ones(logits.shape[-2:], bool)), logits, -np.inf)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    y = merge(p @ vv)
    return y @ w["out"].T, (x, w, q, kk, vv, p, y, group)


def attention_back(g: Array, kept: Any) -> tuple[Array, dict[str, Array]]:
    x, w, q, kk, vv, p, y, group = kept
    d = q.shape[-1]
    dw = {"out": outer(g, y)}
    dy = split(g @ w["out"], d)
    dp = dy @ vv.transpose(0, 1, 3, 2)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) / np.sqrt(d)
    dvv, dq, dkk = p.transpose(0, 1, 3, 2) @ dy, ds @ kk, ds.transpose(0, 1, 3, 2) @ q

    def shared(t: Array) -> Array:  # the heads of a group add to the one that they share
        return t.reshape(t.shape[0], -1, group, *t.shape[2:]).sum(2)

    parts = {"q": merge(turn(dq, -1)), "k": merge(turn(shared(dkk), -1)), "v": merge(shared(dvv))}
    dx = sum(parts[name] @ w[name] for name in parts)
    return dx, dw | {name: outer(part, x) for name, part in parts.items()}


def outer(g: Array, x: Array) -> Array:
    return g.reshape(-1, g.shape[-1]).T @ x.reshape(-1, x.shape[-1])


def feed(x: Array, w: dict[str, Array]) -> tuple[Array, Any]:
    a, b = x @ w["gate"].T, x @ w["up"].T
    s = 1 / (1 + np.exp(-a))
    h = a * s * b
    return h @ w["down"].T, (x, w, a, b, s, h)


def feed_back(g: Array, kept: Any) -> tuple[Array, dict[str, Array]]:
    x, w, a, b, s, h = kept
    dh = g @ w["down"]
    da, db = dh * b * (s + a * s * (1 - s)), dh * a * s
    return da @ w["gate"] + db @ w["up"], {"down": outer(g, h), "gate": outer(da, x), "up": outer(db, x)}


def run(
    tokens: Any, w: dict[str, Array], heads: int, kv_heads: int, layers: int
) -> tuple[list[Array], Array, float, dict[str, Array]]:
    """(states as of Llama.states, logits, mean cross-entropy of the next token, gradients by parameter name)."""

    def part(layer: int, name: str) -> dict[str, Array]:
        prefix = f"blocks.{layer}.{name}."
        return {k.removeprefix(prefix).removesuffix(".weight"): v for k, v in w.items() if k.startswith(prefix)}

    x = w["embedding.weight"][tokens]
    states, kept = [x], []
    for i in range(layers):
        h, k1 = norm(x, w[f"blocks.{i}.attention_norm.weight"])
        y, k2 = attention(h, part(i, "attention"), heads, kv_heads)
        x = x + y
        h, k3 = norm(x, w[f"blocks.{i}.feed_norm.weight"])
        y, k4 = feed(h, part(i, "feed"))
        x = x + y
        states.append(x)
        kept.append((k1, k2, k3, k4))
    h, k5 = norm(x, w["norm.weight"])
    states.append(h)
    table = w.get("classifier.weight", w["embedding.weight"])
    logits = h @ table.T
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    at = np.arange(tokens.shape[1] - 1)
    chosen = p[:, at][np.arange(len(tokens))[:, None], at, tokens[:, 1:]]
    loss = float(-np.log(chosen).mean())
    g = p.copy()
    g[:, -1] = 0
    g[np.arange(len(tokens))[:, None], at, tokens[:, 1:]] -= 1
    g /= chosen.size
    return states, logits, loss, _backward(g, tokens, w, table, states[-1], k5, kept)


def _backward(
    g: Array, tokens: Any, w: dict[str, Array], table: Array, h: Array, k5: Any, kept: list[Any]
) -> dict[str, Array]:
    grads = {name: np.zeros_like(value) for name, value in w.items()}
    grads["classifier.weight" if "classifier.weight" in w else "embedding.weight"] += outer(g, h)
    dx, grads["norm.weight"] = norm_back(g @ table, k5)
    for i in reversed(range(len(kept))):
        k1, k2, k3, k4 = kept[i]
        dh, dw = feed_back(dx, k4)
        grads |= {f"blocks.{i}.feed.{name}.weight": v for name, v in dw.items()}
        part, grads[f"blocks.{i}.feed_norm.weight"] = norm_back(dh, k3)
        dx = dx + part
        dh, dw = attention_back(dx, k2)
        grads |= {f"blocks.{i}.attention.{name}.weight": v for name, v in dw.items()}
        part, grads[f"blocks.{i}.attention_norm.weight"] = norm_back(dh, k1)
        dx = dx + part
    np.add.at(grads["embedding.weight"], tokens, dx)
    return grads
