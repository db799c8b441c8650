"""Losses of preferences between images with their gradients, and which tokens of two answers differ by the rules of dense DPO.

Run:       python tests/golden/generate_vlm_preferences.py     (seconds; no network)
Made with: Python 3.11.7, torch 2.15.0

Writes vlm_preferences.json. `losses`: log-probabilities under policy and reference of chosen and rejected answers and of the chosen one under
other images, and the losses of mDPO, rDPO and CHiP (without its divergence) with the gradients of their sum. `differences`: ids, and the
places that Python's difflib says were replaced, with blocks of at least `min_match_size` ids as what is the same.
"""

import difflib
import json
import pathlib
import random

import torch
from torch.nn.functional import logsigmoid

torch.set_default_dtype(torch.float64)
OUT = pathlib.Path(__file__).parent / "vlm_preferences.json"


def loss_case(name, values, beta, image_beta, weight, combination, anchor=None, delta=0.0):
    sides = ["chosen", "rejected", "other"]
    policy = [torch.tensor(values[f"policy_{side}"], requires_grad=True) for side in sides]
    ratios = [p - torch.tensor(values[f"reference_{side}"]) for p, side in zip(policy, sides)]
    chosen, rejected, other = ratios
    if combination == "separate":
        losses = -logsigmoid(beta * (chosen - rejected)) - weight * logsigmoid(image_beta * (chosen - other))
    else:
        losses = -logsigmoid(beta * ((chosen - rejected) + weight * (chosen - other)))
    if anchor is not None:
        losses = losses - anchor * logsigmoid(image_beta * chosen - delta)
    gradients = torch.autograd.grad(losses.sum(), policy, allow_unused=True)
    gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(policy, gradients)]
    return {"name": name, **values, "beta": beta, "image_beta": image_beta, "weight": weight, "combination": combination, "anchor": anchor,
            "delta": delta, "losses": losses.tolist()} | {f"gradient_{side}": g.tolist() for side, g in zip(sides, gradients)}


def loss_cases():
    generator = torch.Generator().manual_seed(5)
    draw = lambda: [round(-60 * torch.rand((), generator=generator).item(), 3) for _ in range(4)]
    values = {f"{who}_{side}": draw() for side in ("chosen", "rejected", "other") for who in ("policy", "reference")}
    # The first is that of the papers' checks; then a policy equal to its reference, and margins beyond what an exponential holds.
    for key, rest in {"policy_chosen": [-42.0, -50.0, -10.0], "reference_chosen": [-43.1, -50.0, -2000.0], "policy_rejected": [-57.5, -61.0, -3000.0],
                      "reference_rejected": [-55.0, -61.0, -4.0], "policy_other": [-60.0, -52.0, -1000.0], "reference_other": [-58.0, -52.0, -2.0]}.items():
        values[key] = rest + values[key]
    cases = [
        loss_case("mdpo", values, 0.1, 0.1, 1.0, "separate", anchor=1.0),
        loss_case("mdpo_delta", values, 0.1, 0.2, 1.0, "separate", anchor=0.5, delta=0.3),
        loss_case("rdpo", values, 0.1, 0.1, 1.0, "separate"),
        loss_case("rdpo_weighted", values, 0.3, 0.1, 0.25, "separate"),
        loss_case("measured", values, 0.1, 0.1, 0.0, "separate"),
        loss_case("chip", values, 0.1, 0.1, 1.0, "joint"),
        loss_case("chip_weighted", values, 0.2, 0.1, 3.0, "joint"),
        loss_case("chip_anchored", values, 0.1, 0.1, 1.0, "joint", anchor=1.0, delta=-0.2),
    ]
    assert abs(cases[0]["losses"][0] - 1.7190312540914214) < 1e-12 and abs(cases[2]["losses"][0] - 1.0793723354689986) < 1e-12
    return cases


def difference(rejected, chosen, size):
    """Replaced places, told from the operations between blocks that are long enough."""
    blocks = difflib.SequenceMatcher(None, rejected, chosen).get_matching_blocks()
    kept = [b for b in blocks[:-1] if b.size >= size] + [blocks[-1]]
    places, at = ([], []), (0, 0)
    for block in kept:
        if at[0] < block.a and at[1] < block.b:
            places[0].extend(range(at[0], block.a))
            places[1].extend(range(at[1], block.b))
        at = (block.a + block.size, block.b + block.size)
    return {"rejected": rejected, "chosen": chosen, "min_match_size": size, "in_rejected": places[0], "in_chosen": places[1]}


def differences():
    rng = random.Random(3)
    cases = [difference(a, b, 3) for a, b in [
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 40, 50, 6, 7, 8, 9]), ([1, 2, 3, 4, 5, 6], [1, 2, 3, 99, 4, 5, 6]),
        ([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 5, 6, 7]), ([1, 2, 3, 4, 5, 9, 9], [1, 2, 3, 7, 5, 9, 9]), ([1, 2, 3, 4], [5, 6, 7, 8])]]
    for i in range(40):
        # Every tenth is long enough for the rule of frequent ids.
        count = rng.randint(205, 230) if i % 10 == 9 else rng.randint(4, 30)
        a = [rng.randint(1, 60 if count > 100 else 12) for _ in range(count)]
        b = list(a)
        for _ in range(rng.randint(1, 4)):
            start = rng.randrange(len(b))
            b[start:start + rng.randint(0, 4)] = [rng.randint(1, 60 if count > 100 else 12) for _ in range(rng.randint(0, 5))]
        cases.append(difference(a, b, rng.choice([1, 2, 3, 3])))
    return cases


OUT.write_text(json.dumps({"losses": loss_cases(), "differences": differences()}, separators=(",", ":")) + "\n")
