"""Two processes that train together, against one that trains alone."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from ops.ranks import ALONE, Ranks, all_samples, from_first, ranks_here
from pipelines.recipes import PRIOR_RECIPES, TOKENIZER_RECIPES
from pipelines.training.loop import step_seed
from pipelines.training.parallel import ParallelConfig
from pipelines.training.prior_task import PriorTask
from pipelines.training.tokenizer_task import TokenizerTask
from prior import GPT, ClassLabel, Conditions, GPTConfig, LossSettings
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
        {"fingerprint": "0" * 16, "codebook_size": CODES},
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
    """What work(ranks) returns in each of two processes."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_enter, (work, folder), nprocs=2)
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
    evaluation = train_task.evaluate(2)
    found["held out"] = torch.tensor(evaluation.loss)
    train_task.save(folder if ranks.is_first else None)
    ranks.broadcast(None)  # the folder is complete
    again = prior_task(sharded)
    again.load(folder)
    found["resumed"] = losses_of(again, codes_batch, ranks, range(2, 4))
    return found


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
    return {
        "losses": train_both(folder, ranks),
        "weights": weights_after_steps(ranks),
        "quantizers": quantizers_after_steps(ranks),
        **call_collectives(ranks),
    }


@pytest.fixture(scope="module")
def sharded_folder(tmp_path_factory):
    """Where two processes save the checkpoint of a sharded prior after two steps."""
    return tmp_path_factory.mktemp("by-two")


@pytest.fixture(scope="module")
def pair(sharded_folder):
    """What do_all returns in each of two processes; starting them takes most of the time."""
    return by_two(functools.partial(do_all, sharded_folder))


@pytest.fixture(scope="module")
def found(tmp_path_factory, pair):
    """The losses of train_both in one process, and on rank 0 of two."""
    return train_both(tmp_path_factory.mktemp("alone"), ALONE), pair[0]["losses"]


@pytest.mark.parametrize(
    "kind",
    ["prior", "parts", "tokenizer", "discriminator", "gradients", "sharded", "held out", "resumed"],
)
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


def test_a_sharded_checkpoint_is_resumed_by_one_process(pair, found, sharded_folder):
    train_task = prior_task(ParallelConfig())
    train_task.load(sharded_folder)
    losses = losses_of(train_task, codes_batch, ALONE, range(2, 4))
    torch.testing.assert_close(losses, found[0]["prior"][2:], rtol=1e-4, atol=1e-5)


def test_processes_keep_equal_weights_of_model_and_discriminator(pair):
    first, second = (found["weights"] for found in pair)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_two_processes_train_quantizers_as_one_does(pair, kind):
    first, second = (found["quantizers"][kind] for found in pair)
    alone = quantizers_after_steps(ALONE)[kind]
    for name, tensor in alone.items():
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
