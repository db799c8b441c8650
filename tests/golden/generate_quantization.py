"""Golden values of weights in few bits: NF4 with and without double quantization, int8 by rows, and products with them.

Run:       python tests/golden/generate_quantization.py
Made with: Python 3.11.7, numpy 2.4.6, torch 2.15.0, bitsandbytes 0.50.2

Codes and scales are bitsandbytes' on the CPU. What NF4 codes stand for, and products with that, are computed here with PyTorch, and
compared with bitsandbytes' for the widths that its kernels serve. The levels are computed once more from the quantiles that the paper
states (Dettmers et al., arXiv:2305.14314, appendix E), and compared with its. Weights are formulas of their indices, exact in float64.
"""

import json
from pathlib import Path

import bitsandbytes.functional as bnb
import numpy as np
import torch
from bitsandbytes import matmul_4bit

torch.set_num_threads(1)
OUT = Path(__file__).resolve().parent / "quantization.json"
# Of codes that are too many to be stored.
EVERY = 997


def uniform(i, step):
    return ((i * step + 12345) % 2**32) / 2**32 - 0.5


def weight(rows, cols):
    """About normal, with rows of different sizes and some outliers."""
    i = np.arange(rows * cols, dtype=np.uint64)
    steps = (2654435761, 2246822519, 3266489917, 668265263)
    x = sum(uniform(i, np.uint64(step)) for step in steps)
    x = x * np.where(i % np.uint64(211) == 7, 4.0, 1.0) * 0.5 ** (i // np.uint64(cols) % np.uint64(3)).astype(np.float64)
    return torch.from_numpy(x.astype(np.float32)).reshape(rows, cols)


def wave(shape, phase):
    return torch.from_numpy(np.sin(np.arange(np.prod(shape)) * 0.7 + phase).astype(np.float32)).reshape(shape)


def singles(x):
    """In the shortest form that names each float32."""
    return [float(str(number)) for number in x.detach().float().reshape(-1).numpy()]


def levels():
    offset = 0.5 * (1 - 1 / 30 + 1 - 1 / 32)
    quantiles = lambda num: torch.special.ndtri(torch.from_numpy(np.linspace(offset, 0.5, num))).numpy()[:-1]
    positive, negative = quantiles(9), -quantiles(8)
    values = np.sort(np.concatenate([positive, negative, [0.0]]))
    return values / values.max()


def coded(absmax, state):
    """Scales in eight bits. bitsandbytes' kernel takes the second nearest entry of its map where two are about equally near."""
    entries, centered = state.state2.code, absmax - state.offset
    middles = (entries[:-1] + entries[1:]) / 2
    found = []
    for block in centered.split(256):
        largest = block.abs().max()
        found.append((torch.bucketize(block * (1 / largest), middles), largest))
    codes = torch.cat([codes for codes, _ in found])
    other = (codes - state.absmax.long()).abs()
    assert other.max() <= 1 and other.sum() <= 3
    return torch.cat([entries[codes] * largest for codes, largest in found]) + state.offset


def nf4(rows, cols, double, dtype=torch.float32):
    w = weight(rows, cols).to(dtype)
    packed, state = bnb.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=double)
    assert np.abs(state.code.numpy() - levels()).max() < 1e-6
    absmax = state.absmax
    if double:
        absmax = coded(bnb.quantize_4bit(w, blocksize=64, quant_type="nf4")[1].absmax, state)
    codes = packed.reshape(-1).long()
    each = torch.stack([codes >> 4, codes & 15], 1).reshape(-1)[: rows * cols]
    found = (state.code[each] * absmax.repeat_interleave(64)[: rows * cols]).reshape(rows, cols)
    # Its kernel for the CPU reads wrong scales where a block goes on from one row to the next and the width is even.
    if cols % 64 == 0 and not double:
        assert dtype == torch.float32 and torch.equal(found, bnb.dequantize_4bit(packed, state))
    case = {"rows": rows, "cols": cols, "double": double, "dtype": str(dtype).removeprefix("torch.")}
    if codes.numel() <= 1000:
        case["codes"] = codes.tolist()
    case["code_sum"] = int((codes * (torch.arange(codes.numel()) % 251 + 1)).sum())
    case["num_bytes"] = packed.numel() + (
        state.absmax.numel() + 4 * state.state2.absmax.numel() if double else 4 * state.absmax.numel()
    )
    case["every"] = 5 if rows * cols <= 1000 else EVERY
    case["values"] = singles(found.reshape(-1)[:: case["every"]])
    x = wave((3, cols), 0.2).requires_grad_()
    y = torch.nn.functional.linear(x, found)
    y.backward(wave(y.shape, 1.0))
    if cols % 64 == 0 and not double:
        state.dtype = torch.float32
        other = x.detach().requires_grad_()
        found = matmul_4bit(other, packed.t(), quant_state=state)
        found.backward(wave(y.shape, 1.0))
        assert torch.allclose(found, y, atol=1e-4) and torch.allclose(other.grad, x.grad, atol=1e-4)
    case["y"], case["dx"] = singles(y.reshape(-1)[:24]), singles(x.grad.reshape(-1)[::13])
    return case


def int8(rows, cols):
    w = weight(rows, cols).half()
    codes, absmax, _ = bnb.int8_vectorwise_quant(w)
    found = bnb.int8_vectorwise_dequant(codes, absmax)
    return {
        "rows": rows, "cols": cols, "codes": codes.reshape(-1).tolist(), "absmax": singles(absmax), "values": singles(found),
    }


golden = {
    "levels": levels().tolist(),
    "nf4": [
        nf4(6, 96, False), nf4(5, 50, False), nf4(7, 33, False), nf4(6, 96, False, torch.bfloat16), nf4(6, 96, False, torch.float16),
        nf4(40, 1664, False), nf4(40, 1664, True), nf4(9, 130, True),
    ],
    "int8": [int8(5, 37)],
}
OUT.write_text(json.dumps(golden) + "\n")
