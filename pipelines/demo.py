"""The whole road on photographs: encode, open, train a small prior, paint, report.

python -m pipelines.demo [--images FOLDER]

Each stage is a command of its own, called as anybody would call it. Run again, it goes on where it
stopped, and does nothing where all is done.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.config import UserError
from ops.files import write_bytes, write_json
from pipelines import encode, generate, report, train_prior
from pipelines.console import run_command
from pipelines.inputs import list_input
from pipelines.reports import TIMINGS
from pipelines.store import CodeStore
from tokenizer import load_tokenizer

#: Photographs inside well-known packages: (package, path in it).
PHOTOGRAPHS = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/camera.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/coins.png"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/rocket.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)
# Fewer images than this are encoded in ten views each: a prior needs rows to learn from.
ENOUGH_IMAGES = 100


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Photographs to codes, a small prior on them, painted pictures, and one page about it all."""

    images: Path | None = None
    """Folder of photographs; by default about ten that come inside scikit-image, scikit-learn and
    matplotlib."""
    out: Path = Path("runs/demo")
    """Where everything goes."""
    tokenizer: str = "photo-f8"
    """A bundled tokenizer, or a folder that holds one."""
    image_size: int = 256
    """Side of the encoded pictures and of the samples, in pixels."""
    steps: int = 400
    """Steps of the prior's training."""
    samples: int = 4
    """Pictures of the size the prior was trained on."""
    canvas: str = "1024x512"
    """Size of the one large picture, WIDTHxHEIGHT in pixels."""


def main(argv: list[str] | None = None) -> int:
    return run_command(Flags, run, argv, prog="pipelines.demo")


def run(flags: Flags) -> int:
    out = flags.out
    images = out / "photographs" if flags.images is None else flags.images
    settings = _settings(flags)
    aside = set_aside(out, settings)
    if aside is not None:
        print(f"{out} was made with other settings; it is now {aside}.")
    if flags.images is None:
        gather_photographs(images)
    write_json(out / "demo.json", settings)
    stages = stages_of(flags, images)
    for number, (name, stage) in enumerate(stages, 1):
        print(f"\n[{number}/{len(stages)}] {name}", flush=True)
        start = time.perf_counter()
        code = stage()
        if code:
            print(f"stopped in stage {name!r}", file=sys.stderr)
            return code
        add_timing(out / TIMINGS, name, time.perf_counter() - start)
    print("\n[report]")
    return report.main([str(out)])


def stages_of(flags: Flags, images: Path) -> list[tuple[str, Callable[[], int]]]:
    """(heading, what to call) in order; each call returns an exit code."""
    out = flags.out
    codes, prior = str(out / "codes.zarr"), str(out / "prior")
    size = f"{flags.image_size}x{flags.image_size}"

    def encode_images() -> int:
        crop = "ten" if len(list_input(images).entries) < ENOUGH_IMAGES else "center"
        how = ["--image-size", str(flags.image_size), "--crop", crop]
        where = ["--in", str(images), "--out", codes, "--tokenizer", flags.tokenizer]
        return encode.main(where + how)

    def open_store() -> int:
        print(describe_store(CodeStore.open(codes)))
        return 0

    def train() -> int:
        return train_prior.main(
            ["tiny", "--codes", codes, "--out", prior, "--steps", str(flags.steps)]
        )

    def samples(folder: str, count: int, size: str) -> Callable[[], int]:
        target = ["--out", str(out / folder), "--count", str(count), "--size", size]
        # A prior this small gives the rare codes far too much weight. Seen side by side, the
        # paper's top-k of 100 painted long streaks; this keeps more of the photographs' grain.
        draws = ["--seed", "0", "--top-p", "0.92"]
        return lambda: generate.main(["--prior", prior, *target, *draws])

    return [
        ("Encode the photographs", encode_images),
        ("Open the code store", open_store),
        ("Train a small prior on the codes", train),
        (f"Paint {flags.samples} samples of {size}", samples("samples", flags.samples, size)),
        (f"Paint a canvas of {flags.canvas}", samples("canvas", 1, flags.canvas)),
    ]


def gather_photographs(folder: Path) -> None:
    """Copy the packages' photographs into `folder`, those that it lacks.

    Raises UserError where none of the packages is installed.
    """
    found = 0
    for package, name in PHOTOGRAPHS:
        target = folder / Path(name).name
        source = _package_folder(package) / name
        # A second copy would have a new date, and be taken for a changed image.
        if not target.exists() and source.is_file():
            write_bytes(target, source.read_bytes())
        found += target.exists()
    if not found:
        raise UserError(
            "No photographs: scikit-image, scikit-learn and matplotlib are not here. "
            'Install the extra, pip install -e ".[demo]", or name your own with --images FOLDER.'
        )


def _package_folder(package: str) -> Path:
    # Found, not imported: scikit-learn alone takes a second.
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return Path(places[0]) if places else Path("missing")


def _settings(flags: Flags) -> dict[str, Any]:
    """What decides the demo's files; the fingerprint, since bundled weights change in time."""
    return {
        "images": None if flags.images is None else str(flags.images.resolve()),
        "tokenizer": flags.tokenizer,
        "fingerprint": load_tokenizer(flags.tokenizer).fingerprint,
        "image_size": flags.image_size,
        "steps": flags.steps,
        "samples": flags.samples,
        "canvas": flags.canvas,
    }


def set_aside(out: Path, settings: dict[str, Any]) -> Path | None:
    """Rename an older demo that was made with other settings; its new name, or None."""
    path = out / "demo.json"
    if not path.is_file() or json.loads(path.read_text()) == settings:
        return None
    number = 1
    while (aside := out.with_name(f"{out.name}-{number}")).exists():
        number += 1
    out.rename(aside)
    return aside


def describe_store(store: CodeStore) -> str:
    """One line: rows, codes, size, and where a row's codes begin."""
    provenance = store.provenance["image"]
    rows = ", ".join(f"{count:,} rows of {grid}" for grid, count in store.grids.items())
    start = (
        f"{store[0]['key']} begins {store[0]['codes'].ravel()[:6].tolist()}" if rows else "empty"
    )
    return f"{rows} codes out of {provenance['codebook_size']:,}; {start}"


def add_timing(path: Path, stage: str, seconds: float) -> None:
    """Add to the time a stage has taken over all runs of this demo."""
    times = json.loads(path.read_text()) if path.is_file() else []
    totals = {entry["stage"]: entry["seconds"] for entry in times}
    totals[stage] = round(totals.get(stage, 0.0) + seconds, 2)
    write_json(path, [{"stage": name, "seconds": total} for name, total in totals.items()])


if __name__ == "__main__":
    sys.exit(main())
