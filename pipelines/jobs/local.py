"""LocalPool: gives the tasks of a TaskQueue to one worker on this machine, without Ray.

Where a fork_server is running, the worker has a process of its own, and its death is treated like
that of an actor; else its tasks run in threads of this process, where none can be killed.
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
from pipelines.jobs.actors import LOST_STARTS, OUT_OF_MEMORY, PROCESS_DIED
from pipelines.jobs.fork_server import ForkServer, fork_server, is_command, running_server
from pipelines.jobs.queue import JobError, TaskQueue, Unit, is_final
from pipelines.jobs.stalls import StallWatch
from pipelines.jobs.worker_reports import PROGRESS_SECONDS, worker_reports

T = TypeVar("T")
R = TypeVar("R")

STOP_SECONDS = 60.0  # that a worker may take to end its tasks before it is killed
KILL_SECONDS = 60.0  # that a process may take to die; one that waits for a disk may never do


class Event(NamedTuple):
    """What a worker reports."""

    kind: str  # started, done, raised, progress, died
    number: int = -1  # of the task, in the order they were given
    value: Any = None  # the result or the Report; the exception; why it died


class TaskThreads:
    """A worker that runs its tasks in threads of this process, and puts events into `send`.

    It reports its progress every `interval` seconds.
    """

    def __init__(
        self, worker: Any, overlap: int, interval: float, send: Callable[[Event], None]
    ) -> None:
        self._worker, self._interval, self._send = worker, interval, send
        self._threads = ThreadPoolExecutor(overlap, "task")
        self._stopped = threading.Event()
        self._reporter = threading.Thread(target=self._report, name="report", daemon=True)
        self._reporter.start()

    def run(self, number: int, task: Any) -> None:
        self._threads.submit(self._run, number, task)

    def stop(self) -> None:
        """Return when all tasks have ended; a worker with stop() ends them soon."""
        self._stopped.set()
        if hasattr(self._worker, "stop"):
            self._worker.stop()
        self._threads.shutdown(cancel_futures=True)
        self._reporter.join()

    def _run(self, number: int, task: Any) -> None:
        try:
            self._send(Event("done", number, self._worker.run(task)))
        except BaseException as error:
            self._send(Event("raised", number, error))

    def _report(self) -> None:
        try:
            for report in worker_reports(self._worker, self._interval, self._stopped):
                self._send(Event("progress", value=report))
        except Exception as error:
            self._send(Event("raised", value=error))


class ThisProcess:
    """Runs a worker's tasks in threads of the driver."""

    def __init__(self, make_worker: Callable[[], Any], overlap: int, interval: float) -> None:
        self._interval = interval
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._events.put(Event("started"))
        threads = TaskThreads(make_worker(), overlap, interval, self._events.put)
        self.run, self.stop = threads.run, threads.stop

    def next_event(self) -> Event | None:
        """The next event; None where there is none for `interval` seconds."""
        with suppress(queue.Empty):
            return self._events.get(timeout=self._interval)
        return None

    def kill(self) -> bool:
        return False


