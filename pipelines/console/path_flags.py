"""Types of flags whose value is a local path or the URI of an object."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from ops.object_paths import ObjectPath, parse_path

_SPEC = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="PATH|URI",
    instance_from_str=lambda words: parse_path(words[0]),
    is_instance=lambda value: isinstance(value, Path | ObjectPath),
    str_from_instance=lambda value: [str(value)],
)
#: A local path, or s3://BUCKET/NAME or gs://BUCKET/NAME.
PathOrURI = Annotated[Path | ObjectPath, _SPEC]
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
    found = {}
    hints = typing.get_type_hints(flags, include_extras=True)
    for field in dataclasses.fields(flags):
        hint = hints[field.name]
        if _has(hint, _SPEC) or _has(hint, _NAME_SPEC):
            positional = _has(hint, tyro.conf.Positional)
            name = "" if positional else f"--{field.name.strip('_').replace('_', '-')}"
            found[name] = _is_tuple(hint)
    return found


def _has(hint: Any, mark: Any) -> bool:
    """Whether `mark` annotates a type, or a type that it is made of."""
    marks = getattr(hint, "__metadata__", ())
    own = any(each is mark for each in marks) or any(
        getattr(mark, "__metadata__", (None,))[-1] is each for each in marks
    )
    return own or any(_has(inner, mark) for inner in typing.get_args(hint))


def _is_tuple(hint: Any) -> bool:
    while typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    return typing.get_origin(hint) is tuple
