"""Two processes that train together, against one that trains alone."""

import dataclasses
import functools
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.utils._python_dispatch import TorchDispatchMode

from ops.checkpoint import newest_step
from ops.metrics_log import read_metrics
from ops.ranks import ALONE, Ranks, all_samples, from_first, ranks_here
from pipelines.recipes import PRIOR_RECIPES, TOKENIZER_RECIPES
from pipelines.training.loop import LoopSettings, Source, step_seed, train
from pipelines.training.parallel import ParallelConfig
from pipelines.training.prior_task import PriorTask
from pipelines.training.run_folder import RunFolder
from pipelines.training.tokenizer_task import TokenizerTask
from prior import GPT, ClassLabel, Conditions, GPTConfig, LossSettings, load_prior
from tests.tokenizer.test_quantizers import CONFIGS as QUANTIZER_CONFIGS
from tokenizer import build_tokenizer
from tokenizer.discriminator import DiscriminatorConfig
from tokenizer.quantizers import QUANTIZERS

CODES, SIDE, BATCH, STEPS = 9, 4, 8, 4
CPU = torch.device("cpu")
EVERY_TERM = {
    "adversarial_start": 0,
    "adversarial_ramp": 2,
    "lecam_weight": 0.1,
    "r1_weight": 1.0,
    "r1_every": 2,
    "discriminator": DiscriminatorConfig(channels=8, spectral_norm=True),
}
LOGGED = ("loss", "gradient_norm")
NAMED = (
    *LOGGED, "adaptive_weight", "adversarial_loss", "discriminator_loss",
    "discriminator_gradient_norm", "lecam_loss", "real_logit", "fake_logit",
)  # fmt: skip


def prior_task(parallel_config):
    """An untrained one with all random parts: dropped labels, noisy inputs."""
    torch.manual_seed(0)
    conditions = Conditions([ClassLabel(num_classes=3)], CODES)
    config = GPTConfig(
        codebook_size=CODES,
        condition_vocab_size=4,
        condition_length=1,
        window=SIDE,
        num_layers=2,
        num_heads=2,
        width=8,
    )
    recipe = dataclasses.replace(
        PRIOR_RECIPES["tiny"],
        window=SIDE,
        label_dropout=0.5,
        loss=LossSettings(pkeep=0.7, z_loss_weight=0.01),
    )
    held_out = [codes_batch(100, ALONE)]
    return PriorTask(
        GPT(config),
        conditions,
        build_tokenizer("tiny", seed=0),
        {
            "name": "tiny",
            "fingerprint": "0" * 16,
            "codebook_size": CODES,
            "downsample_factor": 8,
        },
        recipe,
        steps=STEPS,
        seed=0,
        held_out=held_out,
        device=CPU,
        parallel_config=parallel_config,
    )


def tokenizer_task(parallel_config, **losses):
    torch.manual_seed(0)
    recipe = TOKENIZER_RECIPES["tiny"]
    losses = {"adversarial_start": 10**6, **losses}
    recipe = dataclasses.replace(recipe, losses=dataclasses.replace(recipe.losses, **losses))
    model = build_tokenizer("tiny", seed=0)
    model.quantizer.restart_after = 2  # so that codes are restarted within the few steps
    return TokenizerTask(model, recipe, STEPS, torch.empty(0), CPU, parallel_config)


def codes_batch(step, ranks):
    random = torch.Generator().manual_seed(step)
    codes = torch.randint(CODES, (BATCH, SIDE, SIDE), generator=random)
    label = torch.randint(-1, 3, (BATCH,), generator=random)
    return {"codes": codes[ranks.rank :: ranks.world], "label": label[ranks.rank :: ranks.world]}


def pixels_batch(step, ranks):
    random = torch.Generator().manual_seed(step)
    return torch.rand(BATCH, 3, 32, 32, generator=random)[ranks.rank :: ranks.world] * 2 - 1


def save(train_task, folder, ranks):
    """A checkpoint, written by all ranks."""
    write = train_task.snapshot()
    if ranks.is_first:
        folder.mkdir()
    ranks.broadcast(None)  # the folder is there
    write(folder, ranks)
    ranks.broadcast(None)  # and complete


