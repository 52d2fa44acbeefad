"""LocalPool: gives the tasks of a TaskQueue to one worker on this machine, without Ray.

Where a fork_server is running, the worker has a process of its own, and its death is treated like
that of an actor; else its tasks run in threads of this process.
"""

from __future__ import annotations

import itertools
import os
import pickle
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from multiprocessing.connection import Connection
from typing import Any, Generic, NamedTuple, TypeVar

from ops.config import UserError
from pipelines.jobs.actors import LOST_STARTS, OUT_OF_MEMORY, PROCESS_DIED, PROGRESS_SECONDS
from pipelines.jobs.fork_server import ForkServer, fork_server, is_command, running_server
from pipelines.jobs.queue import JobError, TaskQueue, Unit, is_final

T = TypeVar("T")
R = TypeVar("R")


class Event(NamedTuple):
    """What a worker reports."""

    kind: str  # started, done, raised, progress, died
    number: int = -1  # of the task, in the order they were given
    value: Any = None  # the result or progress; the exception; why it died


class TaskThreads:
    """A worker that runs its tasks in threads of this process, and puts events into `send`."""

    def __init__(self, worker: Any, overlap: int, send: Callable[[Event], None]) -> None:
        self._worker, self._send = worker, send
        self._threads = ThreadPoolExecutor(overlap, "task")

    def run(self, number: int, task: Any) -> None:
        self._threads.submit(self._run, number, task)

    def ask_progress(self) -> None:
        if hasattr(self._worker, "progress"):
            self._send(Event("progress", value=self._worker.progress()))

    def stop(self) -> None:
        """Return when all tasks have ended; a worker with stop() ends them soon."""
        if hasattr(self._worker, "stop"):
            self._worker.stop()
        self._threads.shutdown(cancel_futures=True)

    def _run(self, number: int, task: Any) -> None:
        try:
            self._send(Event("done", number, self._worker.run(task)))
        except BaseException as error:
            self._send(Event("raised", number, error))


class ThisProcess:
    """Runs a worker's tasks in threads of the driver."""

    def __init__(self, make_worker: Callable[[], Any], overlap: int) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._events.put(Event("started"))
        threads = TaskThreads(make_worker(), overlap, self._events.put)
        self.run, self.ask_progress, self.stop = threads.run, threads.ask_progress, threads.stop

    def next_event(self) -> Event | None:
        """The next event; None where there is none for PROGRESS_SECONDS."""
        with suppress(queue.Empty):
            return self._events.get(timeout=PROGRESS_SECONDS)
        return None


class ChildProcess:
    """Runs a worker's tasks in a process of its own."""

    def __init__(self, server: ForkServer, make_worker: Callable[[], Any], overlap: int) -> None:
        self._server = server
        self._connection = server.start()
        self._send((make_worker, overlap))

    def run(self, number: int, task: Any) -> None:
        self._send(("run", number, task))

    def ask_progress(self) -> None:
        self._send(("ask_progress",))

    def stop(self) -> None:
        if self._connection.closed:  # it has died
            return
        try:
            self._send(("stop",))
            with suppress(EOFError, ConnectionError):
                while True:  # the results of the last tasks
                    self._connection.recv_bytes()
        finally:
            self._connection.close()
            self._server.exit_code()

    def next_event(self) -> Event | None:
        """The next event; None where there is none for PROGRESS_SECONDS."""
        try:
            if self._connection.poll(PROGRESS_SECONDS):
                event: Event = self._connection.recv()
                return event
        except (EOFError, ConnectionError, pickle.UnpicklingError):
            self._connection.close()
            return Event("died", value=_why_died(self._server.exit_code()))
        return None

    def _send(self, message: Any) -> None:
        with suppress(ConnectionError):  # next_event() will find that it has died
            self._connection.send(message)


def forked_workers(wanted: bool = True) -> AbstractContextManager[None]:
    """Tasks that run without Ray in the body run in a child process, if `wanted`.

    Only in a process that was started for one command: others may have threads already.
    """
    return fork_server(_serve_driver, wanted and is_command())


