"""Servers on the loopback interface: of files over http and https, and of a hub's data sets."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

RANGE = re.compile(r"bytes=(\d+)-(\d*)")
HUB_FILE = re.compile(r"/datasets/owner/name/resolve/[^/]+/(.+)")
HUB_API = re.compile(r"/api/datasets/owner/name(?:/(revision|tree|paths-info)/[^/]+(?:/(.*))?)?")


class FileServer:
    """Serves the files of a folder by name, in ranges; `asked` are "METHOD path" of its requests.

    `decide` gives the status of a request that is refused, by its path, or 0. With `hub` the folder
    is the data set owner/name, with the answers of a hub.
    """

    def __init__(self, folder: Path, hub: bool = False) -> None:
        self.folder, self.hub = folder, hub
        self.asked: list[str] = []
        self.decide: Callable[[str], int] = lambda path: 0
        self.ranges = True
        handler = type("Handler", (_Handler,), {"files": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    files: FileServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.files.asked.append(f"{self.command} {path}")
        status = self.files.decide(path)
        if status:
            self._answer(status, b"")
        elif self.files.hub and path.startswith("/api/"):
            self._answer_of_hub(path, body)
        else:
            match = HUB_FILE.fullmatch(path) if self.files.hub else None
            self._file(match[1] if match else path.lstrip("/"))

    def _file(self, name: str) -> None:
        path = self.files.folder / name
        if not path.is_file():
            self._answer(404, b"")
            return
        data = path.read_bytes()
        etag = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        asked = RANGE.fullmatch(self.headers.get("Range") or "")
        if asked is None or not self.files.ranges:
            self._answer(200, data, **etag)
            return
        start, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        if start >= len(data):
            self._answer(416, b"")
            return
        about = {"Content-Range": f"bytes {start}-{end}/{len(data)}", **etag}
        self._answer(206, data[start : end + 1], **about)

    def _answer_of_hub(self, path: str, body: bytes) -> None:
        match = HUB_API.fullmatch(path)
        if match is None:
            self._answer(404, b"{}", **{"X-Error-Code": "RepoNotFound"})
            return
        kind, below = match[1], match[2] or ""
        answer: object = {"id": "owner/name", "sha": "0" * 40, "siblings": []}
        if kind == "tree":
            answer = [self._about(p) for p in self._below(below)]
        elif kind == "paths-info":
            wanted = re.findall(r"[\w./-]+", json.dumps(_paths_in(body)))
            found = [self.files.folder / name for name in wanted]
            answer = [self._about(path) for path in found if path.exists()]
        data = json.dumps(answer).encode()
        self._answer(200, data, **{"Content-Type": "application/json"})

    def _below(self, folder: str) -> list[Path]:
        root = self.files.folder / folder
        return sorted(root.rglob("*") if "recursive=true" in self.path.lower() else root.iterdir())

    def _about(self, path: Path) -> dict[str, object]:
        name = path.relative_to(self.files.folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
        oid = hashlib.sha1(path.read_bytes()).hexdigest()
        return {"type": "file", "path": name, "oid": oid, "size": path.stat().st_size}

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _paths_in(body: bytes) -> list[str]:
    """The paths that a request of paths-info asks for, in JSON or as a form."""
    try:
        return list(json.loads(body)["paths"])
    except ValueError:
        return re.findall(r"paths=([^&]+)", unquote(body.decode()))


@contextmanager
def served(server: FileServer) -> Iterator[FileServer]:
    """Run a server in a thread."""
    thread = threading.Thread(target=server.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.server.shutdown()
        server.server.server_close()
        thread.join()


def use_tls(server: FileServer, folder: Path) -> Path:
    """Make a server speak https by a certificate of its own; returns the certificate's file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "certificate.pem"
    pem.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.server.socket = context.wrap_socket(server.server.socket, server_side=True)
    return pem
