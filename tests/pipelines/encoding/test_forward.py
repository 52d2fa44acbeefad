"""EncoderForward: which sizes are compiled, and that compiling changes nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ops.config import ConfigError
from ops.images import Transform
from pipelines.encoding.forward import EncoderForward, compiled_sizes
from tokenizer import build_tokenizer

Compiled = list[torch.fx.GraphModule]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Compiled:
    """The graphs that torch.compile is given; they run as they are."""
    graphs: Compiled = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compile_with = functools.partial(torch.compile, backend=backend)
    monkeypatch.setattr(
        torch, "compile", lambda model, *, options, **named: compile_with(model, **named)
    )
    torch._dynamo.reset()
    return graphs


def pixels(height: int, width: int) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_crop_of_one_size_is_compiled_and_of_native_ones_those_of_cameras() -> None:
    assert compiled_sizes(Transform(image_size=64)) == {(64, 64)}
    native = Transform(image_size=96, crop="native", multiple_of=8)
    assert compiled_sizes(native) == {(96, 96), (96, 128), (128, 96), (96, 144), (144, 96)}


def test_only_the_sizes_asked_for_are_compiled_and_codes_are_the_same(compiled: Compiled) -> None:
    tokenizer = build_tokenizer("tiny").eval()
    forward = EncoderForward(tokenizer, "float32", {(32, 32), (32, 40)})
    for size in ((32, 32), (32, 48), (32, 32), (32, 40)):
        expected = tokenizer.encode(pixels(*size))
        assert torch.equal(forward(pixels(*size)), expected)
    assert len(compiled) == 2
    assert forward.tokenizer is tokenizer


def test_the_compiled_encoder_has_the_same_tensors(compiled: Compiled) -> None:
    tokenizer = build_tokenizer("tiny").eval().requires_grad_(False)
    forward = EncoderForward(tokenizer, "float32", {(32, 32)})
    before = forward(pixels(32, 32))
    tokenizer.encoder.conv_in.weight.mul_(-1)
    after = forward(pixels(32, 32))
    assert (before != after).any()
    assert torch.equal(after, tokenizer.encode(pixels(32, 32)))
    assert len(compiled) == 1


def test_what_cannot_be_compiled_names_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        raise FileNotFoundError("no C compiler")

    compile_with = functools.partial(torch.compile, backend=failing)
    monkeypatch.setattr(
        torch, "compile", lambda model, *, options, **named: compile_with(model, **named)
    )
    torch._dynamo.reset()
    forward = EncoderForward(build_tokenizer("tiny").eval(), "float32", {(32, 32)})
    with pytest.raises(ConfigError, match=r"cannot compile .*no C compiler.* --compile no"):
        forward(pixels(32, 32))


def test_the_compiler_times_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(torch, "compile", lambda model, **named: asked.update(named))
    EncoderForward(build_tokenizer("tiny").eval(), "float32", {(32, 32)})
    assert asked["dynamic"] is False
    assert asked["options"]["deterministic"] is True
    assert asked["options"]["max_autotune"] is False
    assert asked["options"].keys() <= set(torch._inductor.list_options())
