"""The study of sliding windows: windowed transformers against neighbourhood attention."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ops.windows import Grid, Window, raster
from pipelines.recipes import PRIOR_RECIPES
from pipelines.store import CodeStore
from pipelines.streaming import CodeDataset
from pipelines.studies.context import HELD_OUT, IMAGE_SIZE, TOKENIZER, StudyContext, prior_batch
from pipelines.studies.samples import sample_rows, sampling_speed
from pipelines.studies.study import Column, ImageRow, Study
from prior import Conditions, PriorModel, load_prior

RECIPES = {"windowed": "study", "windowed-modern": "study-modern", "local": "study-local"}
GRID = IMAGE_SIZE // 8  # side of the measured grids, codes
CANVAS = 64  # side of the canvas that is timed, codes


class Windows(Study):
    """Priors of one size that attend to windows of 16x16 codes, or to each code's neighbourhood."""

    title = "Sliding windows against neighbourhood attention"
    paper = (
        "The paper (Esser et al. 2021, section 3.2) samples large images through a sliding window, "
        "with a window for each code, and measures no prior without one. Here windowed is the "
        "paper's transformer, and windowed-modern has the parts of the neighbourhood prior (rotary "
        "position embeddings, RMS norms, SwiGLU, norms of queries and keys). All have the same "
        "layers and width, and read as many codes a step for as many steps. Nats are over every "
        "code of whole held-out grids of 32x32, each predicted as in sampling: with windows of "
        "stride 1, the paper's rule, or 8, the default; the neighbourhood prior has no windows."
    )
    variants = tuple(RECIPES)
    columns = (
        Column("nats_stride_1", "nats a code, stride 1", 3),
        Column("nats_stride_8", "nats a code, stride 8", 3),
        Column("millions_of_weights", "million weights", 2, plotted=False),
        Column("codes_per_second", "codes sampled a CPU second, 64x64", 0),
    )

    def settings(self, context: StudyContext) -> dict[str, Any]:
        found: dict[str, Any] = {"tokenizer": TOKENIZER, "image_size": IMAGE_SIZE}
        for variant, name in RECIPES.items():
            steps = context.capped(PRIOR_RECIPES[name].steps)
            found[variant] = f"{steps} steps of {prior_batch(name)}"
        return found

    def prepare(self, context: StudyContext) -> None:
        context.study_codes()

    def measure(self, context: StudyContext, variant: str, seed: int) -> dict[str, float]:
        codes = context.out / "codes.zarr"
        prior = load_prior(context.prior(RECIPES[variant], codes, variant, seed))
        grids = held_out_grids(codes)
        weights = sum(parameter.numel() for parameter in prior.model.parameters())
        return {
            "nats_stride_1": nll_as_sampled(prior.model, prior.conditions, grids, 1),
            "nats_stride_8": nll_as_sampled(prior.model, prior.conditions, grids, 8),
            "millions_of_weights": weights / 1e6,
            "codes_per_second": sampling_speed(prior, CANVAS),
        }

    def images(self, context: StudyContext, seed: int) -> list[ImageRow]:
        return sample_rows(context, self.variants, seed, GRID)


def held_out_grids(store: Path) -> Tensor:
    """Codes (N, GRID, GRID) of all held-out photographs."""
    dataset = CodeDataset(
        CodeStore.open(store),
        window=GRID,
        batch_size=64,
        held_out_share=HELD_OUT,
        may_be_all_held_out=True,
    )
    return torch.cat([batch["codes"] for batch in dataset.held_out_batches(most=1000)])


@torch.no_grad()
def nll_as_sampled(model: PriorModel, conditions: Conditions, grids: Tensor, stride: int) -> float:
    """Mean nats a code of codes (N, h, w), each given what sampling would have read before it."""
    tokens = conditions.null_tokens(len(grids))
    if model.config.default_stride is None:  # no windows: one forward predicts every code
        return float(model.nll(tokens, grids).double().mean())
    rows, columns = grids.shape[1:]
    grid = Grid(rows, columns, model.config.window, stride)
    cells_of: defaultdict[Window, list[tuple[int, int]]] = defaultdict(list)
    for cell in raster(rows, columns):
        cells_of[grid.window_of(*cell)].append(cell)
    total = 0.0
    for window, cells in cells_of.items():
        nll = model.nll(tokens, grids[:, *window.slices()]).double()
        total += sum(
            float(nll[:, row - window.row, column - window.column].sum()) for row, column in cells
        )
    return total / grids.numel()
