"""What TRL, transformers, `datasets` and difflib make of rows with images: `vision_data/`.

    OMP_NUM_THREADS=1 python tests/golden/generate_vision_data.py

Made with: trl 1.16.0, transformers 5.23.0, datasets 5.2.0, pillow 13.0.0.

`vision.json`: `prepare`: messages and a number of images in, what `trl.data_utils.prepare_multimodal_messages` makes of them out, or null
where it raises. `encoded`: pairs in the tokens of `tokenizer.apply_chat_template`, prompt alone and prompt with each answer, under templates
that write images as LLaVA's (all first, a line break behind each) and as Qwen2-VL's (in their places) do. `changed`: lists of tokens in,
those out that RLHF-V's rules call changed: what lies between the matching blocks of `difflib.SequenceMatcher` of three tokens or more,
where neither side is empty. `images.parquet`: a table that `datasets` wrote, with a list of images and one image a row.
"""

import difflib
import io
import json
import random
import shutil
import tempfile
from pathlib import Path

import datasets
from PIL import Image
from transformers import AutoTokenizer
from trl.data_utils import prepare_multimodal_messages

HERE = Path(__file__).parent
OUT = HERE / "vision_data"
ADDED = ["<image>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"]

LLAVA = (
    "{% for message in messages %}{{ message['role'] | upper }}:<|im_start|>"
    "{% for block in message['content'] if block['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for block in message['content'] if block['type'] == 'text' %}{{ block['text'] }}{% endfor %}"
    "{% if message['role'] == 'assistant' %}<|im_end|>{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:<|im_start|>{% endif %}"
)
QWEN = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for block in message['content'] %}"
    "{% if block['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ block['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def text(words):
    return {"type": "text", "text": words}


IMAGE = {"type": "image"}

PREPARED = [
    ([user("What is this?")], 1),
    ([user("What is this?")], 0),
    ([user("Which is larger?")], 3),
    ([{"role": "system", "content": "Be brief."}, user("One?"), assistant("Yes."), user("Two?")], 2),
    ([user([IMAGE, text("What is this?")])], 1),
    ([user([text("First "), IMAGE, text(" or "), IMAGE])], 2),
    ([user([IMAGE, text("One?")]), assistant("Yes."), user([text("Two?"), IMAGE])], 2),
    ([user([IMAGE, text("One?")]), assistant([text("Yes.")]), user("Two?")], 1),
    ([user([IMAGE, text("What is this?")])], 2),
    ([user([IMAGE, text("What is this?")])], 0),
    ([user([text("No place.")])], 1),
    ([assistant("Hello."), user("")], 1),
]

ROWS = [
    (1, [user([IMAGE, text("What is this?")])], "A red circle.", "A blue square, and a dog."),
    (2, [user([text("First "), IMAGE, text(" or "), IMAGE, text("?")])], "The first.", "Neither."),
    (
        1,
        [
            {"role": "system", "content": [text("Be brief.")]},
            user([IMAGE, text("How many?")]),
            assistant([text("Two.")]),
            user([text("Sure?")]),
        ],
        "Yes.",
        "No, there are three.",
    ),
    (0, [user([text("What is an image?")])], "Pixels.", ""),
]


def prepared(messages, num_images):
    try:
        found = prepare_multimodal_messages(messages, images=[f"image {index}" for index in range(num_images)])
    except ValueError:
        return None
    images = [block.pop("image") for message in found for block in message["content"] if "image" in block]
    assert images == [f"image {index}" for index in range(num_images)]
    return found


