"""A training step of every prior: one graph, nothing that waits for a GPU, fused attention."""

import pytest
import torch
import torch.nn.functional as F

from prior import (
    ClassLabel,
    Conditions,
    LossSettings,
    Segmentation,
    StartOfSequence,
    condition_sizes,
    make_model,
    preset_config,
    training_objective,
)
from prior.orderings import ORDERINGS, token_order
from tests.device_syncs import fake_gpu, no_device_syncs

CODES, WINDOW = 9, 4
PRESETS = {"gpt": "tiny", "modern": "tiny-modern", "local": "tiny-local", "snail": "tiny-snail"}
PARTS = {
    "sos": [StartOfSequence()],
    "class": [ClassLabel(num_classes=3)],
    "grid": [ClassLabel(num_classes=3), Segmentation(codebook_size=5)],
}
SETTINGS = LossSettings(label_smoothing=0.1, z_loss_weight=1e-4)
EVERY = [
    *(("gpt", ordering, "class") for ordering in ORDERINGS),
    ("gpt", "random", "grid"),
    *((name, None, condition) for name in PRESETS if name != "gpt" for condition in PARTS),
]


def small_prior(architecture, ordering=None, condition="class"):
    torch.manual_seed(0)
    preset, conditions = PRESETS[architecture], Conditions(PARTS[condition], CODES)
    sizes = condition_sizes(preset, conditions, WINDOW) | {"width": 16, "num_heads": 2}
    sizes |= {"num_blocks": 1} if architecture == "snail" else {"num_layers": 1}
    sizes |= {"radius": 2} if architecture == "local" else {}
    sizes |= {"ordering": ordering} if ordering else {}
    return make_model(preset_config(preset, **sizes)), conditions


def batch_for(conditions, rows=WINDOW, device="cpu"):
    codes = torch.arange(2 * rows * WINDOW, device=device).view(2, rows, WINDOW) % CODES
    count = conditions.length + conditions.num_grids * rows * WINDOW
    return torch.full((2, count), CODES, device=device), codes


def objective(model, tokens, codes):
    return training_objective(model, tokens, codes, codes, SETTINGS, codes >= 0)


@pytest.mark.parametrize(("architecture", "ordering", "condition"), EVERY)
def test_the_objective_is_one_graph(architecture, ordering, condition):
    torch.compiler.reset()
    model, conditions = small_prior(architecture, ordering, condition)
    compiled = torch.compile(objective, backend="eager", fullgraph=True)
    batch = batch_for(conditions)
    expected, found = objective(model, *batch), compiled(model, *batch)
    torch.testing.assert_close(found.nll, expected.nll)
    found.loss.backward()


@pytest.mark.parametrize(("architecture", "ordering", "condition"), EVERY)
def test_a_training_step_does_not_wait(architecture, ordering, condition):
    model, conditions = small_prior(architecture, ordering, condition)
    batch = batch_for(conditions)
    objective(model, *batch)  # makes the order of the tokens
    with no_device_syncs():
        objective(model, *batch).loss.backward()


@pytest.mark.parametrize("architecture", ["gpt", "modern", "snail"])  # local compiles its kernel
def test_all_of_a_forward_is_on_the_device_and_its_attention_can_be_fused(
    architecture, monkeypatch
):
    calls = []

    def attention(queries, keys, values, attn_mask=None, **options):
        calls.append(options)
        assert attn_mask is None
        for part in (queries, keys, values):
            assert part.ndim == 4
            assert part.stride(-1) == 1
        return queries.new_empty(*queries.shape[:3], values.shape[3])

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    with fake_gpu() as device:
        with device:
            model, conditions = small_prior(architecture)
        batch = batch_for(conditions, device=device)
        with no_device_syncs():
            found = objective(model, *batch)
        assert found.nll.device == found.loss.device == device
    assert [call["is_causal"] for call in calls] == [True]


@pytest.mark.parametrize("architecture", PRESETS)
def test_the_loss_of_bfloat16_weights_is_computed_in_float32(architecture):
    model, conditions = small_prior(architecture)
    tokens, codes = batch_for(conditions)
    found = objective(model.bfloat16(), tokens, codes)
    assert found.nll.dtype == found.loss.dtype == torch.float32
    logits = model.code_logits(tokens, codes)
    assert logits.dtype == torch.bfloat16
    expected = logits.double().log_softmax(-1).gather(-1, codes[..., None])[..., 0]
    torch.testing.assert_close(found.nll.double(), -expected, rtol=1e-5, atol=1e-5)


def test_the_order_of_tokens_is_made_once_and_serves_training_after_sampling():
    arguments = ("random", 5, WINDOW, 3, 4, torch.device("cpu"))
    with torch.inference_mode():
        first = token_order(*arguments)
    assert token_order(*arguments).cells is first.cells
    assert not first.cells.is_inference()
