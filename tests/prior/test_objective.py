import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ops.config import ConfigError
from prior import GPT, GPTConfig, LossSettings, training_objective
from prior.objective import extra_terms, perturbed

CODES = 9
CONDITION = torch.full((2, 1), CODES)


def random_gpt():
    torch.manual_seed(0)
    config = GPTConfig(
        codebook_size=CODES,
        condition_vocab_size=1,
        condition_length=1,
        window=3,
        num_layers=1,
        num_heads=2,
        width=8,
    )
    model = GPT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


MODEL = random_gpt()


def some_codes(seed=0):
    return torch.randint(CODES, (2, 3, 3), generator=torch.Generator().manual_seed(seed))


def objective(read=None, **settings):
    codes = some_codes()
    read = codes if read is None else read
    return training_objective(MODEL, CONDITION, codes, read, LossSettings(**settings))


def test_the_default_loss_is_the_mean_nll():
    nll, loss = objective()
    assert torch.equal(nll, MODEL.nll(CONDITION, some_codes()))
    assert torch.equal(loss, MODEL.loss(CONDITION, some_codes()))
    assert loss.requires_grad
    assert not nll.requires_grad


@given(
    label_smoothing=st.floats(0, 0.9),
    z_loss_weight=st.floats(0, 2),
    size=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_extra_terms_match_their_definitions(label_smoothing, z_loss_weight, size, seed):
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 3, size, generator=random)
    codes = torch.randint(size, (2, 3), generator=random)
    log_probabilities = logits.log_softmax(-1)
    nll = -log_probabilities.gather(-1, codes[..., None])[..., 0]
    settings = LossSettings(label_smoothing=label_smoothing, z_loss_weight=z_loss_weight)
    one_hot = torch.nn.functional.one_hot(codes, size)
    targets = (1 - label_smoothing) * one_hot + label_smoothing / size
    expected = -(targets * log_probabilities).sum(-1).mean()
    expected += z_loss_weight * logits.logsumexp(-1).square().mean()
    loss = (nll + extra_terms(logits, codes, nll, settings)).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


def test_extra_terms_change_the_loss_but_not_the_nll():
    plain, extra = objective(), objective(label_smoothing=0.1, z_loss_weight=0.01)
    assert torch.equal(extra.nll, plain.nll)
    assert extra.loss > plain.loss
    gradients = [torch.autograd.grad(o.loss, MODEL.head.weight)[0] for o in (plain, extra)]
    assert not torch.allclose(*gradients)


def test_invalid_cells_add_nothing_to_a_loss_over_all_cells():
    valid_mask = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    settings = LossSettings(label_smoothing=0.1, z_loss_weight=0.01)
    codes, other = some_codes(), some_codes().where(valid_mask, 0)
    losses = [
        training_objective(MODEL, CONDITION, targets, codes, settings, valid_mask).loss
        for targets in (codes, other)
    ]
    assert torch.equal(*losses)
    masked_out = training_objective(MODEL, CONDITION, codes, codes, settings, ~valid_mask).loss
    whole = training_objective(MODEL, CONDITION, codes, codes, settings).loss
    torch.testing.assert_close(losses[0] + masked_out, whole)


def test_targets_are_the_unperturbed_codes():
    read = perturbed(some_codes(), 0.5, CODES, torch.Generator().manual_seed(3))
    assert not torch.equal(read, some_codes())
    logits = MODEL.code_logits(CONDITION, read)
    expected = -logits.log_softmax(-1).gather(-1, some_codes()[..., None])[..., 0]
    torch.testing.assert_close(objective(read).nll, expected.detach())


@pytest.mark.parametrize("pkeep", [0.0, 0.3, 0.9, 1.0])
def test_perturbed_keeps_a_part_pkeep_and_replaces_the_rest_uniformly(pkeep):
    codes = torch.full((40, 20, 20), 2)
    read = perturbed(codes, pkeep, CODES, torch.Generator().manual_seed(0))
    frequencies = torch.bincount(read.flatten(), minlength=CODES) / codes.numel()
    expected = torch.full((CODES,), (1 - pkeep) / CODES)
    expected[2] += pkeep
    torch.testing.assert_close(frequencies, expected, rtol=0, atol=0.01)


def test_pkeep_1_draws_no_random_numbers():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert torch.equal(perturbed(some_codes(), 1.0, CODES, generator), some_codes())
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(
    "wrong",
    [{"pkeep": 1.1}, {"pkeep": -0.1}, {"label_smoothing": 1.0}, {"z_loss_weight": -1.0}],
)
def test_invalid_settings_are_rejected(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        LossSettings(**wrong)
