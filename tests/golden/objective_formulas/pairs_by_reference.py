"""Objectives of pairs whose scores are log-ratios of the policy over a reference."""

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

from . import peers
from .evaluation import MARGINS, Case, log_sigmoid, pairs, scores, sigmoid


def logratio_cases(rng, settings, margins=MARGINS, lengths=False, sides=False):
    """The usual batches: extreme margins, policy equal to reference, and random scores; `settings` names parameters.

    With `sides`, each log-ratio is driven to the extremes by itself, for losses that look at more than the margin.
    """
    for name, p in settings:
        strength = p.get("beta", p.get("beta_chosen", 1.0))
        count = len(margins)
        drift = np.round(rng.normal(0, 1, count), 2)

        def batch(ratio_c, ratio_r):
            many = {"chosen_lengths": rng.integers(1, 40, len(ratio_c)), "rejected_lengths": rng.integers(1, 40, len(ratio_c))} if lengths else {}
            ref_c, ref_r = scores(rng, len(ratio_c)), scores(rng, len(ratio_c), -55.0)
            many = {key: value.astype(float) for key, value in many.items()}
            return pairs(np.round(ref_c + ratio_c, 9), np.round(ref_r + ratio_r, 9), ref_c, ref_r, **many)

        yield Case(f"{name}_margins", p, batch(drift + margins / strength, drift))
        if sides:
            yield Case(f"{name}_chosen_extremes", p, batch(margins / strength, drift))
            yield Case(f"{name}_rejected_extremes", p, batch(drift, margins / strength))
        yield Case(f"{name}_policy_equals_reference", p, batch(np.zeros(3), np.zeros(3)))
        yield Case(f"{name}_random", p, batch(np.round(rng.normal(0, 8, 6), 2), np.round(rng.normal(0, 8, 6), 2)))


class LogRatios:
    """Rewards are beta times the log-ratio."""

    kind = "pairs"

    @classmethod
    def torch(cls, p, s):
        return cls.loss(p, s), p["beta"] * s.a, p["beta"] * s.b


class RobustDpo(LogRatios):
    """arXiv:2403.00409; TRL 1.16 DPOTrainer, loss_type robust."""

    name = "robust_dpo"

    @staticmethod
    def loss(p, s):
        e, x = p["label_smoothing"], p["beta"] * s.h
        return (-(1 - e) * F.logsigmoid(x) + e * F.logsigmoid(-x)) / (1 - 2 * e)

    @staticmethod
    def numpy(p, s):
        # log s(-x) = log s(x) - x leaves DPO and a linear term.
        e, x = p["label_smoothing"], p["beta"] * (s.a - s.b)
        return -log_sigmoid(x) - e / (1 - 2 * e) * x

    @staticmethod
    def cases(rng):
        settings = [("default", {"beta": 0.1, "label_smoothing": 0.1}), ("strong", {"beta": 0.5, "label_smoothing": 0.4}),
                    ("no_flips", {"beta": 0.1, "label_smoothing": 0.0})]
        return logratio_cases(rng, settings)

    @staticmethod
    def peer(p, values):
        return peers.dpo(p, values, "robust")


class Ipo(LogRatios):
    """arXiv:2310.12036, Eq. 17 (sum); TRL 1.16 DPOTrainer, loss_type ipo (length). Rewards as TRL logs them, not normalized."""

    name = "ipo"

    @staticmethod
    def loss(p, s):
        margin = s.h if p["normalization"] == "sum" else s.a / s.len_c - s.b / s.len_r
        return (margin - 1 / (2 * p["beta"])) ** 2

    @staticmethod
    def numpy(p, s):
        by_c, by_r = (1.0, 1.0) if p["normalization"] == "sum" else (s.len_c, s.len_r)
        return (2 * p["beta"] * (s.a / by_c - s.b / by_r) - 1) ** 2 / (4 * p["beta"] ** 2)

    @staticmethod
    def cases(rng):
        yield from logratio_cases(rng, [("sum", {"beta": 0.1, "normalization": "sum"})])
        yield from logratio_cases(rng, [("length", {"beta": 0.1, "normalization": "length"})], lengths=True)

    @staticmethod
    def peer(p, values):
        ones = np.ones(len(values["policy_chosen_logps"]))
        return peers.dpo(p, values if p["normalization"] == "length" else values | {"chosen_lengths": ones, "rejected_lengths": ones}, "ipo")


