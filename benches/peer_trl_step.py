"""TRL's side of the benchmark of text: optimizer steps of its own DPOTrainer with LoRA on a randomly initialized Llama or LLaVA.

    peer_trl_step.py WORK_JSON STEPS

WORK_JSON overrides entries of `WORK`; `{}` is 4 pairs of 256 + 128 tokens on 8 layers of width 512, f32, 2 threads. `model`: "llama", or
"llava" for the same decoder behind a CLIP tower, with an image of 576 tokens in every prompt. `reference`: "live" computes the
reference in every step with the adapter off, "precomputed" before training. `attention`: "sdpa" or "eager". Images are read and
processed outside the measured time. Prints one JSON line: median seconds of STEPS optimizer steps after one to warm up (forward, backward, clipping, AdamW)
and the peak resident memory of the process in GiB. Needs torch, transformers, trl, peft, datasets.
"""

import json
import os
import resource
import statistics
import sys
import tempfile
import time

WORK = {
    "config": {"vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8,
               "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 1024},
    "rank": 16, "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "vision": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6, "image_size": 336,
               "patch_size": 14, "projection_dim": 384},
    "model": "llama", "pairs": 4, "prompt_tokens": 256, "answer_tokens": 128, "reference": "live", "attention": "sdpa", "threads": 2,
}
work, steps = WORK | json.loads(sys.argv[1]), int(sys.argv[2])
# Before torch is imported, which reads it once.
os.environ["OMP_NUM_THREADS"] = str(work["threads"])
scratch = tempfile.TemporaryDirectory(prefix="peer-trl-")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": scratch.name, "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}

import torch
from datasets import Dataset, Features, Sequence, Value, disable_progress_bars
from datasets import Image as ImageFeature
from peft import LoraConfig
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM, CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor,
    PreTrainedTokenizerFast, PrinterCallback, TrainerCallback,
)
from trl import DPOConfig, DPOTrainer

torch.set_num_threads(work["threads"])
torch.manual_seed(0)
disable_progress_bars()


class TokenRows(DPOTrainer):
    """DPOTrainer on rows that are tokens already: tokenizing is not what is measured."""

    def _prepare_dataset(self, dataset, *_):
        return dataset


class Stopwatch(TrainerCallback):
    """Seconds from the first forward of an optimizer step to its end."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, *_, **__):
        self.start = time.perf_counter()

    def on_step_end(self, *_, **__):
        self.seconds.append(time.perf_counter() - self.start)


def tokens(length):
    return torch.randint(3, work["config"]["vocab_size"], (length,)).tolist()


def rows(count):
    return Dataset.from_list([
        {"prompt_ids": tokens(work["prompt_tokens"]), "chosen_ids": tokens(work["answer_tokens"]),
         "rejected_ids": tokens(work["answer_tokens"])} for _ in range(count)])


def rows_with_images(count):
    """Words that are one token each, and pictures of noise."""
    words = lambda length: "".join(f" w{token}" for token in tokens(length))
    side = work["vision"]["image_size"]
    rows = [{"images": [Image.fromarray(torch.randint(0, 256, (side, side, 3), dtype=torch.uint8).numpy())],
             "prompt": "<image>" + words(work["prompt_tokens"]), "chosen": words(work["answer_tokens"]),
             "rejected": words(work["answer_tokens"])} for _ in range(count)]
    return Dataset.from_list(rows, features=Features(
        {"images": Sequence(ImageFeature()), "prompt": Value("string"), "chosen": Value("string"), "rejected": Value("string")}))


def llama():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**work["config"]), attn_implementation=work["attention"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, unk_token="<pad>")),
        pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    return model, tokenizer


def llava():
    size = work["config"]["vocab_size"]
    config = LlavaConfig(text_config=LlamaConfig(**work["config"] | {"vocab_size": size + 1, "max_position_embeddings": 2048}),
                         vision_config=CLIPVisionConfig(**work["vision"]), image_token_index=size)
    config._attn_implementation = work["attention"]
    model = LlavaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("vision_tower" not in name)
    words = Tokenizer(models.WordLevel({f"w{token}": token for token in range(size)} | {"<image>": size}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2",
                                        additional_special_tokens=["<image>"])
    side = work["vision"]["image_size"]
    images = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return model, LlavaProcessor(images, tokenizer, patch_size=work["vision"]["patch_size"], vision_feature_select_strategy="default",
                                 num_additional_image_tokens=1, image_token="<image>")


def main():
    has_images = work["model"] == "llava"
    model, processing = llava() if has_images else llama()
    args = DPOConfig(
        output_dir=scratch.name, max_steps=steps + 1, per_device_train_batch_size=work["pairs"], gradient_accumulation_steps=1,
        train_sampling_strategy="sequential", learning_rate=1e-5, lr_scheduler_type="constant", bf16=False, use_cpu=True,
        gradient_checkpointing=False, precompute_ref_log_probs=work["reference"] == "precomputed", logging_steps=1,
        report_to="none", save_strategy="no", disable_tqdm=True)
    stopwatch = Stopwatch()
    # Adapters go into the decoder alone, as in ours.
    targets = rf".*language_model.*\.({'|'.join(work['targets'])})" if has_images else work["targets"]
    lora = LoraConfig(r=work["rank"], lora_alpha=work["rank"], lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")
    dataset = (rows_with_images if has_images else rows)(work["pairs"] * (steps + 1))
    trainer_class = DPOTrainer if has_images else TokenRows
    trainer = trainer_class(model=model, args=args, train_dataset=dataset, processing_class=processing, peft_config=lora,
                            callbacks=[stopwatch])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": statistics.median(stopwatch.seconds[1:]), "peak_gib": peak}))


if __name__ == "__main__":
    main()
