"""Samples of a study's priors as rows of images."""

from __future__ import annotations

from pathlib import Path

from ops.images import to_image
from pipelines.studies.study import ImageRow
from prior import load_prior
from tokenizer import load_tokenizer

NUM_IMAGES = 4  # side by side
TOP_P = 0.92  # as in the demo: priors this small give rare codes too much probability


def sample_row(heading: str, run: Path, side: int | None = None) -> ImageRow:
    """The first samples of a prior's run folder, `side` x `side` codes (default: its window).

    Raises CheckpointError if the folder has no prior or no tokenizer.
    """
    prior, tokenizer = load_prior(run), load_tokenizer(run / "tokenizer")
    side = prior.config.window if side is None else side
    codes = prior.sample(side, side, count=NUM_IMAGES, seed=0, top_p=TOP_P)
    return ImageRow(heading, [to_image(tokenizer.decode(each[None]))[0] for each in codes])
