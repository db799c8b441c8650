"""Training logs of TRL's DPOTrainer on two tiny vision-language models, with images. Layout: `vlm_trl/` in README.md beside this file.

Nothing here computes a loss: the program makes tokenizers, images and records, hands them with the checkpoints of `vlm/` (whose
weights are made from names) to TRL and writes down what it logs. Every run is made twice, in float32 and again in float64 with
another attention kernel; the largest difference of each logged number is its `sensitivity`.

Run:       python tests/golden/generate_vlm_trl.py     (no network, no torchvision; about a minute of one core)
Made with: Python 3.11.7, torch 2.15.0, transformers 5.23.0, trl 1.16.0, peft 0.21.2, pillow 13.0.0, tokenizers 0.23.3
"""

import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1",
               "TOKENIZERS_PARALLELISM": "false", "HF_HOME": tempfile.mkdtemp(prefix="vlm-trl-golden-")}

import torch
import transformers
from datasets import Dataset, Image, Sequence, disable_progress_bars
from generate_vlm import IMAGE, MODELS, SIZES, image
from named_values import fill
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlavaProcessor, PreTrainedTokenizerFast, PrinterCallback, Qwen2_5_VLProcessor
from trl import DPOConfig, DPOTrainer

torch.set_num_threads(1)
disable_progress_bars()
transformers.logging.set_verbosity_error()

HERE = Path(__file__).resolve().parent
OUT = HERE / "vlm_trl"
ARGUMENTS = dict(max_steps=10, per_device_train_batch_size=2, gradient_accumulation_steps=2, lr_scheduler_type="constant", beta=0.1,
                 max_grad_norm=1.0, train_sampling_strategy="sequential", bf16=False, gradient_checkpointing=False, logging_steps=1,
                 seed=42, use_cpu=True)
HARNESS = dict(report_to="none", save_strategy="no", disable_tqdm=True, dataloader_num_workers=0)
# Model, adapter, whether the tower is trained, learning rate.
RUNS = {
    "llava_lora": ("llava", "llava_lora", True, 2e-2),
    "llava_full": ("llava", None, False, 5e-3),
    "qwen2_5_vl_full": ("qwen2_5_vl", None, True, 3e-3),
    "qwen2_5_vl_lora": ("qwen2_5_vl", "qwen2_5_vl_lora", True, 2e-2),
}
WORDS = "a red blue green circle square star left right of the is are there two three on under beside no yes what do you see here".split()
SPECIALS = ["<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
TEMPLATE = (
    "{%- for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{%- if message['content'] is string %}{{ message['content'] }}{%- else %}"
    "{%- for block in message['content'] %}{%- if block['type'] == 'image' %}{{ 'IMAGE' }}{%- else %}{{ block['text'] }}{%- endif %}"
    "{%- endfor %}{%- endif %}{{ '<|im_end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{%- endif %}"
)
PLACES = {"llava": ("<image>", "<image>"), "qwen2_5_vl": ("<|image_pad|>", "<|vision_start|><|image_pad|><|vision_end|>")}


def records():
    rng = random.Random(11)
    words = lambda low, high: " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))
    rows = []
    for i in range(24):
        shown = [rng.choice(list(SIZES))] + ([rng.choice(list(SIZES))] if i % 3 == 1 else [])
        # The places of the images are left to TRL's rule: before the words.
        content = words(3, 9)
        side = lambda: [{"role": "assistant", "content": words(2, 8)}]
        rows.append({"images": [f"{name}.png" for name in shown], "prompt": [{"role": "user", "content": content}],
                     "chosen": side(), "rejected": side()})
    return rows


def write_tokenizer(name):
    token, place = PLACES[name]
    vocabulary = SPECIALS + ["user", "assistant"] + WORDS
    vocabulary += [f"unused{i}" for i in range(IMAGE - len(vocabulary))] + [token]
    assert len(vocabulary) == IMAGE + 1
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
                                   additional_special_tokens=["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", token])
    fast.chat_template = TEMPLATE.replace("IMAGE", place)
    fast.save_pretrained(OUT / name)
    return fast


def processor(name, tokenizer):
    images = MODELS[name][2]
    if name == "llava":
        return LlavaProcessor(images, tokenizer, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1,
                              chat_template=tokenizer.chat_template, image_token="<image>")
    made = Qwen2_5_VLProcessor.__new__(Qwen2_5_VLProcessor)
    # Its constructor demands a processor of videos, which needs torchvision.
    made.image_processor, made.tokenizer, made.video_processor = images, tokenizer, None
    made.chat_template = tokenizer.chat_template
    made.image_token, made.video_token = "<|image_pad|>", "<|video_pad|>"
    made.image_token_id, made.video_token_id = IMAGE, -1
    made.image_ids, made.video_ids, made.audio_ids = [IMAGE], [], []
    return made


def build(run, rows, dtype, attention):
    name, adapter, trains_tower, lr = RUNS[run]
    cls, config, _ = MODELS[name]
    for part in (config, config.text_config, config.vision_config):
        part._attn_implementation = attention
    model = fill(cls(config)).to(dtype)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(trains_tower or "vision_tower" not in key)
    if adapter:
        model = PeftModel.from_pretrained(model, HERE / "vlm" / adapter, is_trainable=True).to(dtype)
    args = DPOConfig(output_dir=os.environ["HF_HOME"] + "/output", learning_rate=lr, **ARGUMENTS, **HARNESS)
    tokenizer = write_tokenizer(name)
    dataset = Dataset.from_list([row | {"images": [str(OUT / "images" / file) for file in row["images"]]} for row in rows])
    dataset = dataset.cast_column("images", Sequence(Image()))
    ref = None
    if not adapter:
        ref = fill(cls(config)).to(dtype)
    trainer = DPOTrainer(model=model, ref_model=ref, args=args, train_dataset=dataset, processing_class=processor(name, tokenizer))
    trainer.remove_callback(PrinterCallback)
    return trainer


def train(run, rows, dtype, attention):
    trainer = build(run, rows, dtype, attention)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(history) == ARGUMENTS["max_steps"]
    keys = sorted({key for entry in history for key in entry} - {"step"})
    return {key: [float(f"{entry[key]:.9g}") for entry in history] for key in keys}


def main():
    names = sys.argv[1:] or list(RUNS)
    for directory in ("images", "runs"):
        (OUT / directory).mkdir(parents=True, exist_ok=True)
    for name in SIZES:
        image(name).save(OUT / "images" / f"{name}.png", optimize=True)
    rows = records()
    beside = [row | {"images": [f"images/{file}" for file in row["images"]]} for row in rows]
    (OUT / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in beside))
    for run in names:
        logged = train(run, rows, torch.float32, "sdpa")
        again = train(run, rows, torch.float64, "eager")
        differences = lambda key: max(abs(a - b) / max(abs(a), 0.01) for a, b in zip(logged[key], again[key], strict=True))
        sensitivity = {key: float(f"{differences(key):.2g}") for key in logged}
        model, adapter, trains_tower, lr = RUNS[run]
        out = {"model": model, "adapter": adapter, "trains_tower": trains_tower, "arguments": ARGUMENTS | {"learning_rate": lr},
               "metrics": logged, "sensitivity": sensitivity}
        (OUT / "runs" / f"{run}.json").write_text(json.dumps(out, separators=(",", ":")) + "\n")
        print(run, logged["loss"][0], "->", logged["loss"][-1], "worst", max(sensitivity.values()), flush=True)
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


if __name__ == "__main__":
    main()
