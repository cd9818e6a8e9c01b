"""Requests that schemathesis makes of our OpenAPI document, sent over the socket as some user.

    PYTHONPATH=.:runtime python -m tests.hostile.fuzz --examples 300    # what `make fuzz` runs

Nothing of the host can be reached by what is made up: the daemon's profile allows no work folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec
import requests
import schemathesis
import urllib3
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from sandboxkernel.daemon.openapi import document
from sandboxkernel.daemon.routes import ROUTES
from sandboxkernel.errors import ERRORS_BY_CODE, SandboxError
from sandboxkernel.models import KernelCreate
from tests.hostile.support import MALLORY, acting_as, answers
from tests.support import RunningDaemon, remove_cgroups, running_daemon

__all__ = ["CONFIG", "ROOT_SKIPS", "Figures", "fuzz"]

CONFIG = """
c.SandboxKernelDaemon.profiles = {
    "default": {"work_folders": ["/nonexistent"], "limits": {"memory": "256M", "pids": 64}},
}
"""
HOLD_S = 0.2  # of a request that is held open: it has been accepted
HELD = ("follow", "stream", "timeout", "generation")
TARGET = "fuzz-target"
# Of the codes with a status of 500 and up, those that a request can bring about by itself.
EXPECTED = {"resources_exhausted", "host_unsupported"}
# They would rebuild, delete or "repair" what other daemons of these tests have.
ROOT_SKIPS = {
    "POST /v1/images/prepare", "DELETE /v1/images/{ref}", "POST /v1/system/prune",
    "POST /v1/system/check",
}  # fmt: skip
CHECKS = [
    content_type_conformance, response_headers_conformance, response_schema_conformance,
    status_code_conformance,
]  # fmt: skip
MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)


@dataclass
class Figures:
    """What was sent, and what came back."""

    requests: int = 0
    held: int = 0
    started: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    operations: set[str] = field(default_factory=set)
    findings: list[str] = field(default_factory=list)

    def in_words(self) -> str:
        """One line."""
        statuses = ", ".join(
            f"{count} x {status}" for status, count in sorted(self.statuses.items())
        )
        return (
            f"{self.requests} requests of {len(self.operations)} operations, {self.held} held open, "
            f"{self.started} kernels started; {statuses}; {len(self.findings)} findings"
        )


class _Connection(urllib3.connection.HTTPConnection):
    path, uid = "", 0

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(HOLD_S if self.timeout is None else 30.0)
        with acting_as(self.uid):
            self.sock.connect(self.path)


class _Adapter(requests.adapters.HTTPAdapter):
    def __init__(self, path: str, uid: int) -> None:
        super().__init__()
        connection = type("Connection", (_Connection,), {"path": path, "uid": uid})
        self._pool = urllib3.HTTPConnectionPool("localhost", retries=False)
        self._pool.ConnectionCls = connection

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> Any:
        return self._pool


def _ensure_target(daemon: RunningDaemon, uid: int) -> None:
    """A kernel of the user's that the made-up requests may do anything to."""
    with acting_as(uid):
        client = daemon.client()
        try:
            alive = client.inspect(TARGET).state == "running"
        except SandboxError:
            alive = False
        if not alive:
            with contextlib.suppress(SandboxError):
                client.remove(TARGET)
            client.create(KernelCreate(kernel_id=TARGET, argv=["sleep", "600"]))


def _clean(daemon: RunningDaemon, uid: int) -> None:
    with acting_as(uid):
        for kernel in list(daemon.client().kernels()):
            with contextlib.suppress(SandboxError):
                daemon.client().remove(kernel.id)


def _tame(case: Any) -> None:
    """Let some requests get as far as they can: a kernel that exists, a start that may succeed."""
    parameters = case.path_parameters or {}
    if "id" in parameters:
        parameters["id"] = TARGET
    if "user" in parameters:
        parameters["user"] = "me"
    if isinstance(case.body, dict):
        for name in ("profile", "environment", "work_folder", "cwd", "limits"):
            case.body.pop(name, None)
        if "kernel_id" in case.body:
            case.body["argv"] = ["true"]


