"""Objectives of responses that were each judged desirable or not."""

import numpy as np
import torch
import torch.nn.functional as F

from . import peers
from .evaluation import MARGINS, Case, scores, sigmoid


def batch(rng, ratios, labels, mismatched=None, **more):
    """Responses with these log-ratios; `mismatched` are the log-ratios of answers to other prompts."""
    reference = scores(rng, len(ratios))
    out = {"policy_logps": np.round(reference + ratios, 9), "reference_logps": reference, "labels": np.array(labels, dtype=bool)}
    if mismatched is not None:
        reference = scores(rng, len(mismatched), -70.0)
        out |= {"mismatched_policy_logps": np.round(reference + mismatched, 9), "mismatched_reference_logps": reference}
    return out | more


def usual(rng, settings, mismatched=(), **more):
    """Extremes on both labels, policy equal to reference, random ones, one label alone, and a batch of one.

    The baseline is above 0, below it, and 0.
    """
    alternating = lambda count: np.arange(count) % 2 == 0
    for name, p in settings:
        baseline = lambda *ratios: {"mismatched": np.array(ratios)} if mismatched else {}
        extremes = np.repeat(MARGINS, 2)[1:] / p["beta"]
        yield Case(f"{name}_extremes", p, batch(rng, extremes, alternating(len(extremes)), **baseline(-3.0, 1.5, 0.25), **more))
        ratios = np.round(rng.normal(0, 8, 6), 2)
        yield Case(f"{name}_random", p, batch(rng, ratios, [True, True, False, True, False, False], **baseline(2.0, 5.5, -1.25, 0.5), **more))
        yield Case(f"{name}_policy_equals_reference", p, batch(rng, np.zeros(3), [True, False, True], **baseline(0.0, 0.0, 0.0), **more))
        yield Case(f"{name}_desirable_alone", p, batch(rng, np.round(rng.normal(0, 8, 3), 2), [True] * 3, **baseline(4.0), **more))
        yield Case(f"{name}_one", p, batch(rng, np.array([-2.5]), [False], **baseline(1.0, 2.0), **more))


class Labelled:
    """Rewards are beta times the log-ratio."""

    kind = "unpaired"

    @classmethod
    def torch(cls, p, s):
        return torch.where(torch.tensor(s.labels), cls.desirable(p, s), cls.undesirable(p, s)), p["beta"] * s.x


class Kto(Labelled):
    """arXiv:2402.01306, Eq. 7; TRL 1.16 KTOTrainer, loss_type kto. The baseline is the mismatched log-ratios' mean, at least 0, without gradient."""

    name = "kto"

    @staticmethod
    def baseline(s):
        return torch.relu((s.mismatched - s.ref_mismatched).mean()).detach()

    @staticmethod
    def utility(p, x):
        """arXiv:2404.04465; jacklishufan/diffusion-kto train_kto_sd_v1.5.py, halo: sigmoid, loss_averse, risk_seeking_3."""
        name = p.get("utility", "kahneman_tversky")
        return {"kahneman_tversky": torch.sigmoid, "loss_averse": F.logsigmoid, "risk_seeking": lambda x: -F.logsigmoid(-x)}[name](x)

    @staticmethod
    def desirable(p, s):
        return p["desirable_weight"] * (1 - Kto.utility(p, p["beta"] * (s.x - Kto.baseline(s))))

    @staticmethod
    def undesirable(p, s):
        return p["undesirable_weight"] * (1 - Kto.utility(p, p["beta"] * (Kto.baseline(s) - s.x)))

    @staticmethod
    def numpy(p, s):
        baseline = max(0.0, np.mean(s.mismatched) - np.mean(s.ref_mismatched))
        weight, loss = np.where(s.labels, p["desirable_weight"], p["undesirable_weight"]), np.where(s.labels, -1.0, 1.0) * p["beta"] * (s.x - baseline)
        if p.get("utility") == "loss_averse":
            return weight * (1 + np.logaddexp(0, loss))
        if p.get("utility") == "risk_seeking":
            return weight * (1 - np.logaddexp(0, -loss))
        return weight * sigmoid(loss)

    @staticmethod
    def cases(rng):
        settings = [("default", {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}),
                    ("weighted", {"beta": 0.5, "desirable_weight": 1.33, "undesirable_weight": 0.75})]
        yield from usual(rng, settings, mismatched=True)
        settings = [(name, {"beta": 0.5, "desirable_weight": 1.5, "undesirable_weight": 0.75, "utility": name}) for name in ("loss_averse", "risk_seeking")]
        yield from usual(rng, settings, mismatched=True)

    @staticmethod
    def peer(p, values):
        return None if "utility" in p else peers.kto(p, values, "kto")


