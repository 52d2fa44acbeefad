from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ops.meta_device import on_meta_device
from tokenizer import PRESETS, VQGAN


@pytest.mark.parametrize("preset", ["tiny", "photo-f8", "llamagen-f8"])
def test_tokenizers_have_the_shapes_of_initialised_ones(preset: str) -> None:
    with on_meta_device():
        outline = VQGAN(PRESETS[preset]).state_dict()
    expected = {name: (t.shape, t.dtype) for name, t in VQGAN(PRESETS[preset]).state_dict().items()}
    assert {name: (t.shape, t.dtype) for name, t in outline.items()} == expected
    assert all(tensor.is_meta for tensor in outline.values())


def test_modules_made_afterwards_are_initialised() -> None:
    with on_meta_device():
        torch.nn.Embedding(3, 4)
    assert torch.nn.Embedding(3, 4).weight.std() > 0


def test_loading_the_bundled_tokenizer_does_not_import_dynamo() -> None:
    code = (
        "import sys; from tokenizer import load_tokenizer; load_tokenizer('photo-f8'); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
