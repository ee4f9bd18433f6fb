"""A real S3 server on this machine, that can be made to fail and to be slow."""

import random
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import requests
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

# What pyarrow's client needs to know, beside AWS_ENDPOINT_URL.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class S3Server:
    """`failing` of its answers are 500, and each comes after `delay_s`. `requests` were made."""

    def __init__(self) -> None:
        self.failing = 0.0
        self.delay_s = 0.0
        self.requests: list[tuple[str, str, str]] = []
        self.num_failed = 0
        self._chance = random.Random(0)
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = [environ[name] for name in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING")]
        self.requests.append((request[0], request[1], request[2]))
        time.sleep(self.delay_s)
        if self._chance.random() < self.failing:
            self.num_failed += 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("500 Internal Server Error", [("Content-Length", "0")])
            return []
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer

    @contextmanager
    def asking_for_keys(self) -> Iterator[None]:
        """Within it only those of known users open anything; there are none."""
        self._open_for("0")
        try:
            yield
        finally:
            self._open_for("inf")

    def _open_for(self, num_requests: str) -> None:
        address = f"{self.url}/moto-api/reset-auth"
        requests.post(address, data=num_requests, timeout=10).raise_for_status()

    @contextmanager
    def running(self) -> Iterator["S3Server"]:
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()