class Hinge(LogRatios):
    """arXiv:2309.06657 (RSO), hinge loss normalized by the reference; TRL 1.16 DPOTrainer, loss_type hinge."""

    name = "hinge"

    @staticmethod
    def loss(p, s):
        return torch.relu(1 - p["beta"] * s.h)

    @staticmethod
    def numpy(p, s):
        x = 1 - p["beta"] * (s.a - s.b)
        return 0.5 * (x + np.abs(x))

    @staticmethod
    def cases(rng):
        return logratio_cases(rng, [("rso", {"beta": 0.05}), ("strong", {"beta": 0.5})])

    @staticmethod
    def peer(p, values):
        return peers.dpo(p, values, "hinge")


class ExoPair(LogRatios):
    """arXiv:2402.00856, Eq. 16; TRL 1.16 DPOTrainer, loss_type exo_pair."""

    name = "exo_pair"

    @staticmethod
    def loss(p, s):
        e, x = torch.tensor(p["label_smoothing"], dtype=torch.float64), p["beta"] * s.h
        chosen = torch.sigmoid(x) * (F.logsigmoid(x) - torch.log1p(-e))
        return chosen + torch.sigmoid(-x) * (F.logsigmoid(-x) - torch.log(e))

    @staticmethod
    def numpy(p, s):
        # The divergence as cross entropy minus entropy.
        e, x = p["label_smoothing"], p["beta"] * (s.a - s.b)
        q = sigmoid(x)
        entropy = -(q * log_sigmoid(x) + (1 - q) * log_sigmoid(-x))
        return -q * np.log(1 - e) - (1 - q) * np.log(e) - entropy

    @staticmethod
    def cases(rng):
        return logratio_cases(rng, [("advised", {"beta": 0.1, "label_smoothing": 0.001}), ("soft", {"beta": 0.5, "label_smoothing": 0.2})])

    @staticmethod
    def peer(p, values):
        # TRL makes its epsilon in float32.
        return peers.dpo(p, values, "exo_pair", single=True)


class NcaPair(LogRatios):
    """arXiv:2402.05369, of two responses; TRL 1.16 DPOTrainer, loss_type nca_pair."""

    name = "nca_pair"

    @staticmethod
    def loss(p, s):
        a, b = p["beta"] * s.a, p["beta"] * s.b
        return -F.logsigmoid(a) - 0.5 * F.logsigmoid(-a) - 0.5 * F.logsigmoid(-b)

    @staticmethod
    def numpy(p, s):
        a, b = p["beta"] * s.a, p["beta"] * s.b
        return 1.5 * np.logaddexp(0, a) - a + 0.5 * np.logaddexp(0, b)

    @staticmethod
    def cases(rng):
        return logratio_cases(rng, [("paper", {"beta": 0.01}), ("strong", {"beta": 0.5})], sides=True)

    @staticmethod
    def peer(p, values):
        return peers.dpo(p, values, "nca_pair")


class BcoPair(LogRatios):
    """arXiv:2404.04656, of the two responses of a pair; without the shift TRL 1.16 DPOTrainer, loss_type bco_pair."""

    name = "bco_pair"

    @staticmethod
    def loss(p, s):
        shift = s.shift if p["running_shift"] else 0.0
        return -F.logsigmoid(p["beta"] * s.a - shift) - F.logsigmoid(-(p["beta"] * s.b - shift))

    @staticmethod
    def numpy(p, s):
        shift = s.shift if p["running_shift"] else 0.0
        return np.logaddexp(0, shift - p["beta"] * s.a) + np.logaddexp(0, p["beta"] * s.b - shift)

    @staticmethod
    def cases(rng):
        yield from logratio_cases(rng, [("plain", {"beta": 0.1, "running_shift": False})], sides=True)
        for shift in (-0.75, 2.5):
            for case in logratio_cases(rng, [(f"shift_{shift}", {"beta": 0.1, "running_shift": True})]):
                yield Case(case.name, case.parameters, case.inputs | {"reward_shift": shift})

    @staticmethod
    def peer(p, values):
        # A shift of the rewards is a shift of the reference's scores.
        moved = values["reward_shift"] / p["beta"] if p["running_shift"] else 0.0
        shifted = {key: values[key] + moved for key in ("reference_chosen_logps", "reference_rejected_logps")}
        return peers.dpo(p, values | shifted, "bco_pair")


