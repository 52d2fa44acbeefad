"""Conditions of --where: what they mean, and that nothing else is evaluated."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.config import ConfigError
from pipelines.planning.expressions import Kind, column_kind, parse_condition, typed_column
from tests.conftest import examples

COLUMNS: dict[str, list] = {
    "a": [1, None, 3], "b": ["x", "y", None], "ok": [True, False, None],
    "n": [None, None, None], "a.b": [1, 2, 3],
}  # fmt: skip
KINDS: dict[str, Kind | None] = {
    "a": "number", "b": "text", "ok": "boolean", "n": None, "a.b": "number",
}  # fmt: skip


def rows(text: str) -> list[int]:
    """The rows for which a condition holds."""
    arrays = {name: typed_column(values, KINDS[name]) for name, values in COLUMNS.items()}
    table = pa.table({**arrays, "row": [0, 1, 2]})
    return table.filter(parse_condition(text).expression(KINDS))["row"].to_pylist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a > 1", [2]), ("not a > 1", [0]), ("1 < a <= 3", [2]), ("a != 1.5", [0, 2]),
        ("a == -1", []), ("b in ('x', 'z')", [0]), ("b not in ['x']", [1]), ("b is null", [2]),
        ("b is not None", [0, 1]), ("'y' in b", [1]), ("'y' not in b", [0]), ("n > 3", []),
        ("n is NULL", [0, 1, 2]), ("n in (1, 2)", []), ("'a' in n", []), ("n == 'x'", []),
        ("col('a.b') == 2", [1]), ("a > 1 or b == 'x'", [0, 2]), ("a > 0 and b == 'x'", [0]),
        ("ok", [0]), ("not ok", [1]), ("ok == false or ok is null", [1, 2]), ("a < col('a.b')", []),
        (r"b == '\d'", []),
    ],
)  # fmt: skip
def test_a_condition_holds_for_these_rows(text: str, expected: list[int]) -> None:
    assert rows(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "(", "a", "b", "a = 1", "__import__('os').system('true') == 0", "f(a) > 1", "a.b > 1",
        "a + 1 > 2", "a[0] > 1", "lambda: 1", "[x for x in b]", "a if ok else b", "(a := 1)",
        "a == null", "a is 3", "a in b", "a in ()", "a in (1, 'x')", "b > 3", "'x' in a", "a > 1j",
        "a > ...", "b == b'x'", "a > 10 ** 100", "a > 99999999999999999999", "f'{a}' == 'x'",
        "a <\0 1", "x" * 20_000, "not " * 2000 + "ok", "a, b", "col(a) > 1", "col('a', 'b') > 1",
        "1", "null", "*a", "await a",
    ],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--where") as caught:
        parse_condition(text).expression(KINDS)
    assert "\n" not in str(caught.value)


TEXTS = st.text(alphabet="ab()'\"<>=!, .1#{}[]\\\n|&~:@eornti", max_size=30)


@settings(max_examples=examples(200))
@given(text=TEXTS | st.text(max_size=10))
def test_any_text_is_a_condition_or_refused(text: str) -> None:
    try:
        condition = parse_condition(text)
        condition.expression(dict.fromkeys(condition.columns))
    except ConfigError:
        pass


def test_kinds_of_values() -> None:
    assert column_kind([None, 1, 2.5]) == {"number"}
    assert column_kind([True, "x"]) == {"boolean", "text"}
    assert typed_column([None, 1, 2.5], "number").type == pa.float64()
