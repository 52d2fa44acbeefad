"""What a store keeps of the input that it was last planned from: nothing that has not changed since
is listed and compared with the plan again.

Like the other files in _sources it can be missing: then the input is listed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ops.files import NotRegularError
from ops.paths import AnyPath, exists, read_json_at, remove, write_json_if_changed
from pipelines.store import SOURCES

KEPT_FROM = 100_000  # images: fewer are listed and compared in about a second
MAX_NAMED = 10_000  # files that are not images: with more the record would be long


class PlannedInput(NamedTuple):
    """An input of which every image is planned or left out, and what a run reports of it."""

    images: int
    skipped: list[tuple[str, str]]  # as in pipelines.inputs.Listing
    unused: list[tuple[str, str]]
    lines: list[str]
    left_out: dict[str, int]  # images left out, by flag
    parts: int  # of the plan


def planned_input_path(root: AnyPath) -> AnyPath:
    return root / SOURCES / "planned.json"


def read_planned_input(root: AnyPath, asked: Any, num_parts: int) -> PlannedInput | None:
    """The record of an input and flags equal to `asked` (JSON), of a plan of at most `num_parts`.

    None where there is no such record, or it is not intact.
    """
    try:
        found = dict(read_json_at(planned_input_path(root), follow=False))
        if found["asked"] != asked or not 0 < int(found["parts"]) <= num_parts:
            return None
        return PlannedInput(
            int(found["images"]),
            [(str(key), str(why)) for key, why in found["skipped"]],
            [(str(key), str(what)) for key, what in found["unused"]],
            [str(line) for line in found["lines"]],
            {str(flag): int(count) for flag, count in found["left_out"].items()},
            int(found["parts"]),
        )
    except (OSError, NotRegularError, ValueError, KeyError, TypeError, AttributeError):
        return None


def keep_planned_input(root: AnyPath, asked: Any, planned: PlannedInput) -> None:
    """Record an input once all of it is planned; of a small one an older record is removed."""
    path = planned_input_path(root)
    if planned.images >= KEPT_FROM and len(planned.skipped) + len(planned.unused) <= MAX_NAMED:
        write_json_if_changed(path, {"asked": asked, **planned._asdict()})
    elif exists(path):
        remove(path)