class SppoHard(LogRatios):
    """arXiv:2405.00675, Eq. 4.7 with hard probabilities; TRL 1.16 DPOTrainer, loss_type sppo_hard (sum); uclaml/SPPO (mean)."""

    name = "sppo_hard"

    @staticmethod
    def loss(p, s):
        both = (s.a - 0.5 / p["beta"]) ** 2 + (s.b + 0.5 / p["beta"]) ** 2
        return both if p["reduction"] == "sum" else both / 2

    @staticmethod
    def numpy(p, s):
        eta = 1 / p["beta"]
        both = s.a**2 + s.b**2 - eta * (s.a - s.b) + eta**2 / 2
        return both * (1.0 if p["reduction"] == "sum" else 0.5)

    @staticmethod
    def cases(rng):
        settings = [("sum", {"beta": 0.001, "reduction": "sum"}), ("mean", {"beta": 0.05, "reduction": "mean"})]
        return logratio_cases(rng, settings, sides=True)

    @staticmethod
    def peer(p, values):
        made = peers.dpo(p, values, "sppo_hard")
        half = 1.0 if p["reduction"] == "sum" else 0.5
        return peers.Peer([half * loss for loss in made.losses], [half * grad for grad in made.grads])


class Seppo(LogRatios):
    """arXiv:2410.05255, with its Anchor-based Adaptive Flipper, as reviewers quote it: no training code was released."""

    name = "seppo"

    @staticmethod
    def loss(p, s):
        sign = torch.where(s.a.detach() >= 0, 1.0, -1.0)
        return -F.logsigmoid(p["beta"] * (s.a - sign * s.b))

    @staticmethod
    def numpy(p, s):
        # In errors, as the paper has it: twice the score is minus the error.
        won, sampled = -2 * s.a, -2 * s.b
        return np.where(won <= 0, np.logaddexp(0, p["beta"] / 2 * (won - sampled)), np.logaddexp(0, p["beta"] / 2 * (won + sampled)))

    @staticmethod
    def cases(rng):
        # Without the smallest margins: at them the sign is a matter of rounding. At 0 the loss jumps, which finite differences miss.
        margins = MARGINS[np.abs(MARGINS) != 1e-6]
        for made in logratio_cases(rng, [("text", {"beta": 0.1}), ("strong", {"beta": 0.5})], margins=margins, sides=True):
            yield dataclasses.replace(made, smooth=not made.name.endswith("_chosen_extremes"))


class ApoZero(LogRatios):
    """arXiv:2408.06266, Eq. 7, plus the constant 1 of TRL 1.16 DPOTrainer, loss_type apo_zero."""

    name = "apo_zero"

    @staticmethod
    def loss(p, s):
        return 1 - torch.sigmoid(p["beta"] * s.a) + torch.sigmoid(p["beta"] * s.b)

    @staticmethod
    def numpy(p, s):
        return sigmoid(-p["beta"] * s.a) + sigmoid(p["beta"] * s.b)

    @staticmethod
    def cases(rng):
        return logratio_cases(rng, [("default", {"beta": 0.1}), ("strong", {"beta": 0.5})], sides=True)

    @staticmethod
    def peer(p, values):
        return peers.dpo(p, values, "apo_zero")


class ApoDown(LogRatios):
    """arXiv:2408.06266, Eq. 8, plus the constant 1 of TRL 1.16 DPOTrainer, loss_type apo_down."""

    name = "apo_down"

    @staticmethod
    def loss(p, s):
        return torch.sigmoid(p["beta"] * s.a) + 1 - torch.sigmoid(p["beta"] * s.h)

    @staticmethod
    def numpy(p, s):
        return sigmoid(p["beta"] * s.a) + sigmoid(-p["beta"] * (s.a - s.b))

    @staticmethod
    def cases(rng):
        return logratio_cases(rng, [("default", {"beta": 0.1}), ("strong", {"beta": 0.5})], sides=True)

    @staticmethod
    def peer(p, values):
        return peers.dpo(p, values, "apo_down")