class CollectiveCounter(TorchDispatchMode):
    """Counts calls of torch.distributed's collectives of a name."""

    def __init__(self, name):
        super().__init__()
        self.name, self.count = name, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.namespace == "c10d" and self.name in func.name()
        return func(*args, **(kwargs or {}))


def losses_of(train_task, batches, ranks, steps=range(STEPS), named=LOGGED):
    """The named metrics at each step, averaged over all ranks."""
    found = []
    for step in steps:
        torch.manual_seed(step_seed(0, step, ranks.rank))
        batch = train_task.prepare(batches(step, ranks), step)
        metrics = train_task.train_step(batch, step)
        found.append([float(ranks.mean(metrics[n])) for n in named])
    return torch.tensor(found)


def _enter(rank, work, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    result = work(ranks_here())
    torch.save(result, Path(folder) / f"result-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def by_two(work):
    """What work(ranks) returns in each of two processes.

    A fork server imports torch and this module once for all of them.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _enter, (work, folder), nprocs=2, start_method="forkserver"
        )
        return [torch.load(Path(folder) / f"result-{rank}.pt") for rank in range(2)]


def train_both(folder, ranks):
    """Losses of both kinds of train task on these ranks, and of a resumed sharded one."""
    plain = ParallelConfig(ranks=ranks)
    sharded = ParallelConfig(ranks=ranks, shard=ranks.world > 1)
    found = {
        "prior": losses_of(prior_task(plain), codes_batch, ranks),
        "parts": losses_of(
            prior_task(dataclasses.replace(plain, accumulate=2)), codes_batch, ranks
        ),
        "tokenizer": losses_of(tokenizer_task(plain), pixels_batch, ranks),
        "discriminator": losses_of(
            tokenizer_task(plain, **EVERY_TERM), pixels_batch, ranks, named=NAMED
        ),
    }
    train_task = tokenizer_task(plain, **EVERY_TERM)
    losses_of(train_task, pixels_batch, ranks, range(1))
    discriminator = train_task.objective.discriminator
    found["gradients"] = torch.cat(
        [
            p.grad.flatten()
            for module in (train_task.model, discriminator)
            for p in module.parameters()
        ]
    )
    train_task = prior_task(sharded)
    found["sharded"] = losses_of(train_task, codes_batch, ranks, range(2))
    found["held out"] = torch.tensor(train_task.evaluate(2).loss)
    save(train_task, folder, ranks)
    found["after evaluation"] = losses_of(train_task, codes_batch, ranks, range(2, 4))
    again = prior_task(sharded)
    again.load(folder)
    found["resumed"] = losses_of(again, codes_batch, ranks, range(2, 4))
    return found


def sharded_steps(alone_folder, ranks):
    """Of a sharded prior: steps in bfloat16, compiled ones, ones from a checkpoint of one process,
    reductions of gradients by number of micro-batches, and the shapes of Adam's state."""
    found = {}
    sharded = ParallelConfig(ranks=ranks, shard=True)
    in_bfloat16 = prior_task(dataclasses.replace(sharded, precision="bfloat16"))
    found["bfloat16"] = losses_of(in_bfloat16, codes_batch, ranks)
    found["held out"] = in_bfloat16.evaluate(STEPS).loss
    resumed = prior_task(sharded)
    resumed.load(alone_folder)
    for name, parameter in resumed.model.named_parameters():
        for moment in ("exp_avg", "exp_avg_sq"):
            tensor = resumed.optimizer.state[parameter][moment]
            assert tensor.to_local().numel() <= -(-len(tensor) // 2) * tensor[0].numel(), name
    found["from one"] = losses_of(resumed, codes_batch, ranks, range(2, 4))
    with pytest.MonkeyPatch.context() as patch:  # graphs are traced, but no code is generated
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
        compiled = prior_task(dataclasses.replace(sharded, compile=True))
        found["compiled"] = losses_of(compiled, codes_batch, ranks, range(2))
    for accumulate in (1, 2):
        train_task = prior_task(dataclasses.replace(sharded, accumulate=accumulate))
        losses_of(train_task, codes_batch, ranks, range(1))
        with CollectiveCounter("reduce_scatter") as counter:
            losses_of(train_task, codes_batch, ranks, range(1, 2))
        found[f"reductions {accumulate}"] = counter.count
    return found


def train_run(run, kill, ranks):
    """A sharded run of six steps that saves after three; with `kill`, both processes get a SIGKILL
    while they make a later batch."""

    def batches(start, stop):
        for step in range(start, stop):
            if kill and step == 5:
                while newest_step(run) is None:
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
            yield codes_batch(step, ranks)

    train_task = prior_task(ParallelConfig(ranks=ranks, shard=ranks.world > 1))
    settings = LoopSettings(steps=6, save_every=3, log_every=1, sample_every=100, keep=9)
    return train(
        train_task, Source(batches), RunFolder(run), settings, ranks, lambda done, note: None
    )


def losses_in(run):
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]


def weights_after_steps(ranks):
    """A tokenizer's and its discriminator's weights after steps with all losses."""
    train_task = tokenizer_task(ParallelConfig(ranks=ranks, accumulate=2), adversarial_start=0)
    losses_of(train_task, pixels_batch, ranks)
    return [
        *train_task.model.state_dict().values(),
        *train_task.objective.discriminator.parameters(),
    ]


def quantizers_after_steps(ranks):
    """The state of each kind of quantizer, behind a convolution, after steps on these ranks."""
    found = {}
    for kind, config in QUANTIZER_CONFIGS.items():
        torch.manual_seed(0)
        # A softer entropy than the default, whose gradient near 0 would magnify rounding.
        config = dataclasses.replace(config, restart_after=2, entropy_temperature=1.0)
        quantizer = QUANTIZERS[kind](config)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, config.code_dim, 8, stride=8), quantizer)
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(learned, lr=0.1)
        for step in range(STEPS):
            torch.manual_seed(step_seed(0, step, ranks.rank))
            quantized = model(pixels_batch(step, ranks))
            optimizer.zero_grad()
            (quantized.latents.square().mean() + quantized.loss).backward()
            ranks.average_gradients(model)
            optimizer.step()
        found[kind] = model.state_dict()
    return found


