"""Checks that every node of a Ray cluster sees the paths of a command."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ops.config import UserError

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it in the command of a submitted job


class ClusterPathError(UserError):
    """A path that is not the same file or folder on every node."""


def inside_job() -> bool:
    """Whether this process was started by `ray job submit`."""
    return JOB_VARIABLE in os.environ


def check_absolute(paths: Mapping[str, Path]) -> None:
    """Raise ClusterPathError for a relative path in a Ray job; `paths` are by flag.

    The job's working directory is a copy, and files written there are lost with it.
    """
    for flag, path in paths.items():
        if inside_job() and not path.is_absolute():
            raise ClusterPathError(
                f"{flag} {path} is relative, but a Ray job runs in a copy of the working directory "
                "that is removed when the job ends. Give an absolute path that every node sees."
            )


def check_on_every_node(reads: Mapping[str, Path], writes: Mapping[str, Path]) -> None:
    """Raise ClusterPathError for nodes that do not see `reads` or cannot write below `writes`.

    Both are by flag; folders to write need not exist yet.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    problems = ray.remote(num_cpus=0)(_problems)
    asked = {
        f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})": problems.options(
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
    """The problems with the paths on this machine, a line each."""
    unseen = [f"{flag} {path} does not exist" for flag, path in reads.items() if not _exists(path)]
    return unseen + [
        f"{flag} {path} cannot be written ({reason})"
        for flag, path in writes.items()
        if (reason := _why_not_writable(Path(path)))
    ]


def _exists(path: str) -> bool:
    return Path(path).exists()


def _why_not_writable(path: Path) -> str:
    """Why no file can be made in `path` or its nearest existing parent; "" if one can."""
    while not path.exists():
        path = path.parent
    try:
        with tempfile.NamedTemporaryFile(dir=path, prefix=".smalti-"):
            return ""
    except OSError as error:
        return str(error.strerror or error)


def cluster_address(address: str | None) -> Any:
    """The address to connect to: `address`, or in a Ray job the job's own cluster."""
    return address or ("auto" if inside_job() else None)
