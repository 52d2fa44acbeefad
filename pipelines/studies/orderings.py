"""The study of code orderings: the seven orders in which the paper's priors predict codes."""

from __future__ import annotations

from typing import Any

from pipelines.recipes import PRIOR_RECIPES
from pipelines.studies.context import IMAGE_SIZE, TOKENIZER, StudyContext, prior_batch
from pipelines.studies.samples import sample_rows
from pipelines.studies.study import Column, ImageRow, Study
from prior import ORDERINGS

PRIOR = "study"


class Orderings(Study):
    """Priors that differ only in the order in which they predict the codes of a window."""

    title = "Seven orders of predicting a window's codes"
    paper = (
        "The paper (Esser et al. 2021, appendix, on the ordering of image representations) trains "
        "one transformer of ImageNet codes in each of these orders. Row by row came out best, at "
        "4.767 nats a code, and subsample worst, at 5.015. Here the priors of a seed have the same "
        "initial weights, batches and steps, so that only the order differs. Nats are of windows "
        "of 16x16 codes from the centre of held-out photographs and say nothing about how samples "
        "look: those are below, a row for each order."
    )
    variants = tuple(ORDERINGS)
    columns = (Column("nats_per_code", "nats a code, held out", 3),)

    def settings(self, context: StudyContext) -> dict[str, Any]:
        return {
            "tokenizer": TOKENIZER,
            "image_size": IMAGE_SIZE,
            "prior": PRIOR,
            "prior_steps": context.capped(PRIOR_RECIPES[PRIOR].steps),
            "prior_batch": prior_batch(PRIOR),
        }

    def prepare(self, context: StudyContext) -> None:
        context.study_codes()

    def measure(self, context: StudyContext, variant: str, seed: int) -> dict[str, float]:
        codes = context.out / "codes.zarr"
        trained = context.prior(PRIOR, codes, variant, seed, ordering=variant)
        return {"nats_per_code": context.nll(trained, codes)}

    def images(self, context: StudyContext, seed: int) -> list[ImageRow]:
        """Samples of each prior, of the size of its window."""
        return sample_rows(context, self.variants, seed)
