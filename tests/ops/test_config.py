from dataclasses import dataclass, field

import pytest

from ops.config import ConfigError, Registry, UserError, from_json, to_json


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
