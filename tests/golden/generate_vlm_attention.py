"""Golden attention of vision-language models: what some tokens attend to at each layer, the mean over heads.

Run:  python tests/golden/generate_vlm_attention.py     (needs torch, transformers, pillow, safetensors; no network, no torchvision)

Makes tests/golden/vlm_attention.json from the tiny checkpoints of `generate_vlm.py`, by transformers' eager attention with `output_attentions`;
read by crates/models/tests/vlm_attention.rs.

Made with: Python 3.11.7, torch 2.15.0, transformers 5.23.0, pillow 13.0.0, numpy 2.4.6
"""

import json
import pathlib

import torch
from generate_vlm import arguments, build, expand, feature_counts, images_of, process, rows_of_ids, ROWS


def attention(name):
    model, processor = build(name)
    ids, row = rows_of_ids()[0], ROWS[0]
    inputs = process(processor, images_of(row))
    ids = torch.tensor([expand(ids, feature_counts(model, inputs))])
    # The last token, the first, one of an image, and one in between.
    tokens = ids.shape[1]
    queries = [tokens - 1, 0, tokens // 2, tokens - 3]
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_attentions=True, **arguments(ids, inputs))
    rows = [layer[0].mean(0)[queries] for layer in out.attentions]
    return dict(queries=queries, weights=[[[round(value, 6) for value in query] for query in layer.tolist()] for layer in rows])


def main():
    found = {name: attention(name) for name in ("llava", "qwen2_5_vl")}
    path = pathlib.Path(__file__).parent / "vlm_attention.json"
    path.write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
