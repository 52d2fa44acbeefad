import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ops.ranks import ALONE
from pipelines.recipes import PRIOR_RECIPES
from pipelines.training.parallel import SINGLE_PROCESS, ParallelConfig
from prior import GPT, Conditions, GPTConfig, LossSettings, StartOfSequence
from tests.prior_task import make_prior_task

CODES = {"codes": torch.randint(9, (2, 4, 4), generator=torch.Generator().manual_seed(0))}


def train_task(parallel_config=SINGLE_PROCESS, **loss):
    """An untrained one over 9 codes."""
    torch.manual_seed(0)
    conditions = Conditions([StartOfSequence()], 9)
    config = GPTConfig(
        codebook_size=9, condition_vocab_size=1, condition_length=1, window=4, num_layers=1, width=8
    )
    recipe = dataclasses.replace(PRIOR_RECIPES["tiny"], loss=LossSettings(**loss))
    return make_prior_task(GPT(config), conditions, recipe, parallel_config)


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


class NoSync(TorchDispatchMode):
    """Refuses operations that would wait for a GPU: reading a value, and shapes that depend on one.
    Copies to the CPU cannot be seen where all is on it."""

    REFUSED = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.name().split(".")[0] not in self.REFUSED, func.name()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_reads_no_value_from_the_device(precision):
    made = train_task(ParallelConfig(accumulate=2, precision=precision), z_loss_weight=0.1)
    batches = [made.prepare(CODES, step) for step in range(3)]
    made.train_step(batches[0], 0)  # the first step makes the optimizer's state
    with NoSync():
        for step in (1, 2):
            made.train_step(batches[step], step)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoSync():
        torch.ones(()).item()


def test_bfloat16_steps_are_close_to_those_in_float32():
    exact, rounded = train_task(), train_task(ParallelConfig(precision="bfloat16"))
    for step in range(3):
        expected, found = (take(each, step)["loss"].item() for each in (exact, rounded))
        assert found == pytest.approx(expected, rel=5e-3)
    assert found != expected
    assert rounded.model.head.weight.dtype == torch.float32


def test_a_step_that_is_not_finite_changes_nothing():
    made, whole = train_task(), train_task()
    assert take(made, 0)["loss"] == take(whole, 0)["loss"]
    poison = made.model.head.register_forward_hook(lambda *call: call[2] * float("nan"))
    assert not take(made, 1)["finite"]
    poison.remove()
    for name, tensor in whole.average.tensors.items():
        assert torch.equal(made.average.tensors[name], tensor), name
    for step in (2, 3):
        one, other = take(made, step), take(whole, step)
        assert all(torch.equal(one[name], other[name]) for name in ("loss", "gradient_norm"))


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
