"""Images with an input for every condition, their code store, and priors trained on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines import encode, train_prior
from tests.conftest import photograph
from tokenizer import build_tokenizer, save_tokenizer
from tokenizer.modalities import ModalityConfig

CLASSES, SIDE, RATIO = 9, 48, 4  # of label maps; pixels; of low_res
FACTOR = build_tokenizer("tiny").config.downsample_factor
GRID = SIDE // FACTOR
WINDOW = GRID // 2
TRAINING = [
    "--steps", "2", "--save-every", "2", "--sample-every", "2", "--batch-size", "2",
    "--held-out", "0.3", "--threads", "1",
]  # fmt: skip
#: What encode's --track names of a folder of scenes, by track.
TRACKS = {
    "segmentation": "segs",
    "depth": "depths",
    "boxes": "boxes.jsonl",
    "keypoints": "poses.jsonl",
}
#: What generate's --condition names there, by condition.
FILES = {**TRACKS, "low_res": "images", "half": "images", "inpaint": "holes"}


def write_scenes(root: Path) -> Path:
    """Ten photographs in two class folders, with label maps, depth, boxes and poses; three with
    holes; and the tokenizers of all."""
    boxes, poses = [], []
    for seed in range(10):
        image, name = photograph(seed), f"{'lake' if seed % 2 else 'wood'}/{seed}"
        maps = {
            "images": image,
            "segs": image[..., 0] // 32,
            "depths": image[..., 0].astype(np.uint16) * 256,
        }
        for folder, raster in maps.items():
            path = root / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(raster).save(path)
        file = f"{name}.png"
        boxes += [
            {"file": file, "category": "disc", "bbox": [3 * seed, 5, 20, 20 + seed]},
            {"file": file, "category": "sky", "bbox": [0, 0, 64, 10]},
        ]
        points = [[x, 2 * x % 48, 2] for x in range(seed, seed + 5)]
        poses.append({"file": file, "keypoints": points})
    for name, lines in (("boxes", boxes), ("poses", poses)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (root / f"{name}.jsonl").write_text(text)
    (root / "holes").mkdir()
    for seed in range(3):
        layers = np.dstack([photograph(seed), np.full((48, 64), 255, np.uint8)])
        layers[8 * seed : 8 * seed + 16, 16:40, 3] = 0
        Image.fromarray(layers).save(root / "holes" / f"{seed}.png")
    for name, modality in (
        ("image", ModalityConfig()),
        ("segmentation", ModalityConfig(kind="segmentation", num_classes=CLASSES)),
        ("depth", ModalityConfig(kind="depth")),
    ):
        save_tokenizer(root / "tokenizers" / name, build_tokenizer("tiny", 0, modality))
    return root


def encode_scenes(scenes: Path, out: Path, *more: object) -> Path:
    """The scenes' code store, with every track; `more` flags add others."""
    flags = ["--in", scenes / "images", "--out", out, "--labels", "first", "--image-size", SIDE]
    flags += ["--tokenizer", scenes / "tokenizers/image", "--track", f"low_res={RATIO}"]
    for name, value in TRACKS.items():
        flags += ["--track", f"{name}={scenes / value}"]
    for name in ("segmentation", "depth"):
        flags += ["--track-tokenizer", f"{name}={scenes / 'tokenizers' / name}"]
    assert encode.main([*map(str, [*flags, *more])]) == 0
    return out


def condition_flag(scenes: Path, name: str) -> str:
    """The value of generate's --condition for a condition that is given by files."""
    return f"{name}={scenes / FILES[name]}"


def train(store: Path, out: Path, recipe: str, *conditions: str) -> Path:
    """The run folder of a prior, two steps old."""
    # A prior without windows is trained on whole grids.
    window = GRID if recipe == "tiny-local" else WINDOW
    words = [recipe, "--codes", store, "--out", out, "--conditions", *conditions]
    words += ["--window", window, *TRAINING]
    assert train_prior.main([*map(str, words)]) == 0
    return out
