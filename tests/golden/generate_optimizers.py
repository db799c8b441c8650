"""Golden values of optimizers: AdamW with moments in eight bits, and Adafactor.

Run:       python tests/golden/generate_optimizers.py
Made with: Python 3.11.7, numpy 2.4.6, torch 2.15.0, transformers 5.23.0

Moments in eight bits are written down here from the paper (Dettmers et al., arXiv:2110.02861) and the rules of bitsandbytes' kernels:
its dynamic maps, blocks scaled by their largest magnitude, nearest entries, first moments that keep their sign. Weight decay comes
before the update, as in torch.optim.AdamW. Adafactor is transformers'. Parameters and gradients are formulas of their indices.
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import Adafactor

torch.set_num_threads(1)
OUT = Path(__file__).resolve().parent / "optimizers.json"
F = np.float32


def wave(count, rate, phase):
    return np.sin(np.arange(count) * rate + phase)


def start(shape):
    return wave(int(np.prod(shape)), 0.7341, 0.1).astype(F).reshape(shape)


def gradient(shape, step):
    """Of very different sizes, and of both signs."""
    count = int(np.prod(shape))
    return (wave(count, 0.37, 1.3 * step) * 10.0 ** -(np.arange(count) % 5)).astype(F).reshape(shape)


def dynamic_map(signed):
    entries = [0.0, 1.0]
    for i in range(7):
        items = (2**i if signed else 2 ** (i + 1)) + 1
        edges = np.linspace(0.1, 1, items)
        means = 10.0 ** (i - 6) * (edges[:-1] + edges[1:]) / 2
        entries += list(means) + (list(-means) if signed else [])
    assert len(entries) == 256
    return np.sort(np.array(entries)).astype(F)


def nearest(entries, x):
    middles = ((entries[:-1] + entries[1:]) * F(0.5)).astype(F)
    return np.searchsorted(middles, x, side="left")


def adamw_int8(block, steps=10, shape=(50, 100), lr=1e-2, betas=(0.9, 0.999), eps=1e-8, decay=0.01):
    signed, unsigned = dynamic_map(True), dynamic_map(False)
    p = start(shape).reshape(-1)
    blocks = [slice(i, min(i + block, p.size)) for i in range(0, p.size, block)]
    codes = [np.full(p.size, nearest(signed, F(0))), np.full(p.size, nearest(unsigned, F(0)))]
    scales = [np.zeros(len(blocks), F), np.zeros(len(blocks), F)]
    b1, b2 = (F(beta) for beta in betas)
    for step in range(1, steps + 1):
        g = gradient(shape, step).reshape(-1)
        keep, size = F(1 - lr * decay), F(lr / (1 - betas[0] ** step))
        correction = F((1 - betas[1] ** step) ** 0.5)
        for i, at in enumerate(blocks):
            m, v = signed[codes[0][at]] * scales[0][i], unsigned[codes[1][at]] * scales[1][i]
            m = b1 * m + F(1 - betas[0]) * g[at]
            v = b2 * v + F(1 - betas[1]) * g[at] * g[at]
            p[at] = p[at] * keep - size * m / (np.sqrt(v) / correction + F(eps))
            scales[0][i], scales[1][i] = np.abs(m).max(), np.abs(v).max()
            found = nearest(signed, m / scales[0][i])
            wrong = (m != 0) & (np.signbit(signed[found]) != np.signbit(m))
            codes[0][at] = np.where(wrong, found + np.where(m > 0, 1, -1), found)
            codes[1][at] = nearest(unsigned, v / scales[1][i])
    shown = slice(None, None, 37)
    return {
        "block": block, "steps": steps, "shape": shape, "lr": lr, "every": 37,
        "values": [float(x) for x in p[shown]],
        "codes": [int(x) for x in codes[0][shown]], "codes_sq": [int(x) for x in codes[1][shown]],
        "absmax": [float(x) for x in scales[0]], "absmax_sq": [float(x) for x in scales[1]],
    }


def adafactor(shape, lr, steps=20, **settings):
    parameter = torch.nn.Parameter(torch.from_numpy(start(shape)).double())
    optimizer = Adafactor([parameter], lr=lr, relative_step=False, warmup_init=False, **settings)
    for step in range(1, steps + 1):
        # The optimizer casts gradients of half precision alone, so all of it is in double precision.
        parameter.grad = torch.from_numpy(gradient(shape, step)).double()
        optimizer.step()
    return {
        "shape": list(shape), "lr": lr, "steps": steps, "settings": settings,
        "values": [float(x) for x in parameter.detach().reshape(-1)],
    }


golden = {
    "adamw_int8": [adamw_int8(256), adamw_int8(2048)],
    "adafactor": [
        adafactor((5, 7), 1e-2, scale_parameter=True),
        adafactor((5, 7), 1e-2, scale_parameter=False, beta1=0.9, weight_decay=0.1),
        adafactor((6,), 1e-2, scale_parameter=True, weight_decay=0.1, clip_threshold=0.5),
        adafactor((3, 2, 3, 3), 1e-3, scale_parameter=False, decay_rate=-0.5),
    ],
}
OUT.write_text(json.dumps(golden) + "\n")
