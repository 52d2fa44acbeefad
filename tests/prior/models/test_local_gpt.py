"""LocalGPT: its receptive field, causality, and invariance to translation."""

import pytest
import torch

from ops.config import ConfigError
from prior.models.local_gpt import LocalConfig, LocalGPT

CODES = 11


def random_model(seed=0, **options):
    """A float64 model whose weights are so large that every visible token changes the logits."""
    torch.manual_seed(seed)
    sizes = {"num_layers": 2, "num_heads": 2, "width": 16, "radius": 2, "condition_length": 2}
    config = LocalConfig(codebook_size=CODES, condition_vocab_size=3, **{**sizes, **options})
    model = LocalGPT(config).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def codes_for(rows, columns, seed=0, batch=1):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(CODES, (batch, rows, columns), generator=random)


CONDITION = torch.tensor([[CODES, CODES + 2]])


def cells_changed(model, codes, row, column):
    """Which cells' logits depend on the code at (row, column): bool (h, w)."""
    other = codes.clone()
    other[0, row, column] = (other[0, row, column] + 1) % CODES
    with torch.no_grad():
        before, after = model.code_logits(CONDITION, codes), model.code_logits(CONDITION, other)
    return (before != after)[0].any(-1)


def test_one_layer_sees_the_codes_within_its_radius():
    model, (rows, columns) = random_model(num_layers=1), (7, 9)
    changed = cells_changed(model, codes_for(rows, columns), 2, 4)
    # The code at (2, 4) is received at position (2, 5); in the rows below, two to each side see it.
    expected = torch.zeros(rows, columns, dtype=torch.bool)
    expected[2, 5:8] = True
    expected[3:5, 3:8] = True
    assert torch.equal(changed, expected)


def test_logits_are_causal():
    model, codes = random_model(), codes_for(5, 6)
    for place in range(30):
        changed = cells_changed(model, codes, place // 6, place % 6)
        assert not changed.flatten()[: place + 1].any()


def test_a_rows_last_code_is_visible_below():
    changed = cells_changed(random_model(), codes_for(4, 5), 1, 4)
    assert changed[2].any()
    assert not changed[:2].any()


def test_every_code_depends_on_the_condition():
    model, codes = random_model(), codes_for(6, 7)
    with torch.no_grad():
        one = model.code_logits(torch.tensor([[CODES, CODES]]), codes)
        other = model.code_logits(torch.tensor([[CODES, CODES + 1]]), codes)
    assert (one != other).any(-1).all()


def test_logits_far_from_the_edges_do_not_depend_on_the_position():
    """A patch that is moved with its whole receptive field keeps its logits."""
    model, reach = random_model(), 4
    assert model.config.reach == reach
    wide = codes_for(14, 20)
    moved = torch.roll(wide, (3, 5), (1, 2))
    with torch.no_grad():
        here, there = model.code_logits(CONDITION, wide), model.code_logits(CONDITION, moved)
    inner = here[:, reach : 14 - 3, reach + 1 : 20 - 5 - reach - 1]
    torch.testing.assert_close(there[:, reach + 3 :, reach + 6 : 20 - reach - 1], inner)
    assert not torch.allclose(there[:, 3:, 5:], here[:, : 14 - 3, : 20 - 5])


@pytest.mark.parametrize("corner", [(0, 0), (0, 3), (0, 7), (5, 0), (5, 4), (5, 7)])
def test_uncut_cells_of_a_crop_have_the_logits_of_the_whole_canvas(corner):
    model, side, (rows, columns) = random_model(), 13, (18, 20)
    codes, (top, left) = codes_for(rows, columns), corner
    crop = codes[:, top : top + side, left : left + side]
    edges = torch.tensor([[top == 0, left == 0, left + side == columns, top + side == rows]])
    uncut = model.uncut(edges, side, side)
    with torch.no_grad():
        whole = model.code_logits(CONDITION, codes)[:, top : top + side, left : left + side]
        cropped = model.code_logits(CONDITION, crop)
    equal = torch.isclose(whole, cropped, rtol=1e-9, atol=1e-9).all(-1)
    assert uncut.any()
    assert torch.equal(uncut, equal)


def test_recomputed_activations_give_the_same_gradients():
    model, codes = random_model().train(), codes_for(4, 4)
    gradients = []
    for model.recompute_activations in (False, True):
        model.zero_grad()
        model.nll(CONDITION, codes).mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"radius": 0}, "radius"), ({"window": 0}, "window"), ({"width": 8, "num_heads": 2}, "8")],
)
def test_invalid_configs_are_rejected(options, message):
    sizes = {"codebook_size": 4, "condition_vocab_size": 1, "condition_length": 1}
    with pytest.raises(ConfigError, match=message):
        LocalConfig(**sizes, **options)
