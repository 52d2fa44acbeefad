"""The train task of a prior: steps on codes, weight averages, held-out likelihood, samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from ops.checkpoint import read_description
from ops.images import image_grid, to_image
from ops.meta_device import on_meta_device
from ops.runtime import autocast, pinned
from ops.tensor_files import (
    load_state,
    load_weights,
    save_state,
    save_tensors,
    state_errors_explained,
)
from pipelines.training.loop import Evaluation, TrainTask, step_seed
from pipelines.training.optimizer import WeightAverage, evaluating, make_optimizer, take_step
from pipelines.training.parallel import (
    BROADCAST,
    GATHER,
    SCATTER,
    SINGLE_PROCESS,
    ParallelConfig,
    gather_weights,
    no_sync,
    scatter_weights,
    shard,
    wrap_ddp,
)
from pipelines.training.plots import plot_loss_map
from pipelines.training.recipe import PriorRecipe
from prior import (
    MODEL_KIND,
    Conditions,
    LocalConfig,
    LocalGPT,
    LossSettings,
    Objective,
    Prior,
    PriorConfig,
    PriorModel,
    make_model,
    perturbed,
    save_prior,
    training_objective,
)
from tokenizer import VQGAN

CodeBatch = dict[str, Tensor]
SAMPLES = 4  # generated at each evaluation, from the same random numbers each time


class PriorTask(TrainTask[CodeBatch]):
    """Trains on {"codes": (B, h, w), "label": (B,), ...}, int64; see CodeDataset.train_batch.

    B is the process's part of the recipe's batch: rank r has its positions r, r + world, ...
    Samples are decoded by `tokenizer`; beyond labels, they are conditioned on the first samples of
    `held_out`, or else on those of `examples`.
    """

    def __init__(
        self,
        model: PriorModel,
        conditions: Conditions,
        tokenizer: VQGAN,
        tokenizer_info: Mapping[str, Any],
        recipe: PriorRecipe,
        *,
        steps: int,
        seed: int,
        held_out: list[CodeBatch],
        device: torch.device,
        examples: CodeBatch | None = None,
        parallel_config: ParallelConfig = SINGLE_PROCESS,
    ) -> None:
        self.device, self.recipe, self.steps, self.seed = device, recipe, steps, seed
        self.parallel_config = parallel_config
        # fully_shard moves each shard to the device; the whole model may not fit there.
        self.model = (model if parallel_config.shard else model.to(device)).train()
        self.model.recompute_activations = parallel_config.recompute
        self.conditions, self.tokenizer_info = conditions, dict(tokenizer_info)
        self.tokenizer, self.held_out = tokenizer, held_out
        self.examples = held_out[0] if held_out else examples
        self.objective = self._make_objective()
        self.optimizer = make_optimizer(self.model, recipe.optimizer)
        self.average = WeightAverage(self.model, recipe.optimizer.ema_decay)

    def _make_objective(self) -> nn.Module:
        """The module to call in training, compiled and wrapped by DDP or FSDP as configured."""
        parallel_config = self.parallel_config
        objective = PriorObjective(self.model, self.recipe.loss)
        if parallel_config.compile:
            objective.compile()
        if parallel_config.shard:
            shard(objective, self.model.blocks, parallel_config.ranks, self.device)
            return objective
        return wrap_ddp(objective, parallel_config.ranks, self.device)

    def prepare(self, batch: CodeBatch, step: int) -> CodeBatch:
        """Condition tokens, target codes and input codes.

        What is random in them is seeded by each sample's position in the run.
        """
        codes = batch["codes"]
        generators = self._generators(step, len(codes))
        share = self.recipe.label_dropout
        tokens = self.conditions.training_tokens(batch, generators, share)
        inputs = codes
        if self.recipe.loss.pkeep < 1:
            size = self.model.config.codebook_size
            inputs = torch.stack(
                [
                    perturbed(code, self.recipe.loss.pkeep, size, generator)
                    for code, generator in zip(codes, generators, strict=True)
                ]
            )
        prepared = {"tokens": tokens, "codes": codes, "inputs": inputs}
        valid_mask = valid_cells(self.model, batch)
        if valid_mask is not None:
            prepared["valid_mask"] = valid_mask
        return {name: pinned(tensor, self.device) for name, tensor in prepared.items()}

    def _generators(self, step: int, count: int) -> list[torch.Generator]:
        """A generator for each of this process's samples, the same for any number of ranks."""
        ranks = self.parallel_config.ranks
        first = step * self.recipe.batch_size + ranks.rank
        positions = range(first, first + count * ranks.world, ranks.world)
        return [torch.Generator().manual_seed(step_seed(self.seed, p)) for p in positions]

    def train_step(self, batch: CodeBatch, step: int) -> Mapping[str, Tensor]:
        config = self.recipe.optimizer
        nll: list[Tensor] = []
        rate = config.rate_at(step, self.steps)
        losses, ranks = self._losses(batch, nll), self.parallel_config.ranks
        norm = take_step(self.optimizer, losses, rate, config.max_gradient_norm, ranks)
        self.average.update(self.model, step)
        total, cells = torch.stack(nll).sum(0)
        mean = total / cells.clamp(min=1)
        return {
            "loss": mean,
            "bits_per_code": mean / math.log(2),
            "gradient_norm": norm,
            "learning_rate": torch.tensor(rate),
        }

    def _losses(self, batch: CodeBatch, nll: list[Tensor]) -> Iterator[Tensor]:
        """The loss of each micro-batch; appends its summed nats and its number of cells, (2,), to
        `nll`."""
        moved = {name: t.to(self.device, non_blocking=True) for name, t in batch.items()}
        count = self.parallel_config.accumulate
        for number in range(count):
            part = {name: tensor.chunk(count)[number] for name, tensor in moved.items()}
            with no_sync(self.objective, enabled=number < count - 1):
                with autocast(self.device):
                    objective = self.objective(**part)
                nll.append(torch.stack(_sum_and_count(objective.nll, part.get("valid_mask"))))
                yield objective.loss / count

    def amounts(self) -> Mapping[str, int]:
        return {"codes": self.recipe.batch_size * self.recipe.window**2}

    def save(self, folder: Path | None) -> None:
        tensors = gather_weights(self.model)
        optimizer = get_optimizer_state_dict(self.model, self.optimizer, options=GATHER)
        if folder is not None:
            save_prior(folder, self.model, self.conditions, self.tokenizer_info, tensors)
            save_state(folder / "train_state.pt", {"optimizer": optimizer})
        with evaluating(self.model, self.average.tensors):
            averages = gather_weights(self.model)
            if folder is not None:
                save_tensors(folder / "ema.safetensors", averages)

    def load(self, folder: Path) -> None:
        read_description(folder, MODEL_KIND)
        with on_meta_device():
            outline = make_model(self.model.config)
        averages = load_weights(folder / "ema.safetensors", outline)
        tensors = load_weights(folder / "model.safetensors", outline)
        scatter_weights(self.model, averages)
        self.average.load(self.model.state_dict())
        scatter_weights(self.model, tensors)
        state = load_state(folder / "train_state.pt", self.device)
        with state_errors_explained(folder / "train_state.pt"):
            optimizer = state["optimizer"]
            set_optimizer_state_dict(self.model, self.optimizer, optimizer, options=SCATTER)

    def evaluate(self, step: int) -> Evaluation:
        metrics: dict[str, float] = {}
        images: dict[str, np.ndarray] = {}
        with self._averaged() as model:
            if self.held_out:
                found = held_out_nll(model, self.conditions, self.held_out, self.device)
                metrics["held_out_loss"] = found.mean
                images["loss_map"] = plot_loss_map(found.places.numpy())
            images["samples"] = self._samples(model)
        return Evaluation(metrics, images, metrics.get("held_out_loss", math.inf))

    @contextmanager
    def _averaged(self) -> Iterator[PriorModel]:
        """The model with its averaged weights, for evaluation."""
        if not self.parallel_config.shard:
            with evaluating(self.model, self.average.tensors):
                yield self.model
            return
        # An unsharded copy on every rank, since sampling would gather the shards again for each
        # token. A model whose training needs several GPUs may still fit on one for inference.
        model = make_model(self.model.config).to(self.device)
        with evaluating(self.model, self.average.tensors):
            averages = gather_weights(self.model)
        scatter_weights(model, averages, BROADCAST)
        with torch.no_grad():
            yield model.eval()

    def _samples(self, model: PriorModel) -> np.ndarray:
        prior = Prior(model, self.conditions, self.tokenizer_info)
        side = model.config.window
        codes = prior.sample(
            side, side, count=SAMPLES, seed=self.seed, condition_inputs=self._condition_inputs()
        )
        images = to_image(torch.cat([self.tokenizer.decode(c[None]) for c in codes]))
        return image_grid(images, columns=SAMPLES)

    def _condition_inputs(self) -> dict[str, Tensor]:
        """Classes spread evenly; with other conditions, those of the first examples."""
        if set(self.conditions.entries) <= {"label"}:
            # The null token comes after the classes, so it is their number.
            classes = [part.null_token for part in self.conditions.parts if "label" in part.entries]
            return {"label": torch.arange(SAMPLES) * classes[0] // SAMPLES} if classes else {}
        if self.examples is None:
            return {}
        return self.conditions.examples(self.examples, held_out_generators(0, SAMPLES))


class PriorObjective(nn.Module):
    """training_objective as a module, since DDP and FSDP act when a module is called."""

    def __init__(self, model: PriorModel, settings: LossSettings) -> None:
        super().__init__()
        self.model, self.settings = model, settings

    def forward(
        self, tokens: Tensor, codes: Tensor, inputs: Tensor, valid_mask: Tensor | None = None
    ) -> Objective:
        """See training_objective."""
        return training_objective(self.model, tokens, codes, inputs, self.settings, valid_mask)


def valid_cells(model: PriorModel, batch: CodeBatch) -> Tensor | None:
    """Mask (B, h, w) of the cells that training and measuring count; None for all.

    A windowed prior never attends beyond its window. A LocalGPT attends to all codes within its
    reach, so in a crop only the cells whose neighbourhood is not cut off count.
    """
    if not isinstance(model, LocalGPT):
        return None
    edges, (rows, columns) = batch["true_edges"], batch["codes"].shape[1:]
    bottom = torch.ones(len(edges), dtype=torch.bool)
    if model.config.condition_grids:  # codes attend to grid cells below them
        bottom = batch["place"][:, 0] + rows == batch["place"][:, 2]
    edges = torch.cat([edges, bottom[:, None]], dim=1)
    return None if edges.all() else model.uncut(edges, rows, columns)


def held_out_cut(config: PriorConfig) -> float:
    """Where to cut windows from larger held-out grids, see CodeDataset.held_out_batches.

    In the middle (0.5); for a LocalGPT in the corner (0), where a crop cuts off the fewest
    neighbourhoods.
    """
    return 0.0 if isinstance(config, LocalConfig) else 0.5


def _sum_and_count(nll: Tensor, valid_mask: Tensor | None, *dims: int) -> tuple[Tensor, Tensor]:
    """Sum of `nll` (B, h, w) over valid cells, and their number; over `dims`, or over all."""
    valid_mask = torch.ones_like(nll) if valid_mask is None else valid_mask.to(nll.dtype)
    return (nll * valid_mask).sum(dims or None), valid_mask.sum(dims or None)


def held_out_generators(first: int, count: int) -> list[torch.Generator]:
    """Generators for held-out samples `first` and on, the same at every evaluation."""
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


class HeldOutNLL(NamedTuple):
    """Negative log-likelihood in nats per code."""

    mean: float
    places: Tensor  # (h, w), the mean at each cell of the window; nan where none was measured


def held_out_nll(
    model: PriorModel, conditions: Conditions, batches: list[CodeBatch], device: torch.device
) -> HeldOutNLL:
    """The negative log-likelihood of the batches' codes, over their valid cells."""
    totals, counts, first = torch.zeros(()), torch.zeros(()), 0
    for batch in batches:
        generators = held_out_generators(first, len(batch["codes"]))
        first += len(generators)
        tokens = conditions.training_tokens(batch, generators, drop_share=0.0)
        nll = model.nll(tokens.to(device), batch["codes"].to(device)).double().cpu()
        total, count = _sum_and_count(nll, valid_cells(model, batch), 0)
        totals, counts = totals + total, counts + count
    return HeldOutNLL(float(totals.sum() / counts.sum()), totals / counts)
