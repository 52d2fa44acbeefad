"""Mutations of bytes that know nothing of their format."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st


class Mutated(NamedTuple):
    """Bytes and how many of the first of them are as they were."""

    data: bytes
    intact: int


@st.composite
def mutated_bytes(draw: st.DrawFn, data: bytes, first: int = 0) -> Mutated:
    """One mutation of `data` at or after byte `first`: flipped, removed, repeated or cut off."""
    at = draw(st.integers(first, max(first, len(data) - 1)))
    length = draw(st.sampled_from([1, 1, 2, 4, 8, 64, 512]))
    change = draw(st.sampled_from(["replace", "flip", "remove", "repeat", "insert", "cut"]))
    if change == "replace":
        new = draw(st.binary(min_size=1, max_size=8))
        return Mutated(data[:at] + new + data[at + len(new) :], at)
    if change == "flip":
        bit = 1 << draw(st.integers(0, 7))
        return Mutated(data[:at] + bytes(b ^ bit for b in data[at : at + 1]) + data[at + 1 :], at)
    if change == "remove":
        return Mutated(data[:at] + data[at + length :], at)
    if change == "repeat":
        return Mutated(data[: at + length] + data[at:], at)
    if change == "insert":
        new = draw(st.sampled_from([b"\0", b"\xff", b"\x7f"])) * length
        return Mutated(data[:at] + new + data[at:], at)
    return Mutated(data[:at], at)
