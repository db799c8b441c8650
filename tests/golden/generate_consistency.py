"""Golden consistency distances of pairs, and the preference loss on them. Layout: README.md beside this file.

Plain PyTorch on diffusers' UNet and peft's LoRA (the model, the adapter and the first records of `replay/`): the consistency function with
the boundary condition of latent consistency models, the earlier latents from the data or by a guided DDIM step of a teacher, pseudo-Huber
distances, and the loss of Curriculum-DPO for consistency models as its formula has it. float64; float32 must agree before anything is
written.

Run:       python tests/golden/generate_consistency.py
Made with: Python 3.11.7, torch 2.15.0, diffusers 0.42.1, peft 0.21.2, transformers 5.23.0, safetensors 0.8.0
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import PeftModel
from safetensors.torch import load_file

torch.set_num_threads(1)
HERE = Path(__file__).resolve().parent
REPLAY = HERE / "replay"
# Records, and the solver's timestep of each: the first one steps down to 0.
RECORDS, TIMESTEPS, UNPROMPTED = [0, 1, 2], [19, 259, 719], 5
CASES = [
    {"name": "data", "huber_c": 0.001, "beta": 200.0, "solver_steps": 50, "solver": "data", "target": "reference", "prediction_type": "epsilon"},
    {"name": "data_own", "huber_c": 0.05, "beta": 40.0, "solver_steps": 50, "solver": "data", "target": "own", "prediction_type": "v_prediction"},
    {"name": "teacher", "huber_c": 0.001, "beta": 200.0, "solver_steps": 50, "solver": {"guidance_scale": 4.0}, "target": "reference",
     "prediction_type": "epsilon"},
    {"name": "teacher_own", "huber_c": 0.3, "beta": 40.0, "solver_steps": 25, "timesteps": [39, 279, 719], "solver": {"guidance_scale": 1.0}, "target": "own",
     "prediction_type": "sample"},
]


class Networks:
    def __init__(self, dtype):
        load = lambda: UNet2DConditionModel.from_pretrained(REPLAY / "model" / "unet").to(dtype)
        self.teacher = load()
        self.policy = PeftModel.from_pretrained(load(), REPLAY / "adapter", is_trainable=True).to(dtype)
        self.parameters = {name: parameter for name, parameter in self.policy.named_parameters() if parameter.requires_grad}
        data = load_file(REPLAY / "data" / "pairs-00000.safetensors")
        rows = lambda name: data[name][RECORDS].to(dtype)
        self.sides = [rows("latents_chosen"), rows("latents_rejected")]
        self.noise, self.text = rows("noise"), rows("encoder_hidden_states")
        self.unprompted = data["encoder_hidden_states"][UNPROMPTED : UNPROMPTED + 1].to(dtype).expand_as(self.text)


def distances(nets, case, dtype):
    """Distances of the policy and of its reference, (records,) of the chosen and of the rejected images."""
    alphas = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000).alphas_cumprod.double()
    start = torch.tensor(case.get("timesteps", TIMESTEPS))
    earlier = torch.clamp(start - 1000 // case["solver_steps"], min=0)
    shape = lambda values: values.to(dtype).reshape(-1, 1, 1, 1)
    signal = lambda t: shape(alphas[t].sqrt())
    sigma = lambda t: shape((1 - alphas[t]).sqrt())

    def origin(prediction, x, t):
        """Clean latents and noise."""
        if case["prediction_type"] == "epsilon":
            return (x - sigma(t) * prediction) / signal(t), prediction
        if case["prediction_type"] == "v_prediction":
            return signal(t) * x - sigma(t) * prediction, signal(t) * prediction + sigma(t) * x
        return prediction, (x - signal(t) * prediction) / sigma(t)

    def consistent(network, x, t):
        scaled = t.double() / 0.1
        skip, out = shape(0.25 / (scaled**2 + 0.25)), shape(scaled / (scaled**2 + 0.25).sqrt())
        return skip * x + out * origin(network(x, t, nets.text).sample, x, t)[0]

    def reference(x, t):
        with torch.no_grad(), nets.policy.disable_adapter():
            return consistent(nets.policy, x, t)

    found = []
    for latents in nets.sides:
        noisy = signal(start) * latents + sigma(start) * nets.noise
        if case["solver"] == "data":
            before = signal(earlier) * latents + sigma(earlier) * nets.noise
        else:
            with torch.no_grad():
                clean, noise = origin(nets.teacher(noisy, start, nets.text).sample, noisy, start)
                weight = case["solver"]["guidance_scale"] - 1
                other, other_noise = origin(nets.teacher(noisy, start, nets.unprompted).sample, noisy, start)
                clean, noise = clean + weight * (clean - other), noise + weight * (noise - other_noise)
            before = signal(earlier) * clean + sigma(earlier) * noise
        of_reference = reference(before, earlier)
        with torch.no_grad():
            own = consistent(nets.policy, before, earlier)
        target = own if case["target"] == "own" else of_reference
        huber = lambda a, b: (((a - b) ** 2 + case["huber_c"] ** 2).sqrt() - case["huber_c"]).mean(dim=(1, 2, 3))
        found.append((huber(consistent(nets.policy, noisy, start), target), huber(reference(noisy, start), of_reference)))
    return found


def summary(parameters, gradients):
    named = {}
    for name, gradient in zip(parameters, gradients):
        flat = gradient.flatten().double()
        cosines = torch.cos(torch.arange(len(flat), dtype=torch.float64))
        named[name.removeprefix("base_model.model.").replace(".default.", ".")] = [flat.norm().item(), flat.dot(cosines).item()]
    return named


def run(case, dtype):
    nets = Networks(dtype)
    (chosen, of_chosen), (rejected, of_rejected) = distances(nets, case, dtype)
    losses = -F.logsigmoid(-case["beta"] * ((chosen - of_chosen) - (rejected - of_rejected)))
    gradients = torch.autograd.grad(losses.mean(), list(nets.parameters.values()))
    return {"chosen": chosen.tolist(), "rejected": rejected.tolist(), "reference_chosen": of_chosen.tolist(),
            "reference_rejected": of_rejected.tolist(), "losses": losses.tolist(), "gradients": summary(nets.parameters, gradients)}


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value


def main():
    cases = []
    for case in CASES:
        exact, single = (run(case, dtype) for dtype in (torch.float64, torch.float32))
        worst = max(abs(a - b) / abs(b) for key in ("chosen", "losses") for a, b in zip(single[key], exact[key]))
        print(f"{case['name']}: losses {exact['losses']}; float32 differs by {worst:.1e} relative")
        assert worst < 5e-4
        cases.append({"timesteps": TIMESTEPS, "records": RECORDS, "unprompted": UNPROMPTED} | case | exact)
    text = '{"cases": [\n' + ",\n".join(json.dumps(rounded(case)) for case in cases) + "\n]}\n"
    (HERE / "consistency.json").write_text(text)


if __name__ == "__main__":
    main()
