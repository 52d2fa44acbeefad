"""What the priors of a study paint, as rows of pictures to compare."""

from __future__ import annotations

from pathlib import Path

from ops.images import to_image
from pipelines.studies.study import PictureRow
from prior import load_prior
from tokenizer import load_tokenizer

PICTURES = 4  # side by side
TOP_P = 0.92  # as the demo draws: a prior this small gives rare codes too much weight


def sample_row(heading: str, run: Path, side: int | None = None) -> PictureRow:
    """The first samples of a prior's run folder, `side` x `side` codes or as large as its window.

    Raises CheckpointError where the folder holds no prior, or no tokenizer.
    """
    prior, tokenizer = load_prior(run), load_tokenizer(run / "tokenizer")
    side = prior.config.window if side is None else side
    codes = prior.sample(side, side, count=PICTURES, seed=0, top_p=TOP_P)
    return PictureRow(heading, [to_image(tokenizer.decode(each[None]))[0] for each in codes])
