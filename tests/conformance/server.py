"""A real Jupyter server process: `jupyter server`, or `jupyter lab`."""

from __future__ import annotations

import contextlib
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from tests.support import wait_until

JUPYTER = [sys.executable, "-m", "jupyter"]
TIMEOUT_S = 100


@dataclass
class Server:
    """A real jupyter server process."""

    url: str
    token: str
    process: subprocess.Popen[bytes]
    log: Path

    def request(self, method: str, path: str, body: Any = None) -> requests.Response:
        return requests.request(
            method,
            f"{self.url}/api/{path}",
            json=body,
            headers={"Authorization": f"token {self.token}"},
            timeout=TIMEOUT_S,
        )

    def call(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.request(method, path, body)
        assert answer.ok, (answer.status_code, answer.text)
        return answer.json() if answer.text else None


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def running_server(
    work: Path,
    log: Path,
    *options: str,
    application: str = "server",
    env: dict[str, str] | None = None,
) -> Iterator[Server]:
    port, token = free_port(), secrets.token_hex(16)
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*JUPYTER, application, "--allow-root", "--no-browser", f"--ServerApp.root_dir={work}",
             f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
             f"--IdentityProvider.token={token}", *options],
            cwd=work,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=env,
        )  # fmt: skip
    server = Server(f"http://127.0.0.1:{port}", token, process, log)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(requests.ConnectionError):
            return server.request("GET", "status").ok
        return False

    try:
        wait_until(answers, what=f"jupyter {application}")
        yield server
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)
