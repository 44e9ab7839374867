"""A stand-in of the Hugging Face hub on 127.0.0.1: makes repositories, takes commits, gives files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """``files``: repository -> name -> content; ``private``: repository -> whether it was made so."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """The few addresses of the hub's interface that its own client asks for."""

    server: Hub

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        found = re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/(\w+)/([\w.]+)", self.path)
        repository = self.server.files.get(found[1]) if found else None
        if found is None or repository is None:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif found[3] not in repository:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            content = repository[found[3]]
            etag = hashlib.sha256(content).hexdigest()
            self.answer(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self.chunks()
        if self.path == "/api/validate-yaml":  # of the card
            self.json({"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            said = json.loads(body)
            name = "/".join(filter(None, (said.get("organization"), said["name"])))
            self.server.files.setdefault(name, {})
            self.server.private[name] = said.get("private", said.get("visibility") == "private")
            self.json({"url": f"{self.server.url}/{name}", "name": name})
        elif found := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/preupload/(\w+)", self.path):
            asked = [each["path"] for each in json.loads(body)["files"]]
            self.json({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in asked]})
        elif found := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/commit/(\w+)", self.path):
            for entry in map(json.loads, body.splitlines()):
                if entry["key"] == "header":
                    self.server.messages.append(entry["value"]["summary"])
                elif entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.files[found[1]][entry["value"]["path"]] = content
            self.json(
                {"commitUrl": f"{self.server.url}/{found[1]}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
            )
        else:
            self.answer(404, b"", {})

    def chunks(self) -> bytes:
        """A body that is sent in chunks."""
        parts = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts += self.rfile.read(size)
            self.rfile.readline()
        return parts

    def json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def hub() -> Iterator[Hub]:
    """A running stand-in."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