class ApoZeroUnpaired(Labelled):
    """arXiv:2408.06266, Eq. 7, side by side; TRL 1.16 KTOTrainer, loss_type apo_zero_unpaired."""

    name = "apo_zero_unpaired"

    @staticmethod
    def desirable(p, s):
        return p["desirable_weight"] * (1 - torch.sigmoid(p["beta"] * s.x))

    @staticmethod
    def undesirable(p, s):
        return p["undesirable_weight"] * torch.sigmoid(p["beta"] * s.x)

    @staticmethod
    def numpy(p, s):
        sign = np.where(s.labels, -1.0, 1.0)
        return np.where(s.labels, p["desirable_weight"], p["undesirable_weight"]) * sigmoid(sign * p["beta"] * (s.y - s.ref))

    @staticmethod
    def cases(rng):
        settings = [("default", {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}),
                    ("weighted", {"beta": 0.5, "desirable_weight": 0.5, "undesirable_weight": 2.0})]
        return usual(rng, settings)

    @staticmethod
    def peer(p, values):
        return peers.kto(p, values, "apo_zero_unpaired")


class Bco(Labelled):
    """arXiv:2404.04656, with its shift where it is on; for pairs bco_pair of TRL 1.16 DPOTrainer."""

    name = "bco"

    @staticmethod
    def logits(p, s):
        return p["beta"] * s.x - (s.shift if p["running_shift"] else 0.0)

    @staticmethod
    def desirable(p, s):
        return -F.logsigmoid(Bco.logits(p, s))

    @staticmethod
    def undesirable(p, s):
        return -F.logsigmoid(-Bco.logits(p, s))

    @staticmethod
    def numpy(p, s):
        # Cross entropy with logits.
        logits = p["beta"] * s.y - p["beta"] * s.ref - (s.shift if p["running_shift"] else 0.0)
        return np.logaddexp(0, logits) - s.labels * logits

    @staticmethod
    def cases(rng):
        yield from usual(rng, [("plain", {"beta": 0.1, "running_shift": False})])
        for shift in (-0.75, 2.5):
            yield from usual(rng, [(f"shift_{shift}", {"beta": 0.1, "running_shift": True})], reward_shift=shift)

    @staticmethod
    def peer(p, values):
        # A pair of one response with itself holds both losses; TRL has no unpaired form any more.
        moved = values["reward_shift"] / p["beta"] if p["running_shift"] else 0.0
        losses, grads = [], []
        for own, reference, label in zip(values["policy_logps"], values["reference_logps"], values["labels"]):
            # Far below the reference the rejected side costs nothing, far above it the chosen side.
            far = -1e6 if label else 1e6
            one = {"policy_chosen_logps": own if label else far, "policy_rejected_logps": far if label else own,
                   "reference_chosen_logps": reference + moved if label else 0.0, "reference_rejected_logps": 0.0 if label else reference + moved}
            made = peers.dpo(p, {key: np.array([value]) for key, value in one.items()}, "bco_pair")
            losses += made.losses
            grads.append(float(made.grads[0 if label else 1][0]))
        return peers.Peer(losses, [np.array(grads)], rtol=1e-8)


class DsoDro:
    """arXiv:2503.22677, direct reward optimization; RuiningLi/dso finetune.py, forward_dro_loss: the error of desirable ones
    less that of undesirable ones, where a score is minus one half of the error. Rewards are the scores."""

    name, kind = "dso_dro", "unpaired"

    @staticmethod
    def torch(p, s):
        error = -2 * s.y
        return torch.where(torch.tensor(s.labels), error, -error), s.y

    @staticmethod
    def numpy(p, s):
        return (2 - 4 * s.labels.astype(float)) * s.y

    @staticmethod
    def cases(rng):
        error = np.round(rng.uniform(0.01, 1.5, 6), 4)
        yield Case("random", {}, {"policy_logps": -0.5 * error, "labels": np.array([True, False, False, True, True, False])})
        yield Case("one", {}, {"policy_logps": np.array([-0.125]), "labels": np.array([False])})
        yield Case("extremes", {}, {"policy_logps": np.array([0.0, -20.0, -110.0, 0.0, -20.0, -110.0]), "labels": np.array([True] * 3 + [False] * 3)})


class Pmpo:
    """arXiv:2410.04166. The divergence of reference and policy is estimated on the batch's own responses. Rewards are beta times the log-ratio."""

    name, kind = "pmpo", "unpaired"

    @staticmethod
    def torch(p, s):
        likelihood = torch.where(torch.tensor(s.labels), -p["alpha"] * s.y, (1 - p["alpha"]) * s.y)
        return likelihood + p["beta"] * (s.ref - s.y), p["beta"] * s.x

    @staticmethod
    def numpy(p, s):
        slope = np.where(s.labels, 0.0, 1.0) - p["alpha"] - p["beta"]
        return slope * s.y + p["beta"] * s.ref

    @staticmethod
    def cases(rng):
        settings = [("both", {"alpha": 0.5, "beta": 0.5}), ("desirable", {"alpha": 1.0, "beta": 0.1}), ("undesirable", {"alpha": 0.0, "beta": 2.0})]
        return usual(rng, settings)


