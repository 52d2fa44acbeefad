"""Types of flags whose value is a local path or the URI of an object."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from ops.object_paths import ObjectPath, parse_path
from ops.web_paths import SourcePath, WebPath, parse_source

_SPEC = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="PATH|URI",
    instance_from_str=lambda words: parse_path(words[0]),
    is_instance=lambda value: isinstance(value, Path | ObjectPath),
    str_from_instance=lambda value: [str(value)],
)
#: A local path, or s3://BUCKET/NAME or gs://BUCKET/NAME.
PathOrURI = Annotated[Path | ObjectPath, _SPEC]
_SOURCE_SPEC = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="PATH|URI",
    instance_from_str=lambda words: parse_source(words[0]),
    is_instance=lambda value: isinstance(value, Path | ObjectPath | WebPath),
    str_from_instance=lambda value: [str(value)],
)
#: What is only read: also https://HOST/NAME and hf://datasets/OWNER/NAME.
SourceOrURI = Annotated[SourcePath, _SOURCE_SPEC]
_NAME_SPEC = object()
#: The name of something bundled, a local path, or a URI.
NameOrURI = Annotated[str, _NAME_SPEC]
StorageOptions = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(
        help="KEY=VALUE for s3:// and gs://, once for each: endpoint=URL, region=NAME, "
        "skip_signature=true, ... (obstore's names). Credentials are best left in the environment."
    ),
]
STORAGE_OPTION = "--storage-option"


def uri_flags(flags: type[Any]) -> Mapping[str, bool]:
    """The flags of a dataclass whose value may be a URI, and whether it may have several.

    That of a positional argument has the name "".
    """
    return {
        name: several
        for spec in (_SPEC, _NAME_SPEC, _SOURCE_SPEC)
        for name, several in _flags_of(flags, spec).items()
    }


def source_flags(flags: type[Any]) -> Collection[str]:
    """Those of uri_flags whose value is only read, and may be at a web server too."""
    return _flags_of(flags, _SOURCE_SPEC).keys()


def _flags_of(flags: type[Any], spec: Any) -> dict[str, bool]:
    found = {}
    hints = typing.get_type_hints(flags, include_extras=True)
    for field in dataclasses.fields(flags):
        hint = hints[field.name]
        if has_mark(hint, spec):
            positional = has_mark(hint, tyro.conf.Positional)
            name = "" if positional else f"--{field.name.strip('_').replace('_', '-')}"
            found[name] = _is_tuple(hint)
    return found


def path_parser(hint: Any) -> Callable[[str], SourcePath]:
    """What makes of a text a value of a type that is, or is made of, some type of paths."""
    if has_mark(hint, _SOURCE_SPEC):
        return parse_source
    return parse_path if has_mark(hint, _SPEC) else Path


def has_mark(hint: Any, mark: Any) -> bool:
    """Whether `mark` annotates a type, or a type that it is made of."""
    marks = getattr(hint, "__metadata__", ())
    own = any(each is mark for each in marks) or any(
        getattr(mark, "__metadata__", (None,))[-1] is each for each in marks
    )
    return own or any(has_mark(inner, mark) for inner in typing.get_args(hint))


def _is_tuple(hint: Any) -> bool:
    while typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    return typing.get_origin(hint) is tuple
