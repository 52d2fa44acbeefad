"""The settings fixed when a code store is made, and their defaults."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ops.config import ConfigError, to_json
from ops.cpu import nnpack_works
from ops.files import write_json
from ops.images import Transform
from ops.runtime import resolve_device
from pipelines.encoding.flags import EncodeFlags
from pipelines.planning import PlanSettings, Task
from pipelines.store import StoreError, code_dtype
from tokenizer import VQGAN

# On a CPU one image of 256x256 at a time is as fast as four (measured) and takes less memory; a GPU
# needs many.
PIXELS_PER_BATCH = {"cpu": 256 * 256, "cuda": 64 * 256 * 256}
MAX_BATCH_SIZE = 256
ACCEPT_DEVICE = "--accept device goes on with it on another, and records which tasks it made."


def plan_settings(
    asked: EncodeFlags,
    tokenizer: VQGAN,
    transform: Transform,
    num_rows: int,
    older: PlanSettings | None,
) -> PlanSettings:
    """The settings the flags ask for; `auto` is the store's value, or a default for a new store."""

    def chosen(value: Any, name: str, default: Callable[[], Any]) -> Any:
        if value != "auto":
            return value
        return older.track[name] if older else default()

    accepted = older is not None and "device" in asked.accept
    device = chosen(
        "auto" if accepted else asked.device, "device", lambda: resolve_device("auto").type
    )
    kind = torch.device(device).type if accepted else _device_type(device, older)
    threads = chosen(asked.threads, "threads", lambda: 1)
    convolution = chosen(
        asked.convolution, "convolution", lambda: _default_convolution(kind, threads)
    )
    if convolution == "nnpack" and not accepted:
        _check_nnpack(asked, kind)
    track = {
        "tokenizer": tokenizer.name,
        "fingerprint": tokenizer.fingerprint,
        "codebook_size": tokenizer.config.codebook_size,
        "downsample_factor": tokenizer.config.downsample_factor,
        "dtype": code_dtype(tokenizer.config.codebook_size).name,
        "transform": to_json(transform),
        "batch_size": chosen(
            asked.batch_size, "batch_size", lambda: _default_batch_size(kind, transform)
        ),
        "threads": threads,
        "convolution": convolution,
        "device": device,
    }
    rows_per_task = asked.rows_per_task
    if rows_per_task == "auto":
        rows_per_task = older.rows_per_task if older else _default_rows_per_task(num_rows)
    return PlanSettings(
        rows_per_task=rows_per_task, track=track, labels=asked.labels, compress=asked.compress
    )


def _device_type(device: str, older: PlanSettings | None) -> str:
    try:
        return resolve_device(device).type
    except ConfigError as error:
        if older is None or older.track["device"] != device:
            raise
        raise ConfigError(f"{error} The store was begun there. {ACCEPT_DEVICE}") from None


def accepted_environment(asked: EncodeFlags, track: Mapping[str, Any]) -> dict[str, str]:
    """What --accept changes of a track's settings for this run: its device and convolution."""
    if "device" not in asked.accept:
        return {}
    device = resolve_device("auto").type if asked.device == "auto" else asked.device
    on_cpu = resolve_device(device).type == "cpu"
    nnpack = on_cpu and track["convolution"] == "nnpack" and nnpack_works()
    environment = {"device": device, "convolution": "nnpack" if nnpack else "direct"}
    return environment if any(track[name] != environment[name] for name in environment) else {}


def record_environment(root: Path, environment: dict[str, str], tasks: Sequence[Task]) -> None:
    """Add to the environments.json of a store or track that these tasks are made in another
    environment than it was begun with."""
    path = root / "environments.json"
    known = json.loads(path.read_text()) if path.exists() else []
    entry = {
        **environment,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "tasks": [f"{task.grid}/{task.number}" for task in tasks],
    }
    write_json(path, [*known, entry])


def _default_convolution(device_type: str, threads: int) -> str:
    # NNPACK uses one thread only; with several, direct convolutions are faster.
    if device_type == "cpu" and threads == 1 and nnpack_works():
        return "nnpack"
    return "direct"


def _check_nnpack(asked: EncodeFlags, device_type: str) -> None:
    """Raise ConfigError where NNPACK cannot be used."""
    if device_type != "cpu":
        raise ConfigError("--convolution nnpack is for CPUs. Use --device cpu, or direct.")
    if not asked.workers and not nnpack_works():  # actors check on their own machines
        raise ConfigError(
            "--convolution nnpack was asked for, or the store was made with it, but torch has no "
            "NNPACK on this machine. Use one that has it (torch for Linux on x86-64 does), or name "
            "another --out and --convolution direct."
        )


def _default_batch_size(device_type: str, transform: Transform) -> int:
    pixels = PIXELS_PER_BATCH.get(device_type, PIXELS_PER_BATCH["cuda"])
    return min(max(1, pixels // transform.image_size**2), MAX_BATCH_SIZE)


def _default_rows_per_task(num_rows: int) -> int:
    """About 64 tasks of 256 to 4,096 rows: quick to redo, large enough to read fast."""
    return min(max(256, -(-num_rows // 64**2) * 64), 4096)


def check_same(root: Path, store: PlanSettings, asked: PlanSettings) -> None:
    """Raise StoreError naming the settings in which the store and the flags differ."""
    _check_reading(root, store.track["transform"], asked.track["transform"])
    differing = []
    if store.track["fingerprint"] != asked.track["fingerprint"]:
        names = [f"{s.track['tokenizer']} ({s.track['fingerprint']})" for s in (store, asked)]
        differing.append(f"--tokenizer (the store has {names[0]}, asked for {names[1]})")
    for name, ours, theirs in (
        *(
            (n, getattr(store, n), getattr(asked, n))
            for n in ("rows_per_task", "labels", "compress")
        ),
        *(
            (n, store.track[n], asked.track[n])
            for n in ("batch_size", "threads", "convolution", "device")
        ),
        *(
            (name, store.track["transform"].get(name), value)
            for name, value in asked.track["transform"].items()
            if name not in ("multiple_of", "decoding", "resizing")
        ),
    ):
        if ours != theirs:
            flag = "--" + name.replace("_", "-")
            differing.append(f"{flag} (the store has {ours}, asked for {theirs})")
    if differing:
        raise StoreError(
            f"{root} was made with other settings: {'; '.join(differing)}. "
            "Ask for the same, or name another --out."
            + (f" {ACCEPT_DEVICE}" if store.track["device"] != asked.track["device"] else "")
        )


def _check_reading(root: Path, store: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raise StoreError where another version, which read image files otherwise, made the store."""
    for name in ("decoding", "resizing"):
        if store.get(name) != ours[name]:
            raise StoreError(
                f"{root} was begun by a version that read images otherwise: {store.get(name)}. "
                f"Now: {ours[name]}. New codes would not agree with its own: it can be read, but "
                "not extended. Name another --out, or use that version."
            )
