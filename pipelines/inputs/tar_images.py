"""The images in a tar file, and their classes, by the rules of WebDataset.

A sample is the files one after the other whose paths agree up to the first dot of the base name:
`7.jpg`, `7.cls`, `7.depth.png`. Names of photographs have dots too (`v1.5.png`, `shot 10.15.png`),
so each image is taken unless it is a field of another one: `7.depth.png` of `7.jpg`, where both are
in the sample and `depth` is a plain word of letters. Without `7.jpg`, `7.depth.png` is taken.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import groupby
from typing import BinaryIO, NamedTuple

from ops.images import has_image_suffix, looks_like_image
from pipelines.inputs.class_names import LABEL_FIELDS, MAX_LABEL, class_name
from pipelines.inputs.member_log import MemberLog
from pipelines.inputs.tar_headers import MAX_NAME, TarError, TarMember, tar_members
from pipelines.inputs.tar_links import TarLinks

LABEL_SUFFIXES = frozenset(f".{field}" for field in LABEL_FIELDS)
FIELD_WORD = re.compile(r"[A-Za-z_]+")
PLAIN_SUFFIX = re.compile(r"\.[A-Za-z0-9_-]{1,16}")


class TarImage(NamedTuple):
    """One image in a tar file."""

    name: str
    place: int  # the byte at which its content starts
    size: int
    label: str | None


def tar_images(file: BinaryIO, log: MemberLog, with_labels: bool = False) -> Iterator[TarImage]:
    """The images in the order they are stored, with their classes where `with_labels`.

    All other files go to `log`. Links are taken as the file they lead to in the tar file. Raises
    TarError as tar_members does, after all images before the defect.
    """
    errors: list[TarError] = []
    members = _until_error(_usable_members(file, log), errors)
    for _, sample in groupby(members, lambda member: _sample_name(member.name)):
        yield from _images_of(sample, file, log, with_labels)
    if errors:
        raise errors[0]


def _until_error(members: Iterator[TarMember], errors: list[TarError]) -> Iterator[TarMember]:
    """The members before an error, which ends up in `errors`: their last sample is complete."""
    try:
        yield from members
    except TarError as error:
        errors.append(error)


def _usable_members(file: BinaryIO, log: MemberLog) -> Iterator[TarMember]:
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
    sample: Iterator[TarMember], file: BinaryIO, log: MemberLog, with_labels: bool
) -> Iterator[TarImage]:
    images: list[TarMember] = []
    labels: dict[str, str] = {}  # by the name of the file
    for member in sample:
        if has_image_suffix(member.name) or looks_like_image(member.head):
            images.append(member)
        elif (kind := _kind(member.name)) not in LABEL_SUFFIXES:
            log.count(kind)
        elif with_labels:
            _read_label(member, file, log, labels)
        else:
            log.count(f"{kind}, classes that --labels field reads")
    stems = {_stem(image.name) for image in images}
    for image in images:
        if len(images) > 1 and _is_field(image.name, stems):
            words = _stem(image.name).rpartition("/")[2].split(".")
            log.count(f".{words[-1]}{_suffix(image.name)}", example=image.name)
        else:
            yield TarImage(image.name, image.place, image.size, _label_of(image.name, labels))


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


def _read_label(member: TarMember, file: BinaryIO, log: MemberLog, labels: dict[str, str]) -> None:
    try:
        text = os.pread(file.fileno(), min(member.size, MAX_LABEL + 1), member.place)
    except OSError as error:
        log.skip(member.name, f"a class that cannot be read ({error.strerror})")
        return
    label = class_name(text)
    if label is None:
        log.skip(member.name, f"not a class: a class is a line of at most {MAX_LABEL} bytes")
    else:
        labels[member.name] = label


def _label_of(name: str, labels: dict[str, str]) -> str | None:
    """The class of an image: of its own name, or of its sample."""
    if not labels:
        return None
    stems = (_stem(name), _sample_name(name))
    names = (f"{stem}.{field}" for field in LABEL_FIELDS for stem in stems)
    return next((labels[each] for each in names if each in labels), None)
