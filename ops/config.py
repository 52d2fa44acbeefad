"""Dataclass configs to and from JSON, registries of named choices, and errors for users."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class UserError(Exception):
    """An error that the user can fix: commands print only its message, without a traceback."""


class ConfigError(UserError, ValueError):
    """An invalid configuration; the message says what was found and what to do."""


def to_json(config: Any) -> dict[str, Any]:
    """The JSON form of a dataclass instance: tuples become lists, nested dataclasses objects."""
    return {
        field.name: _value_to_json(getattr(config, field.name))
        for field in dataclasses.fields(config)
    }


def _value_to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_json(value)
    if isinstance(value, tuple | list):
        return [_value_to_json(item) for item in value]
    return value


def from_json(cls: type[T], data: Mapping[str, Any]) -> T:
    """An instance of dataclass `cls` from its JSON form.

    Raises ConfigError on a key `cls` does not have, a missing one, or a value of the wrong type.
    """
    known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ConfigError(
            f"{cls.__name__} has no {', '.join(unknown)}; it has {', '.join(known)}. "
            "Was this file written by a newer version?"
        )
    hints = typing.get_type_hints(cls)
    values = {name: _value_from_json(hints[name], data[name], name) for name in data}
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{cls.__name__}: {error}") from error


def _value_from_json(hint: Any, value: Any, name: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        return _value_from_json(next(o for o in options if o is not type(None)), value, name)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name} must be a list, found {value!r}.")
        items = typing.get_args(hint)
        if len(items) == 2 and items[1] is Ellipsis:
            return tuple(_value_from_json(items[0], item, name) for item in value)
        return tuple(_value_from_json(i, v, name) for i, v in zip(items, value, strict=True))
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_json(typing.cast(type[Any], hint), value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and type(value) is not hint:
        raise ConfigError(f"{name} must be {hint.__name__}, found {value!r}.")
    return value


class Registry(Generic[T]):
    """Named choices of one kind, in the order they were registered."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a class or function; raises ConfigError if `name` is taken."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ConfigError(f"{self.kind} {name!r} is registered twice.")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise ConfigError(f"No {self.kind} {name!r}; there are {', '.join(self._entries)}.")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)
