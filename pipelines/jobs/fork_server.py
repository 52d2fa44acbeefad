"""A process that is forked when a command begins, and of which its workers are forked later.

A worker may die of an image (a decoder that crashes, the system's killer of processes that use up
the memory), so it must not run in the driver. Starting a Python process and importing torch takes
seconds, and forking a driver whose torch has threads can deadlock the child; a process that was
forked before there were any costs a hundredth of a second and shares its memory.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

NUMBER = struct.Struct("i")  # a process id or an exit code
#: Of workers: if the memory is used up, the system is to kill one of them and not the driver.
OOM_SCORE = "500"

#: What a worker process does with the connection to the driver.
Main = Callable[[Connection], None]


class ForkServer:
    """The driver's side: starts one worker process at a time."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._worker: int | None = None  # its process id
        self.abandoned = False  # the worker does not die

    def start(self) -> Connection:
        """Start a worker process; its side of the connection ends when it dies."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [b"x"], [theirs.fileno()])
        self._worker = self._receive()
        return Connection(ours.detach())

    def kill(self) -> None:
        """SIGKILL to the worker that was started last; exit_code() is still to be asked for."""
        if self._worker is not None:  # the system gives its id away after the next start()
            with suppress(ProcessLookupError):
                os.kill(self._worker, signal.SIGKILL)

    def abandon(self) -> None:
        """Do not wait for the worker when the server is ended: it may never die."""
        self.abandoned = True

    def exit_code(self) -> int | None:
        """The exit code of the worker whose connection has ended, as subprocess has it; None where
        the server itself is gone."""
        return self._receive()

    def _receive(self) -> int | None:
        answer = self._control.recv(NUMBER.size)
        return int(NUMBER.unpack(answer)[0]) if len(answer) == NUMBER.size else None


_running: list[ForkServer] = []


def running_server() -> ForkServer | None:
    """The server of the `fork_server` that is running."""
    return _running[-1] if _running else None


@contextmanager
def fork_server(main: Main, wanted: bool = True) -> Iterator[None]:
    """Tasks that run without Ray in the body run in child processes, which do `main`.

    To be called before this process has threads that compute; `wanted` False does nothing. Inside
    another one it does nothing either: the process forked by that one has no such threads, while
    this one may have some by now.
    """
    if not wanted or _running:
        yield
        return
    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    server = os.fork()
    if server == 0:
        ours.close()
        _exit_after(lambda: _serve(theirs, main))
    theirs.close()
    _running.append(ForkServer(ours))
    try:
        yield
    finally:
        ours.close()
        if _running.pop().abandoned:
            os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)


def is_command() -> bool:
    """Whether this process was started for one command: `python -m pipelines.NAME` or smalti."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    here = Path(__file__).parents[1]
    return os.path.basename(sys.argv[0]) == "smalti" or (
        file is not None and Path(file).resolve().parent == here
    )


def _serve(control: socket.socket, main: Main) -> None:
    """Fork a worker for each descriptor that comes; answer with its process id and exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides what Ctrl-C means
    for number in (signal.SIGTERM, signal.SIGHUP):
        if callable(signal.getsignal(number)):  # a handler of the driver's
            signal.signal(number, signal.SIG_DFL)
    worker = None
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if worker is not None:
            os.waitpid(worker, 0)  # only now, so that the driver never kills another process
        if not descriptors:
            return  # the driver has ended
        descriptor = descriptors[0]
        worker = os.fork()
        if worker == 0:
            control.close()
            _exit_after(partial(_work, descriptor, main))
        os.close(descriptor)
        control.sendall(NUMBER.pack(worker))
        control.sendall(NUMBER.pack(_exit_code(worker)))


def _exit_code(worker: int) -> int:
    """Wait until the worker has ended; its exit code as subprocess has it."""
    ended = os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def _work(descriptor: int, main: Main) -> None:
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(OOM_SCORE)
    main(Connection(descriptor))


def _exit_after(body: Callable[[], None]) -> None:
    """End this forked process after `body`, without the driver's clean-up."""
    code = 1
    try:
        body()
        code = 0
    except (EOFError, ConnectionError):
        pass  # the driver has died
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
