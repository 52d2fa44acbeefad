"""The public commands as studies call them: train, encode, evaluate; each resumes by itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.config import UserError
from pipelines import encode, evaluate, train_prior, train_tokenizer
from pipelines.encoding import EncodeFlags
from pipelines.evaluation import EvaluateFlags
from pipelines.recipes import PRIOR_RECIPES, TOKENIZER_RECIPES
from pipelines.training import TrainPriorFlags, TrainTokenizerFlags

HELD_OUT = 0.15  # share of the photographs, by key: the same for tokenizers and priors
TOKENIZER = "study-f8"  # the recipe of studies that compare priors only
IMAGE_SIZE = 256  # side of encoded and measured images, pixels
METRICS = "held_out_metrics.json"  # in a run folder: written by evaluate


@dataclass(frozen=True, kw_only=True)
class StudyContext:
    """Where a study reads and writes, and its limits. Names of folders are relative to `out`."""

    data: Path
    out: Path
    threads: int | None = None
    steps: int | None = None
    """upper limit of every training's steps"""
    perceptual: str = "none"
    """train_tokenizer's --perceptual, for studies that train with a perceptual loss"""
    shown: Path | None = None
    """folder of photographs to show; None: those of the demo"""

    def capped(self, steps: int) -> int:
        """`steps`, but at most the limit."""
        return steps if self.steps is None else min(steps, self.steps)

    def tokenizer(self, recipe: str, name: str, seed: int, **flags: Any) -> Path:
        """Train a tokenizer on the photographs; its run folder, `name`."""
        steps = self.capped(flags.pop("steps", TOKENIZER_RECIPES[recipe].steps))
        train_tokenizer.run(
            TrainTokenizerFlags(
                recipe=recipe, data=self.data, out=self.out / name, seed=seed, steps=steps,
                threads=self.threads, held_out=HELD_OUT, **flags,
            )
        )  # fmt: skip
        return self.out / name

    def quality(self, tokenizer: Path) -> dict[str, float]:
        """evaluate's metrics of a trained tokenizer on the held-out photographs, measured once."""
        path = tokenizer / METRICS
        if not path.is_file():
            evaluate.run(
                EvaluateFlags(
                    kind="tokenizer", model=str(tokenizer), data=self.data, held_out=HELD_OUT,
                    image_size=IMAGE_SIZE, out=path,
                )
            )  # fmt: skip
        return _metrics(path)

    def codes(self, tokenizer: str | Path, name: str, **flags: Any) -> Path:
        """Encode the photographs and their mirror images; the store, `name`.

        Raises UserError if too many photographs could not be encoded.
        """
        given: dict[str, Any] = {"image_size": IMAGE_SIZE, "flip": "both", **flags}
        code = encode.encode(
            EncodeFlags(in_=(self.data,), out=self.out / name, tokenizer=str(tokenizer), **given)
        )
        if code:
            raise UserError(f"{self.data}: too few photographs could be encoded; see above.")
        return self.out / name

    def prior(self, recipe: str, codes: Path, variant: str, seed: int, **flags: Any) -> Path:
        """Train a prior on a store's codes; its run folder, see prior_folder."""
        steps = self.capped(flags.pop("steps", PRIOR_RECIPES[recipe].steps))
        out = self.prior_folder(variant, seed)
        train_prior.run(
            TrainPriorFlags(
                recipe=recipe, codes=(codes,), out=out, seed=seed, steps=steps,
                threads=self.threads, held_out=HELD_OUT, **flags,
            )
        )  # fmt: skip
        return out

    def study_codes(self) -> Path:
        """The store `codes.zarr`, encoded by a tokenizer trained with the recipe TOKENIZER."""
        return self.codes(self.tokenizer(TOKENIZER, "tokenizer", seed=0), "codes.zarr")

    def prior_folder(self, variant: str, seed: int) -> Path:
        """Where a study puts the prior of one run."""
        return self.out / f"prior-{variant}-{seed}"

    def nll(self, prior: Path, codes: Path) -> float:
        """evaluate's nats a code of a trained prior on the held-out photographs, measured once."""
        path = prior / METRICS
        if not path.is_file():
            evaluate.run(
                EvaluateFlags(
                    kind="prior", model=str(prior), data=codes, held_out=HELD_OUT, out=path
                )
            )
        return _metrics(path)["nats_per_code"]


def prior_batch(recipe: str) -> str:
    """A training batch of a prior's recipe, in words."""
    of = PRIOR_RECIPES[recipe]
    return f"{of.batch_size} windows of {of.window}x{of.window} codes"


def _metrics(path: Path) -> dict[str, float]:
    metrics: dict[str, float] = json.loads(path.read_text())["metrics"]
    return metrics
