"""Paths of a command that works on a Ray cluster: every node must see the same files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ops.config import UserError

JOB_MARK = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the command of a submitted job


class ClusterPathError(UserError):
    """A path that does not mean the same on every node."""


def inside_job() -> bool:
    """Whether this process was started by `ray job submit`."""
    return JOB_MARK in os.environ


def check_absolute(paths: Mapping[str, Path]) -> None:
    """Refuse relative paths, named by their flags, in a Ray job.

    Raises ClusterPathError: the job's working directory is a copy, and what is written there is
    lost with it.
    """
    for flag, path in paths.items():
        if inside_job() and not path.is_absolute():
            raise ClusterPathError(
                f"{flag} {path} is relative, but a Ray job runs in a copy of the working directory "
                "that goes when the job ends. Give an absolute path that every node sees."
            )


def check_on_every_node(reads: Mapping[str, Path], writes: Mapping[str, Path]) -> None:
    """Ask each node of the running Ray whether it sees `reads` and can write below `writes`.

    Both are by flag; folders to write need not exist yet. Raises ClusterPathError naming the nodes.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    look = ray.remote(num_cpus=0)(_problems)
    asked = {
        f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})": look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(_plain(reads), _plain(writes))
        for node in nodes
    }
    found = [f"on {node}, {line}" for node, answer in asked.items() for line in ray.get(answer)]
    if found:
        raise ClusterPathError(
            f"{'; '.join(found)}. Name paths on a file system that all nodes share."
        )


def _plain(paths: Mapping[str, Path]) -> dict[str, str]:
    return {flag: str(path.absolute()) for flag, path in paths.items()}


def _problems(reads: dict[str, str], writes: dict[str, str]) -> list[str]:
    """What is wrong with the paths on this machine, a line each."""
    unseen = [f"{flag} {path} does not exist" for flag, path in reads.items() if not _exists(path)]
    return unseen + [
        f"{flag} {path} cannot be written ({reason})"
        for flag, path in writes.items()
        if (reason := _why_not_writable(Path(path)))
    ]


def _exists(path: str) -> bool:
    return Path(path).exists()


def _why_not_writable(path: Path) -> str:
    """Why no file can be made in the folder `path`, or in the nearest one above it that exists."""
    while not path.exists():
        path = path.parent
    try:
        with tempfile.NamedTemporaryFile(dir=path, prefix=".smalti-"):
            return ""
    except OSError as error:
        return str(error.strerror or error)


def cluster_address(address: str | None) -> Any:
    """The address to connect to: the given one, or in a job that of the job's own cluster."""
    return address or ("auto" if inside_job() else None)
