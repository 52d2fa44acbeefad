"""The flags --track NAME=VALUE and --track-tokenizer NAME=DIR, as tracks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ops.config import ConfigError
from ops.files import NotRegularError
from ops.paths import AnyPath, read_json_at
from pipelines.store import is_track_name, source_path, track_path
from pipelines.tracks.code_grids import FileTrack
from pipelines.tracks.plan import kept_tracks
from pipelines.tracks.track import Track, TrackInput
from tokenizer import VQGAN

#: Names that mean something else in a store or in a batch of it.
TAKEN = ("image", "codes", "label", "key", "true_edges", "place", "crop")


def open_tracks(
    root: AnyPath,
    images: Mapping[str, AnyPath],
    tokenizer: VQGAN,
    asked: Sequence[str],
    tokenizers: Sequence[str],
    kinds: Mapping[str, type[Track]],
) -> tuple[list[Track], list[str]]:
    """The tracks that a run adds or extends, and why it must leave others as they are.

    `images` are what every node must see of --in. `asked` and `tokenizers` are NAME=VALUE; the
    tracks that the store has are extended, too. `kinds` are the kinds of tracks by name; any other
    name is a folder of files that a tokenizer encodes. Raises ConfigError for other flags,
    UserError where an input that was asked for cannot be read.
    """
    values, named = _pairs("--track", asked), _pairs("--track-tokenizer", tokenizers)
    kept = kept_tracks(root)
    for name in sorted(named.keys() - values.keys() - set(kept)):
        raise ConfigError(f"--track-tokenizer {name}=...: there is no --track {name}=... for it.")
    tracks, behind = [], []
    for name in sorted({*values, *kept}):
        value = values.get(name) or _recorded(track_path(root, name))
        if value is None or (name not in values and not _still_there(value)):
            behind.append(
                f"track {name} is not extended: {value or 'its input'} no longer exists. New "
                f"images have no rows in it until --track {name}=... names its input"
            )
            continue
        kind = kinds.get(name, FileTrack)
        tracks.append(kind(root, TrackInput(name, value, named.get(name), images, tokenizer)))
    return tracks, behind


def _pairs(flag: str, texts: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and value and is_track_name(name)) or name in TAKEN:
            raise ConfigError(
                f"{flag} {text}: give NAME=VALUE, for instance segmentation=segs/; names are lower "
                f"case, of at most 64 characters, and none of {', '.join(TAKEN)}."
            )
        if name in pairs:
            raise ConfigError(f"{flag} names {name} twice.")
        pairs[name] = value
    return pairs


def _recorded(track_dir: AnyPath) -> str | None:
    """The path or ratio that the last run made the track from."""
    try:
        value = read_json_at(source_path(track_dir), follow=False)["source"]
    except (OSError, NotRegularError, ValueError, KeyError, TypeError):
        return None
    return value if isinstance(value, str) else None


def _still_there(value: str) -> bool:
    return not Path(value).is_absolute() or Path(value).exists()
