"""Training on a GPU: precision, compilation, and one process under NCCL."""

import dataclasses

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ops.ranks import ALONE
from pipelines.recipes import PRIOR_RECIPES, TOKENIZER_RECIPES
from pipelines.training.parallel import ParallelConfig
from pipelines.training.tokenizer_task import TokenizerTask
from prior import Conditions, StartOfSequence, condition_sizes, make_model, preset_config
from tests.prior_task import make_prior_task
from tokenizer import build_tokenizer

pytestmark = pytest.mark.gpu

CODES, WINDOW, BATCH = 32, 8, 8


def prior_task(gpu, preset="tiny", **how):
    torch.manual_seed(0)
    conditions = Conditions([StartOfSequence()], CODES)
    sizes = condition_sizes(preset, conditions, WINDOW)
    recipe = dataclasses.replace(PRIOR_RECIPES[preset], window=WINDOW, batch_size=BATCH)
    model = make_model(preset_config(preset, **sizes))
    return make_prior_task(model, conditions, recipe, ParallelConfig(**how), steps=200, device=gpu)


def batch_of(step):
    """Rows that repeat with a random shift: something to learn within 200 steps."""
    generator = torch.Generator().manual_seed(step)
    first = torch.randint(CODES, (BATCH, 1, 1), generator=generator)
    codes = (first + torch.arange(WINDOW) + 3 * torch.arange(WINDOW)[:, None]) % CODES
    return {
        "codes": codes,
        "label": torch.full((BATCH,), -1),
        "place": torch.tensor([0, 0, WINDOW, WINDOW]).repeat(BATCH, 1),
        "true_edges": torch.ones(BATCH, 3, dtype=torch.bool),
    }


def losses_of(task, steps):
    found = [
        task.train_step(task.prepare(batch_of(step), step), step)["loss"] for step in range(steps)
    ]
    return torch.stack(found).cpu()


def test_the_loss_in_bfloat16_is_that_of_float32(gpu):
    losses = [losses_of(prior_task(gpu, precision=name), 200) for name in ("float32", "bfloat16")]
    ends = [each[-20:].mean() for each in losses]
    assert ends[0] < losses[0][0] / 2  # it learns
    assert abs(ends[1] - ends[0]) <= 0.01 * losses[0].mean()


@pytest.mark.parametrize("preset", ["tiny", "tiny-local", "tiny-snail"])
def test_compiled_steps_are_those_of_the_plain_module(gpu, preset):
    plain, compiled = (
        losses_of(prior_task(gpu, preset, compile=compiles), 3) for compiles in (False, True)
    )
    torch.testing.assert_close(plain, compiled, rtol=1e-3, atol=1e-3)


def tokenizer_task(gpu, **how):
    torch.manual_seed(0)
    recipe = TOKENIZER_RECIPES["tiny"]
    losses = dataclasses.replace(recipe.losses, adversarial_start=2, adversarial_ramp=1)
    recipe = dataclasses.replace(recipe, losses=losses, batch_size=4, crop_size=32)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model = build_tokenizer("tiny", seed=0)
    return TokenizerTask(model, recipe, 10, images, gpu, ParallelConfig(**how)), images


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_tokenizer_goes_on_when_the_discriminator_starts(gpu):
    task, images = tokenizer_task(gpu, compile=True)
    for step in range(4):
        metrics = task.train_step(task.prepare(images, step), step)
        assert torch.isfinite(metrics["reconstruction_loss"])
    assert "real_logit" in metrics


def test_no_step_waits_for_the_gpu(real_gpu):
    prior = prior_task(real_gpu)
    tokenizer, images = tokenizer_task(real_gpu)
    work = ((prior, batch_of(0)), (tokenizer, images))
    for task, batch in work:  # the first steps initialise
        for step in range(3):
            task.train_step(task.prepare(batch, step), step)
    for task, batch in work:
        prepared = task.prepare(batch, 3)
        torch.cuda.set_sync_debug_mode("error")
        try:
            task.train_step(prepared, 3)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def one_process(gpu, monkeypatch):
    """A process group of this process alone."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "0")
    backend = "cpu:gloo,cuda:nccl" if gpu.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def test_ddp_over_a_compiled_objective_takes_the_plain_steps(gpu, one_process):
    plain = losses_of(prior_task(gpu), 3)
    task = prior_task(gpu, compile=True)
    own = [0] if gpu.type == "cuda" else None
    task.objective = DistributedDataParallel(
        task.objective, device_ids=own, gradient_as_bucket_view=True
    )
    torch.testing.assert_close(losses_of(task, 3), plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("how", [{"compile": True}, {"recompute": True}, {}], ids=str)
def test_a_sharded_prior_trains_saves_and_resumes(gpu, one_process, tmp_path, how):
    plain = losses_of(prior_task(gpu), 4)
    task = prior_task(gpu, shard=True, **how)
    torch.testing.assert_close(losses_of(task, 4), plain, rtol=1e-3, atol=1e-3)
    folder = tmp_path / "step"
    folder.mkdir()
    task.snapshot()(folder, ALONE)
    went_on = losses_of(task, 2)
    again = prior_task(gpu, shard=True, **how)
    again.load(folder)
    torch.testing.assert_close(losses_of(again, 2), went_on)
