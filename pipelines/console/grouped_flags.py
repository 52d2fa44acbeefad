"""The flags of a command in groups: the dataclass that tyro parses, made of the command's own.

A command's flags are one flat dataclass. For --help they are divided by GROUPS into one nested
dataclass for each group, whose fields tyro shows together.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import docstring_parser
import tyro

from pipelines.console.path_flags import has_mark

Flags = TypeVar("Flags")

INPUT, ADVANCED = "input", "advanced"
#: By group the fields of all commands' flags; those that are in none are advanced.
GROUPS: Mapping[str, frozenset[str]] = {
    INPUT: frozenset([
        "in_", "data", "targets", "codes", "store", "path", "images",
        "labels", "image_column", "label_column", "carry", "where", "min_size",
        "max_aspect", "skip_duplicates", "track", "track_tokenizer", "weights", "condition",
        "held_out", "inception", "vgg", "reference", "stream", "num_classes", "void_label",
        "storage_option",
    ]),
    "output": frozenset([
        "out", "count", "size", "seed", "only", "save", "to", "preview", "reconstructions",
        "save_npz", "spot_decodes",
        "show", "most", "steps", "samples", "save_every", "save_minutes", "sample_every",
        "log_every", "compress", "dry_run",
    ]),
    "model": frozenset([
        "tokenizer", "prior", "upscale", "upscale_temperature", "upscale_top_p",
        "image_size", "crop", "flip", "conditions", "window", "ordering", "factorised",
        "stride", "temperature", "top_k", "top_p", "min_p", "guidance_scale",
        "guidance_schedule", "guidance_power", "batch_size", "learning_rate", "crop_size",
        "perceptual", "adversarial", "adversarial_start", "adversarial_ramp",
        "adversarial_weight", "adaptive", "lecam_weight", "r1_weight", "norm_groups",
        "num_heads",
    ]),
    "cluster": frozenset([
        "workers", "address", "cpus_per_worker", "gpus_per_worker", "device", "precision",
        "threads", "stall_timeout", "restarts", "shard",
    ]),
    ADVANCED: frozenset(),
}  # fmt: skip
CONFIG = "--config"
CONFIG_HELP = (
    "YAML file of flags; those of the command line replace them. The settings.yaml of a folder "
    "repeats the command that wrote it"
)


def grouped(flags: type[Any], defaults: Mapping[str, Any]) -> type[Any]:
    """The dataclass of groups for tyro.cli; `defaults` replace those of the fields named."""
    hints, docs = typing.get_type_hints(flags, include_extras=True), _descriptions(flags)
    members: dict[str, list[Any]] = {group: [] for group in GROUPS}
    for field in dataclasses.fields(flags):
        shown = _shown(flags, field, hints[field.name], docs.get(field.name, ""))
        hint: Any = Annotated[hints[field.name], shown]
        default = defaults.get(field.name, field.default)
        member = dataclasses.field(default=default)  # MISSING: the flag is required
        members[_group_of(field.name, hint)].append((field.name, hint, member))
    config = Annotated[
        Path | None, tyro.conf.arg(help=CONFIG_HELP, metavar="PATH", help_behavior_hint="")
    ]
    members[ADVANCED].append(("config", config, dataclasses.field(default=None)))
    groups = [(group, _nested(group, found)) for group, found in members.items() if found]
    made = dataclasses.make_dataclass(flags.__name__, groups, frozen=True, kw_only=True)
    made.__doc__ = flags.__doc__
    return made


def flattened(flags: type[Flags], parsed: Any) -> Flags:
    """The command's own flags of a parsed instance of grouped(flags)."""
    values: dict[str, Any] = {}
    for group in dataclasses.fields(parsed):
        values |= vars(getattr(parsed, group.name))
    values.pop("config")
    return flags(**values)


def flag_of(field: str) -> str:
    """The flag of a field, as --image-size."""
    return f"--{field.strip('_').replace('_', '-')}"


def replaces_default(hint: Any, field: str, words: typing.Sequence[str]) -> bool:
    """Whether a flag that may be repeated is in `words`: tyro would add them to the default."""
    repeated = has_mark(hint, tyro.conf.UseAppendAction)
    flag = flag_of(field)
    return repeated and any(word.partition("=")[0].replace("_", "-") == flag for word in words)


def _nested(group: str, members: list[Any]) -> Any:
    made = dataclasses.make_dataclass(group, members, frozen=True, kw_only=True)
    made.__doc__ = ""
    return Annotated[made, tyro.conf.arg(help="")]


def _group_of(name: str, hint: Any) -> str:
    if has_mark(hint, tyro.conf.Positional):
        return INPUT  # all of them, so that they keep their order
    return next((group for group, names in GROUPS.items() if name in names), ADVANCED)


def _shown(flags: type[Any], field: dataclasses.Field[Any], hint: Any, text: str) -> Any:
    """The mark with what --help says of a field, but for what its type's own marks say.

    A default of None is shown as what stands for it: in the text, or the recipe's value.
    """
    own = [mark for mark in getattr(hint, "__metadata__", ()) if hasattr(mark, "aliases")]
    given: dict[str, Any] = {}
    if text and not any(mark.help for mark in own):
        given["help"] = text
    if field.default is None:
        from_recipe = field.name in getattr(flags, "FROM_RECIPE", ())
        given["help_behavior_hint"] = "(default: the recipe's)" if from_recipe else ""
        metavar = _metavar(hint)
        if metavar and not any(mark.metavar for mark in own):
            given["metavar"] = metavar
    return tyro.conf.arg(**given)


def _metavar(hint: Any) -> str | None:
    """That of the type which None may stand for, for a single value; else None."""
    while typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        others = [each for each in typing.get_args(hint) if each is not type(None)]
        return _metavar(others[0]) if len(others) == 1 else None
    if typing.get_origin(hint) is Literal:
        return "{" + ",".join(map(str, typing.get_args(hint))) + "}"
    return {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}.get(hint)


def _descriptions(flags: type[Any]) -> dict[str, str]:
    """The texts below the fields, by field, of the class and those that it extends."""
    found: dict[str, str] = {}
    for each in reversed(flags.__mro__[:-1]):
        parsed = docstring_parser.parse_from_object(each)
        found |= {p.arg_name: " ".join((p.description or "").split()) for p in parsed.params}
    return found
