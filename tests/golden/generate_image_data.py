"""Image preference data in the schemas of its publishers, and what reading it should give.

Run from anywhere: python tests/golden/generate_image_data.py. Writes image_data/ beside itself.

Schemas: Pick-a-Pic v2 (dataset card of yuvalkirstain/pickapic_v2), Pick-Style (dataset card of mapo-t2i/pick-style-cartoon), HPDv2 (README of
tgxs002/HPSv2), ImageRewardDB (its JSON files and metadata tables), RichHF-18K joined with its images (rows of `datasets` with the
feature Image), SPO's prompts. Rows, prompts and images are our own.

Made with: Python 3.11.7, Pillow 13.0.0, pyarrow 26.0.1, datasets 5.2.0, numpy 2.4.6
"""

import hashlib
import io
import json
import pathlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

HERE = pathlib.Path(__file__).parent / "image_data"


def encoded(number, kind="JPEG", size=(24, 16)):
    """A small image that is different for every number."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    planes = [127 + 100 * np.sin(0.1 * (number + 1) * (c + 1) + 0.2 * x + 0.3 * y * c) for c in range(3)]
    buffer = io.BytesIO()
    options = {"quality": 60} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(np.stack(planes, -1).astype(np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()


def name(data):
    """What the tests know an image by."""
    return hashlib.sha256(data).hexdigest()[:16]


def pick_a_pic():
    """Eight rows of which four are a preference, two a tie, one without label, one of equal images."""
    labels = [1.0, 0.0, 0.5, 1.0, 0.5, 0.0, 1.0, 1.0]
    has_label = [True] * 6 + [False, True]
    are_different = [True] * 7 + [False]
    images = [(encoded(2 * row), encoded(2 * row + 1, size=(16, 24))) for row in range(8)]
    uid = [f"{row:08x}-0000-4000-8000-00000000000{side}" for row in range(8) for side in range(2)]
    best = ["tie" if label == 0.5 else uid[2 * row + int(label == 0.0)] for row, label in enumerate(labels)]
    table = pa.table(
        {
            "are_different": are_different,
            "best_image_uid": best,
            "caption": [f"a picture of {row // 2} birds" for row in range(8)],
            "created_at": pa.array([1_680_000_000_000_000_000 + row for row in range(8)], pa.timestamp("ns")),
            "has_label": has_label,
            "image_0_uid": uid[0::2],
            "image_0_url": ["https://example.com/0.png"] * 8,
            "image_1_uid": uid[1::2],
            "image_1_url": ["https://example.com/1.png"] * 8,
            "jpg_0": pa.array([pair[0] for pair in images], pa.binary()),
            "jpg_1": pa.array([pair[1] for pair in images], pa.binary()),
            "label_0": labels,
            "label_1": [1.0 - label for label in labels],
            "model_0": ["CompVis/stable-diffusion-v1-4"] * 8,
            "model_1": ["dreamlike-art/dreamlike-photoreal-2.0"] * 8,
            "ranking_id": list(range(100, 108)),
            "user_id": [7] * 8,
            "num_example_per_prompt": [2] * 8,
            "__index_level_0__": list(range(8)),
        }
    )
    pq.write_table(table, HERE / "pick_a_pic.parquet", row_group_size=3)
    kept = [row for row in range(8) if labels[row] != 0.5 and has_label[row] and are_different[row]]
    rows = []
    for row in kept:
        chosen = int(labels[row] == 0.0)
        rows.append({"prompt": table["caption"][row].as_py(), "images": [name(images[row][chosen]), name(images[row][1 - chosen])]})
    return {"records": rows, "left_out": {"tie": 2, "no-label": 1, "same-images": 1}, "ties": 2}


def pick_style():
    """MaPO's columns: labels are integers, images PNG."""
    images = [(encoded(40 + row, "PNG"), encoded(50 + row, "PNG")) for row in range(2)]
    table = pa.table(
        {
            "caption": ["a cartoon cat", "a cartoon dog"],
            "jpg_0": pa.array([pair[0] for pair in images], pa.binary()),
            "jpg_1": pa.array([pair[1] for pair in images], pa.binary()),
            "label_0": [1, 0],
            "label_1": [0, 1],
        }
    )
    pq.write_table(table, HERE / "pick_style.parquet")
    return {
        "records": [
            {"prompt": "a cartoon cat", "images": [name(images[0][0]), name(images[0][1])]},
            {"prompt": "a cartoon dog", "images": [name(images[1][1]), name(images[1][0])]},
        ],
        "left_out": {},
        "ties": 0,
    }