class Discopop(LogRatios):
    """arXiv:2406.08414, Eq. 5; TRL 1.16 DPOTrainer, loss_type discopop."""

    name = "discopop"

    @staticmethod
    def loss(p, s):
        x = p["beta"] * s.h
        modulation = torch.sigmoid(x / p["tau"])
        return -F.logsigmoid(x) * (1 - modulation) + torch.exp(-x) * modulation

    @staticmethod
    def numpy(p, s):
        x = p["beta"] * (s.a - s.b)
        return np.logaddexp(0, -x) * sigmoid(-x / p["tau"]) + np.exp(-x - np.logaddexp(0, -x / p["tau"]))

    @staticmethod
    def cases(rng):
        # With tau 1 both components matter far out: the exponential is beyond float32 where its factor is next to 0.
        settings = [("paper", {"beta": 0.05, "tau": 0.05}), ("sharp", {"beta": 0.5, "tau": 0.2}), ("slow", {"beta": 0.1, "tau": 1.0})]
        return logratio_cases(rng, settings)

    @staticmethod
    def peer(p, values):
        return peers.dpo(p, values, "discopop")


class SigmoidNorm(LogRatios):
    """arXiv:2411.15124 (Tulu 3), length-normalized DPO; TRL 1.16 DPOTrainer, loss_type sigmoid_norm. Rewards as TRL logs them, not normalized."""

    name = "sigmoid_norm"

    @staticmethod
    def loss(p, s):
        return -F.logsigmoid(p["beta"] * (s.a / s.len_c - s.b / s.len_r))

    @staticmethod
    def numpy(p, s):
        return np.logaddexp(0, p["beta"] * s.b / s.len_r - p["beta"] * s.a / s.len_c)

    @staticmethod
    def cases(rng):
        return logratio_cases(rng, [("tulu", {"beta": 5.0}), ("weak", {"beta": 0.5})], margins=MARGINS * 20, lengths=True)

    @staticmethod
    def peer(p, values):
        return peers.dpo(p, values, "sigmoid_norm")


class Vpo(LogRatios):
    """arXiv:2405.19320, Algorithms 1 and 2, with the responses of the pair for those of the calibration policy; the term of
    shenao-zhang/SELM selm_trainer.py, optimistic_dpo_loss, is optimism."""

    name = "vpo"
    SIDES = {"chosen": (1.0, 0.0), "rejected": (0.0, 1.0), "both": (0.5, 0.5)}

    @staticmethod
    def loss(p, s):
        of_chosen, of_rejected = Vpo.SIDES[p["calibration"]]
        term = p["alpha"] * p["beta"] * (of_chosen * s.a + of_rejected * s.b)
        return -F.logsigmoid(p["beta"] * s.h) + (term if p["direction"] == "optimism" else -term)

    @staticmethod
    def numpy(p, s):
        sign = {"optimism": 1, "pessimism": -1}[p["direction"]]
        calibrated = {"chosen": s.a, "rejected": s.b, "both": (s.a + s.b) / 2}[p["calibration"]]
        return np.logaddexp(0, p["beta"] * (s.b - s.a)) + sign * p["alpha"] * p["beta"] * calibrated

    @staticmethod
    def cases(rng):
        for direction, alpha in [("optimism", 0.001), ("pessimism", 0.5)]:
            settings = [(f"{direction}_{calibration}", {"beta": 0.1, "alpha": alpha, "direction": direction, "calibration": calibration})
                        for calibration in Vpo.SIDES]
            yield from logratio_cases(rng, settings)


class OnlineKl:
    """arXiv:2406.01462, Algorithm 1: the gradient is that of log pi(y) sg(r) with the log-ratio r, and the value is r. The chosen
    responses are the samples. Rewards are the log-ratios. The gradient is not the slope of the value."""

    name, kind = "online_kl", "chosen"

    @staticmethod
    def torch(p, s):
        published = s.c * s.a.detach()
        return published - published.detach() + s.a.detach(), s.a, s.b

    @staticmethod
    def numpy(p, s):
        return np.subtract(s.c, s.ref_c)

    @staticmethod
    def cases(rng):
        def case(name, ratios):
            (rc, rr), moved = (scores(rng, len(ratios)) for _ in range(2)), np.round(rng.normal(0, 8, len(ratios)), 2)
            return Case(name, {}, pairs(np.round(rc + ratios, 9), np.round(rr + moved, 9), rc, rr), smooth=False)

        yield case("random", np.round(rng.normal(0, 8, 6), 2))
        yield case("extremes", MARGINS)
        yield case("policy_equals_reference", np.zeros(3))


FORMULAS = [RobustDpo, Ipo, Hinge, ExoPair, NcaPair, BcoPair, SppoHard, Seppo, ApoZero, ApoDown, Discopop, SigmoidNorm, Vpo, OnlineKl]
