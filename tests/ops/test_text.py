"""Text made safe to print."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.text import printable

ANY_TEXT = st.text(st.characters())  # lone surrogates and unassigned characters as well


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31mred\x7f", r"\x9b31mred\x7f"),
        ("two\r\nlines\tand\x00", r"two\r\nlines\tand\x00"),
        ("photo\u202egnp.exe", r"photo\u202egnp.exe"),
        ("\u2066a\u2069\u200e\u061c", r"\u2066a\u2069\u200e\u061c"),
        ("a\u2028b\u2029c\x85", r"a\u2028b\u2029c\x85"),
        ("a\u200bb\ufeffc\u00ad", r"a\u200bb\ufeffc\xad"),
        ("caf\udce9.png", r"caf\udce9.png"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_a_terminal_acts_on_or_hides_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a b~!\\n[red]",
        "ünï 図\u3000한국어",
        "می\u200cخواهم",
        "👩\u200d🔬 🏳️‍🌈",
        "e\u0301",
        "\ue000",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert printable(text) == text


def test_objects_are_shown_as_their_text() -> None:
    assert printable(ValueError("a\nb")) == r"a\nb"


def test_middle_of_long_text_is_cut() -> None:
    assert printable("a" * 10**7 + "end.png", limit=20) == "a" * 13 + "…" + "nd.png"[-6:]
    assert printable("0123456789", limit=10) == "0123456789"


@given(ANY_TEXT, st.integers(1, 40))
def test_shown_text_is_one_short_encodable_line(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert len(shown) <= limit
    shown.encode()
    assert len(f"{shown}|".splitlines()) == 1
    hidden = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert all(unicodedata.category(c) not in hidden or c in "\u200c\u200d" for c in shown)
    assert printable(shown, limit) == shown
