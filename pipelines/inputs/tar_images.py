"""The images in a tar file, and their classes, by the rules of WebDataset.

A sample is the files one after the other whose paths agree up to the first dot of the base name:
`7.jpg`, `7.cls`, `7.depth.png`. Names of photographs have dots too (`v1.5.png`, `shot 10.15.png`),
so each image is taken unless it is a field of another one: `7.depth.png` of `7.jpg`, where both are
in the sample and `depth` is a plain word of letters. Without `7.jpg`, `7.depth.png` is taken.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

from ops.images import has_image_suffix, looks_like_image
from pipelines.inputs.carried import CAPTION_NAMES, NOTHING, Carried, caption_text, carried
from pipelines.inputs.class_names import LABEL_FIELDS, MAX_LABEL, class_name
from pipelines.inputs.fields import Fields
from pipelines.inputs.json_lines import json_object
from pipelines.inputs.member_log import MemberLog
from pipelines.inputs.source_files import PositionedFile
from pipelines.inputs.tar_headers import MAX_NAME, TarError, TarMember, tar_members
from pipelines.inputs.tar_links import TarLinks

LABEL_SUFFIXES = frozenset(f".{field}" for field in LABEL_FIELDS)
CAPTION_SUFFIXES = frozenset(f".{name}" for name in CAPTION_NAMES)
JSON_SUFFIX = ".json"
MAX_FIELD = 1 << 18  # bytes of a caption or JSON file that is read
FIELD_WORD = re.compile(r"[A-Za-z_]+")
NO_FIELDS = Fields()
PLAIN_SUFFIX = re.compile(r"\.[A-Za-z0-9_-]{1,16}")

T = TypeVar("T")


class TarImage(NamedTuple):
    """One image in a tar file."""

    name: str
    place: int  # the byte at which its content starts
    size: int
    label: str | None
    carried: Carried


@dataclass
class _Described:
    """What the other files of a sample say, by the name of the file."""

    labels: dict[str, str] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)


def tar_images(
    file: PositionedFile, log: MemberLog, fields: Fields = NO_FIELDS
) -> Iterator[TarImage]:
    """The images in the order they are stored, with what `fields` asks for of their samples.

    All other files go to `log`. Links are taken as the file they lead to in the tar file. Raises
    TarError as tar_members does, after all images before the defect.
    """
    errors: list[TarError] = []
    members = _until_error(_usable_members(file, log), errors)
    for _, sample in groupby(members, lambda member: _sample_name(member.name)):
        yield from _images_of(sample, file, log, fields)
    if errors:
        raise errors[0]


def _until_error(members: Iterator[TarMember], errors: list[TarError]) -> Iterator[TarMember]:
    """The members before an error, which ends up in `errors`: their last sample is complete."""
    try:
        yield from members
    except TarError as error:
        errors.append(error)


def _usable_members(file: PositionedFile, log: MemberLog) -> Iterator[TarMember]:
    """The files, and links as the files they lead to; those that cannot be used go to `log`."""
    links = TarLinks(file)
    for stored in tar_members(file):
        if stored.kind == "folder":
            continue
        member = stored
        if stored.name.startswith("./"):
            member = stored._replace(name=stored.name[2:])
        defect = _defect_of_name(member.name)
        if defect is None and member.kind == "link":
            member = links.resolved(member)
        defect = defect or member.defect
        if defect is None:
            yield member
        else:
            log.skip(member.name[:MAX_NAME], defect)


def _defect_of_name(name: str) -> str | None:
    if not name:
        return "it has no name"
    if len(name) > MAX_NAME:
        return f"its name has {len(name):,} characters; the limit is {MAX_NAME:,}"
    *folders, base = name.split("/")
    if base.startswith("."):
        return "hidden file"
    hidden = any(part.startswith(".") and part not in (".", "..") for part in folders)
    return "in a hidden folder" if hidden else None


def _images_of(
    sample: Iterator[TarMember], file: PositionedFile, log: MemberLog, fields: Fields
) -> Iterator[TarImage]:
    images: list[TarMember] = []
    described = _Described()
    for member in sample:
        if has_image_suffix(member.name) or looks_like_image(member.head):
            images.append(member)
        else:
            _read_field(member, file, log, fields, described)
    stems = {_stem(image.name) for image in images}
    for image in images:
        if len(images) > 1 and _is_field(image.name, stems):
            words = _stem(image.name).rpartition("/")[2].split(".")
            log.count(f".{words[-1]}{_suffix(image.name)}", example=image.name)
        else:
            label = _label_of(image.name, described, fields.label_column) if fields.labels else None
            found = _carried_of(image.name, described, fields)
            yield TarImage(image.name, image.place, image.size, label, found)


def _is_field(name: str, stems: set[str]) -> bool:
    """Whether an image belongs to another one, whose name lacks only this one's last words."""
    stem = _stem(name)
    while True:
        stem, dot, word = stem.rpartition(".")
        if not dot or not FIELD_WORD.fullmatch(word):
            return False
        if stem in stems:
            return True


