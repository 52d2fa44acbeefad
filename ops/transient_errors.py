"""Errors of the machine and not of the file that is read: retried, and never recorded as content.

What is wrong with the bytes (missing, changed, forbidden, not an image) fails again; what is wrong
with a disk, a network or a process may be over in a second.
"""

from __future__ import annotations

import errno
import functools
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from ops.config import UserError

P = ParamSpec("P")
T = TypeVar("T")

#: Errors of disks, network file systems, and limits of the process or the machine.
TRANSIENT_ERRNOS = frozenset(
    getattr(errno, name)
    for name in (
        "EIO", "EAGAIN", "EBUSY", "EINTR", "ENOMEM", "EMFILE", "ENFILE", "ENOBUFS", "ESTALE",
        "ETIMEDOUT", "ETIME", "EREMOTEIO", "EPROTO", "ECOMM", "ENOLCK", "EDEADLK", "ENETDOWN",
        "ENETUNREACH", "ENETRESET", "EHOSTDOWN", "EHOSTUNREACH", "ENOLINK", "ECONNREFUSED",
        "ECONNRESET", "ECONNABORTED", "ENOTCONN", "ESHUTDOWN", "EPIPE", "ENODEV", "ENOMEDIUM",
        "EUCLEAN",
    )
    if hasattr(errno, name)  # some are Linux's own
)  # fmt: skip
#: Parts of the messages of a GPU's libraries that have no type of error of their own.
NO_DEVICE_MEMORY = ("CUDA out of memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
WAITS = (0.1, 0.5, 2.0)  # seconds before another try


class TransientError(UserError):
    """Something could not be read now; a later attempt may succeed."""


def is_transient(error: BaseException | None) -> bool:
    """Whether the machine is to blame, and not what was read.

    Readers describe an OSError by an exception of their own, whose context it is.
    """
    while error is not None:
        if isinstance(error, MemoryError | TransientError | TimeoutError | ConnectionError):
            return True
        if is_device_memory_error(error):
            return True
        if isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS:
            return True
        error = error.__cause__ or error.__context__
    return False


def is_device_memory_error(error: BaseException) -> bool:
    """Whether torch, or a library that it calls, found too little memory on a GPU."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    # cuBLAS and cuDNN allocate workspaces themselves, and CUDA page-locks memory.
    return isinstance(error, RuntimeError) and any(text in str(error) for text in NO_DEVICE_MEMORY)


def retried(
    read: Callable[[], T],
    what: str,
    *,
    doing: str = "read",
    remedy: str = "Run the same command again, or remove the file",
) -> T:
    """`read()`, tried again after transient errors; others pass.

    Raises TransientError, which names `what` was read and the `remedy`, when the last try fails.
    """
    for wait in (*WAITS, None):
        try:
            return read()
        except TransientError:  # it has been retried
            raise
        except Exception as error:
            if not is_transient(error):
                raise
            if wait is None:
                reason = "not enough memory" if isinstance(error, MemoryError) else str(error)
                raise TransientError(
                    f"{what} cannot be {doing} now, after {len(WAITS) + 1} tries: {reason}. This "
                    f"is not recorded. {remedy}"
                ) from error
        time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def with_retries(read: Callable[P, T]) -> Callable[P, T]:
    """Decorator: `retried`, for a function whose first argument says what it reads."""

    @functools.wraps(read)
    def tried(*args: P.args, **kwargs: P.kwargs) -> T:
        return retried(lambda: read(*args, **kwargs), str(args[0]))

    return tried
