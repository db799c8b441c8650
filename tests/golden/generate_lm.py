"""Golden vectors of the language model: tiny random checkpoints of transformers, what they compute, and adapters of PEFT.

Run:  python tests/golden/generate_lm.py     (needs torch, transformers, peft, safetensors; no network)

Everything lands in tests/golden/models/lm_* and is read by crates/models/tests/lm_*.rs. Checkpoints are written by
`save_pretrained`; their weights are drawn anew from a fixed generator, in the order of their names, and rounded to the 16-bit type
they are stored in, so that both sides compute with the same numbers in f32.

Made with: Python 3.11.7, torch 2.15.0, transformers 5.23.0, peft 0.21.2, safetensors 0.8.0
"""

import json
import pathlib
import shutil

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers import GemmaConfig, Gemma2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, SmolLM3Config
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

torch.set_num_threads(1)
HERE = pathlib.Path(__file__).parent / "models"
VOCAB = 64
SIZE = dict(
    vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)
LLAMA3 = dict(
    rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
YARN = dict(rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=0.5)
# Name, configuration, type the weights are stored in.
MODELS = {
    "lm_llama": (LlamaConfig(**SIZE, rms_norm_eps=1e-5), torch.float16),
    "lm_llama3": (
        LlamaConfig(**SIZE, head_dim=8, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        torch.float16,
    ),
    "lm_mistral": (MistralConfig(**SIZE, head_dim=8, sliding_window=4), torch.bfloat16),
    "lm_qwen2": (
        Qwen2Config(
            **SIZE, rope_parameters=YARN, use_sliding_window=True, sliding_window=5, max_window_layers=1, tie_word_embeddings=True
        ),
        torch.float16,
    ),
    "lm_qwen3": (Qwen3Config(**SIZE, head_dim=8), torch.bfloat16),
    "lm_smollm": (LlamaConfig(**SIZE, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=100.0)), torch.float16),
    "lm_smollm3": (SmolLM3Config(**SIZE, no_rope_layers=[1, 0]), torch.float16),
    "lm_gemma": (GemmaConfig(**SIZE | dict(num_key_value_heads=1), head_dim=8), torch.float16),
    "lm_gemma2": (
        Gemma2Config(
            **SIZE, head_dim=8, sliding_window=4, query_pre_attn_scalar=20, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
        ),
        torch.float16,
    ),
}
# Written in several files.
SHARDED = "lm_qwen3"
LENGTHS = [11, 7, 9]
NEW_TOKENS = 12
ADAPTERS = {
    # Every projection and the head; one layer with a rank and an alpha of its own.
    "lm_llama_lora": (
        "lm_llama",
        dict(
            r=2, lora_alpha=3, rank_pattern={"layers.1.self_attn.q_proj": 3}, alpha_pattern={"up_proj": 5},
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"],
        ),
    ),
    # One rank and one alpha, rank-stabilized, on a head that shares the embedding.
    "lm_smollm_lora": ("lm_smollm", dict(r=3, lora_alpha=4, use_rslora=True, target_modules=["q_proj", "v_proj", "lm_head"])),
    # Rows with magnitudes of their own (DoRA), beside biases and on a head of its own.
    "lm_llama3_dora": ("lm_llama3", dict(r=2, lora_alpha=3, use_dora=True, target_modules=["q_proj", "o_proj", "down_proj"])),
    "lm_llama_dora": ("lm_llama", dict(r=3, lora_alpha=6, use_dora=True, target_modules=["v_proj", "lm_head"])),
}


def refill(model, seed, dtype):
    """Draws every parameter anew, rounded to `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            draw = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                is_plain_norm = name.endswith("norm.weight") and model.config.model_type not in ("gemma", "gemma2")
                value = 0.2 * draw + (1.0 if is_plain_norm else 0.0)
            elif "embed_tokens" in name:
                value = (0.2 if model.config.model_type in ("gemma", "gemma2") else 0.7) * draw
            else:
                value = 1.5 * draw / parameter.shape[1] ** 0.5
            parameter.copy_(value.to(dtype).float())


def load(name):
    return AutoModelForCausalLM.from_pretrained(HERE / name, dtype=torch.float32, attn_implementation="eager").eval()


def save(path, tensors):
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, path)


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(torch.float16).float()


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


def batch():
    """Ids padded on the right, with their mask, and the coefficient of each token's log-probability in the loss."""
    ids = torch.randint(3, VOCAB, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    ids = torch.where(mask, ids, 0)
    # The first token has no prediction.
    weight = randn(2, *ids.shape) * mask * (torch.arange(ids.shape[1]) > 0)
    return ids, mask.long(), weight


def token_logps(logits, ids):
    """Log-probability of each token given those before it; 0 for the first."""
    logps = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    return torch.nn.functional.pad(logps, (1, 0))


def compute(model):
    """Logits, log-probabilities and the gradient of every trainable parameter of `sum(weight * logps)`."""
    ids, mask, weight = batch()
    logits = model(input_ids=ids, attention_mask=mask).logits
    logps = token_logps(logits, ids)
    model.zero_grad()
    (logps * weight).sum().backward()
    vectors = {
        "input_ids": ids, "attention_mask": mask, "loss_weight": weight, "token_logps": logps * mask,
        "logits": logits * mask[..., None],
    }
    return vectors, {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def prompts():
    ids, _, _ = batch()
    return [[1, *row[: length - 4].tolist()] for row, length in zip(ids, LENGTHS, strict=True)]


def generate(model, rows, **options):
    """Greedy continuations of prompts of several lengths in one batch, with the log-probability of each token under the model."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    # What the configuration leaves open would be filled from here.
    model.generation_config = GenerationConfig()
    config = GenerationConfig(
        do_sample=False, max_new_tokens=NEW_TOKENS, return_dict_in_generate=True, output_logits=True, pad_token_id=0, bos_token_id=1,
        **options,
    )
    with torch.no_grad():
        found = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    tokens = found.sequences[:, longest:]
    logps = torch.stack(found.logits, 1).log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    ends = options.get("eos_token_id") or []
    examples = []
    for prompt, row, values in zip(rows, tokens.tolist(), logps.tolist(), strict=True):
        length = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        examples.append({"prompt": prompt, "tokens": row[:length], "logps": [round(value, 6) for value in values[:length]]})
    return examples


def generations(model):
    cases = [{"eos_token_id": [], "repetition_penalty": 1.0, "examples": generate(model, prompts())}]
    # Tokens that are known to appear end the sequences here; one in each of two rows, at different places.
    rows = [example["tokens"] for example in cases[0]["examples"]]
    ends = sorted({rows[0][5], rows[2][2]})
    cases.append({"eos_token_id": ends, "repetition_penalty": 1.0, "examples": generate(model, prompts(), eos_token_id=ends)})
    # One prompt at a time: in a batch transformers counts the padding among the tokens that were seen.
    penalized = [generate(model, [prompt], repetition_penalty=1.4)[0] for prompt in prompts()]
    cases.append({"eos_token_id": [], "repetition_penalty": 1.4, "examples": penalized})
    return {"max_new_tokens": NEW_TOKENS, "cases": cases}


def checkpoints():
    for number, (name, (config, dtype)) in enumerate(MODELS.items()):
        config._attn_implementation = "eager"
        model = AutoModelForCausalLM.from_config(config)
        refill(model, 400 + number, dtype)
        directory = HERE / name
        size = {"max_shard_size": "8KB"} if name == SHARDED else {}
        model.to(dtype).save_pretrained(directory, **size)
        model = load(name)
        vectors, gradients = compute(model)
        vectors |= {f"grad.{key}": value for key, value in gradients.items()}
        save(directory / "vectors.safetensors", vectors)
        write_json(directory / "generations.json", generations(model))


def adapters():
    for number, (name, (base, options)) in enumerate(ADAPTERS.items()):
        model = load(base)
        lora = LoraConfig(task_type="CAUSAL_LM", **options)
        wrapped = get_peft_model(model, lora)
        generator = torch.Generator().manual_seed(500 + number)
        with torch.no_grad():
            for key, parameter in sorted(wrapped.named_parameters()):
                if "lora_magnitude_vector" in key:
                    # Away from the lengths that the rows have.
                    factor = 1 + 0.3 * torch.randn(parameter.shape, generator=generator)
                    parameter.copy_((parameter * factor).to(torch.float16).float())
                elif "lora_" in key:
                    parameter.copy_((torch.randn(parameter.shape, generator=generator) * 0.2).to(torch.float16).float())
        directory = HERE / name
        wrapped.save_pretrained(directory)
        (directory / "README.md").unlink(missing_ok=True)
        config = json.loads((directory / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = base
        config["target_modules"] = sorted(config["target_modules"])
        (directory / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
        vectors, gradients = compute(PeftModel.from_pretrained(load(base), directory, is_trainable=True))
        vectors = {"logits": vectors["logits"], "token_logps": vectors["token_logps"]}
        for key, value in gradients.items():
            name = key.removeprefix("base_model.model.").replace(".default", "")
            vectors["grad." + name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")] = value
        save(directory / "vectors.safetensors", vectors)


def rope():
    """Inverse frequencies and the factor of sines and cosines for every kind of scaling, in both spellings of the configuration."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    def table(config):
        kind = config.rope_parameters["rope_type"]
        if kind == "default":
            dim = config.head_dim
            values, factor = 1.0 / (config.rope_parameters["rope_theta"] ** (torch.arange(0, dim, 2).float() / dim)), 1.0
        else:
            values, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
        return {"inv_freq": values.tolist(), "attention_factor": factor}

    size = SIZE | dict(hidden_size=64, max_position_embeddings=128)
    kinds = {
        "default": dict(rope_type="default"),
        "linear": dict(rope_type="linear", factor=2.5),
        "dynamic": dict(rope_type="dynamic", factor=2.0),
        "llama3": LLAMA3 | dict(rope_theta=5000.0),
        "yarn": dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
        "yarn with attention_factor": YARN | dict(attention_factor=1.25),
        "yarn with mscale": YARN | dict(mscale=0.7, mscale_all_dim=1.3),
        "yarn without truncation": YARN | dict(truncate=False),
    }
    cases = []
    for name, parameters in kinds.items():
        parameters = {"rope_theta": 10000.0} | parameters
        config = LlamaConfig(**size, rope_parameters=dict(parameters))
        new = {"rope_parameters": parameters, "max_position_embeddings": 128, "head_dim": 16}
        scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
        old = {"rope_theta": parameters["rope_theta"], "rope_scaling": scaling if name != "default" else None}
        old |= {"max_position_embeddings": 128, "head_dim": 16}
        cases.append({"name": name, "configs": [new, old]} | table(config))
    directory = HERE / "lm_rope"
    directory.mkdir(parents=True)
    write_json(directory / "cases.json", cases)


def sampling():
    """Log-probabilities after temperature, top-k, top-p and the repetition penalty, in the order of transformers."""
    logits = randn(9, 4, 24) * 2
    logits[3, 5] = logits[3, 11]
    seen = [[1, 2, 2], [3], [7, 9, 23], [0, 0]]
    cases = []
    for penalty, temperature, top_k, top_p in [
        (1.0, 1.0, 0, 1.0), (1.0, 0.6, 0, 1.0), (1.0, 1.0, 5, 1.0), (1.0, 1.0, 0, 0.8), (1.3, 0.9, 12, 0.7), (0.8, 1.7, 3, 0.95),
        (1.0, 0.5, 30, 0.05),
    ]:
        for row, tokens in enumerate(seen):
            ids, scores = torch.tensor([tokens]), logits[row : row + 1].clone()
            if penalty != 1.0:
                scores = RepetitionPenaltyLogitsProcessor(penalty)(ids, scores)
            if temperature != 1.0:
                scores = TemperatureLogitsWarper(temperature)(ids, scores)
            if top_k:
                scores = TopKLogitsWarper(top_k)(ids, scores)
            if top_p < 1.0:
                scores = TopPLogitsWarper(top_p)(ids, scores)
            probabilities = [round(value, 7) for value in scores.softmax(-1)[0].tolist()]
            settings = dict(repetition_penalty=penalty, temperature=temperature, top_k=top_k, top_p=top_p)
            cases.append(settings | dict(row=row, seen=tokens, probabilities=probabilities))
    directory = HERE / "lm_sampling"
    directory.mkdir(parents=True)
    write_json(directory / "cases.json", {"logits": [[round(v, 4) for v in row] for row in logits.tolist()], "cases": cases})


def main():
    for directory in HERE.glob("lm_*"):
        shutil.rmtree(directory)
    checkpoints()
    adapters()
    rope()
    sampling()
    for path in HERE.glob("lm_*/*"):
        path.chmod(0o644)
    total = sum(path.stat().st_size for directory in HERE.glob("lm_*") for path in directory.rglob("*") if path.is_file())
    print(f"{HERE}/lm_*: {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
