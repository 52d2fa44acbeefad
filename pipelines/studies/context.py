"""The public commands as a study calls them: train, encode, evaluate, each resumed by itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.config import UserError
from pipelines import encode, evaluate, train_prior, train_tokenizer
from pipelines.encoding import EncodeFlags
from pipelines.evaluate import EvaluateFlags
from pipelines.recipes import PRIOR_RECIPES, TOKENIZER_RECIPES
from pipelines.train_prior import TrainPriorFlags
from pipelines.train_tokenizer import TrainTokenizerFlags

HELD_OUT = 0.15  # of the photographs, by key: the same ones for tokenizers and priors
IMAGE_SIZE = 256  # pixels a side of what is encoded and measured
METRICS = "held_out_figures.json"  # in a run folder: what evaluate found


@dataclass(frozen=True, kw_only=True)
class StudyContext:
    """Where a study works, and with how much. All names of folders are below `out`."""

    data: Path
    out: Path
    threads: int | None = None
    steps: int | None = None
    """no training takes more than these"""
    perceptual: str = "none"
    """what train_tokenizer takes, for the studies that train with a perceptual loss"""
    shown: Path | None = None
    """photographs to show; None: those that come with the demo"""

    def capped(self, steps: int) -> int:
        """`steps`, or as many as a training may take."""
        return steps if self.steps is None else min(steps, self.steps)

    def tokenizer(self, recipe: str, name: str, seed: int, **flags: Any) -> Path:
        """The run folder `name` of a tokenizer trained on the photographs."""
        steps = self.capped(flags.pop("steps", TOKENIZER_RECIPES[recipe].steps))
        train_tokenizer.run(
            TrainTokenizerFlags(
                recipe=recipe, data=self.data, out=self.out / name, seed=seed, steps=steps,
                threads=self.threads, held_out=HELD_OUT, **flags,
            )
        )  # fmt: skip
        return self.out / name

    def quality(self, tokenizer: Path) -> dict[str, float]:
        """evaluate's figures of a trained tokenizer on the photographs held out; measured once."""
        path = tokenizer / METRICS
        if not path.is_file():
            evaluate.evaluate(
                EvaluateFlags(
                    kind="tokenizer", model=str(tokenizer), data=self.data, held_out=HELD_OUT,
                    image_size=IMAGE_SIZE, out=path,
                )
            )  # fmt: skip
        return _metrics(path)

    def codes(self, tokenizer: str | Path, name: str, **flags: Any) -> Path:
        """The store `name` of the photographs' codes, their mirrors with them.

        Raises UserError where most photographs could not be encoded.
        """
        given: dict[str, Any] = {"image_size": IMAGE_SIZE, "flip": "both", **flags}
        code = encode.encode(
            EncodeFlags(in_=self.data, out=self.out / name, tokenizer=str(tokenizer), **given)
        )
        if code:
            raise UserError(f"{self.data}: too few photographs could be encoded; see above.")
        return self.out / name

    def prior(self, recipe: str, codes: Path, name: str, seed: int, **flags: Any) -> Path:
        """The run folder `name` of a prior trained on a store's codes."""
        steps = self.capped(flags.pop("steps", PRIOR_RECIPES[recipe].steps))
        train_prior.run(
            TrainPriorFlags(
                recipe=recipe, codes=(codes,), out=self.out / name, seed=seed, steps=steps,
                threads=self.threads, held_out=HELD_OUT, **flags,
            )
        )  # fmt: skip
        return self.out / name

    def nll(self, prior: Path, codes: Path) -> float:
        """evaluate's nats a code of a trained prior on the photographs held out; measured once."""
        path = prior / METRICS
        if not path.is_file():
            evaluate.evaluate(
                EvaluateFlags(
                    kind="prior", model=str(prior), data=codes, held_out=HELD_OUT, out=path
                )
            )
        return _metrics(path)["nats_per_code"]


def _metrics(path: Path) -> dict[str, float]:
    metrics: dict[str, float] = json.loads(path.read_text())["metrics"]
    return metrics