class ChildProcess:
    """Runs a worker's tasks in a process of its own."""

    def __init__(
        self, server: ForkServer, make_worker: Callable[[], Any], overlap: int, interval: float
    ) -> None:
        self._server, self._interval = server, interval
        self._connection = server.start()
        self._send((make_worker, overlap, interval))

    def run(self, number: int, task: Any) -> None:
        self._send(("run", number, task))

    def kill(self) -> bool:
        """Send SIGKILL; next_event() tells of the death. Returns whether that is possible."""
        self._server.kill()
        return True

    def stop(self) -> None:
        """Return when all tasks have ended; a process that does not end in time is killed."""
        if self._connection.closed:  # it has died
            return
        ended = False
        try:
            self._send(("stop",))
            ended = self._read_to_end(STOP_SECONDS)
            if not ended:
                self._server.kill()
                ended = self._read_to_end(KILL_SECONDS)
        finally:
            self._connection.close()
            if ended:
                self._server.exit_code()
            else:
                self._server.abandon()

    def next_event(self) -> Event | None:
        """The next event; None where there is none for `interval` seconds."""
        try:
            if self._connection.poll(self._interval):
                event: Event = self._connection.recv()
                return event
        except (EOFError, ConnectionError, pickle.UnpicklingError):
            self._connection.close()
            return Event("died", value=_why_died(self._server.exit_code()))
        return None

    def _read_to_end(self, seconds: float) -> bool:
        """Read the results of the last tasks; whether the process ends in that time."""
        deadline = time.monotonic() + seconds
        try:
            while self._connection.poll(max(0.0, deadline - time.monotonic())):
                self._connection.recv_bytes()
        except (EOFError, ConnectionError):
            return True
        return False

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
    make_worker, overlap, interval = connection.recv()
    lock = threading.Lock()

    def send(event: Event) -> None:
        if event.kind == "raised":
            event = event._replace(value=_portable(event.value))
        with lock, suppress(ConnectionError):  # of a driver that has died: see below
            connection.send(event)

    try:
        threads = TaskThreads(make_worker(), overlap, interval, send)
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
    """One worker on this machine and the tasks it runs.

    In a process of its own it is killed when it makes no progress for `stall_timeout` seconds.
    """

    def __init__(
        self,
        queue: TaskQueue[T],
        make_worker: Callable[[], Any],
        *,
        overlap: int,
        give_up: Callable[[T, bool], Any] | None,
        on_progress: Callable[[list[Any]], None] | None,
        stall_timeout: float | None = None,
    ) -> None:
        self.queue, self.make_worker, self.overlap = queue, make_worker, overlap
        self.give_up, self.on_progress = give_up, on_progress
        self.held: dict[int, Unit[T]] = {}  # by number
        self.started = False
        self.failed_starts = 0  # in a row
        self.watch = StallWatch(stall_timeout)
        self.progressed = 0.0  # when it last did, by that clock
        self.killed: float | None = None  # when it was, since it was stalled
        self.progress: Any = None  # as last reported; None once a task that it counts has ended
        self._numbers = itertools.count()

    def run(self, on_result: Callable[[T, R], None]) -> None:
        """Return when every task has its result.

        Raises JobError where the queue does or no process starts, and exceptions of the worker.
        """
        self.worker = self._new_worker()
        last_shown = time.monotonic()
        try:
            while self.queue.left:
                self._hand_out()
                event = self.worker.next_event()
                if event is not None:
                    self._handle(event, on_result)
                self.watch.tick()
                if event is None:  # only then all that it sent has been read
                    self._kill_if_stalled()
                if self.on_progress and time.monotonic() - last_shown >= PROGRESS_SECONDS:
                    last_shown = time.monotonic()
                    self.on_progress([] if self.progress is None else [self.progress])
        finally:  # on Ctrl-C too
            self.worker.stop()

    def _new_worker(self) -> ThisProcess | ChildProcess:
        server = running_server()
        if server is None:
            return ThisProcess(self.make_worker, self.overlap, self.watch.interval)
        return ChildProcess(server, self.make_worker, self.overlap, self.watch.interval)

    def _hand_out(self) -> None:
        while self.started and len(self.held) < self.overlap:
            unit = self.queue.take(list(self.held.values()))
            if unit is None:
                return
            if not self.held:
                self.progressed = self.watch.now
            number = next(self._numbers)
            self.held[number] = unit
            self.worker.run(number, unit.work)

    def _handle(self, event: Event, on_result: Callable[[T, R], None]) -> None:
        self.progressed = self.watch.now
        if event.kind == "started":
            self.started, self.failed_starts = True, 0
        elif event.kind == "progress":
            self.progress = event.value.progress
        elif event.kind == "died":
            self._died(event.value)
        elif event.kind == "raised":
            self._raised(event)
        elif event.kind == "done":
            self.progress = None
            unit = self.held.pop(event.number)
            if self.queue.succeeded(unit):
                on_result(unit.work, event.value)

    def _kill_if_stalled(self) -> None:
        if self.killed is not None:
            if self.watch.now - self.killed >= KILL_SECONDS:
                raise JobError(
                    f"{self.watch.why()}. Its process does not die either: it waits for a disk or "
                    "a network file system. Mend that and run the same command again."
                )
        elif self.held and self.watch.is_stalled(self.progressed) and self.worker.kill():
            self.killed = self.watch.now

    def _raised(self, event: Event) -> None:
        error: BaseException = event.value
        if event.number < 0 or is_final(error) or not isinstance(error, Exception):
            raise error
        self.progress = None
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
        stalled, self.killed = self.killed is not None, None
        self.started, self.progress = False, None
        self.worker = self._new_worker()
        held, self.held = list(self.held.values()), {}
        if held:
            unit = self.queue.died(held, self.watch.why() if stalled else why, stalled=stalled)
            if unit is not None:
                assert self.give_up is not None
                self.give_up(unit.work, unit.stalled)
                self.queue.settled(unit)
