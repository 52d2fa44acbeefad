"""The study of windows: likelihoods are those of sampling, cell by cell."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy

from ops.windows import window_of
from pipelines import study as command
from pipelines.studies.windows import nll_as_sampled
from prior import GPT, Conditions, GPTConfig, LocalConfig, LocalGPT, StartOfSequence
from tests.pipelines.test_study import flags_of, images

__all__ = ["images"]
CODES = 7
SIZES = {"codebook_size": CODES, "condition_vocab_size": 1, "condition_length": 1, "width": 16}


@pytest.fixture
def grids():
    return torch.randint(CODES, (2, 6, 7), generator=torch.Generator().manual_seed(0))


def randomised(model):
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2])
def test_windowed_likelihood_uses_the_window_each_code_is_sampled_in(grids, stride):
    model = randomised(GPT(GPTConfig(**SIZES, window=4, num_layers=2, num_heads=2)))
    conditions = Conditions([StartOfSequence()], CODES)
    total = 0.0
    for row in range(6):
        for column in range(7):
            window = window_of(row, column, 6, 7, 4, stride)
            context = grids[:, *window.slices()].flatten(1)[:, : window.offset_of(row, column)]
            tokens = torch.cat([torch.full((2, 1), CODES), context], dim=1)
            logits = model(tokens)[:, -1]
            total += float(cross_entropy(logits, grids[:, row, column], reduction="sum"))
    found = nll_as_sampled(model, conditions, grids, stride)
    assert found == pytest.approx(total / grids.numel(), rel=1e-5)


@torch.no_grad()
def test_without_windows_the_likelihood_is_that_of_the_whole_grid(grids):
    model = randomised(LocalGPT(LocalConfig(**SIZES, num_layers=2, num_heads=2, radius=2)))
    conditions = Conditions([StartOfSequence()], CODES)
    nll = model.nll(torch.full((2, 1), CODES), grids).mean()
    for stride in (1, 8):
        found = nll_as_sampled(model, conditions, grids, stride)
        assert found == pytest.approx(float(nll), rel=1e-6)


@pytest.mark.slow
def test_windows_study_completes(images, tmp_path):
    assert command.main(flags_of("windows", images, tmp_path, "--seeds", "0")) == 0
    summary = json.loads((tmp_path / "results.json").read_text())["summary"]
    local = {name: cell["mean"] for name, cell in summary["local"].items()}
    assert local["nats_stride_1"] == local["nats_stride_8"]
    assert local["codes_per_second"] > 0
