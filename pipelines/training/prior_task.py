"""The train task of a prior: steps on codes, weight averages, held-out likelihood, samples."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ops.checkpoint import read_description
from ops.device_memory import CudaMemory
from ops.images import image_grid, to_image
from ops.meta_device import on_meta_device
from ops.precision import autocast
from ops.ranks import ALONE, Ranks
from ops.runtime import pinned
from ops.tensor_files import (
    load_state,
    load_weights,
    save_state,
    save_tensors,
    state_errors_explained,
)
from pipelines.console import show_error
from pipelines.training.checkpoint_writer import WriteState
from pipelines.training.estimate import prior_flop
from pipelines.training.loop import FINITE, Evaluation, TrainTask, step_seed
from pipelines.training.optimizer import WeightAverage, evaluating, make_optimizer, take_step
from pipelines.training.parallel import (
    SINGLE_PROCESS,
    ParallelConfig,
    no_sync,
    resharded,
    scatter_weights,
    shard,
    wrap_ddp,
)
from pipelines.training.peak_rate import device_name, peak_share
from pipelines.training.plots import plot_loss_map
from pipelines.training.recipe import PriorRecipe
from pipelines.training.sharded_tensors import (
    Part,
    copied_parts,
    gather_parts,
    load_optimizer,
    optimizer_parts,
    save_parts,
)
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
Parts = Mapping[str, Part]
SAMPLES = 4  # generated at each evaluation, from the same random numbers each time
SAMPLING_SHARE = 2  # memory for sampling with a sharded model, as a multiple of its weights'


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
            # Whole where possible; shards are gathered between blocks, outside of any graph.
            for module in self.model.blocks if parallel_config.shard else [objective]:
                module.compile()
        if parallel_config.shard:
            precision, blocks = parallel_config.precision, self.model.blocks
            shard(objective, blocks, parallel_config.ranks, self.device, precision)
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
        norm, finite = take_step(self.optimizer, losses, rate, config.max_gradient_norm, ranks)
        self.average.update(self.model, step, finite)
        total, cells = torch.stack(nll).sum(0)
        mean = total / cells.clamp(min=1)
        return {
            "loss": mean,
            "bits_per_code": mean / math.log(2),
            "gradient_norm": norm,
            "learning_rate": torch.tensor(rate),
            FINITE: finite,
        }

    def _losses(self, batch: CodeBatch, nll: list[Tensor]) -> Iterator[Tensor]:
        """The loss of each micro-batch; appends its summed nats and its number of cells, (2,), to
        `nll`."""
        moved = {name: t.to(self.device, non_blocking=True) for name, t in batch.items()}
        count = self.parallel_config.accumulate
        for number in range(count):
            part = {name: tensor.chunk(count)[number] for name, tensor in moved.items()}
            with no_sync(self.objective, enabled=number < count - 1):
                with autocast(self.device, self.parallel_config.precision):
                    objective = self.objective(**part)
                nll.append(torch.stack(_sum_and_count(objective.nll, part.get("valid_mask"))))
                yield objective.loss / count

    def amounts(self) -> Mapping[str, int]:
        return {"codes": self.recipe.batch_size * self.recipe.window**2}

    def peak_share(self, steps_per_second: float) -> float | None:
        world = self.parallel_config.ranks.world
        return peak_share(lambda: self._flop, steps_per_second, self.device, world)

    @functools.cached_property
    def _flop(self) -> int:
        return self.recipe.batch_size * prior_flop(self.model.config)

    def description(self) -> Mapping[str, str]:
        precision = self.parallel_config.precision
        return {"device": device_name(self.device), "precision": precision}

    def snapshot(self) -> WriteState:
        weights = copied_parts(self.model.state_dict())
        averages = copied_parts(self.average.tensors)
        moments, steps = optimizer_parts(self.model, self.optimizer)
        if not self.parallel_config.shard and not self.parallel_config.ranks.is_first:
            return lambda folder, ranks: None
        return functools.partial(self._write, weights, averages, moments, steps)

    def _write(
        self,
        weights: Parts,
        averages: Parts,
        moments: Parts,
        steps: Mapping[str, Tensor],
        folder: Path,
        ranks: Ranks,
    ) -> None:
        if not self.parallel_config.shard:
            ranks = ALONE
        tensors = gather_parts(weights, ranks)
        with ranks.errors_shared():
            if ranks.is_first:
                save_prior(folder, self.model, self.conditions, self.tokenizer_info, tensors)
        tensors = gather_parts(averages, ranks)
        with ranks.errors_shared():
            if ranks.is_first:
                save_tensors(folder / "ema.safetensors", tensors)
                save_state(folder / "train_state.pt", {"optimizer_steps": dict(steps)})
            save_parts(folder, moments, ranks)

    def load(self, folder: Path) -> None:
        read_description(folder, MODEL_KIND)
        with on_meta_device():
            outline = make_model(self.model.config)
        averages = load_weights(folder / "ema.safetensors", outline)
        scatter_weights(self.model, averages)
        self.average.load(self.model.state_dict())
        scatter_weights(self.model, load_weights(folder / "model.safetensors", outline))
        state = load_state(folder / "train_state.pt")
        with state_errors_explained(folder / "train_state.pt"):
            load_optimizer(folder, self.model, self.optimizer, state["optimizer_steps"])

    def evaluate(self, step: int) -> Evaluation:
        metrics: dict[str, float] = {}
        images: dict[str, np.ndarray] = {}
        ranks = self.parallel_config.ranks
        with evaluating(self.model, self.average.tensors), resharded(self.objective):
            if self.held_out:
                found = held_out_nll(
                    self.model, self.conditions, self.held_out, self.device, ranks, self._nll
                )
                metrics["held_out_loss"] = found.mean
                images["loss_map"] = plot_loss_map(found.places.numpy())
            model = self._whole_model() if self.parallel_config.shard else self.model
            if ranks.is_first and model is not None:
                images["samples"] = self._samples(model)
        return Evaluation(metrics, images, metrics.get("held_out_loss", math.inf))

    def _nll(self, tokens: Tensor, codes: Tensor) -> Tensor:
        """model.nll, in the precision of training."""
        with autocast(self.device, self.parallel_config.precision):
            if not self.parallel_config.shard:
                return self.model.nll(tokens, codes)
            nll: Tensor = self.objective(tokens, codes, codes).nll  # gathers shards when called
            return nll

    def _whole_model(self) -> PriorModel | None:
        """On rank 0 an unsharded copy of the model, for sampling; None where it does not fit there.

        Sampling would else gather the shards again for each token. A collective.
        """
        ranks, state = self.parallel_config.ranks, self.model.state_dict()
        bfloat16 = self.parallel_config.precision == "bfloat16"
        dtype = torch.bfloat16 if bfloat16 else torch.float32
        needed = SAMPLING_SHARE * sum(t.numel() * dtype.itemsize for t in state.values())
        on_gpu = self.device.type == "cuda"
        free = ranks.broadcast(CudaMemory(self.device).free() if on_gpu else needed)
        if needed > free:
            if ranks.is_first:
                show_error(
                    f"The samples are left out: the whole model needs {needed / 2**30:.1f} GiB on "
                    f"the first worker's GPU, {free / 2**30:.1f} GiB are free."
                )
            return None
        tensors = gather_parts(copied_parts(state), ranks)
        if not ranks.is_first:
            return None
        with on_meta_device():
            model = make_model(self.model.config)
        moved = {  # as inference_copy has it, the head stays in float32
            name: t.to(self.device, torch.float32 if name.startswith("head.") else dtype)
            for name, t in tensors.items()
        }
        model.load_state_dict(moved, assign=True)
        return model.eval()

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
    rows: Tensor  # (n, 2), nats and cells of each row that this process computed


def held_out_nll(
    model: PriorModel,
    conditions: Conditions,
    batches: list[CodeBatch],
    device: torch.device,
    ranks: Ranks = ALONE,
    nll: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> HeldOutNLL:
    """The negative log-likelihood of the batches' codes, over their valid cells; a collective.

    Each process computes some of the batches, equally many: where they do not divide evenly, some
    compute one that does not count. `nll` replaces the model's own.
    """
    firsts = [0, *itertools.accumulate(len(batch["codes"]) for batch in batches)]
    shape = batches[0]["codes"].shape[1:]
    sums = torch.zeros(2, *shape, dtype=torch.float64)  # of nats and of cells
    rows = [torch.zeros(0, 2, dtype=torch.float64)]
    for number in range(ranks.rank, -(-len(batches) // ranks.world) * ranks.world, ranks.world):
        counts = number < len(batches)
        chosen = number if counts else 0
        batch = batches[chosen]
        generators = held_out_generators(firsts[chosen], len(batch["codes"]))
        tokens = conditions.training_tokens(batch, generators, drop_share=0.0)
        found = (nll or model.nll)(tokens.to(device), batch["codes"].to(device)).double().cpu()
        if counts:
            valid_mask = valid_cells(model, batch)
            sums += torch.stack(_sum_and_count(found, valid_mask, 0))
            rows.append(torch.stack(_sum_and_count(found, valid_mask, 1, 2), dim=1))
    totals, cells = ranks.mean(sums)
    return HeldOutNLL(float(totals.sum() / cells.sum()), totals / cells, torch.cat(rows))
