"""Losses of preferences between images with their gradients, and which tokens of two answers differ by the rules of dense DPO.

Run:       python tests/golden/generate_vlm_preferences.py     (seconds; no network)
Made with: Python 3.11.7, torch 2.15.0

Writes vlm_preferences.json. `losses`: log-probabilities under policy and reference of chosen and rejected answers and of the chosen one under
other images, and the losses of mDPO, rDPO, CHiP, TDPO and RRPO's margin with the gradients of their sum, also by the `divergence` of each answer.
`own_answers`: POVID's second stage in the same way. `heads`: hidden states and projections of two networks, the divergence of each row's
distribution with the gradients of its weighted sum, and the likeliest words with and without one. `powers` and `triplets`: TARS's two losses of
spectra, from torch.fft. `differences`: ids, and the places that
Python's difflib says were replaced, with blocks of at least `min_match_size` ids as what is the same.
"""

import difflib
import json
import pathlib
import random

import torch
from torch.nn.functional import logsigmoid

torch.set_default_dtype(torch.float64)
OUT = pathlib.Path(__file__).parent / "vlm_preferences.json"


def loss_case(name, values, beta, image_beta, weight, combination, anchor=None, delta=0.0, divergence=None):
    sides = ["chosen", "rejected", "other"]
    policy = [torch.tensor(values[f"policy_{side}"], requires_grad=True) for side in sides]
    ratios = [p - torch.tensor(values[f"reference_{side}"]) for p, side in zip(policy, sides)]
    chosen, rejected, other = ratios
    extra, kl = {}, []
    margin = 0.0
    if divergence is not None:
        kl = [torch.tensor(values[f"divergence_{side}"], requires_grad=True) for side in sides[:2]]
        held = kl[0] if divergence["role"] == "margin_of_both" else kl[0].detach()
        margin = divergence["weight"] * (kl[1] - held)
        extra["divergence"] = divergence
    if combination == "separate":
        losses = -logsigmoid(beta * (chosen - rejected - margin)) - weight * logsigmoid(image_beta * (chosen - other))
    else:
        losses = -logsigmoid(beta * ((chosen - rejected) + weight * (chosen - other) - margin))
    if anchor is not None:
        losses = losses - anchor * logsigmoid(image_beta * chosen - delta)
    inputs = policy + kl
    gradients = torch.autograd.grad(losses.sum(), inputs, allow_unused=True)
    gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(inputs, gradients)]
    extra |= {f"gradient_divergence_{side}": g.tolist() for side, g in zip(sides, gradients[3:])}
    if divergence is None:
        values = {key: value for key, value in values.items() if not key.startswith("divergence")}
    return {"name": name, **values, **extra, "beta": beta, "image_beta": image_beta, "weight": weight, "combination": combination, "anchor": anchor,
            "delta": delta, "losses": losses.tolist()} | {f"gradient_{side}": g.tolist() for side, g in zip(sides, gradients)}


