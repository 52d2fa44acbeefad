"""Which values a store's description may have: what we would write, within what a machine holds.

A store may come from elsewhere. Its description decides how much memory is taken and which rows
are read, so it is checked before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ops.config import ConfigError
from ops.text import printable
from pipelines.store.layout import CLASS, StoreError, grid_shape, is_track_name

MAX_ROWS_PER_TASK = 1 << 20
MAX_TASK_BYTES = 1 << 34  # of a task's rows: their writer holds them in memory
MAX_ROWS = 1 << 40  # of a grid
MAX_CODEBOOK_SIZE = 1 << 20
MAX_DOWNSAMPLE_FACTOR = 1 << 10
MAX_SIDE = 1 << 16  # of a row of numbers
FLOATS = ("float16", "float32", "float64")  # types of rows of numbers


def check_range(name: str, value: object, least: int, most: int) -> None:
    """Raise ConfigError unless `value` is a whole number from `least` to `most`."""
    if type(value) is not int or not least <= value <= most:
        raise ConfigError(
            f"{name} must be a whole number from {least} to {most:,}, found "
            f"{printable(repr(value), 40)}."
        )


def check_tracks(tracks: Mapping[str, Any]) -> None:
    """Raise ConfigError where a track's name or provenance is none that a store has."""
    for name, provenance in tracks.items():
        if not is_track_name(name):
            raise ConfigError(f"{printable(repr(name), 60)} is no name of a track.")
        check_provenance(name, provenance)


def check_provenance(name: str, provenance: Any) -> None:
    """Raise ConfigError unless the provenance of track `name` says what its rows are."""
    if not isinstance(provenance, Mapping):
        raise ConfigError(f"the provenance of track {name} must be an object.")
    if name == CLASS and (provenance.get("row_shape") != [1, 1] or "classes" not in provenance):
        raise ConfigError(f"track {CLASS} must have rows of one number, and classes.")
    if "row_shape" in provenance and name != "image":
        _check_numbers(name, provenance)
        return
    for key, least, most in (
        ("codebook_size", 2, MAX_CODEBOOK_SIZE),
        ("downsample_factor", 1, MAX_DOWNSAMPLE_FACTOR),
    ):
        check_range(f"{key} of track {name}", provenance.get(key), least, most)
    for key in ("tokenizer", "fingerprint"):
        if not isinstance(provenance.get(key), str):
            raise ConfigError(f"{key} of track {name} must be text.")


def _check_numbers(name: str, provenance: Mapping[str, Any]) -> None:
    shape = provenance["row_shape"]
    if not isinstance(shape, list | tuple) or len(shape) != 2:
        raise ConfigError(f"row_shape of track {name} must be two whole numbers.")
    for side in shape:
        check_range(f"row_shape of track {name}", side, 1, MAX_SIDE)
    if provenance.get("dtype") not in FLOATS:
        raise ConfigError(f"dtype of track {name} must be one of {', '.join(FLOATS)}.")
    for key in ("classes", "categories", "names"):
        names = provenance.get(key) or []
        if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
            raise ConfigError(f"{key} of track {name} must be a list of names.")


def check_grids(grids: Mapping[str, Any]) -> None:
    """Raise ConfigError where a grid's name or number of rows is none."""
    for grid, rows in grids.items():
        try:
            grid_shape(grid)
        except StoreError as error:
            raise ConfigError(str(error)) from error
        check_range(f"the number of rows of grid {grid}", rows, 0, MAX_ROWS)