def encoded(folder):
    first = len(AutoTokenizer.from_pretrained(HERE / "text/tokenizers/byte_level"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for at, content in enumerate(ADDED):
        token = {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        config["added_tokens_decoder"][str(first + at)] = token
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids(ADDED) == list(range(first, first + len(ADDED)))
    runs = []
    for name, template, token in [("llava", LLAVA, "<image>"), ("qwen", QWEN, "<|image_pad|>")]:
        rows = []
        for num_images, prompt, chosen, rejected in ROWS:
            def ids(messages, **extra):
                return tokenizer.apply_chat_template(messages, chat_template=template, return_dict=False, **extra)

            sides = [ids([*prompt, assistant([text(side)])]) for side in (chosen, rejected)]
            begins = ids(prompt, add_generation_prompt=True)
            assert all(side[: len(begins)] == begins for side in sides)
            assert begins.count(tokenizer.convert_tokens_to_ids(token)) == num_images
            rows.append({
                "num_images": num_images, "prompt": prompt, "chosen": chosen, "rejected": rejected,
                "prompt_ids": begins, "chosen_ids": sides[0][len(begins):], "rejected_ids": sides[1][len(begins):],
            })
        runs.append({"name": name, "template": template, "image_token": token, "rows": rows})
    return {"first_id": first, "added": ADDED, "runs": runs}


def changed(before, after, least):
    blocks = difflib.SequenceMatcher(None, before, after).get_matching_blocks()
    blocks = [block for block in blocks if block.size >= least or block.size == 0]
    pairs, a, b = [], 0, 0
    for block in blocks:
        if a < block.a and b < block.b:
            pairs.append(([a, block.a], [b, block.b]))
        a, b = block.a + block.size, block.b + block.size
    return {"before": [pair[0] for pair in pairs], "after": [pair[1] for pair in pairs]}


def edited(rng, tokens, vocabulary):
    tokens = list(tokens)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(tokens) + 1)
        cut = rng.choice([0, 0, 1, 2, 5])
        tokens[at:at + cut] = [rng.randrange(vocabulary) for _ in range(rng.choice([0, 1, 1, 3, 6]))]
    return tokens


def changes():
    rng = random.Random(7)
    cases = [([], [], 3), ([1, 2, 3], [], 3), ([], [1], 3), ([1, 2, 3, 4, 5, 6], [1, 2, 3, 99, 4, 5, 6], 3), ([1, 2], [1, 2], 3)]
    for vocabulary, length in [(3, 12), (8, 20), (40, 30), (500, 40), (4, 60)]:
        for _ in range(6):
            before = [rng.randrange(vocabulary) for _ in range(rng.randint(1, length))]
            cases.append((before, edited(rng, before, vocabulary), rng.choice([1, 3, 3, 3])))
    # From 200 tokens on, frequent ones begin no match.
    for vocabulary, length in [(30, 199), (30, 200), (30, 230), (12, 210), (400, 260), (2, 200)]:
        before = [rng.randrange(vocabulary) for _ in range(length)]
        cases.append((before, edited(rng, before, vocabulary), 3))
    # A prompt with many tokens of one kind, as of an image.
    before = [1, 2] + [9] * 220 + [3, 4, 5, 6, 7, 8, 10, 11]
    cases.append((before, before[:-3] + [12, 10, 11], 3))
    return [{"before": a, "after": b, "min_match_len": n, "changed": changed(a, b, n)} for a, b, n in cases]


def table():
    def png(color):
        out = io.BytesIO()
        Image.new("RGB", (4, 3), color).save(out, "PNG")
        return {"bytes": out.getvalue(), "path": None}

    colors = [["red", "blue"], [], ["lime"]]
    messages = [[user([IMAGE | {"text": None}] * len(row) + [text("Which?")])] for row in colors]
    image = datasets.Image(decode=False)
    block = {"type": datasets.Value("string"), "text": datasets.Value("string")}
    message = {"role": datasets.Value("string"), "content": datasets.List(block)}
    features = datasets.Features({
        "images": datasets.List(image), "prompt": datasets.List(message),
        "chosen": datasets.List(message), "rejected": datasets.List(message),
    })
    rows = {
        "images": [[png(color) for color in row] for row in colors],
        "prompt": messages,
        "chosen": [[assistant([text("This.")])]] * 3,
        "rejected": [[assistant([text("That.")])]] * 3,
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(OUT / "images.parquet")
    features = datasets.Features({name: datasets.Value("string") for name in ("ds_name", "text", "image_path")} | {"image": image})
    rows = {
        "ds_name": ["RLHF-V"], "image_path": ["coco/1.jpg"], "image": [png("red")],
        "text": [json.dumps({"question": "What is this?", "chosen": "Red.", "rejected": "Blue."})],
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(OUT / "rlhf_v.parquet")


def main():
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder) / "tokenizer"
        shutil.copytree(HERE / "text/tokenizers/byte_level", folder)
        tokens = encoded(folder)
    cases = [{"messages": messages, "num_images": count, "expected": prepared(messages, count)} for messages, count in PREPARED]
    content = {"prepare": cases, "encoded": tokens, "changed": changes()}
    (OUT / "vision.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")
    table()


main()
