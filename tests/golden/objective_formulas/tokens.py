"""Objectives of pairs that look at token scores."""

import numpy as np
import torch
import torch.nn.functional as F

from . import peers
from .evaluation import Case
from .pairs_by_reference import ApoZero, Ipo, LogRatios
from .pairs_without_reference import SimPo

# Tokens of the chosen and of the rejected response: longer, shorter, equal, one token, one token each.
LENS = [(5, 3), (2, 4), (3, 3), (4, 1), (1, 1)]


def responses(rng, lens, low=-4.0, reference=True, collisions=False):
    """Token scores of one side, zero at the padding, of few digits."""
    width = max(lens)
    mask = (np.arange(width)[None, :] < np.array(lens)[:, None]).astype(float)
    draw = lambda bottom, top: np.round(rng.uniform(bottom, top, mask.shape), 3) * mask + 0.0
    out = {"policy": draw(low, -0.05), "mask": mask}
    if reference:
        out["reference"] = draw(low, -0.05)
    if collisions:
        out["log_collisions"] = draw(-3.0, -0.1)
    return out


def token_case(rng, name, parameters, lens=LENS, policy_is_reference=False, with_lengths=False, **settings):
    sides = {f"{side}_tokens": responses(rng, [pair[i] for pair in lens], **settings) for i, side in enumerate(("chosen", "rejected"))}
    if policy_is_reference:
        for side in sides.values():
            side["policy"] = side["reference"].copy()
    if with_lengths:
        for i, side in enumerate(("chosen", "rejected")):
            sides[f"{side}_lengths"] = np.array([float(pair[i]) for pair in lens])
    return Case(name, parameters, sides)


class LdDpo:
    """arXiv:2409.06411; TRL 1.16 DPOTrainer, ld_alpha: policy and reference alike. Rewards are beta times the log-ratio of the weighted scores."""

    name, kind = "ld_dpo", "pairs"

    @staticmethod
    def ratios(p, s):
        shared = torch.minimum(s.tokens_c["mask"].sum(1), s.tokens_r["mask"].sum(1))
        for tokens in (s.tokens_c, s.tokens_r):
            place = torch.arange(tokens["mask"].shape[1])[None, :]
            weight = tokens["mask"] * (1 - (1 - p["alpha"]) * (place >= shared[:, None]).double())
            yield (weight * (tokens["policy"] - tokens["reference"])).sum(1)

    @staticmethod
    def torch(p, s):
        a, b = LdDpo.ratios(p, s)
        return -F.logsigmoid(p["beta"] * (a - b)), p["beta"] * a, p["beta"] * b

    @staticmethod
    def numpy(p, s):
        margins = []
        for i in range(len(s.c)):
            lens = [int(tokens["mask"][i].sum()) for tokens in (s.tokens_c, s.tokens_r)]
            side = []
            for tokens, count in zip((s.tokens_c, s.tokens_r), lens):
                ratio = (tokens["policy"][i] - tokens["reference"][i])[:count]
                side.append((1 - p["alpha"]) * ratio[: min(lens)].sum() + p["alpha"] * ratio.sum())
            margins.append(side[0] - side[1])
        return np.logaddexp(0, -p["beta"] * np.array(margins))

    @staticmethod
    def cases(rng):
        yield token_case(rng, "half", {"beta": 0.1, "alpha": 0.5})
        yield token_case(rng, "shared_alone", {"beta": 0.5, "alpha": 0.0})
        yield token_case(rng, "dpo", {"beta": 0.1, "alpha": 1.0}, lens=LENS[:3])
        yield token_case(rng, "policy_equals_reference", {"beta": 0.1, "alpha": 0.3}, lens=LENS[:2], policy_is_reference=True)
        yield token_case(rng, "extreme", {"beta": 10.0, "alpha": 0.5}, lens=LENS[:4], low=-20.0)

    @staticmethod
    def peer(p, values):
        return peers.dpo(p, values, "sigmoid", ld_alpha=p["alpha"])


class SmoothedDpo(LogRatios):
    """DPO of a recipe, whose label_smoothing may be left out."""

    name = "dpo"

    @staticmethod
    def loss(p, s):
        e, x = p.get("label_smoothing", 0.0), p["beta"] * s.h
        return -F.logsigmoid(x) * (1 - e) - F.logsigmoid(-x) * e

    @staticmethod
    def numpy(p, s):
        x = p["beta"] * (s.a - s.b)
        return np.logaddexp(0, -x) + p.get("label_smoothing", 0.0) * x


