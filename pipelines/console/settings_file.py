"""Flags from a YAML file (--config), and the settings.yaml of what a command has written."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ops.config import ConfigError, check_value
from ops.object_paths import ObjectPath
from ops.storage_options import without_credentials
from ops.text import printable
from ops.version import __version__
from ops.web_paths import WebPath
from pipelines.console.arguments import check_words
from pipelines.console.grouped_flags import flag_of
from pipelines.console.path_flags import has_mark, path_parser, source_flags, uri_flags

SETTINGS = "settings.yaml"
MOST_BYTES = 1 << 20
YES_NO: Mapping[Any, str] = {True: "yes", False: "no"}


def read_settings(path: Path, flags: type[Any]) -> dict[str, Any]:
    """The fields of a flags dataclass that a YAML file gives, in their types.

    Raises ConfigError, with the file and the key, for what is not YAML, unknown keys, and values of
    the wrong type or out of range; an OSError where the file cannot be read.
    """
    with path.open("rb") as file:
        text = file.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise ConfigError(f"{path}: larger than {MOST_BYTES} bytes. It is no file of flags.")
    found = _load(path, text)
    names = {field.name.strip("_"): field.name for field in dataclasses.fields(flags)}
    hints = typing.get_type_hints(flags, include_extras=True)
    values = {}
    for key, value in found.items():
        name = str(key).replace("-", "_")
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            meant = f"Did you mean {close[0]}?" if close else f"There are {', '.join(names)}."
            raise ConfigError(f"{path}: no key {printable(key, 60)!r}. {meant}")
        with _named(path, name):
            hint = hints[names[name]]
            _check_text(hint, value, name, flags)
            values[names[name]] = check_value(hint, _converted(hint, value, name), name)
    return values


def _check_text(hint: Any, value: Any, name: str, flags: type[Any]) -> None:
    """Raise ConfigError for a URI where the command line takes none."""
    words = [] if has_mark(hint, tyro.conf.Positional) else [flag_of(name)]
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str):
            check_words([*words, text], uri_flags(flags), source_flags(flags))


def settings_text(command: str, flags: Any) -> str:
    """The YAML text of a command's flags, from which read_settings makes the same flags.

    Storage options that may be credentials are left out: they belong in the environment.
    """
    import yaml

    values = recorded_flags(flags)
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return (
        f"# smalti {__version__}: python -m {command} --config {SETTINGS}\n"
        f"# Relative paths start in {printable(os.getcwd(), 1000)}\n{text}"
    )


def recorded_flags(flags: Any) -> dict[str, Any]:
    """A command's flags by name as JSON or YAML has them, without storage options that may be
    credentials."""
    found = {field.name: getattr(flags, field.name) for field in dataclasses.fields(flags)}
    if "storage_option" in found:
        found["storage_option"] = without_credentials(found["storage_option"])
    return {name.strip("_"): _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path | ObjectPath | WebPath) else value


def _load(path: Path, text: bytes) -> Mapping[Any, Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain values alone, each key once; no aliases, which can make a small file huge."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases (*name) are not read")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            if len(found) < len(node.value):
                raise yaml.YAMLError("a key occurs twice")
            return found

    # As in YAML 1.2, 1e-4 is a number; PyYAML's rule, of YAML 1.1, needs a point.
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
    try:
        found = yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a YAML file of flags ({_one_line(error)}).") from None
    if not isinstance(found, Mapping):
        raise ConfigError(f"{path}: not a YAML file of flags, which are lines of NAME: VALUE.")
    return found


def _one_line(error: Exception) -> str:
    return printable(" ".join(str(error).split()), 200)


@contextlib.contextmanager
def _named(path: Path, name: str) -> typing.Iterator[None]:
    try:
        yield
    except ConfigError as error:
        message = str(error) if name in str(error) else f"{name}: {error}"
        raise ConfigError(f"{path}: {message}") from None


def _converted(hint: Any, value: Any, name: str) -> Any:
    """A value of YAML as Python's type for `hint`; check_value finds what is still wrong."""
    while typing.get_origin(hint) is Annotated and path_parser(hint) is path_parser(
        typing.get_args(hint)[0]
    ):
        hint = typing.get_args(hint)[0]  # but for what makes it a path or a URI
    leaves = _leaves(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType) and value is not None:
        tuples = [each for each in typing.get_args(hint) if typing.get_origin(each) is tuple]
        hint = tuples[0] if tuples else hint
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        items = value if isinstance(value, list) else [value]
        return tuple(_converted(item, each, name) for each in items)
    if isinstance(value, bool) and bool not in leaves and YES_NO[value] in leaves:
        return YES_NO[value]  # an unquoted yes or no is a boolean in YAML
    if type(value) in (int, float) and str in leaves and type(value) not in leaves:
        return str(value)
    if Path in leaves and value is not None:
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{name} must be a path, found {printable(repr(value), 60)}.")
        return path_parser(hint)(value)
    return value


def _leaves(hint: Any) -> set[Any]:
    """The types and literal values that a type is made of."""
    if typing.get_origin(hint) is Literal:
        return set(typing.get_args(hint))
    inner = [each for each in typing.get_args(hint) if each is not Ellipsis]
    if typing.get_origin(hint) is Annotated:
        inner = inner[:1]
    return set().union(*map(_leaves, inner)) if inner else {hint}