def loss_cases():
    generator = torch.Generator().manual_seed(5)
    draw = lambda: [round(-60 * torch.rand((), generator=generator).item(), 3) for _ in range(4)]
    values = {f"{who}_{side}": draw() for side in ("chosen", "rejected", "other") for who in ("policy", "reference")}
    # The first is that of the papers' checks; then a policy equal to its reference, and margins beyond what an exponential holds.
    for key, rest in {"policy_chosen": [-42.0, -50.0, -10.0], "reference_chosen": [-43.1, -50.0, -2000.0], "policy_rejected": [-57.5, -61.0, -3000.0],
                      "reference_rejected": [-55.0, -61.0, -4.0], "policy_other": [-60.0, -52.0, -1000.0], "reference_other": [-58.0, -52.0, -2.0]}.items():
        values[key] = rest + values[key]
    values["divergence_chosen"] = [2.0, 0.0, 150.0, 0.31, 1.7, 0.02, 4.4]
    values["divergence_rejected"] = [3.0, 0.0, 400.0, 0.9, 0.2, 0.05, 6.1]
    tokens = lambda weight, role="margin": {"weight": weight, "role": role}
    cases = [
        loss_case("mdpo", values, 0.1, 0.1, 1.0, "separate", anchor=1.0),
        loss_case("mdpo_delta", values, 0.1, 0.2, 1.0, "separate", anchor=0.5, delta=0.3),
        loss_case("rdpo", values, 0.1, 0.1, 1.0, "separate"),
        loss_case("rdpo_weighted", values, 0.3, 0.1, 0.25, "separate"),
        loss_case("measured", values, 0.1, 0.1, 0.0, "separate"),
        loss_case("chip", values, 0.1, 0.1, 1.0, "joint"),
        loss_case("chip_weighted", values, 0.2, 0.1, 3.0, "joint"),
        loss_case("chip_anchored", values, 0.1, 0.1, 1.0, "joint", anchor=1.0, delta=-0.2),
        loss_case("chip_tokens", values, 0.1, 0.1, 1.0, "joint", divergence=tokens(0.1)),
        loss_case("chip_tokens_weighted", values, 0.2, 0.2, 3.0, "joint", anchor=1.0, divergence=tokens(0.4)),
        loss_case("chip_tokens_apart", values, 0.1, 0.3, 1.0, "separate", divergence=tokens(0.1)),
        loss_case("tdpo2", values, 0.1, 0.1, 0.0, "separate", divergence=tokens(0.5)),
        loss_case("tdpo1", values, 0.1, 0.1, 0.0, "separate", divergence=tokens(1.0, "margin_of_both")),
    ]
    assert abs(cases[8]["losses"][0] - 0.41663669588823915) < 1e-12
    assert abs(cases[0]["losses"][0] - 1.7190312540914214) < 1e-12 and abs(cases[2]["losses"][0] - 1.0793723354689986) < 1e-12
    return cases


def own_case(share, beta):
    values = {"policy_chosen": [-42.0, -50.0, -9.5], "reference_chosen": [-43.1, -50.0, -7.25], "policy_rejected": [-57.5, -61.0, -3.5],
              "reference_rejected": [-55.0, -61.0, -8.0], "policy_own": [-60.0, -52.0, -30.0], "reference_own": [-58.0, -52.0, -90.0]}
    policy = [torch.tensor(values[f"policy_{side}"], requires_grad=True) for side in ("chosen", "rejected", "own")]
    chosen, rejected, own = [p - torch.tensor(values[f"reference_{side}"]) for p, side in zip(policy, ("chosen", "rejected", "own"))]
    losses = -(1 - share) * logsigmoid(beta * (chosen - rejected)) - share * logsigmoid(beta * (chosen - own))
    gradients = torch.autograd.grad(losses.sum(), policy)
    return {**values, "share": share, "beta": beta, "losses": losses.tolist(), "margins": (beta * (chosen - own)).tolist()} | {
        f"gradient_{side}": g.tolist() for side, g in zip(("chosen", "rejected", "own"), gradients)}


def own_cases():
    cases = [own_case(0.5, 0.1), own_case(0.2, 0.3)]
    assert abs(cases[0]["losses"][0] - 0.5396861677344993) < 1e-12
    return cases


