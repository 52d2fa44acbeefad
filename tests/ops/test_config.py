import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.config import (
    ConfigError,
    Count,
    Range,
    Registry,
    Seed,
    UserError,
    check_fields,
    check_flags,
    from_json,
    parse_json,
    to_json,
)
from tests.conftest import examples


@dataclass(frozen=True, kw_only=True)
class Inner:
    sizes: tuple[int, ...] = (1, 2)
    rate: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    pair: tuple[float, float] = (0.1, 0.2)
    limit: int | None = None
    on: bool = True


def test_a_dataclass_with_tuples_round_trips_through_json():
    config = Outer(name="a", inner=Inner(sizes=(3,), rate=1.0), limit=4)
    data = to_json(config)
    assert data["inner"] == {"sizes": [3], "rate": 1.0}
    assert from_json(Outer, data) == config


def test_an_int_is_accepted_for_a_float_but_not_the_reverse():
    assert from_json(Inner, {"rate": 2}).rate == 2.0
    with pytest.raises(ConfigError, match="limit must be int"):
        from_json(Outer, {"name": "a", "limit": 1.5})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "a", "colour": 1}, "no colour"),
        ({}, "name"),
        ({"name": 3}, "name must be str"),
        ({"name": "a", "on": 1}, "on must be bool"),
        ({"name": "a", "inner": {"sizes": 3}}, "sizes must be a list"),
    ],
)
def test_invalid_fields_are_named(data, message):
    with pytest.raises(ConfigError, match=message):
        from_json(Outer, data)


def test_a_registry_keeps_order_and_refuses_duplicate_and_unknown_names():
    registry: Registry[object] = Registry("colour")
    registry.register("red")(int)
    registry.register("blue")(str)
    assert list(registry) == ["red", "blue"]
    assert registry["red"] is int
    assert "blue" in registry
    assert "green" not in registry
    with pytest.raises(ConfigError, match="registered twice"):
        registry.register("red")(float)
    with pytest.raises(ConfigError, match="No colour 'green'; there are red, blue"):
        registry["green"]


def test_config_errors_are_user_errors():
    assert issubclass(ConfigError, UserError)


@dataclass(frozen=True, kw_only=True)
class Numbers:
    rate: Annotated[float, Range(above=0, below=1)] = 0.5
    size: Annotated[int, Range(least=2, most=9)] | Literal["auto"] = "auto"
    seed: Seed = 0
    free: float = 0.0
    betas: tuple[Annotated[float, Range(least=0, below=1)], ...] = ()
    batch_size: Count | None = None
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 0}, "rate must be above 0, found 0.0"),
        ({"rate": 1.0}, "rate must be below 1, found 1.0"),
        ({"rate": math.nan}, "rate must be a finite number, found nan"),
        ({"free": math.inf}, "free must be a finite number, found inf"),
        ({"free": 10**400}, "free must be float"),
        ({"size": 1}, "size must be at least 2, found 1"),
        ({"size": 10}, "size must be at most 9, found 10"),
        ({"size": "many"}, "size must be int"),
        ({"seed": 10**20}, "seed must be at most"),
        ({"seed": True}, "seed must be int, found True"),
        ({"betas": [0.5, 1.0]}, "betas must be below 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"inner": {"rate": -math.inf}}, "rate must be a finite number"),
        ({"inner": 3}, "Inner must be an object, found 3"),
        ({"fre": 1.0}, "has no fre; did you mean free"),
    ],
)
def test_values_that_are_not_finite_or_out_of_range_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        from_json(Numbers, change)
    if "fre" not in change and "inner" not in change:
        with pytest.raises(ConfigError, match=message.partition(", found")[0]):
            check_fields(Numbers(**change))


def test_flags_are_named_as_on_the_command_line():
    with pytest.raises(ConfigError, match="--batch-size must be at least 1, found 0"):
        check_flags(Numbers(batch_size=0))
    check_flags(Numbers(batch_size=3, size=4))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "a": 2}', "a occurs twice"),
        ('{"a": [NaN]}', "NaN is not a finite number"),
        ('{"a": -Infinity}', "not a finite number"),
        ('{"a": 1e999}', "1e999 is not a finite number"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 10_000, "digits"),
        (b"\xff", "decode"),
        ("", "Expecting value"),
    ],
)
def test_json_that_cannot_be_trusted_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
ANY_JSON = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.just("rate"), SCALARS)


@settings(max_examples=examples(200))
@given(st.dictionaries(st.sampled_from([*Numbers.__dataclass_fields__, "rat"]), ANY_JSON))
def test_any_object_gives_a_config_or_a_config_error(data):
    try:
        config = from_json(Numbers, data)
    except ConfigError:
        return
    assert from_json(Numbers, to_json(config)) == config
