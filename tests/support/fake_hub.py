"""A model hub of one user on this machine: what huggingface_hub needs to make a repository and to upload files."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_test"


@dataclass
class FakeHub:
    """``files`` are those of each repository by path, ``private`` its visibility; others may not write to ``user``."""

    user: str = "me"
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    address: str = ""

    def get(self, path: str) -> tuple[int, Any]:
        """Answer the list of a repository's files."""
        repository = "/".join(path.split("/")[3:5])
        if repository not in self.files:
            return 404, {"error": "Repository not found"}
        return 200, [
            {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
            for name, content in self.files[repository].items()
        ]

    def post(self, path: str, body: bytes) -> tuple[int, Any]:
        """Answer what an upload sends."""
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        repository, action = "/".join(path.split("/")[3:5]), path.split("/")[5]
        if not repository.startswith(f"{self.user}/"):
            return 403, {"error": "Forbidden: you don't have the rights"}
        if action == "preupload":
            sent = json.loads(body)["files"]
            return 200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in sent]}
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                self.files[repository][value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "deletedFile":
                del self.files[repository][value["path"]]
        return 200, {"commitUrl": f"{self.address}/{repository}/commit/{'0' * 40}", "commitOid": "0" * 40}

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        owner = wanted.get("organization") or self.user
        repository = f"{owner}/{wanted['name']}"
        if owner != self.user:
            return 403, {"error": f"You don't have the rights to create a model under the namespace {owner!r}"}
        if repository in self.files:
            return 409, {"error": "You already created this model repo", "url": f"{self.address}/{repository}"}
        self.files[repository] = {".gitattributes": b""}
        self.private[repository] = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        return 200, {"url": f"{self.address}/{repository}"}


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """Serve a hub without repositories; ``address`` is its endpoint."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(*hub.get(self.path.partition("?")[0]))

        def do_POST(self) -> None:
            body = self._body()
            if self.headers.get("authorization") != f"Bearer {TOKEN}":
                self._answer(401, {"error": "Invalid username or password."})
            else:
                self._answer(*hub.post(self.path.partition("?")[0], body))

        def _body(self) -> bytes:
            if self.headers.get("transfer-encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("content-length", 0)))
            parts = list[bytes]()
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _answer(self, status: int, content: Any) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
