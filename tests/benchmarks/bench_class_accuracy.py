"""How often a classifier of real photographs puts generated samples in the class asked for.

    python tests/benchmarks/bench_class_accuracy.py --data CLASSES --samples SAMPLES \
        [--size 64] [--epochs 20] [--held-out 0.1]

CLASSES has one folder a class, as `encode --labels last` reads them: class k is the k-th name.
SAMPLES is a folder of `generate --labels`, with images. A small residual network is trained on the
real images but the held-out share of them, chosen by key, and prints its accuracy on that share and
on the samples, in all and by class. Mirrored crops; the last weights, no selection.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.images import decode_image, resize_and_crop, to_pixels
from pipelines.generation import read_index
from pipelines.inputs import held_out

BATCH_SIZE = 64
MARGIN = 1.125  # training images are this much larger than the crops


class Images(NamedTuple):
    """Pixels (N, 3, side, side) in [-1, 1] and classes (N,) int64."""

    pixels: Tensor
    classes: Tensor


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut: (B, C, H, W) -> (B, D, H / 2, W / 2)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, out_channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = nn.Conv2d(channels, out_channels, 1, stride=2)

    def forward(self, latents: Tensor) -> Tensor:
        return F.relu(self.layers(latents) + self.shortcut(latents))


def build_classifier(num_classes: int, channels: int = 32) -> nn.Module:
    """Pixels (B, 3, H, W) -> logits (B, num_classes)."""
    widths = [channels, channels, 2 * channels, 4 * channels, 4 * channels]
    blocks = [ResidualBlock(*pair) for pair in pairwise(widths)]
    first = nn.Conv2d(3, channels, 3, padding=1)
    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2)]
    return nn.Sequential(first, *blocks, *last, nn.Linear(widths[-1], num_classes))


def read_images(paths: list[Path], classes: list[int], side: int) -> Images:
    """The middle squares of image files, `side` pixels wide."""
    squares = [to_pixels(resize_and_crop(decode_image(p.read_bytes()), side)) for p in paths]
    return Images(torch.cat(squares), torch.tensor(classes))


def read_classes(folder: Path, side: int, share: float) -> tuple[Images, Images, list[str]]:
    """Training images, somewhat larger than `side`, held-out images, and the classes' names."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    paths = [
        (path, k) for k, name in enumerate(names) for path in sorted((folder / name).iterdir())
    ]
    out = [held_out(path.relative_to(folder).as_posix(), share) for path, _ in paths]
    train = [pair for pair, is_out in zip(paths, out, strict=True) if not is_out]
    test = [pair for pair, is_out in zip(paths, out, strict=True) if is_out]
    if not train or not test:
        raise SystemExit(f"{folder} has too few images in folders of their classes.")
    sides = round(side * MARGIN), side
    first, second = (
        read_images([path for path, _ in pairs], [k for _, k in pairs], size)
        for pairs, size in zip((train, test), sides, strict=True)
    )
    return first, second, names


def read_samples(folder: Path, side: int) -> Images:
    """The samples of a folder that have an image and a class."""
    rows = [row for row in read_index(folder).to_pylist() if row["status"] == "ok"]
    if not rows or any(
        row["label"] is None or not str(row["file"]).endswith(".png") for row in rows
    ):
        raise SystemExit(f"{folder} needs samples of classes, as generate --labels --save images.")
    paths = [folder / f"sample-{row['sample']:05d}.png" for row in rows]
    return read_images(paths, [row["label"] for row in rows], side)


def train_classifier(
    images: Images, num_classes: int, side: int, epochs: int, seed: int = 0
) -> nn.Module:
    """A classifier trained on mirrored crops of `side` pixels; its rate falls to 0 in a line."""
    torch.manual_seed(seed)
    model = build_classifier(num_classes).train()
    per_epoch = -(-len(images.classes) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=per_epoch * epochs)
    spare = images.pixels.shape[-1] - side
    for _ in range(epochs):
        for rows in torch.randperm(len(images.classes)).split(BATCH_SIZE):
            down, across = (int(torch.randint(spare + 1, ())) for _ in range(2))
            pixels = images.pixels[rows, :, down : down + side, across : across + side]
            mirrored = (torch.rand(len(rows)) < 0.5)[:, None, None, None]
            logits = model(torch.where(mirrored, pixels.flip(-1), pixels))
            loss = F.cross_entropy(logits, images.classes[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.inference_mode()
def is_right(model: nn.Module, images: Images) -> Tensor:
    """Which images (N,) the classifier puts in their classes; images and mirrored ones averaged."""
    parts = images.pixels.split(BATCH_SIZE)
    logits = torch.cat([model(part) + model(part.flip(-1)) for part in parts])
    return logits.argmax(1) == images.classes


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="without it, nothing is done")
    parser.add_argument("--samples", type=Path, nargs="+", default=[])
    parser.add_argument("--size", type=int, default=64, help="side the classifier sees, pixels")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--held-out", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(argv)
    if options.data is None:
        print("name photographs in folders of classes, and samples: --data, --samples")
        return 0
    torch.set_num_threads(options.threads)
    train, test, names = read_classes(options.data, options.size, options.held_out)
    model = train_classifier(train, len(names), options.size, options.epochs)
    right = is_right(model, test)
    real = float(right.float().mean())
    print(f"held-out photographs: {real:.1%} of {len(right)} in their class")
    for folder in options.samples:
        images = read_samples(folder, options.size)
        right = is_right(model, images)
        share = float(right.float().mean())
        print(
            f"{folder}: {share:.1%} of {len(right)} in the class asked for, "
            f"ratio {share / real:.2f}"
        )
        for k, name in enumerate(names):
            of_class = right[images.classes == k]
            if len(of_class):
                print(f"  {name}: {int(of_class.sum())} of {len(of_class)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