def _serve_driver(connection: Connection) -> None:
    """What a child process does: run the tasks that the driver sends, until it says stop."""
    make_worker, overlap = connection.recv()
    lock = threading.Lock()

    def send(event: Event) -> None:
        if event.kind == "raised":
            event = event._replace(value=_portable(event.value))
        with lock:
            connection.send(event)

    try:
        threads = TaskThreads(make_worker(), overlap, send)
    except Exception as error:
        send(Event("raised", value=error))
        return
    send(Event("started"))
    while True:
        try:
            name, *arguments = connection.recv()
        except (EOFError, ConnectionError):
            os._exit(1)  # the driver has died; its threads must not go on
        if name == "stop":  # in a thread, since the driver may still die or be interrupted
            threading.Thread(target=_stop_and_exit, args=(threads,)).start()
        else:
            getattr(threads, name)(*arguments)


def _stop_and_exit(threads: TaskThreads) -> None:
    try:
        threads.stop()
    finally:
        os._exit(0)


class _WorkerError(Exception):
    """The traceback of an exception in a child process."""


def _portable(error: BaseException) -> BaseException:
    """An exception that can be pickled: of the user as it is, of others the traceback."""
    if not isinstance(error, UserError):
        return _WorkerError("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return UserError(str(error))
    return error


def _why_died(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return f"the worker's process was killed. If nobody did it: {OUT_OF_MEMORY}"
    name = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
    return f"{PROCESS_DIED} ({name})"


class LocalPool(Generic[T, R]):
    """One worker on this machine and the tasks it runs."""

    def __init__(
        self,
        queue: TaskQueue[T],
        make_worker: Callable[[], Any],
        *,
        overlap: int,
        give_up: Callable[[T], Any] | None,
        on_progress: Callable[[list[Any]], None] | None,
    ) -> None:
        self.queue, self.make_worker, self.overlap = queue, make_worker, overlap
        self.give_up, self.on_progress = give_up, on_progress
        self.held: dict[int, Unit[T]] = {}  # by number
        self.started = False
        self.failed_starts = 0  # in a row
        self._numbers = itertools.count()

    def run(self, on_result: Callable[[T, R], None]) -> None:
        """Return when every task has its result.

        Raises JobError where the queue does or no process starts, and exceptions of the worker.
        """
        self.worker = self._new_worker()
        last_report = time.monotonic()
        try:
            while self.queue.left:
                self._hand_out()
                event = self.worker.next_event()
                if event is not None:
                    self._handle(event, on_result)
                if self.on_progress and time.monotonic() - last_report >= PROGRESS_SECONDS:
                    last_report = time.monotonic()
                    self.worker.ask_progress()
        finally:  # on Ctrl-C too
            self.worker.stop()

    def _new_worker(self) -> ThisProcess | ChildProcess:
        server = running_server()
        if server is None:
            return ThisProcess(self.make_worker, self.overlap)
        return ChildProcess(server, self.make_worker, self.overlap)

    def _hand_out(self) -> None:
        while self.started and len(self.held) < self.overlap:
            unit = self.queue.take(list(self.held.values()))
            if unit is None:
                return
            number = next(self._numbers)
            self.held[number] = unit
            self.worker.run(number, unit.work)

    def _handle(self, event: Event, on_result: Callable[[T, R], None]) -> None:
        if event.kind == "started":
            self.started, self.failed_starts = True, 0
        elif event.kind == "progress" and self.on_progress is not None:
            self.on_progress([event.value])
        elif event.kind == "died":
            self._died(event.value)
        elif event.kind == "raised":
            self._raised(event)
        elif event.kind == "done":
            unit = self.held.pop(event.number)
            if self.queue.succeeded(unit):
                on_result(unit.work, event.value)

    def _raised(self, event: Event) -> None:
        error: BaseException = event.value
        if event.number < 0 or is_final(error) or not isinstance(error, Exception):
            raise error
        try:
            self.queue.raised(self.held.pop(event.number), str(error))
        except JobError:
            if isinstance(error, _WorkerError):
                raise
            raise error from None

    def _died(self, why: str) -> None:
        """Return a dead process's tasks to the queue and start another in its place."""
        if not self.started:
            self.failed_starts += 1
            if self.failed_starts >= LOST_STARTS:
                raise JobError(f"Workers do not start: {why}")
        self.started = False
        self.worker = self._new_worker()
        held, self.held = list(self.held.values()), {}
        if held:
            unit = self.queue.died(held, why)
            if unit is not None:
                assert self.give_up is not None
                self.give_up(unit.work)
                self.queue.settled(unit)