def head_case(seed, rows, width, other_width, words, softcap, spread, same=False):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.round(spread * torch.randn(shape, generator=generator), decimals=4)
    hidden, weight = draw(rows, width).requires_grad_(), draw(words, width).requires_grad_()
    other = (hidden.detach(), weight.detach()) if same else (draw(rows, other_width), draw(words, other_width))
    cap = lambda z: z if softcap is None else softcap * torch.tanh(z / softcap)
    q, p = [torch.distributions.Categorical(logits=cap(h @ w.T)) for h, w in ((hidden, weight), other)]
    divergences = torch.distributions.kl_divergence(p, q)
    upstream = torch.round(torch.randn(rows, generator=generator), decimals=4)
    by_hidden, by_weight = torch.autograd.grad((divergences * upstream).sum(), (hidden, weight))
    likeliest = q.logits.topk(2).indices
    return {"rows": rows, "words": words, "softcap": softcap, "hidden": hidden.flatten().tolist(), "weight": weight.flatten().tolist(),
            "other_hidden": other[0].flatten().tolist(), "other_weight": other[1].flatten().tolist(), "upstream": upstream.tolist(),
            "divergences": divergences.tolist(), "gradient_hidden": by_hidden.flatten().tolist(),
            "gradient_weight": by_weight.flatten().tolist(), "likeliest": likeliest[:, 0].tolist(), "second": likeliest[:, 1].tolist()}


def head_cases():
    return [head_case(1, 5, 3, 3, 7, None, 1.0), head_case(2, 4, 2, 3, 6, 1.5, 2.0), head_case(3, 3, 2, 2, 5, None, 12.0),
            head_case(4, 3, 2, 2, 4, None, 1.0, same=True)]


def states(generator, rows, width=3):
    return torch.round(torch.randn(rows, width, generator=generator), decimals=3)


def power_case(seed, chosen, rejected, beta, same=False):
    generator = torch.Generator().manual_seed(seed)
    policy = [states(generator, rows) for rows in (chosen, rejected)]
    reference = [z.clone() for z in policy] if same else [states(generator, rows) for rows in (chosen, rejected)]
    policy = [z.requires_grad_() for z in policy]
    power = lambda z: torch.fft.fft(z, dim=0).real.square().sum().log()
    ratios = [power(z) - power(r) for z, r in zip(policy, reference)]
    loss = -logsigmoid(beta * (ratios[0] - ratios[1]))
    gradients = torch.autograd.grad(loss, policy)
    return {"beta": beta, "loss": loss.item()} | {
        f"{who}_{side}": z.tolist() for who, both in (("policy", policy), ("reference", reference), ("gradient", gradients))
        for side, z in zip(("chosen", "rejected"), both)}


def triplet_case(own, chosen, rejected, margin):
    own = own.clone().requires_grad_()
    length = max(len(own), len(chosen), len(rejected))
    f, w, l = [torch.fft.fft(z, n=length, dim=0).abs() for z in (own, chosen, rejected)]
    loss = torch.relu((f - w).square().mean() - (f - l).square().mean() + margin)
    gradient, = torch.autograd.grad(loss, own)
    return {"own": own.tolist(), "chosen": chosen.tolist(), "rejected": rejected.tolist(), "margin": margin, "loss": loss.item(),
            "gradient": gradient.tolist()}


def triplet_cases():
    research = [[[.126, -.132, .64], [.105, -.536, .362], [1.304, .947, -.704], [-1.265, -.623, .041]],
                [[-2.325, -.219, -1.246], [-.732, -.544, -.316], [.412, 1.043, -.129], [1.366, -.665, .352]],
                [[.903, .094, -.743], [-.922, -.458, .22], [-1.01, -.209, -.159], [.541, .215, .355]]]
    generator = torch.Generator().manual_seed(11)
    of = lambda *rows: [states(generator, count) for count in rows]
    cases = [triplet_case(*map(torch.tensor, research), 0.5), triplet_case(*of(5, 5, 3), 6.0), triplet_case(*of(3, 4, 4), 0.0)]
    assert abs(cases[0]["loss"] - 0.19699440561651138) < 1e-12 and any(case["loss"] == 0.0 for case in cases)
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


POWERS = [power_case(1, 5, 4, 1.0), power_case(2, 1, 6, 0.3), power_case(3, 4, 4, 1.0, same=True)]
GOLDEN = {"losses": loss_cases(), "own_answers": own_cases(), "heads": head_cases(), "powers": POWERS, "triplets": triplet_cases(),
          "differences": differences()}
OUT.write_text(json.dumps(GOLDEN, separators=(",", ":")) + "\n")
