"""Safetensors files and torch checkpoints with odd headers, tensors and pickles."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from tests.fuzz.json_values import json_files
from tests.fuzz.raw_bytes import mutated_bytes


class CheckpointFile(NamedTuple):
    """A checkpoint and whether it has values that no command may accept."""

    data: bytes
    non_finite: bool = False


#: dtypes that weights are not expected to have.
TYPES = {
    "bool": torch.bool, "complex": torch.complex64, "int64": torch.int64, "half": torch.half,
    "bfloat16": torch.bfloat16, "float8": torch.float8_e4m3fn, "double": torch.double,
}  # fmt: skip
ODD_TENSORS = (
    "nan", "inf", "one nan", "empty", "scalar", "transposed", "longer", "shorter", "expanded",
    "sparse", "meta", "zeros", "huge", *TYPES,
)  # fmt: skip
ODD_KEYS: tuple[Any, ...] = (1, None, (1, 2), 1.5, "", "\x1b[31m", "a\0b", "x" * 300, b"bytes", "é")
PICKLES = (
    b"", b"\x80\x02.", b"\x80\x02h\x05.", b"\x80\x02]q\x00.", b"\x80\x02}.", b"\x80\xff.", b"N.",
    b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.", b"\x80\x02" + b"(" * 10_000 + b".",
    b"\x80\x02" + b"]" * 9999 + b"a" * 9998 + b".", b"\x80\x02U\xff", b"\x80\x02\x8a\xff.",
    b"\x80\x02X\xff\xff\xff\x7f", b"PK\x03\x04", b"PK\x05\x06" + b"\0" * 18, b"\x80\x02K\x01Q.",
)  # fmt: skip


def odd_tensor(kind: str, tensor: Tensor) -> Tensor:
    """A tensor that differs from `tensor` as the name of ODD_TENSORS says."""
    if kind in ("nan", "inf"):
        return torch.full_like(tensor, float(kind))
    if kind == "one nan":
        tensor = tensor.clone()
        tensor.view(-1)[-1] = float("nan")
        return tensor
    if kind in TYPES:
        return tensor.to(TYPES[kind])
    made = {
        "empty": lambda: tensor[:0],
        "scalar": lambda: tensor.sum(),
        "transposed": lambda: tensor.transpose(0, -1),
        "longer": lambda: torch.cat([tensor, tensor]),
        "shorter": lambda: tensor[: len(tensor) // 2],
        "expanded": lambda: torch.zeros(1).expand(2**40),
        "huge": lambda: torch.zeros(1).expand(2**20, 2**20),
        "sparse": lambda: tensor.to_sparse(),
        "meta": lambda: tensor.to("meta"),
        "zeros": lambda: torch.zeros_like(tensor),
    }
    return made[kind]()


@st.composite
def _odd_tensors(draw: st.DrawFn, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of which one or two are odd or missing."""
    found = dict(tensors)
    for _ in range(draw(st.integers(1, 2))):
        weights = [n for n, t in found.items() if t is tensors[n] and t.is_floating_point()]
        name = draw(st.sampled_from(sorted(weights)))
        if draw(st.integers(0, 7)) == 0:
            del found[name]
        else:
            found[name] = odd_tensor(draw(st.sampled_from(ODD_TENSORS)), found[name])
    return found


def _non_finite(tensors: Mapping[str, Tensor]) -> bool:
    return any(
        t.dtype == torch.float32 and _is_small(t) and not t.isfinite().all()
        for t in tensors.values()
    )


def _is_small(tensor: Tensor) -> bool:
    """Whether a tensor is in memory, value by value."""
    return tensor.device.type == "cpu" and not tensor.is_sparse and tensor.numel() < 10**6


@st.composite
def safetensors_files(
    draw: st.DrawFn, tensors: Mapping[str, Tensor], folder: str
) -> CheckpointFile:
    """A safetensors file with odd tensors, an odd header or broken bytes."""
    if draw(st.booleans()):
        odd = draw(_odd_tensors(tensors))
        try:
            data = save({name: t.contiguous() for name, t in odd.items() if t.numel() < 10**6})
        except (ValueError, KeyError, RuntimeError, NotImplementedError):
            pass  # what safetensors and torch raise for a kind of tensor that no such file holds
        else:
            return CheckpointFile(data, _non_finite(odd))
    data = save(dict(tensors))
    length = struct.unpack("<Q", data[:8])[0]
    head, body = data[8 : 8 + length], data[8 + length :]
    change = draw(st.sampled_from(["header", "header", "header", "length", "bytes"]))
    if change == "bytes":
        return CheckpointFile(draw(mutated_bytes(data)).data)
    if change == "length":
        number = draw(
            st.sampled_from([0, 1, 2**31, 2**40, 2**63, 2**64 - 1, length - 1, length + 1])
        )
        return CheckpointFile(struct.pack("<Q", number) + head + body)
    head = draw(json_files(json.loads(head), folder))
    return CheckpointFile(struct.pack("<Q", len(head)) + head + body)


@st.composite
def torch_files(draw: st.DrawFn, tensors: Mapping[str, Tensor]) -> CheckpointFile:
    """A file of torch.save with odd tensors, keys or pickles, or broken bytes."""
    change = draw(
        st.sampled_from(["tensors"] * 4 + ["keys", "nested", "pickle", "zip", "bytes", "raw"])
    )
    content: Any = dict(tensors)
    non_finite = False
    if change == "raw":
        return CheckpointFile(draw(st.sampled_from(PICKLES)))
    if change == "tensors":
        content = draw(_odd_tensors(tensors))
        non_finite = _non_finite(content)
    elif change == "keys":
        content[draw(st.sampled_from(ODD_KEYS))] = next(iter(tensors.values()))
    elif change == "nested":
        key = draw(st.sampled_from(["state_dict", "model", "ema", "module", 1]))
        inner = draw(
            st.sampled_from([content, {}, [], None, 1, [content], {"state_dict": content}])
        )
        content = {key: inner, "epoch": 3}
    buffer = io.BytesIO()
    zipped = change in ("pickle", "zip") or draw(st.integers(0, 3)) > 0
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    data = buffer.getvalue()
    if change == "pickle":
        return CheckpointFile(draw(_with_odd_member(data)))
    if change in ("zip", "bytes"):
        first = max(0, len(data) - 2000) if change == "zip" else 0  # zip: the central directory
        return CheckpointFile(draw(mutated_bytes(data, first)).data)
    return CheckpointFile(data, non_finite)


@st.composite
def _with_odd_member(draw: st.DrawFn, data: bytes) -> bytes:
    """A zip file of which one member has other bytes."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    name = draw(st.sampled_from(sorted(members)))
    if draw(st.booleans()):
        name = next(member for member in members if member.endswith("data.pkl"))
    odd = st.sampled_from([*PICKLES, pickle.dumps({"a": 1}), pickle.dumps([1] * 9)])
    members[name] = draw(st.one_of(odd, mutated_bytes(members[name]).map(lambda m: m.data)))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()
