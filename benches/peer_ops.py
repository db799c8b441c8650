"""PyTorch's side of the tensor crate's benches/table: one operation at a time, asked for by lines on standard input.

Run by the benchmark: peer_ops.py THREADS CLOCK, where the clock is wall or cpu. A line {"op": NAME, "shape": [...], "backward": BOOL, "seconds": S} is answered by
{"ms": MEDIAN} of as many runs as fit into S seconds, at least three. Needs torch, for the blocks also diffusers.
"""

import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F


def conv2d(b, c, o, y, k):
    return [rand(b, c, y, y), rand(o, c, k, k), rand(o)], lambda x, w, b: F.conv2d(x, w, b, padding=k // 2)


def attention(b, h, t, s, k):
    def run(q, k_, v):
        heads = lambda x: x.view(b, -1, h, k).transpose(1, 2)
        return F.scaled_dot_product_attention(heads(q), heads(k_), heads(v)).transpose(1, 2).reshape(b, t, h * k)

    return [rand(b, t, h * k), rand(b, s, h * k), rand(b, s, h * k)], run


def group_norm_silu(b, c, y, groups):
    return [rand(b, c, y, y), rand(c), rand(c)], lambda x, w, b: F.silu(F.group_norm(x, groups, w, b, 1e-5))


def layer_norm(rows, width):
    return [rand(rows, width), rand(width), rand(width)], lambda x, w, b: F.layer_norm(x, (width,), w, b, 1e-5)


def rms_norm(rows, width):
    return [rand(rows, width), rand(width)], lambda x, w: F.rms_norm(x, (width,), w, 1e-6)


def geglu(rows, width):
    def run(x):
        hidden, gate = x.chunk(2, -1)
        return hidden * F.gelu(gate)

    return [rand(rows, width)], run


def swiglu(rows, width):
    return [rand(rows, width), rand(rows, width)], lambda gate, up: F.silu(gate) * up


def rope(b, t, h, k):
    angles = rand(t, 1, k)

    def run(x):
        x = x.view(b, t, h, k)
        first, second = x.chunk(2, -1)
        return (x * cos + torch.cat((-second, first), -1) * sin).view(b, t, h * k)

    cos, sin = angles.cos(), angles.sin()
    return [rand(b, t, h * k)], run


def token_logps(rows, width, words):
    targets = torch.randint(0, words, (rows, 1))
    return [rand(rows, width), rand(words, width)], lambda h, w: (h @ w.T).log_softmax(-1).gather(1, targets).squeeze(1)


def embedding(rows, words, width):
    ids = torch.randint(0, words, (rows,))
    return [rand(words, width)], lambda table: F.embedding(ids, table)


def adamw(count):
    parameter = torch.nn.Parameter(rand(count))
    parameter.grad = rand(count)
    optimizer = torch.optim.AdamW([parameter], lr=1e-4, fused=True)
    return None, optimizer.step


def resnet_block(b, c, y, time):
    from diffusers.models.resnet import ResnetBlock2D

    block = ResnetBlock2D(in_channels=c, out_channels=c, temb_channels=time, groups=32, eps=1e-5)
    return [rand(b, c, y, y), rand(b, time), *block.parameters()], lambda x, t, *_: block(x, t)


def transformer_block(b, c, y, heads, tokens, text):
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    block = Transformer2DModel(heads, c // heads, in_channels=c, cross_attention_dim=text, norm_num_groups=32)
    run = lambda x, t, *_: block(x, encoder_hidden_states=t, return_dict=False)[0]
    return [rand(b, c, y, y), rand(b, tokens, text), *block.parameters()], run


def unary(f):
    return lambda *shape: ([rand(*shape)], f)


OPS = {
    "matmul": lambda n: ([rand(n, n), rand(n, n)], torch.matmul),
    "linear": lambda rows, i, o: ([rand(rows, i), rand(o, i), rand(o)], F.linear),
    "conv2d": conv2d,
    "softmax": unary(lambda x: x.softmax(-1)),
    "gelu": unary(F.gelu),
    "silu": unary(F.silu),
    "exp": unary(torch.exp),
    "sum": unary(lambda x: x.sum(-1)),
    "transpose": unary(lambda x: x.transpose(1, 2).contiguous()),
    "attention": attention,
    "group_norm_silu": group_norm_silu,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "geglu": geglu,
    "swiglu": swiglu,
    "rope": rope,
    "token_logps": token_logps,
    "embedding": embedding,
    "adamw": adamw,
    "resnet_block": resnet_block,
    "transformer_block": transformer_block,
}


def rand(*shape):
    return torch.randn(*shape)


def prepare(job):
    """A function without arguments that does the operation once."""
    operands, run = OPS[job["op"]](*job["shape"])
    if operands is None:
        return run
    if not job["backward"]:
        def forward():
            with torch.no_grad():
                return run(*operands)

        return forward
    operands = [operand.requires_grad_() for operand in operands]
    gradient = torch.randn_like(run(*operands).detach())

    def both():
        for operand in operands:
            operand.grad = None
        run(*operands).backward(gradient)

    return both


def main():
    torch.set_num_threads(int(sys.argv[1]))
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[sys.argv[2]]
    torch.manual_seed(0)
    prepared = {}
    for line in sys.stdin:
        job = json.loads(line)
        key = json.dumps([job["op"], job["shape"], job["backward"]])
        if key not in prepared:
            prepared = {key: prepare(job)}
            prepared[key]()
        times, begin = [], time.perf_counter()
        while len(times) < 3 or time.perf_counter() - begin < job["seconds"]:
            start = clock()
            prepared[key]()
            times.append(clock() - start)
        print(json.dumps({"ms": statistics.median(times) * 1e3}), flush=True)


if __name__ == "__main__":
    main()