def call_collectives(ranks):
    """The result of each collective of ops.ranks."""
    own = torch.tensor([[10.0 * place + ranks.rank] for place in range(2)])
    return {
        "mean": ranks.mean(own),
        "samples": all_samples(own),
        "from_first": from_first(own.clone()),
        "broadcast": torch.tensor(ranks.broadcast(ranks.rank)),
    }


def do_all(folder, ranks):
    taken = [train_run(folder / run, False, ranks) for run in ("killed", "whole")]
    return {
        "losses": train_both(folder / "by-two", ranks),
        "sharded": sharded_steps(folder / "by-one", ranks),
        "taken": taken,
        "weights": weights_after_steps(ranks),
        "quantizers": quantizers_after_steps(ranks),
        **call_collectives(ranks),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of one process after two steps, and a run whose two processes were killed."""
    folder = tmp_path_factory.mktemp("folder")
    train_task = prior_task(ParallelConfig())
    losses_of(train_task, codes_batch, ALONE, range(2))
    save(train_task, folder / "by-one", ALONE)
    with pytest.raises(torch.multiprocessing.ProcessExitedException, match="SIGKILL"):
        by_two(functools.partial(train_run, folder / "killed", True))
    shutil.copytree(folder / "killed", folder / "killed-too")
    return folder


@pytest.fixture(scope="module")
def pair(folder):
    """What do_all returns in each of two processes; starting them takes most of the time."""
    return by_two(functools.partial(do_all, folder))


@pytest.fixture(scope="module")
def quantizers_alone():
    """The state of each kind of quantizer after steps in one process."""
    return quantizers_after_steps(ALONE)


@pytest.fixture(scope="module")
def found(tmp_path_factory, pair):
    """The losses of train_both in one process, and on rank 0 of two."""
    return train_both(tmp_path_factory.mktemp("alone") / "alone", ALONE), pair[0]["losses"]


@pytest.mark.parametrize(
    "kind",
    [
        "prior", "parts", "tokenizer", "discriminator", "gradients", "sharded", "held out",
        "after evaluation", "resumed",
    ],
)  # fmt: skip
def test_two_processes_have_the_losses_of_one(found, kind):
    alone, by_two = found
    torch.testing.assert_close(by_two[kind], alone[kind], rtol=1e-4, atol=1e-5)


def test_micro_batches_have_the_losses_of_whole_batches(found):
    alone, _ = found
    torch.testing.assert_close(alone["parts"], alone["prior"], rtol=1e-4, atol=1e-5)
    in_parts = tokenizer_task(ParallelConfig(accumulate=4))
    in_parts.model.quantizer.restart_after = (
        10**6
    )  # counts micro-batches, so it would restart codes earlier
    whole = tokenizer_task(ParallelConfig())
    whole.model.quantizer.restart_after = 10**6
    torch.testing.assert_close(
        losses_of(in_parts, pixels_batch, ALONE),
        losses_of(whole, pixels_batch, ALONE),
        rtol=1e-3,
        atol=1e-5,
    )


def test_a_resumed_sharded_run_takes_the_steps_of_an_uninterrupted_one(found):
    alone, by_two = found
    torch.testing.assert_close(by_two["sharded"], alone["prior"][:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(by_two["resumed"], alone["prior"][2:], rtol=1e-4, atol=1e-5)


def test_a_killed_sharded_run_is_resumed_to_the_losses_of_an_undisturbed_one(folder, pair):
    assert [found["taken"] for found in pair] == [[3, 6]] * 2
    assert losses_in(folder / "killed") == losses_in(folder / "whole")
    assert len(losses_in(folder / "whole")) == 6
    prior = load_prior(folder / "killed")
    assert prior.sample(SIDE, SIDE, labels=1).shape == (1, SIDE, SIDE)


def test_a_killed_sharded_run_is_resumed_by_one_process(folder, pair):
    assert train_run(folder / "killed-too", False, ALONE) == 3
    assert losses_in(folder / "killed-too") == pytest.approx(losses_in(folder / "whole"), rel=1e-4)


def test_a_checkpoint_of_one_process_is_resumed_sharded(pair, found):
    torch.testing.assert_close(
        pair[0]["sharded"]["from one"], found[0]["prior"][2:], rtol=1e-4, atol=1e-5
    )


def test_the_blocks_of_a_sharded_model_are_compiled(pair, found):
    compiled, plain = pair[0]["sharded"]["compiled"], found[0]["prior"][:2]
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


def test_accumulation_reduces_the_gradients_of_a_sharded_model_once(pair):
    for found in pair:
        assert found["sharded"]["reductions 2"] == found["sharded"]["reductions 1"]
        assert found["sharded"]["reductions 1"] == 3  # two blocks, and what is in neither


def test_a_sharded_model_trains_and_is_measured_in_bfloat16(pair, found):
    first, second = (each["sharded"] for each in pair)
    assert first["held out"] == second["held out"]
    torch.testing.assert_close(first["bfloat16"], found[0]["prior"], rtol=0.02, atol=0)
    assert not torch.equal(first["bfloat16"], found[0]["prior"])


def test_a_sharded_checkpoint_is_resumed_by_one_process(pair, found, folder):
    train_task = prior_task(ParallelConfig())
    train_task.load(folder / "by-two")
    losses = losses_of(train_task, codes_batch, ALONE, range(2, 4))
    torch.testing.assert_close(losses, found[0]["prior"][2:], rtol=1e-4, atol=1e-5)


def test_processes_keep_equal_weights_of_model_and_discriminator(pair):
    first, second = (found["weights"] for found in pair)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_two_processes_train_quantizers_as_one_does(pair, quantizers_alone, kind):
    first, second = (found["quantizers"][kind] for found in pair)
    for name, tensor in quantizers_alone[kind].items():
        assert torch.equal(first[name], second[name]), name
        if kind != "gumbel":  # each process draws its own noise
            torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-5)


def test_collectives_of_two_processes(pair):
    for context in pair:
        assert context["mean"].tolist() == [[0.5], [10.5]]
        assert context["samples"].tolist() == [[0], [1], [10], [11]]
        assert context["from_first"].tolist() == [[0], [10]]
        assert context["broadcast"] == 0
    assert Ranks().broadcast("word") == "word"
    assert all_samples(torch.ones(2)).shape == (2,)
