"""In which order a prior should foretell a window's codes: the seven that the paper tried."""

from __future__ import annotations

from typing import Any

from pipelines.recipes import PRIOR_RECIPES
from pipelines.studies.context import IMAGE_SIZE, StudyContext
from pipelines.studies.samples import sample_row
from pipelines.studies.study import Column, PictureRow, Study
from prior import ORDERINGS

PRIOR = "study"
TOKENIZER = "study-f8"


class Orderings(Study):
    """Priors that differ in nothing but the order in which they read and foretell their window."""

    title = "Seven orders of foretelling a window's codes"
    paper = (
        "The paper (Esser et al. 2021, appendix, on the ordering of image representations) trains "
        "one transformer of ImageNet codes in each of these orders. Row by row came out best, at "
        "4.767 nats a code, and subsample worst, at 5.015. Here the priors have the same first "
        "weights, batches and steps under each seed, so what differs is the order alone. Nats are "
        "of windows of 16x16 codes from the middle of photographs held out, and say nothing of how "
        "samples look: those are below, one order a row."
    )
    variants = tuple(ORDERINGS)
    columns = (Column("nats_per_code", "nats a code, held out", 3),)

    def settings(self, context: StudyContext) -> dict[str, Any]:
        recipe = PRIOR_RECIPES[PRIOR]
        return {
            "tokenizer": TOKENIZER,
            "image_size": IMAGE_SIZE,
            "prior": PRIOR,
            "prior_steps": context.capped(recipe.steps),
            "prior_batch": f"{recipe.batch_size} windows of {recipe.window}x{recipe.window} codes",
        }

    def prepare(self, context: StudyContext) -> None:
        context.codes(context.tokenizer(TOKENIZER, "tokenizer", seed=0), "codes.zarr")

    def measure(self, context: StudyContext, variant: str, seed: int) -> dict[str, float]:
        codes = context.out / "codes.zarr"
        trained = context.prior(PRIOR, codes, f"prior-{variant}-{seed}", seed, ordering=variant)
        return {"nats_per_code": context.nll(trained, codes)}

    def pictures(self, context: StudyContext, seed: int) -> list[PictureRow]:
        """What each prior paints in its order, of the size of its window."""
        return [
            sample_row(variant, context.out / f"prior-{variant}-{seed}")
            for variant in self.variants
        ]
