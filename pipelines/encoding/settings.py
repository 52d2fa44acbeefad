"""The settings fixed when a code store is made, and their defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from ops.config import ConfigError, to_json
from ops.cpu import nnpack_works
from ops.images import DECODERS, Transform
from ops.paths import AnyPath
from ops.precision import Precision
from pipelines.flags import EncodeFlags
from pipelines.jobs import (
    WorkerDevices,
    accepted,
    choose_environment,
    differing_environment,
    how_to_accept,
)
from pipelines.planning import PlanSettings
from pipelines.store import StoreError, code_dtype
from tokenizer import VQGAN

# On a CPU one image of 256x256 at a time is as fast as four (measured) and takes less memory; a GPU
# needs many.
PIXELS_PER_BATCH = {"cpu": 256 * 256, "cuda": 64 * 256 * 256}
MAX_BATCH_SIZE = 256
MOST_ROWS_PER_TASK = 65_536
#: Of settings that stores of earlier versions lack.
NOT_RECORDED = {"compile": "no"}
#: From so many images on, a compiled encoder saves more time than compiling it takes.
COMPILED_FROM = 50_000
#: TF32 rounds a convolution's input to 10 bits of mantissa: nearly all codes stay those of float32.
GPU_PRECISION: Precision = "tf32"


def plan_settings(
    asked: EncodeFlags,
    tokenizer: VQGAN,
    transform: Transform,
    num_rows: int,
    older: PlanSettings | None,
    devices: WorkerDevices,
    fit: Callable[[Mapping[str, str], int], int] = lambda environment, most: most,
) -> PlanSettings:
    """The settings the flags ask for; `auto` is the store's value, or a default for a new store.

    `fit` finds, for a device and precision, how many images of at most a number fit into a GPU.
    Raises ConfigError for a device of a new store that the workers do not have.
    """

    def chosen(value: Any, name: str, default: Callable[[], Any]) -> Any:
        if value != "auto":
            return value
        return older.track.get(name, NOT_RECORDED.get(name)) if older else default()

    accept = accepted(asked.accept, asked.allow_mixed)
    environment = choose_environment(
        asked.device,
        asked.precision,
        begun=older.track if older else None,
        accept=accept,
        resolve=partial(devices.resolve, gpus_per_worker=asked.gpus_per_worker),
        gpu_precision=GPU_PRECISION,
    )
    kind, precision = devices.type_of(environment["device"]), environment["precision"]
    threads = chosen(asked.threads, "threads", lambda: 1)
    convolution = chosen(
        asked.convolution, "convolution", lambda: _default_convolution(kind, precision, threads)
    )
    if asked.decoder == "nvjpeg" and kind == "cpu":
        raise ConfigError("--decoder nvjpeg is for GPUs. Use --device cuda, or --decoder pillow.")
    if convolution == "nnpack" and not (older and accept):  # else as run_environment decides
        _check_nnpack(asked, kind, precision)

    def default_batch_size() -> int:
        most = _default_batch_size(kind, transform)
        return most if kind == "cpu" else fit(environment, most)

    track = {
        "tokenizer": tokenizer.name,
        "fingerprint": tokenizer.fingerprint,
        "codebook_size": tokenizer.config.codebook_size,
        "downsample_factor": tokenizer.config.downsample_factor,
        "dtype": code_dtype(tokenizer.config.codebook_size).name,
        "transform": to_json(transform),
        "batch_size": chosen(asked.batch_size, "batch_size", default_batch_size),
        "threads": threads,
        "convolution": convolution,
        "compile": chosen(asked.compile, "compile", lambda: _default_compile(kind, num_rows)),
        **environment,
        "device": kind,
    }
    rows_per_task = asked.rows_per_task
    if rows_per_task == "auto":
        rows_per_task = older.rows_per_task if older else _default_rows_per_task(num_rows)
    return PlanSettings(
        rows_per_task=rows_per_task, track=track, labels=asked.labels_from, compress=asked.compress
    )


def run_environment(
    asked: EncodeFlags, track: Mapping[str, Any], devices: WorkerDevices
) -> dict[str, str]:
    """The device, precision and convolution that workers encode a track with now.

    They are the track's, except for what is accepted to differ, and --device cuda:N without Ray.
    Raises ConfigError for a device that the workers do not have.
    """
    accept = accepted(asked.accept, asked.allow_mixed)
    chosen = choose_environment(
        asked.device,
        asked.precision,
        begun=track,
        accept=accept,
        resolve=devices.resolve,
        gpu_precision=GPU_PRECISION,
    )
    try:
        device = devices.resolve(chosen["device"], asked.gpus_per_worker)
    except ConfigError as error:
        if asked.device != "auto" or "device" in accept:
            raise
        raise ConfigError(f"{error} It was begun there. {how_to_accept(['device'])}") from None
    kind, precision = torch.device(device).type, chosen["precision"]
    nnpack = track["convolution"] == "nnpack" and _nnpack_fits(kind, precision)
    if "device" in accept and not asked.workers:
        nnpack = nnpack and nnpack_works()
    convolution = "nnpack" if nnpack else "direct"
    return {"device": device, "precision": precision, "convolution": convolution}


def _nnpack_fits(device_type: str, precision: str) -> bool:
    return device_type == "cpu" and precision != "bfloat16"


def _default_convolution(device_type: str, precision: str, threads: int) -> str:
    # NNPACK uses one thread only; with several, direct convolutions are faster.
    if _nnpack_fits(device_type, precision) and threads == 1 and nnpack_works():
        return "nnpack"
    return "direct"


def _default_compile(device_type: str, num_rows: int) -> str:
    return "yes" if device_type == "cuda" and num_rows >= COMPILED_FROM else "no"


def _check_nnpack(asked: EncodeFlags, device_type: str, precision: str) -> None:
    """Raise ConfigError where NNPACK cannot be used."""
    if not _nnpack_fits(device_type, precision):
        raise ConfigError(
            "--convolution nnpack is for float32 on CPUs. Use --device cpu --precision float32, or "
            "direct."
        )
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
    """About 64 tasks of 256 to 4,096 rows: quick to redo, large enough to read fast. Of millions of
    rows about 1,024 tasks of up to 65,536 rows: each has files of its own."""
    few, many = (-(-num_rows // count // 64) * 64 for count in (64, 1024))
    return min(max(256, min(few, 4096), many), MOST_ROWS_PER_TASK)


def check_same(
    root: AnyPath, store: PlanSettings, asked: PlanSettings, accept: frozenset[str] = frozenset()
) -> None:
    """Raise StoreError naming the settings in which the store and the flags differ.

    `accept` are names of ACCEPTABLE that may differ.
    """
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
            (n, store.track.get(n, NOT_RECORDED.get(n)), asked.track[n])
            for n in ("batch_size", "threads", "convolution", "compile")
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
    environment = differing_environment(store.track, asked.track, accept)
    for name, (was, value) in environment.items():
        flag = "torch" if name == "torch" else f"--{name}"
        differing.append(f"{flag} (the store has {was}, asked for {value})")
    if differing:
        raise StoreError(
            f"{root} was made with other settings: {'; '.join(differing)}. "
            "Ask for the same, or name another --out."
            + (f" {how_to_accept([*environment])}" if len(differing) == len(environment) else "")
        )


def _check_reading(root: AnyPath, store: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raise StoreError where another decoder made the store, or another version, which read image
    files otherwise."""
    found = {name: store.get(name) for name in ("decoding", "resizing")}
    for decoder, recorded in DECODERS.items():
        if found == recorded and ours["decoding"] != recorded["decoding"]:
            raise StoreError(
                f"{root} was made with --decoder {decoder}, whose pixels differ from those of the "
                "one that was asked for. Ask for the same, or name another --out."
            )
    for name in ("decoding", "resizing"):
        if store.get(name) != ours[name]:
            raise StoreError(
                f"{root} was begun by a version that read images otherwise: {store.get(name)}. "
                f"Now: {ours[name]}. New codes would not agree with its own: it can be read, but "
                "not extended. Name another --out, or use that version."
            )
