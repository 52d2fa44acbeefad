"""Connecting to a Ray cluster or a local Ray, and whether all nodes see a command's paths."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from ops import paths
from ops.cache_folder import CACHE_VARIABLE
from ops.config import UserError
from ops.paths import OPTIONS_VARIABLE, AnyPath, ObjectPath, parse_path
from pipelines.console import signal_handlers_kept

OBJECT_STORE_BYTES = 256 << 20  # results are small; by default Ray takes 30% of the memory
LOOPBACK = "127.0.0.1"
LONGEST_TEMP = 30  # characters of a folder below which the paths of Ray's sockets fit in 107
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it in the command of a submitted job

T = TypeVar("T")


class ClusterPathError(UserError):
    """A path that is not the same file or folder on every node."""


def inside_job() -> bool:
    """Whether this process was started by `ray job submit`."""
    return JOB_VARIABLE in os.environ


def check_absolute(named: Mapping[str, AnyPath]) -> None:
    """Raise ClusterPathError for a relative path in a Ray job; `named` are by flag.

    The job's working directory is a copy, and files written there are lost with it.
    """
    for flag, path in named.items():
        if inside_job() and not path.is_absolute():
            raise ClusterPathError(
                f"{flag} {path} is relative, but a Ray job runs in a copy of the working directory "
                "that is removed when the job ends. Give an absolute path that every node sees."
            )


def check_on_every_node(reads: Mapping[str, AnyPath], writes: Mapping[str, AnyPath]) -> None:
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
    _raise_for([f"on {node}, {line}" for node, answer in asked.items() for line in ray.get(answer)])


def worker_after_check(
    make_worker: Callable[[], T], reads: Mapping[str, AnyPath], writes: Mapping[str, AnyPath]
) -> T:
    """A worker, once its node has passed the same check: it may have joined after that."""
    node = socket.gethostname()
    _raise_for([f"on {node}, {line}" for line in _problems(_plain(reads), _plain(writes))])
    return make_worker()


def _raise_for(problems: list[str]) -> None:
    if problems:
        raise ClusterPathError(
            f"{'; '.join(problems)}. Name paths on a file system that all nodes share."
        )


def _plain(named: Mapping[str, AnyPath]) -> dict[str, str]:
    return {flag: str(path.absolute()) for flag, path in named.items()}


def _problems(reads: dict[str, str], writes: dict[str, str]) -> list[str]:
    """The problems with the paths on this machine, a line each."""
    unseen = [f"{flag} {path} does not exist" for flag, path in reads.items() if not _exists(path)]
    return unseen + [
        f"{flag} {path} cannot be written ({reason})"
        for flag, path in writes.items()
        if (reason := _why_not_writable(parse_path(path)))
    ]


def _exists(path: str) -> bool:
    found = parse_path(path)
    return paths.is_folder(found) or paths.exists(found)


def _why_not_writable(path: AnyPath) -> str:
    """Why no file can be made in `path` or its nearest existing parent; "" if one can."""
    if isinstance(path, ObjectPath):
        probe = path / f".smalti-{secrets.token_hex(8)}"
        try:
            paths.write_whole(probe, b"")
            paths.remove(probe)
        except UserError as error:
            return str(error)
        return ""
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


@contextlib.contextmanager
def ray_running(address: str | None = None, cpus: float = 1) -> Iterator[None]:
    """Connect to Ray: an existing connection, the cluster at `address`, or a new local Ray.

    Only a connection made here is closed again. A local Ray has at least `cpus` CPUs. Other users
    of the machine cannot reach it, nor other machines: it listens on the loopback interface alone,
    takes a token made for this process, and keeps its sockets in a folder that only we can enter.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        yield
    elif address is None:
        with _local_settings() as temporary:
            yield from _connected(
                address="local",
                num_cpus=max(round(cpus), os.cpu_count() or 1),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address=LOOPBACK,
                _temp_dir=temporary,
            )
    else:
        names = (OPTIONS_VARIABLE, CACHE_VARIABLE)
        variables = {name: os.environ[name] for name in names if os.environ.get(name)}
        yield from _connected(
            address=address, **({"runtime_env": {"env_vars": variables}} if variables else {})
        )


def cores_for_gpus(gpus: float) -> int:
    """CPU cores that an actor with `gpus` GPUs may have, so that every GPU gets as many.

    That is on the node with the fewest a GPU; 1 where no node with GPUs has started yet.
    """
    import ray

    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    shares = [each.get("CPU", 0.0) / each["GPU"] for each in found if each.get("GPU")]
    return max(1, int(min(shares, default=0.0) * gpus))


def _connected(**settings: Any) -> Iterator[None]:
    """Connect to Ray with these settings, and end the connection."""
    import ray

    with signal_handlers_kept():  # Ray's own would end the process without its cleaning up
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **settings)
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _local_settings() -> Iterator[str]:
    """Set what a local Ray and its processes read from the environment; yields its folder."""
    settings = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _token(),  # Ray's own file of a token can be read by everybody
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listen on the loopback interface alone
    }
    before = {name: os.environ.get(name) for name in settings}
    imported = "ray" in sys.modules
    base = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(
        prefix="smalti-",
        dir=base if len(base) <= LONGEST_TEMP else "/tmp",
        ignore_cleanup_errors=True,  # Ray's last processes may still write
    ) as temporary:
        os.environ.update(settings)
        if imported:
            _read_settings_again()
        try:
            yield f"{temporary}/r"  # Ray lets everybody write into the folder that it is given
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            _read_settings_again()


@functools.cache
def _token() -> str:
    return secrets.token_hex(32)


def _read_settings_again() -> None:
    """Make Ray, which reads these variables when it is imported, read them again."""
    import ray._private.ray_constants as constants
    from ray import _raylet

    raylet: Any = _raylet
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
    constants.ENABLE_RAY_CLUSTER = os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") != "0"
