"""From a formula and its inputs to one line of a golden file.

A formula is a class with

    name      of the objective and of the file
    kind      "chosen", "pairs", "unpaired" or "lists"
    torch     (parameters, inputs) -> losses and rewards; autograd gives the gradients
    numpy     (parameters, inputs) -> losses, in another algebraic form
    cases     (rng) -> Case, Case, ...
    peer      optional: (parameters, inputs) -> what another program computes, as `peers.Peer`; None for what it does not have

and its docstring is the source. Everything is float64. Nothing is written unless PyTorch, NumPy, finite differences of the
NumPy form and the peer agree.
"""

import dataclasses

import numpy as np
import torch

# Sigmoid arguments that every objective with a margin must survive; 110 is beyond exp in float32.
MARGINS = np.array([0.0, 1e-6, -1e-6, 0.5, -0.5, 20.0, -20.0, 110.0, -110.0])
# The keys of a case in the golden file and their names in the formulas.
NAMES = {
    "policy_chosen_logps": "c", "policy_rejected_logps": "r",
    "reference_chosen_logps": "ref_c", "reference_rejected_logps": "ref_r",
    "chosen_lengths": "len_c", "rejected_lengths": "len_r",
    "chosen_judge_scores": "score_c", "rejected_judge_scores": "score_r",
    "chosen_tokens": "tokens_c", "rejected_tokens": "tokens_r", "tokens": "tokens",
    "policy_logps": "y", "reference_logps": "ref", "lengths": "len", "judge_scores": "score", "labels": "labels",
    "mismatched_policy_logps": "mismatched", "mismatched_reference_logps": "ref_mismatched", "list_lens": "list_lens",
    "reward_shift": "shift", "prompt_distances": "distances",
}
SIDES, ALONE = ["policy_chosen_logps", "policy_rejected_logps"], ["policy_logps"]
# The tokens that scores are the sums of, and what stands before and in the names of these scores.
TOKENS = {"chosen_tokens": "_chosen", "rejected_tokens": "_rejected", "tokens": ""}
LEAVES = {"chosen": SIDES, "pairs": SIDES, "unpaired": ALONE, "lists": ALONE}
REWARDS = {kind: ["rewards_chosen", "rewards_rejected"] if keys is SIDES else ["rewards"] for kind, keys in LEAVES.items()}


@dataclasses.dataclass
class Case:
    """Inputs by their keys in the golden file. `smooth` is false where the loss has a kink, which finite differences miss."""

    name: str
    parameters: dict
    inputs: dict
    smooth: bool = True


class Inputs:
    """Inputs by their short names, in PyTorch or in NumPy, with what most formulas are written in."""

    def __init__(self, values):
        for key, value in values.items():
            setattr(self, NAMES[key], value)

    a = property(lambda self: self.c - self.ref_c)
    b = property(lambda self: self.r - self.ref_r)
    h = property(lambda self: (self.c - self.ref_c) - (self.r - self.ref_r))
    mean_c = property(lambda self: self.c / self.len_c)
    mean_r = property(lambda self: self.r / self.len_r)
    mean = property(lambda self: self.y / self.len)
    x = property(lambda self: self.y - self.ref)


def as_torch(value):
    if isinstance(value, dict):
        return {key: as_torch(inner) for key, inner in value.items()}
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, np.ndarray) and value.dtype == np.float64 else value


def as_lists(value):
    if isinstance(value, dict):
        return {key: as_lists(inner) for key, inner in value.items()}
    return value.tolist() if isinstance(value, (np.ndarray, torch.Tensor)) else value


def sums(inputs):
    """Adds the scores that are the masked sums of the token scores."""
    out = dict(inputs)
    for key, side in TOKENS.items():
        tokens = inputs.get(key)
        if tokens is not None:
            out[f"policy{side}_logps"] = (tokens["policy"] * tokens["mask"]).sum(1)
            if "reference" in tokens:
                out[f"reference{side}_logps"] = (tokens["reference"] * tokens["mask"]).sum(1)
    return out