def _sample_name(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _stem(name: str) -> str:
    """A name without the suffix of an image."""
    return os.path.splitext(name)[0] if has_image_suffix(name) else name


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1] if has_image_suffix(name) else ""


def _kind(name: str) -> str:
    """The suffix of a file that is no image, where it is a plain one."""
    suffix = os.path.splitext(name)[1]
    return suffix if PLAIN_SUFFIX.fullmatch(suffix) else "without a suffix"


def _read_field(
    member: TarMember, file: PositionedFile, log: MemberLog, fields: Fields, found: _Described
) -> None:
    """Read a file of a sample that is no image, or count it where it is not asked for."""
    kind = _kind(member.name)
    try:
        if kind in LABEL_SUFFIXES:
            if fields.labels:
                found.labels[member.name] = _label_in(member, file)
            else:
                log.count(f"{kind}, classes that --labels field reads")
        elif kind in CAPTION_SUFFIXES and fields.carry.takes("caption"):
            found.captions[member.name] = _content(member, file).decode()
        elif kind == JSON_SUFFIX and (fields.carry or fields.labels):
            found.objects[member.name] = _object_in(member, file)
        else:
            log.count(kind)
    except ValueError as error:
        log.skip(member.name, _shown(error, kind))
    except OSError as error:
        log.skip(member.name, f"a field that cannot be read ({error.strerror})")


def _shown(error: ValueError, kind: str) -> str:
    return f"a {kind} that is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def _content(member: TarMember, file: PositionedFile) -> bytes:
    if member.size > MAX_FIELD:
        raise ValueError(f"{member.size:,} bytes; the limit is {MAX_FIELD:,}")
    if member.size <= len(member.head):
        return member.head[: member.size]
    return file.read_at(member.place, member.size)


def _label_in(member: TarMember, file: PositionedFile) -> str:
    text = _content(member, file) if member.size <= MAX_LABEL else b""
    label = class_name(text)
    if label is None:
        raise ValueError(f"not a class: a class is a line of at most {MAX_LABEL} bytes")
    return label


def _object_in(member: TarMember, file: PositionedFile) -> dict[str, Any]:
    found = json_object(_content(member, file).decode())
    if isinstance(found, str):
        raise ValueError(found)
    return found


def _names_for(image: str, suffixes: Sequence[str]) -> Iterator[str]:
    """The names of an image's files with these suffixes: with its own name, or its sample's."""
    stems = (_stem(image), _sample_name(image))
    return (f"{stem}{suffix}" for suffix in suffixes for stem in stems)


def _first(image: str, suffixes: Sequence[str], found: Mapping[str, T]) -> T | None:
    if not found:
        return None
    return next((found[name] for name in _names_for(image, suffixes) if name in found), None)


def _label_of(image: str, described: _Described, asked: str | None) -> str | None:
    """The class of an image: of a file of its own name or its sample's, else of its JSON.

    `asked` names a field of the JSON that alone is read.
    """
    label = None
    if asked is None:
        label = _first(image, [f".{name}" for name in LABEL_FIELDS], described.labels)
    values = _first(image, (JSON_SUFFIX,), described.objects) if label is None else None
    for name in LABEL_FIELDS if asked is None else (asked,):
        value = values.get(name) if values else None
        if isinstance(value, str) or type(value) is int:
            return class_name(str(value).encode(errors="replace"))
    return label


def _carried_of(image: str, described: _Described, fields: Fields) -> Carried:
    caption = _first(image, [f".{name}" for name in CAPTION_NAMES], described.captions)
    values = _first(image, (JSON_SUFFIX,), described.objects)
    if fields.labels and values:
        used = LABEL_FIELDS if fields.label_column is None else (fields.label_column,)
        values = {name: value for name, value in values.items() if name not in used}
    found = carried(values, fields.carry) if values else NOTHING
    return found if caption is None else found._replace(caption=caption_text(caption))
