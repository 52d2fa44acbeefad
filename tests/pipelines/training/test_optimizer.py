import pytest
import torch
from torch import nn

from ops.config import ConfigError
from pipelines.training.optimizer import (
    OptimizerConfig,
    WeightAverage,
    make_optimizer,
    take_step,
)


def test_the_learning_rate_warms_up_then_follows_a_cosine_to_its_final_share():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10, final_share=0.1)
    assert config.rate_at(0, 1000) == pytest.approx(0.1)
    assert config.rate_at(4, 10**9) == pytest.approx(0.5)
    assert config.rate_at(500, 1000) == pytest.approx(0.55)
    assert config.rate_at(1000, 1000) == pytest.approx(0.1)
    rates = [config.rate_at(step, 1000) for step in range(10, 1000)]
    assert rates == sorted(rates, reverse=True)


def test_a_constant_schedule_stays_constant():
    config = OptimizerConfig(learning_rate=2.0, schedule="constant", warmup_steps=2)
    assert [config.rate_at(step, 10) for step in (0, 1, 5, 10)] == [1.0, 2.0, 2.0, 2.0]
    with pytest.raises(ConfigError, match="cosine or constant"):
        OptimizerConfig(schedule="stairs")


def test_only_matrices_and_kernels_are_decayed():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv2d(1, 1, 3))
    optimizer = make_optimizer(model, OptimizerConfig(weight_decay=0.5))
    decayed, others = optimizer.param_groups
    assert decayed["weight_decay"] == 0.5
    assert {id(p) for p in decayed["params"]} == {id(model[1].weight), id(model[3].weight)}
    assert others["weight_decay"] == 0
    assert len(others["params"]) == 5


def test_a_step_clips_and_sets_the_rate():
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight], lr=99.0, fused=True)
    gradients = take_step(optimizer, [10 * weight.sum()], rate=0.5, max_gradient_norm=1.0)
    assert gradients.norm == 10
    assert weight.item() == pytest.approx(0.5)


def test_the_average_follows_the_formula_and_copies_counters():
    model = nn.BatchNorm1d(1)
    average = WeightAverage(model, decay=0.9)
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.num_batches_tracked.fill_(7)
    average.update(model, step=1_000_000)
    assert average.tensors["weight"].item() == pytest.approx(0.9 * 1 + 0.1 * 3)
    assert average.tensors["num_batches_tracked"] == 7
    first = WeightAverage(nn.BatchNorm1d(1), decay=0.9)
    first.update(model, step=0)  # the first decay is only 1/20
    assert first.tensors["weight"].item() == pytest.approx(0.05 + 0.95 * 3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 1])
def test_a_loss_that_is_not_finite_changes_no_weight_and_no_optimizer_state(bad, place):
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = make_optimizer(nn.ParameterList([weight]), OptimizerConfig(learning_rate=1.0))
    assert take_step(optimizer, [weight.sum()], 0.5, max_gradient_norm=1.0).finite
    before = weight.clone(), {name: t.clone() for name, t in optimizer.state[weight].items()}
    factors = [1.0, 1.0]
    factors[place] = bad  # of one micro-batch
    losses = (f * weight.sum() for f in factors)
    assert not take_step(optimizer, losses, 0.5, max_gradient_norm=1.0).finite
    assert torch.equal(weight, before[0])
    assert all(torch.equal(optimizer.state[weight][name], t) for name, t in before[1].items())
    assert take_step(optimizer, [weight.sum()], 0.5, 1.0).finite  # and the next step is clean
    assert weight < before[0]
    assert optimizer.state[weight]["step"] == 2


def test_a_gradient_that_is_not_finite_changes_no_weight():
    weight = nn.Parameter(torch.tensor([0.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0, fused=True)
    norm, finite = take_step(optimizer, [weight.sqrt().sum()], 0.5, max_gradient_norm=1.0)
    assert norm == float("inf")
    assert not finite
    assert weight.item() == 0.0


def test_a_step_that_was_not_taken_does_not_move_the_average():
    model = nn.BatchNorm1d(1)
    average = WeightAverage(model, decay=0.9)
    with torch.no_grad():
        model.weight.fill_(3.0)
    average.update(model, 10**6, torch.tensor(False))
    assert average.tensors["weight"] == 1
    average.update(model, 10**6, torch.tensor(True))
    assert average.tensors["weight"].item() == pytest.approx(0.9 * 1 + 0.1 * 3)


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.0}, {"learning_rate": -1.0}, {"learning_rate": float("nan")},
        {"betas": (0.9, 1.0)}, {"betas": (-0.1, 0.9)}, {"weight_decay": -1.0},
        {"warmup_steps": -1}, {"max_gradient_norm": 0.0}, {"ema_decay": 1.5},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ConfigError, match=f"{next(iter(change))} must be"):
        OptimizerConfig(**change)
