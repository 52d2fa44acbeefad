"""Preview: drawn codes decoded, grey elsewhere; rewritten as a whole, and not too often."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ops.images import to_image
from pipelines.generation import preview as preview_module
from pipelines.generation.preview import Preview, preview_strips
from tests.generate_run import image_in
from tokenizer import VQGAN, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> VQGAN:
    return build_tokenizer("tiny", seed=0).eval()


def codes_so_far(rows: int, columns: int, drawn: int) -> torch.Tensor:
    codes = torch.randint(256, (rows, columns), generator=torch.Generator().manual_seed(0))
    codes.view(-1)[drawn:] = -1
    return codes


@pytest.mark.parametrize("drawn", [0, 1, 9, 10, 24])
def test_drawn_codes_are_decoded_and_the_rest_is_grey(tokenizer: VQGAN, drawn: int) -> None:
    codes = codes_so_far(4, 6, drawn)
    image = np.concatenate(list(preview_strips(tokenizer, codes, width=45, height=30)))
    assert image.shape == (30, 45, 3)
    seen = (codes >= 0).numpy().repeat(8, 0).repeat(8, 1)[:30, :45]
    assert (image[~seen] == preview_module.GREY).all()
    if drawn:
        begun = -(-drawn // 6)
        known = codes[None, :begun].clamp(min=0)
        with torch.no_grad():
            whole = to_image(tokenizer.decode(known))[0][:30, :45]
        rows = len(whole)
        np.testing.assert_array_equal(image[:rows][seen[:rows]], whole[seen[:rows]])


def test_large_canvases_are_previewed_in_strips(tokenizer: VQGAN) -> None:
    codes = codes_so_far(400, 2, 260)
    heights = [len(strip) for strip in preview_strips(tokenizer, codes, 16, 3200)]
    assert sum(heights) == 3200
    assert max(heights) <= 512


def test_preview_is_rewritten_when_it_is_due(
    tokenizer: VQGAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(preview_module.time, "monotonic", lambda: now[0])
    preview = Preview(tmp_path, tokenizer, 48, 32)
    preview(codes_so_far(4, 6, 6))
    now[0] += preview_module.SECONDS
    assert not list(tmp_path.iterdir())
    preview(codes_so_far(4, 6, 6))
    first = image_in(tmp_path / "preview.png")
    preview(codes_so_far(4, 6, 12))
    np.testing.assert_array_equal(image_in(tmp_path / "preview.png"), first)
    now[0] += preview_module.SECONDS
    preview(codes_so_far(4, 6, 12))
    assert (image_in(tmp_path / "preview.png")[8:16] != first[8:16]).any()
    assert [path.name for path in tmp_path.iterdir()] == ["preview.png"]
