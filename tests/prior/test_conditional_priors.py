"""Tiny priors, trained for seconds on codes that follow from a condition, sample by it, and with
guidance more so."""

import pytest
import torch

from prior import (
    Boxes,
    Conditions,
    Inpaint,
    Keypoints,
    Prior,
    Segmentation,
    condition_sizes,
    make_model,
    preset_config,
)

SIDE, CODES, STEPS, BATCH = 4, 8, 100, 24
SAMPLES = 128


def rows_and_columns():
    cells = torch.arange(SIDE)
    return cells.view(1, SIDE, 1), cells.view(1, 1, SIDE)


def labels_of(random, count):
    """Label maps of four labels, each code's label being its number over two."""
    labels = torch.randint(4, (count, SIDE, SIDE), generator=random)
    noise = torch.randint(2, labels.shape, generator=random)
    return {"segmentation": labels}, 2 * labels + noise


def objects_of(random, count):
    """One object an image: its category's two codes inside, 6 and 7 outside."""
    corner = torch.randint(0, 2, (count, 2), generator=random)
    size = torch.randint(2, 4, (count, 2), generator=random)
    category = torch.randint(3, (count, 1), generator=random)
    boxes = torch.cat([category, corner, corner + size], 1).float()
    boxes[:, 1:] /= SIDE
    rows, columns = rows_and_columns()
    first, last = corner.view(count, 2, 1, 1), (corner + size).view(count, 2, 1, 1)
    inside = (columns >= first[:, 0]) & (columns < last[:, 0])
    inside = inside & (rows >= first[:, 1]) & (rows < last[:, 1])
    noise = torch.randint(2, (count, SIDE, SIDE), generator=random)
    codes = torch.where(inside, 2 * category.view(count, 1, 1), 6) + noise
    return {"boxes": boxes[:, None], "crop": torch.tensor([0.0, 0, 1, 1]).repeat(count, 1)}, codes


def points_of(random, count):
    """A point in the middle of a cell: low codes left of it, high ones from there on."""
    cell = torch.randint(SIDE, (count, 2), generator=random)
    _, columns = rows_and_columns()
    high = (columns >= cell[:, 0].view(count, 1, 1)).expand(count, SIDE, SIDE)
    noise = torch.randint(4, (count, SIDE, SIDE), generator=random)
    return {"keypoints": ((cell + 0.5) / SIDE)[:, None]}, 4 * high + noise


def pairs_of(random, count):
    """Each image has one of four pairs of codes, so a part of it determines the rest."""
    pair = torch.randint(4, (count, 1, 1), generator=random)
    codes = 2 * pair + torch.randint(2, (count, SIDE, SIDE), generator=random)
    return {}, codes


def stripes_of(random, count):
    """A pair for each row: only the known codes of the same row help."""
    pair = torch.randint(4, (count, SIDE, 1), generator=random)
    return {}, 2 * pair + torch.randint(2, (count, SIDE, SIDE), generator=random)


def alike(codes, wanted, size):
    """The share of codes that are in the same group of `size` as those wanted."""
    return (codes // size == wanted // size).double().mean().item()


def trained(preset, condition, made, layers=1):
    torch.manual_seed(0)
    conditions = Conditions([condition], CODES)
    sizes = condition_sizes(preset, conditions, SIDE)
    depth = {"num_blocks": layers, "hidden": 16} if "snail" in preset else {"num_layers": layers}
    model = make_model(preset_config(preset, **sizes, **depth, num_heads=2, width=32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95))
    random = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        condition_inputs, codes = made(random, BATCH)
        draws = [torch.Generator().manual_seed(BATCH * step + n) for n in range(BATCH)]
        tokens = conditions.training_tokens({**condition_inputs, "codes": codes}, draws, 0.2)
        optimizer.zero_grad()
        model.nll(tokens, codes).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return Prior(model.eval(), conditions, {})


CASES = {
    "segmentation": (Segmentation(codebook_size=4), labels_of, 2, 1),
    "boxes": (Boxes(num_categories=3, max_objects=2, places=SIDE + 1), objects_of, 2, 1),
    "keypoints": (Keypoints(num_points=1, places=SIDE + 1), points_of, 4, 1),
    "inpaint": (Inpaint(codebook_size=CODES), pairs_of, 2, 1),
}


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        *((preset, name) for preset in ("tiny-modern", "tiny-local") for name in CASES),
        ("tiny-snail", "segmentation"),
        ("tiny-snail", "boxes"),
    ],
)
def test_prior_samples_by_its_condition_and_guided_more_so(preset, name):
    condition, made, group, layers = CASES[name]
    if (name, preset) == ("inpaint", "tiny-local"):
        # A prior with windows takes longer than a test to learn which known codes are its row's.
        made = stripes_of
    prior = trained(preset, condition, made, layers)
    condition_inputs, wanted = made(torch.Generator().manual_seed(77), SAMPLES)
    if name == "inpaint":  # known in the right half, which no earlier code has seen
        known = torch.zeros(SAMPLES, SIDE, SIDE, dtype=torch.bool)
        known[:, :, SIDE // 2 :] = True
        condition_inputs = {"codes": torch.where(known, wanted, -1)}
    # Later codes also depend on it through earlier ones; the first code shows the effect alone.
    valid_mask = (slice(None), 0, 0) if name == "inpaint" else ...
    options = {"count": SAMPLES, "batch_size": SAMPLES}
    unconditional, plain, hot, guided = (
        alike(
            prior.sample(**options, condition_inputs=each, **settings)[valid_mask],
            wanted[valid_mask],
            group,
        )
        for each, settings in (
            (None, {}),
            (condition_inputs, {}),
            # At a high temperature there are errors left for guidance to correct.
            (condition_inputs, {"temperature": 2.0}),
            (condition_inputs, {"temperature": 2.0, "guidance_scale": 3.0}),
        )
    )
    assert plain > unconditional + 0.5 * (1 - unconditional)
    assert guided > hot