def _check_lines(label: str, data: bytes) -> None:
    method, _, path = label.partition(" ")
    route = next(r for r in ROUTES if r.path == path and method.lower() in r.replies)
    models = route.replies[method.lower()][1]
    for line in data.splitlines():
        if b'"error":' in line[:9]:
            assert json.loads(line)["error"]["code"] in ERRORS_BY_CODE
            continue
        assert any(_is(model, line) for model in models), f"{label}: {line!r}"


def _is(model: Any, line: bytes) -> bool:
    try:
        msgspec.json.decode(line, type=model)
    except msgspec.MsgspecError:
        return False
    return True


def _no_program(problem: dict[str, Any]) -> bool:
    """What was made up is nothing that the sandbox could execute."""
    return problem.get("step") == "hand_over" and problem["detail"].startswith("cannot execute")


def _send(session: requests.Session, case: Any, figures: Figures) -> None:
    held = any(name in (case.query or {}) for name in HELD) or case.path.endswith(("wait", "stop"))
    figures.requests += 1
    figures.operations.add(case.operation.label)
    try:
        response = case.call(
            base_url="http://localhost", session=session, timeout=HOLD_S if held else 30.0
        )
    except (requests.Timeout, requests.ConnectionError) as exc:
        if not held or "timed out" not in str(exc):
            raise AssertionError(f"{case.as_curl_command()}: {exc}") from exc
        figures.held += 1
        return
    figures.statuses[response.status_code] += 1
    if response.status_code >= 400 and response.content:
        problem = json.loads(response.content)
        figures.codes[problem["code"]] += 1
        expected = response.status_code < 500 or problem["code"] in EXPECTED or _no_program(problem)
        assert expected, f"{case.as_curl_command()}: {problem}"
        assert problem["detail"], case.as_curl_command()
    figures.started += response.status_code == 201
    content_type = response.headers.get("content-type", [""])[0]
    if content_type == "application/x-ndjson":
        _check_lines(case.operation.label, response.content)
    case.validate_response(response, checks=CHECKS)


def _skipped(case: Any, uid: int) -> bool:
    """Root could rebuild or delete the image that all tests share."""
    return uid == 0 and case.operation.label in ROOT_SKIPS


def fuzz(daemon: RunningDaemon, uid: int, examples: int) -> Figures:
    """`examples` requests of each operation, as often valid as not. What was found is in the figures."""
    figures = Figures()
    schema = schemathesis.openapi.from_dict(document())
    with requests.Session() as session:
        session.mount("http://", _Adapter(str(daemon.socket_path), uid))
        for result in schema.get_all_operations():
            operation = result.ok()
            for mode in MODES:
                strategy = operation.as_strategy(generation_mode=mode)

                @settings(
                    max_examples=examples, deadline=None, database=None,
                    suppress_health_check=list(HealthCheck), phases=[Phase.generate],
                )  # fmt: skip
                @given(case=strategy, tame=st.booleans())
                def run(case: Any, tame: bool) -> None:
                    if _skipped(case, uid):
                        return
                    if tame:
                        _tame(case)
                    _ensure_target(daemon, uid)
                    try:
                        _send(session, case, figures)
                    except Exception as exc:
                        figures.findings.append(f"{case.operation.label}: {exc}")

                with contextlib.suppress(_NOTHING):
                    run()
            _clean(daemon, uid)
    assert answers(daemon)
    return figures


# There is nothing invalid to make up for an operation that takes nothing.
_NOTHING = (Unsatisfiable,)


def _main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz every operation, as a user and as root.")
    parser.add_argument("--examples", type=int, default=300, help="of each operation and kind")
    options = parser.parse_args()
    findings = 0
    with running_daemon(CONFIG) as daemon:
        for uid in (MALLORY, 0):
            figures = fuzz(daemon, uid, options.examples)
            findings += len(figures.findings)
            sys.stdout.write(f"as uid {uid}: {figures.in_words()}\n")
            sys.stdout.writelines(f"FOUND {text}\n" for text in figures.findings)
    remove_cgroups()
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    _main()
