"""An S3 server in this process, and a proxy before it that injects faults between the two."""

from __future__ import annotations

import http.client
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import obstore
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

from ops.paths import ObjectPath

_numbers = itertools.count()

#: What happens to a request: "", or the name of a fault (see Proxy).
Decide = Callable[[str, str], str]  # of the method and the path


def in_turn(faults: Sequence[str], every: int) -> Decide:
    """One of the faults in turn at each `every`-th request, the first included."""
    requests = itertools.count()

    def decide(method: str, path: str) -> str:
        number = next(requests)
        return "" if number % every else faults[number // every % len(faults)]

    return decide


class S3:
    """A server and how to reach it: `options` are the storage options, `bucket()` a new bucket."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.options = {
            "endpoint": f"http://127.0.0.1:{port}",
            "region": "us-east-1",
            "access_key_id": "test",
            "secret_access_key": "test",
        }

    def bucket(self) -> ObjectPath:
        name = f"bucket-{next(_numbers)}"
        request(self.port, "PUT", f"/{name}")
        return ObjectPath("s3", name)

    def objects(self, prefix: ObjectPath) -> dict[str, bytes]:
        """Every object below a prefix by its name there, but for settings.yaml, the flags of the
        last command; read around the proxy."""
        client: Any = S3Store(prefix.bucket, client_options={"allow_http": True}, **self.options)
        found = [
            meta["path"] for chunk in obstore.list(client, prefix.key or None) for meta in chunk
        ]
        return {
            path.removeprefix(f"{prefix.key}/"): bytes(obstore.get(client, path).bytes())
            for path in sorted(found)
            if not path.endswith("/settings.yaml")
        }


def request(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> int:
    """Make one request and return the status."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        signed = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"
        connection.request(method, path, body, {"Authorization": signed, **headers})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


@contextmanager
def s3_server() -> Iterator[S3]:
    """A server of S3 on the loopback interface, its objects in memory."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield S3(server.get_host_and_port()[1])
    finally:
        server.stop()


class Proxy:
    """Passes requests on to a server, but for those that `decide` names a fault for.

    "503", "429": this status, without passing it on. "reset": the connection is closed, without
    passing it on. "lost": it is passed on, and the connection closed instead of an answer. "twice":
    it is passed on twice, and the second answer given. "slow": it waits first. "late": as "lost",
    but it is passed on only when `release()` is called.
    """

    def __init__(self, target: S3, decide: Decide) -> None:
        self.decide = decide
        self.counts: dict[str, int] = {}
        self.late: list[tuple[str, str, bytes, dict[str, str]]] = []
        self.target = target
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.options = {
            **target.options,
            "endpoint": f"http://127.0.0.1:{self._server.server_address[1]}",
        }

    def fault(self, method: str, path: str) -> str:
        with self._lock:
            fault = self.decide(method, path)
            self.counts[fault] = self.counts.get(fault, 0) + 1
            return fault

    def release(self) -> list[int]:
        """Pass on the requests that were kept, as a network that was slow would; their statuses."""
        late, self.late = self.late, []
        return [self.forward(*each)[0] for each in late]

    def forward(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.target.port)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: value for name, value in self.headers.items() if name != "Connection"}
        asked = (self.command, self.path, body, headers)
        fault = self.proxy.fault(self.command, self.path)
        if fault.isdigit():
            self._answer(int(fault), [], b"")
            return
        if fault == "slow":
            time.sleep(0.2)
        if fault == "late":
            self.proxy.late.append(asked)
        if fault in ("reset", "late"):
            self.close_connection = True
            return
        if fault == "twice":
            self.proxy.forward(*asked)
        answer = self.proxy.forward(*asked)
        if fault == "lost":
            self.close_connection = True
            return
        self._answer(*answer)

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self.handle_any
        raise AttributeError(name)

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = dict((n.lower(), v) for n, v in headers).get("content-length", str(len(body)))
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def proxy(target: S3, decide: Decide) -> Iterator[Proxy]:
    """A proxy before `target`; requests to its `options` go through it."""
    running = Proxy(target, decide)
    try:
        yield running
    finally:
        running.close()
