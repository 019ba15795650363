"""A minimal MLflow tracking server with the answers that the client needs: the real server is a large install."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts/"


class MlflowServer(ThreadingHTTPServer):
    """Keeps one run in memory; ``trouble`` is an HTTP error status for all answers (0: none), ``slow_s`` a delay."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.trouble, self.slow_s = 0, 0.0
        self.requests: list[str] = []
        self.authorization: set[str | None] = set()
        self.experiments: list[str] = []
        self.runs: list[dict[str, Any]] = []
        self.params: dict[str, str] = {}
        self.metrics: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def history(self, name: str) -> list[tuple[int, float]]:
        """Steps and values of a metric, in the order of arrival."""
        return [(m["step"], m["value"]) for m in self.metrics if m["key"] == name]

    def answer(self, what: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """Answer an API call; None if the requested object does not exist."""
        if what == "experiments/get-by-name":
            return {"experiment": {"experiment_id": "7", "name": "askd"}} if self.experiments else None
        if what == "experiments/create":
            self.experiments.append(body["name"])
            return {"experiment_id": "7"}
        if what == "runs/create":
            self.runs.append({"name": body["run_name"], "status": "RUNNING"})
        elif what == "runs/update":
            self.runs[-1]["status"] = body["status"]
            return {"run_info": self._run()["info"]}
        elif what == "runs/log-batch":
            self.params |= {param["key"]: param["value"] for param in body.get("params", [])}
            self.metrics += body.get("metrics", [])
            return {}
        return {"run": self._run()}

    def _run(self) -> dict[str, Any]:
        latest = {metric["key"]: metric for metric in self.metrics}
        known = {
            "run_id": "r1",
            "run_uuid": "r1",
            "experiment_id": "7",
            "artifact_uri": "mlflow-artifacts:/7/r1/artifacts",
        }
        return {
            "info": {**known, "status": self.runs[-1]["status"], "lifecycle_stage": "active"},
            "data": {
                "metrics": list(latest.values()),
                "params": [{"key": key, "value": value} for key, value in self.params.items()],
            },
        }


class _Handler(BaseHTTPRequestHandler):
    server: MlflowServer

    def _serve(self) -> None:
        server, path = self.server, urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server.requests.append(path)
        server.authorization.add(self.headers.get("Authorization"))
        time.sleep(server.slow_s)
        if server.trouble:
            self._reply(server.trouble, {"error_code": "TEMPORARILY_UNAVAILABLE", "message": "not now"})
        elif path.startswith(ARTIFACTS):
            server.files[path.removeprefix(f"{ARTIFACTS}7/r1/artifacts/")] = body
            self._reply(200, {})
        else:
            found = server.answer(path.removeprefix("/api/2.0/mlflow/"), json.loads(body or b"{}"))
            lost = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such thing"}
            self._reply(200 if found is not None else 404, found if found is not None else lost)

    do_GET = do_POST = do_PUT = _serve  # noqa: N815  # names that http.server asks for

    def _reply(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""
