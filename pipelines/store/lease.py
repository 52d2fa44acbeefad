"""The lease of a store or run in an object store: keeps two drivers from doing the same work.

No store rests on it: commits are exclusive whoever makes them. So a driver that cannot renew its
lease in time goes on, and one whose holder has died is taken over. A holder that was taken over
does not renew it any more, and `Lease.check` tells it so.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ops import paths
from ops.config import UserError
from ops.files import LockedError, parse_json
from ops.object_store import find_object
from ops.paths import ObjectPath

RENEW_SECONDS = 15.0
#: A lease that was not renewed for so long has no holder any more.
EXPIRED_SECONDS = 60.0


@dataclass(frozen=True)
class Lease:
    """A lease that is held; other processes may be given a copy to check it."""

    path: ObjectPath
    data: bytes  # names the holder

    def check(self) -> None:
        """Raise LockedError where another driver has taken the lease over."""
        if not paths.holds(self.path, self.data):
            raise LockedError(
                f"{self.path} is no longer held by this process: it had stopped for more than "
                f"{EXPIRED_SECONDS:.0f} s, and another one has taken over. Let that one go on."
            )


@contextlib.contextmanager
def held_lease(path: ObjectPath) -> Iterator[Lease]:
    """Hold the lease at `path`; LockedError where another driver holds it."""
    own = {"id": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
    data = json.dumps(own).encode()
    if not paths.create_once(path, data):
        _check_expired(path)
        paths.write_whole(path, data)
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(path, data, ended), daemon=True)
    renewing.start()
    try:
        yield Lease(path, data)
    finally:
        ended.set()
        renewing.join()
        with contextlib.suppress(UserError):  # it expires
            if paths.holds(path, data):
                paths.remove(path)


def _renew(path: ObjectPath, data: bytes, ended: threading.Event) -> None:
    while not ended.wait(RENEW_SECONDS):
        with contextlib.suppress(UserError, OSError):
            if not paths.holds(path, data):
                return  # it was taken over
            paths.write_whole(path, data)


def _check_expired(path: ObjectPath) -> None:
    """Raise LockedError where the holder of the lease at `path` may still be at work."""
    lease = find_object(path)
    if lease is None:
        return
    holder = _holder(path)
    if holder.get("host") == socket.gethostname() and not _runs_here(holder.get("pid")):
        return
    age = _seconds_since(path, lease.modified)
    if age < EXPIRED_SECONDS:
        raise LockedError(
            f"{path} is held by process {holder.get('pid')} on {holder.get('host')}. Wait for it "
            f"to end, or stop it; {EXPIRED_SECONDS - age:.0f} s after it was killed this command "
            "can be run again."
        )


def _holder(path: ObjectPath) -> dict[str, Any]:
    """What the holder wrote about itself; nothing where that is corrupt or gone."""
    try:
        found = parse_json(paths.read_whole(path))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _runs_here(pid: object) -> bool:
    """Whether this machine has a process of that number."""
    if not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _seconds_since(path: ObjectPath, then: Any) -> float:
    """The seconds from `then` until now, both by the store's clock."""
    probe = path.with_name(f"probe-{uuid.uuid4().hex}")
    paths.write_whole(probe, b"")
    try:
        now = find_object(probe)
    finally:
        paths.remove(probe)
    return 0.0 if now is None else float((now.modified - then).total_seconds())
