"""Samples of a study's priors as rows of images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from ops.images import to_image
from pipelines.studies.context import StudyContext
from pipelines.studies.study import ImageRow
from prior import Prior, load_prior
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


def sample_rows(
    context: StudyContext, variants: Sequence[str], seed: int, side: int | None = None
) -> list[ImageRow]:
    """sample_row of each variant's prior."""
    return [sample_row(name, context.prior_folder(name, seed), side) for name in variants]


def sampling_speed(prior: Prior, side: int) -> float:
    """Codes sampled a processor second, for one canvas of side x side codes."""
    prior.sample(2, 2, count=1)  # the first call initialises caches
    started = time.process_time()  # excludes other processes
    prior.sample(side, side, count=1)
    return side**2 / (time.process_time() - started)
