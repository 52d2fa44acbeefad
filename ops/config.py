"""Dataclass configs to and from JSON, registries of named choices, and errors for users."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import operator
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from ops.text import printable

T = TypeVar("T")


class UserError(Exception):
    """An error that the user can fix: commands print only its message, without a traceback."""


class ConfigError(UserError, ValueError):
    """An invalid configuration; the message says what was found and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Bounds of a number in a config: `threads: Annotated[int, Range(least=1, most=1024)]`.

    from_json and check_fields hold a field to it. Without one, a number must be finite, and a whole
    number fit into 64 bits.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    """a bound that is not reached, as `below`"""
    below: float | None = None

    def complaint(self, value: float) -> str | None:
        """What a number must be, where it is out of range, such as "at least 1"; else None."""
        checks = (
            ("at least", self.least, operator.ge),
            ("at most", self.most, operator.le),
            ("above", self.above, operator.gt),
            ("below", self.below, operator.lt),
        )
        for words, bound, holds in checks:
            if bound is not None and not holds(value, bound):
                return f"{words} {bound}"
        return None


ANY_INT = Range(least=-(2**63), most=2**63 - 1)
#: Torch's generators, numpy's and the order of batches take any of these.
Seed = Annotated[int, Range(least=0, most=2**63 - 1)]
#: Of things or steps, one at least.
Count = Annotated[int, Range(least=1, most=2**31 - 1)]
Share = Annotated[float, Range(least=0, most=1)]
Weight = Annotated[float, Range(least=0, most=1e6)]
"""of a term of a loss"""


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


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text from outside.

    Raises ValueError, with the reason, for text that is not JSON, for numbers that are not finite,
    a name that occurs twice in an object, and objects nested too deeply.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in found if names.count(name) > 1)
            raise ValueError(f"{printable(twice, 60)} occurs twice")
        return found

    def finite(number: str) -> float:
        if not math.isfinite(float(number)):
            raise ValueError(f"{printable(number, 60)} is not a finite number")
        return float(number)

    try:
        return json.loads(text, object_pairs_hook=unique, parse_float=finite, parse_constant=finite)
    except RecursionError:
        raise ValueError("objects are nested too deeply") from None


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def from_json(cls: type[T], data: Any) -> T:
    """An instance of dataclass `cls` from its JSON form.

    Raises ConfigError on a key `cls` does not have, a missing one, or a value that is of the wrong
    type, not finite or out of range.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{cls.__name__} must be an object, found {_shown(data)}.")
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(known))
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, 1)
        meant = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}."
        raise ConfigError(
            f"{cls.__name__} has no {printable(', '.join(unknown), 100)}; {meant} "
            "Was this file written by a newer version?"
        )
    hints = _hints(cls)  # once: typing compiles the text of every annotation anew
    values = {name: _checked(hints[name], data[name], name) for name in data}
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{cls.__name__}: {error}") from error


def check_fields(config: Any, shown: Callable[[str], str] = str) -> None:
    """Raise ConfigError where a field of a dataclass is of the wrong type, not finite or out of
    range; `shown` makes of the field's name the one in the message.
    """
    hints = _hints(type(config))
    for field in dataclasses.fields(config):
        _checked(hints[field.name], getattr(config, field.name), shown(field.name))


def check_flags(flags: Any) -> None:
    """The same for the flags of a command, with their names on the command line."""
    check_fields(flags, lambda name: "--" + name.strip("_").replace("_", "-"))


def check_value(hint: Any, value: Any, name: str) -> Any:
    """`value` as a field of that type hint has it; raises ConfigError as check_fields does."""
    return _checked(hint, value, name)


def _checked(hint: Any, value: Any, name: str, bounds: Range | None = None) -> Any:
    """`value`, from JSON or from Python, as a type hint has it; raises ConfigError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        ranges = [item for item in arguments[1:] if isinstance(item, Range)]
        return _checked(arguments[0], value, name, ranges[0] if ranges else bounds)
    if origin in (typing.Union, types.UnionType):
        return _checked_option(arguments, value, name, bounds)
    if origin is Literal:
        if value not in arguments:
            allowed = ", ".join(map(str, arguments))
            raise ConfigError(f"{name} must be one of {allowed}, found {_shown(value)}.")
        return value
    if origin is tuple:
        return _checked_items(arguments, value, name, bounds)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} must be an object, found {_shown(value)}.")
        return {key: _checked(arguments[1], item, name) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        cls = typing.cast(type[Any], hint)
        return value if isinstance(value, cls) else from_json(cls, value)
    return _checked_scalar(hint, value, name, bounds)


def _checked_option(options: tuple[Any, ...], value: Any, name: str, bounds: Range | None) -> Any:
    if value is None and type(None) in options:
        return None
    for option in options:
        if typing.get_origin(option) is Literal and value in typing.get_args(option):
            return value
    given = [option for option in options if option is not type(None)]
    others = [option for option in given if typing.get_origin(option) is not Literal]
    return _checked((others or given)[0], value, name, bounds)


def _checked_items(
    items: tuple[Any, ...], value: Any, name: str, bounds: Range | None
) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{name} must be a list, found {_shown(value)}.")
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise ConfigError(f"{name} must have {len(items)} items, found {len(value)}.")
    pairs = zip(items, value, strict=True)
    return tuple(_checked(item, found, name, bounds) for item, found in pairs)


def _checked_scalar(hint: Any, value: Any, name: str, bounds: Range | None) -> Any:
    if hint is float and type(value) is int and abs(value) < 2**63:
        value = float(value)
    if hint in (int, float, str, bool) and type(value) is not hint:
        raise ConfigError(f"{name} must be {hint.__name__}, found {_shown(value)}.")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, found {value}.")
    for allowed in (bounds, ANY_INT if hint is int else None):
        complaint = allowed.complaint(value) if allowed else None
        if complaint:
            raise ConfigError(f"{name} must be {complaint}, found {_shown(value)}.")
    return value


def _shown(value: Any) -> str:
    return printable(repr(value), 60)


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