class Wpo:
    """arXiv:2406.11827, Eq. 2, with the weights aligned to what a sampled token has on average; TRL 1.16 DPOTrainer,
    use_weighting. The weights have no gradient. Rewards are those of the weighted objective."""

    name, kind = "wpo", "pairs"
    # Formula, and TRL's name for it.
    INNER = {"dpo": (SmoothedDpo, "sigmoid"), "ipo": (Ipo, "ipo"), "apo_zero": (ApoZero, "apo_zero"), "simpo": (SimPo, None)}

    @staticmethod
    def torch(p, s):
        ((name, inner),) = p["objective"].items()
        losses, *rewards = Wpo.INNER[name][0].torch(inner, s)
        for tokens in (s.tokens_c, s.tokens_r):
            aligned = ((tokens["policy"] - tokens["log_collisions"]) * tokens["mask"]).sum(1) / tokens["mask"].sum(1)
            losses = losses * torch.exp(aligned).detach()
        return losses, *rewards

    @staticmethod
    def weights(s):
        logs = 0.0
        for tokens in (s.tokens_c, s.tokens_r):
            rows = zip(tokens["policy"], tokens["log_collisions"], tokens["mask"])
            logs = logs + np.array([np.mean((row - collisions)[mask > 0]) for row, collisions, mask in rows])
        return np.exp(logs)

    @staticmethod
    def numpy(p, s):
        ((name, inner),) = p["objective"].items()
        return Wpo.weights(s) * Wpo.INNER[name][0].numpy(inner, s)

    @staticmethod
    def cases(rng):
        made = [
            token_case(rng, "dpo", {"dpo": {"beta": 0.1}}, lens=LENS[1:], collisions=True),
            token_case(rng, "dpo_smoothed", {"dpo": {"beta": 0.5, "label_smoothing": 0.1}}, lens=LENS[1:3], collisions=True),
            token_case(rng, "policy_equals_reference", {"dpo": {"beta": 0.1}}, lens=LENS[1:2], collisions=True, policy_is_reference=True),
            token_case(rng, "ipo_length", {"ipo": {"beta": 0.1, "normalization": "length"}}, lens=LENS[1:3], collisions=True, with_lengths=True),
            token_case(rng, "apo_zero", {"apo_zero": {"beta": 0.1}}, lens=LENS[1:3], collisions=True),
            token_case(rng, "simpo", {"simpo": {"beta": 2.0, "gamma": 1.0}}, lens=LENS[1:3], collisions=True, with_lengths=True, reference=False),
        ]
        # Finite differences would move the weights too.
        return [Case(case.name, {"objective": case.parameters}, case.inputs, smooth=False) for case in made]

    @staticmethod
    def peer(p, values):
        ((name, inner),) = p["objective"].items()
        loss_type = Wpo.INNER[name][1]
        if loss_type is None or inner.get("label_smoothing"):
            return None  # What TRL does not have.
        return peers.dpo(inner, values, loss_type, use_weighting=True)


class Dft:
    """arXiv:2508.05629; TRL 1.16 SFTTrainer, loss_type dft, with batch_tokens. The probability before each logarithm is a constant, so
    that the gradient is not the slope of the loss. Rewards are the scores."""

    name, kind = "dft", "chosen"

    @staticmethod
    def torch(p, s):
        terms = s.tokens_c["policy"].exp().detach() * s.tokens_c["policy"] * s.tokens_c["mask"]
        sums = -terms.sum(1)
        counts = s.tokens_c["mask"].sum(1)
        return {"sum": sums, "tokens": sums / counts, "batch_tokens": (sums.sum() / counts.sum()).expand(len(sums))}[p["normalization"]], s.c, s.r

    @staticmethod
    def numpy(p, s):
        rows = []
        for policy, mask in zip(s.tokens_c["policy"], s.tokens_c["mask"]):
            chances = np.exp(policy[mask > 0])
            rows.append(-(chances * np.log(chances)).sum())
        lens = s.tokens_c["mask"].sum(1)
        if p["normalization"] == "batch_tokens":
            return np.full(len(rows), np.sum(rows) / lens.sum())
        return np.array(rows) / (lens if p["normalization"] == "tokens" else 1.0)

    @staticmethod
    def cases(rng):
        for normalization in ("sum", "tokens", "batch_tokens"):
            for lens, low in [(LENS, -4.0), (LENS[3:4], -1.0), (LENS[:3], -110.0)]:
                case = token_case(rng, f"{normalization}_{len(lens)}", {"normalization": normalization}, lens=lens, with_lengths=True, low=low, reference=False)
                case.smooth = False
                yield case


FORMULAS = [LdDpo, Wpo, Dft]