def hpdv2():
    """The two annotation files with the folders that the archives unpack to."""
    folder = HERE / "hpdv2"
    train = [encoded(60 + number) for number in range(4)]
    test = [encoded(70 + number) for number in range(3)]
    for split, images in [("train", train), ("test", test)]:
        (folder / split).mkdir(parents=True)
        for number, data in enumerate(images):
            (folder / split / f"{number:08d}.jpg").write_bytes(data)
    files = [f"{number:08d}.jpg" for number in range(4)]
    rows = [
        {"human_preference": [0, 1], "prompt": "a red house", "file_path": files[:2], "user_hash": "1f"},
        {"human_preference": [1, 0], "prompt": "a red house", "file_path": files[2:], "user_hash": "2f"},
        {"human_preference": [1, 1], "prompt": "a blue house", "file_path": files[:2], "user_hash": "2f"},
    ]
    (folder / "train.json").write_text(json.dumps(rows))
    annotation = [{"rank": [2, 1, 3], "user_hash": "1f"}, {"rank": [2, 1, 2], "user_hash": "2f"}]
    ranked = [{"prompt": "a green house", "image_path": files[:3], "rank": [2, 1, 2.5], "raw_annotations": annotation}]
    (folder / "test.json").write_text(json.dumps(ranked))
    expected_train = {
        "records": [
            {"prompt": "a red house", "images": [name(train[1]), name(train[0])]},
            {"prompt": "a red house", "images": [name(train[2]), name(train[3])]},
        ],
        "left_out": {"tie": 1},
        "ties": 1,
    }
    expected_test = {
        "records": [{"prompt": "a green house", "images": [name(data) for data in test], "scores": [-2, -1, -2.5]}],
        "left_out": {},
        "ties": 0,
    }
    return expected_train, expected_test


def image_reward_db():
    """One archive's folder: WebP images and the JSON beside them; and the same as a table at the root of the dataset."""
    root = HERE / "image_reward_db"
    folder = root / "images" / "train" / "train_1"
    folder.mkdir(parents=True)
    images = [encoded(80 + number, "WEBP") for number in range(6)]
    ranks = [2, 1, 3, 1, 1, 1]
    prompts = ["001324-0093"] * 3 + ["001324-0094"] * 2 + ["001324-0095"]
    rows = []
    for number, data in enumerate(images):
        (folder / f"{number:08d}.webp").write_bytes(data)
        rows.append(
            {
                "image_path": f"images/train/train_1/{number:08d}.webp",
                "prompt_id": prompts[number],
                "prompt": f"a castle {prompts[number][-2:]}",
                "classification": "Outdoor Scenes",
                "image_amount_in_total": prompts.count(prompts[number]),
                "rank": ranks[number],
                "overall_rating": 7 - ranks[number],
                "image_text_alignment_rating": 5,
                "fidelity_rating": 6,
            }
        )
    (folder / "train_1.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), root / "metadata-train.parquet")
    names = [name(data) for data in images]
    return {
        "records": [
            {"prompt": "a castle 93", "images": names[:3], "scores": [-2, -1, -3]},
            {"prompt": "a castle 94", "images": names[3:5], "scores": [-1, -1]},
        ],
        "left_out": {"single": 1},
        "ties": 0,
    }


def rich_hf():
    """Rows that `datasets` wrote, images embedded."""
    import datasets

    images = [encoded(90 + number, "PNG") for number in range(4)]
    overall = [0.75, 0.25, 0.5, None]
    rows = {
        "filename": [f"train/{number}.png" for number in range(4)],
        "prompt": [f"a boat on {number} lakes" for number in range(4)],
        "image": [{"bytes": data, "path": f"{number}.png"} for number, data in enumerate(images)],
        "aesthetics_score": [0.5, 0.5, 0.5, 0.25],
        "artifact_score": [0.75, 0.0, 0.5, 0.5],
        "misalignment_score": [1.0, 0.25, 0.5, 0.0],
        "overall_score": overall,
    }
    features = datasets.Features(
        {
            "filename": datasets.Value("string"),
            "prompt": datasets.Value("string"),
            "image": datasets.Image(),
            **{key: datasets.Value("float32") for key in list(rows)[3:]},
        }
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(HERE / "rich_hf.parquet")
    scores = [(0, 0.75, True), (1, 0.25, False), (3, 0.25, False)]
    return {
        "records": [
            {"prompt": f"a boat on {number} lakes", "images": [name(images[number])], "scores": [score], "label": label}
            for number, score, label in scores
        ],
        "left_out": {"tie": 1},
        "ties": 1,
    }


def spo_prompts():
    rows = [{"caption": "a lone tree", "trainset_idx": 17}, {"caption": "two lone trees", "trainset_idx": 3051}]
    (HERE / "spo_prompts.json").write_text(json.dumps(rows))
    return {"records": [{"prompt": row["caption"], "images": [], "id": str(row["trainset_idx"])} for row in rows], "left_out": {}, "ties": 0}


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    train, test = hpdv2()
    reward = image_reward_db()
    expected = {
        "pick_a_pic.parquet": ["pick-a-pic", pick_a_pic()],
        "pick_style.parquet": ["pick-a-pic", pick_style()],
        "hpdv2/train.json": ["hpdv2", train],
        "hpdv2/test.json": ["hpdv2", test],
        "image_reward_db/images/train/train_1/train_1.json": ["image-reward-db", reward],
        "image_reward_db/metadata-train.parquet": ["image-reward-db", reward],
        "rich_hf.parquet": ["rich-hf", rich_hf()],
        "spo_prompts.json": ["spo-prompts", spo_prompts()],
    }
    lines = {path: {"layout": layout, **value} for path, (layout, value) in expected.items()}
    (HERE / "expected.json").write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
