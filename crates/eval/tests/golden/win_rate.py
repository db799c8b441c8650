"""Golden values of win rates, by numpy. Run in this folder: python win_rate.py.

The resamples come from another generator than ours, so intervals and p-values agree only within the error of resampling; the
generator draws many more than the tests do and writes the standard error of a 10,000-sample interval bound next to each.

Made with: Python 3.11.7, numpy 2.4.6
"""

import itertools
import json
import pathlib

import numpy as np

SAMPLES = 400_000


def bootstrap(rng, base, aligned):
    n = len(base)
    bounds = {"base": [], "aligned": [], "difference": []}
    means = {name: [] for name in bounds}
    for _ in range(SAMPLES // 4000):
        rows = rng.integers(0, n, (4000, n))
        means["base"].append(base[rows].mean(1))
        means["aligned"].append(aligned[rows].mean(1))
        means["difference"].append((aligned - base)[rows].mean(1))
    out = {}
    for name, parts in means.items():
        parts = np.concatenate(parts)
        chunks = np.stack([np.percentile(chunk, [2.5, 97.5]) for chunk in parts.reshape(-1, 10_000)])
        out[name] = {
            "low": float(np.percentile(parts, 2.5)),
            "high": float(np.percentile(parts, 97.5)),
            "std_error": float(chunks.std(0, ddof=1).max()),
        }
    return out


def p_value(rng, difference):
    n, seen = len(difference), abs(difference.sum())
    slack = 1e-9 * np.abs(difference).sum()
    if n <= 16:
        signs = np.array(list(itertools.product([1, -1], repeat=n)))
        return float((np.abs(signs @ difference) >= seen - slack).mean()), True
    count = 0
    for _ in range(SAMPLES // 4000):
        signs = rng.integers(0, 2, (4000, n)) * 2 - 1
        count += int((np.abs(signs @ difference) >= seen - slack).sum())
    return count / SAMPLES, False


def case(name, base, aligned):
    rng = np.random.default_rng(7)
    base, aligned = np.asarray(base, float), np.asarray(aligned, float)
    difference = aligned - base
    p, exact = p_value(rng, difference)
    return {
        "name": name,
        "base": base.tolist(),
        "aligned": aligned.tolist(),
        "means": {"base": base.mean(), "aligned": aligned.mean(), "difference": difference.mean()},
        "intervals": bootstrap(rng, base, aligned),
        "wins": int((difference > 0).sum()),
        "ties": int((difference == 0).sum()),
        "losses": int((difference < 0).sum()),
        "win_rate": float(np.where(difference > 0, 1, np.where(difference == 0, 0.5, 0)).mean()),
        "p_value": p,
        "is_p_exact": exact,
    }


def main():
    rng = np.random.default_rng(3)
    quarters = lambda n: rng.integers(0, 5, n) / 4
    base = quarters(64)
    hard = rng.normal(0, 1, 40)
    cases = [
        case("scores in quarters", base, np.clip(base + rng.choice([-0.25, 0, 0, 0.25, 0.5], 64), 0, 1)),
        case("hard prompts are hard for both", hard, hard + 0.05 + rng.normal(0, 0.1, 40)),
        case("no difference but noise", rng.normal(0, 1, 48), rng.normal(0, 1, 48)),
        case("ten pairs, all sign patterns", quarters(10), quarters(10) + 0.25),
        case("worse", [0.9, 0.8, 0.95, 0.7, 0.85, 0.6], [0.5, 0.4, 0.3, 0.6, 0.2, 0.1]),
    ]
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps({"samples": SAMPLES, "cases": cases}, indent=1) + "\n")


main()
