import dataclasses

import pytest
import torch

from ops.ranks import ALONE
from pipelines.recipes import PRIOR_RECIPES
from pipelines.training.parallel import SINGLE_PROCESS, ParallelConfig
from pipelines.training.prior_task import PriorTask
from prior import GPT, Conditions, GPTConfig, LossSettings, StartOfSequence
from tokenizer import build_tokenizer

CODES = {"codes": torch.randint(9, (2, 4, 4), generator=torch.Generator().manual_seed(0))}


def train_task(parallel_config=SINGLE_PROCESS, **loss):
    """An untrained one over 9 codes."""
    torch.manual_seed(0)
    conditions = Conditions([StartOfSequence()], 9)
    config = GPTConfig(
        codebook_size=9, condition_vocab_size=1, condition_length=1, window=4, num_layers=1, width=8
    )
    recipe = dataclasses.replace(PRIOR_RECIPES["tiny"], loss=LossSettings(**loss))
    return PriorTask(
        GPT(config),
        conditions,
        build_tokenizer("tiny", seed=0),
        {"fingerprint": "0" * 16},
        recipe,
        steps=10,
        seed=0,
        held_out=[],
        device=torch.device("cpu"),
        parallel_config=parallel_config,
    )


def save(train_task, folder):
    """A checkpoint of a task of one process."""
    folder.mkdir()
    train_task.snapshot()(folder, ALONE)


def take(train_task, step):
    """The metrics of one step."""
    return train_task.train_step(train_task.prepare(CODES, step), step)


def test_the_logged_loss_is_the_nll_whatever_the_objective():
    plain, changed = train_task(), train_task(label_smoothing=0.2, z_loss_weight=0.1)
    expected = plain.model.loss(torch.full((2, 1), 9), CODES["codes"]).item()
    metrics = [take(each, 0) for each in (plain, changed)]
    for logged in metrics:
        assert logged["loss"].item() == pytest.approx(expected)
    assert metrics[0]["gradient_norm"] != metrics[1]["gradient_norm"]
    assert not torch.equal(plain.model.head.weight, changed.model.head.weight)


def test_input_noise_is_a_function_of_the_step():
    losses = {step: take(train_task(pkeep=0.5), step)["loss"].item() for step in range(3)}
    assert len(set(losses.values())) == 3
    assert take(train_task(pkeep=0.5), 1)["loss"].item() == losses[1]


def test_activation_checkpointing_changes_no_step():
    plain, recomputed = train_task(), train_task(ParallelConfig(recompute=True))
    for step in range(2):
        assert take(plain, step)["loss"] == take(recomputed, step)["loss"]
    assert recomputed.model.recompute_activations
    for one, other in zip(plain.model.parameters(), recomputed.model.parameters(), strict=True):
        assert torch.equal(one, other)