class StraightThrough(torch.autograd.Function):
    """max(x, least), whose slope is that of x."""

    @staticmethod
    def forward(ctx, x, least):
        return torch.clamp(x, min=least)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class Nft:
    """arXiv:2505.18116; NVlabs/NFT dp_actor.py, ratio_type token, sums over tokens not divided by 1000. The judge's scores are
    pass rates, kept between 0.02 and 0.98. Rewards are the log-ratios. Where the bound of a wrong answer's ratio is met, the
    gradient is not the slope of the loss."""

    name, kind = "nft", "unpaired"
    WEIGHT = {"uniform": lambda r: 1.0 + 0.0 * r, "failure_rate": lambda r: 1 - r, "normalized": lambda r: ((1 - r) / r) ** 0.5}

    @staticmethod
    def torch(p, s):
        rate = s.score.clamp(0.02, 0.98)
        ratio = torch.exp((s.tokens["policy"] - s.tokens["reference"]).clamp(max=10.0))
        proxy = (1 - rate[:, None] * ratio) / (1 - rate[:, None])
        wrong = -torch.log(StraightThrough.apply(proxy, p["epsilon"])) * p["negative_weight"]
        losses = torch.where(torch.tensor(s.labels)[:, None], -torch.log(ratio), wrong)
        return (losses * s.tokens["mask"]).sum(1) * Nft.WEIGHT[p["prompt_weight"]](rate), s.x

    @staticmethod
    def numpy(p, s):
        losses = []
        for i, label in enumerate(s.labels):
            rate = min(max(s.score[i], 0.02), 0.98)
            own = s.tokens["mask"][i] > 0
            ratio = np.minimum(s.tokens["policy"][i] - s.tokens["reference"][i], 10.0)[own]
            # log of a product of likelihoods, and of what is left of the old policy when the right answers are taken away.
            negative = np.log1p(-rate * np.exp(ratio), where=rate * np.exp(ratio) < 1, out=np.full_like(ratio, -np.inf)) - np.log1p(-rate)
            loss = -ratio.sum() if label else -p["negative_weight"] * np.maximum(negative, np.log(p["epsilon"])).sum()
            losses.append(loss * Nft.WEIGHT[p["prompt_weight"]](rate))
        return np.array(losses)

    @staticmethod
    def case(rng, name, p, ratios, rates, smooth):
        """Log-ratios of each answer's tokens; right and wrong answers alternate."""
        width = max(map(len, ratios))
        mask = np.array([[float(t < len(row)) for t in range(width)] for row in ratios])
        reference = np.round(rng.uniform(-4, -1, mask.shape), 3) * mask
        moved = np.array([list(row) + [0.0] * (width - len(row)) for row in ratios])
        tokens = {"policy": np.round(reference + moved, 6), "reference": reference, "mask": mask}
        return Case(name, p, {"tokens": tokens, "labels": np.arange(len(ratios)) % 2 == 0, "judge_scores": np.array(rates)}, smooth)

    @staticmethod
    def cases(rng):
        lens = [3, 4, 1, 2, 5, 1]
        rates = [0.25, 0.25, 0.625, 0.625, 0.0, 1.0]
        for prompt_weight in Nft.WEIGHT:
            p = {"negative_weight": 1.0, "epsilon": 1.0, "prompt_weight": prompt_weight}
            draw = lambda spread: [np.round(rng.normal(0, spread, n), 3) for n in lens]
            yield Nft.case(rng, f"{prompt_weight}_random", p, draw(0.5), rates, False)
            yield Nft.case(rng, f"{prompt_weight}_falling", p, [-np.abs(row) for row in draw(0.5)], rates, True)
        p = {"negative_weight": 0.5, "epsilon": 0.05, "prompt_weight": "failure_rate"}
        yield Nft.case(rng, "bounded_late", p, [np.round(rng.normal(0, 0.1, n), 3) for n in lens], rates[:4] + [0.1, 0.5], True)
        yield Nft.case(rng, "right_alone", p | {"negative_weight": 0.0}, [np.round(rng.normal(0, 2, n), 3) for n in lens], rates, True)
        yield Nft.case(rng, "policy_equals_reference", p | {"epsilon": 1.0}, [np.zeros(n) for n in lens], rates, False)
        extremes = [[0.0, 20.0], [20.0], [-20.0, 110.0], [-20.0, 0.5], [-110.0], [110.0, -110.0]]
        yield Nft.case(rng, "extremes", p, extremes, rates, False)


FORMULAS = [Kto, ApoZeroUnpaired, Bco, DsoDro, Pmpo, Nft]