def evaluate(formula, case):
    """The case as it stands in the golden file."""
    tensors = {key: as_torch(value) for key, value in case.inputs.items()}
    by_token = [key for key in TOKENS if key in tensors]
    tokens = [tensors[key]["policy"].requires_grad_() for key in by_token]
    tensors = sums(tensors)
    leaves = [tensors[key] if tokens else tensors[key].requires_grad_() for key in LEAVES[formula.kind]]
    losses, *rewards = formula.torch(case.parameters, Inputs(tensors))
    grads = torch.autograd.grad(losses.sum(), leaves + tokens, allow_unused=True)
    grads = [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves + tokens, grads)]

    values = sums(case.inputs)
    again = formula.numpy(case.parameters, Inputs(values))
    assert np.isfinite(again).all() and all(torch.isfinite(grad).all() for grad in grads), (formula.name, case.name)
    what = f"{formula.name}/{case.name}"
    np.testing.assert_allclose(losses.detach().numpy(), again, rtol=1e-9, atol=1e-12, err_msg=what)
    if case.smooth:
        finite_differences(formula, case, grads, by_token)
    peer = formula.peer(case.parameters, values) if hasattr(formula, "peer") else None
    if peer is not None:
        peer.compare(what, losses.detach(), grads[len(leaves):] if tokens else grads)

    out = {"name": case.name, "parameters": case.parameters} | as_lists(values)
    out["losses"] = losses.tolist()
    out |= {key: reward.detach().tolist() for key, reward in zip(REWARDS[formula.kind], rewards, strict=True)}
    out |= {f"grad_{key}": grad.tolist() for key, grad in zip(LEAVES[formula.kind], grads)}
    sides = (f"grad{TOKENS[key]}_per_token_logps" for key in by_token)
    return out | {key: grad.tolist() for key, grad in zip(sides, grads[len(leaves):])}


def finite_differences(formula, case, grads, by_token):
    """The NumPy form confirms autograd's gradients, number by number, since examples may be coupled."""
    strength = max([1.0] + [value for key, value in case.parameters.items() if key.startswith("beta")])
    places = [(key, "policy") for key in by_token] if by_token else LEAVES[formula.kind]
    for place, grad in zip(places, grads[-len(places):]):
        grad = grad.numpy()
        estimate = np.zeros_like(grad)
        for index in np.ndindex(grad.shape):
            at = float((case.inputs[place[0]]["policy"] if by_token else case.inputs[place])[index])
            step = 1e-6 * max(1.0, abs(at)) / max(1.0, strength / 10)
            moved = [formula.numpy(case.parameters, Inputs(sums(shifted(case.inputs, place, index, sign * step)))) for sign in (1, -1)]
            estimate[index] = (moved[0] - moved[1]).sum() / (2 * step)
        scale = max(1.0, float(np.abs(grad).max()))
        np.testing.assert_allclose(grad, estimate, rtol=2e-3, atol=2e-5 * scale, err_msg=f"{formula.name}/{case.name}/{place}")


def shifted(inputs, place, index, step):
    """The inputs with one number moved; `place` is a key, or the keys of a tensor of token scores."""
    outer, inner = place if isinstance(place, tuple) else (place, None)
    moved = np.array(inputs[outer] if inner is None else inputs[outer][inner], dtype=np.float64)
    moved[index] += step
    return inputs | {outer: moved if inner is None else inputs[outer] | {inner: moved}}


def log_sigmoid(x):
    """NumPy's, through log(e^0 + e^-x)."""
    return -np.logaddexp(0.0, -x)


def sigmoid(x):
    """NumPy's, through the hyperbolic tangent."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def pairs(c, r, ref_c=None, ref_r=None, **more):
    """Inputs of pairs by their keys in the golden file."""
    out = {"policy_chosen_logps": c, "policy_rejected_logps": r}
    if ref_c is not None:
        out |= {"reference_chosen_logps": ref_c, "reference_rejected_logps": ref_r}
    out |= more
    return {key: np.asarray(value, dtype=np.float64) if isinstance(value, (list, np.ndarray)) else value for key, value in out.items()}


def scores(rng, count, mean=-50.0, spread=15.0):
    """Summed log-probabilities, below 0, of few digits."""
    return np.minimum(np.round(rng.normal(mean, spread, count), 2), -0.5)
