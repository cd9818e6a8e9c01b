"""What a client makes of answers that it cannot read: an error that names route and reason."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxkernel.client import SandboxClient
from sandboxkernel.errors import DaemonUnavailable, KernelNotFound, SandboxError
from sandboxkernel.models import KernelCreate, KernelRestart
from sandboxkernel.unixhttp import UnixConnection

CREATE = KernelCreate(kernel_id="k")
# (the call, the route that its error names)
VALUES: dict[str, tuple[Callable[[SandboxClient], Any], str]] = {
    "version": (lambda c: c.version(), "GET /v1/version"),
    "create": (lambda c: c.create(CREATE), "POST /v1/kernels"),
    "kernels": (lambda c: list(c.kernels()), "GET /v1/kernels"),
    "inspect": (lambda c: c.inspect("k"), "GET /v1/kernels/k"),
    "connection": (lambda c: c.connection("k"), "GET /v1/kernels/k/connection"),
    "restart": (lambda c: c.restart("k", KernelRestart()), "POST /v1/kernels/k/restart"),
    "wait": (lambda c: c.watch_exit("k", 1).wait(5), "GET /v1/kernels/{id}/wait"),
    "stats": (lambda c: c.stats("k"), "GET /v1/kernels/k/stats"),
    "images": (lambda c: c.images(), "GET /v1/images"),
    "layers": (lambda c: c.layers(), "GET /v1/users/me/layers"),
    "disk_usage": (lambda c: c.disk_usage(), "GET /v1/system/df"),
    "check": (lambda c: c.check(repair=True), "POST /v1/system/check"),
    "prune": (lambda c: c.prune(), "POST /v1/system/prune"),
}
STREAMS: dict[str, tuple[Callable[[SandboxClient], Any], str]] = {
    "stream_stats": (lambda c: list(c.stream_stats("k")), "GET /v1/kernels/k/stats"),
    "exec": (lambda c: list(c.exec("k", ["true"])), "POST /v1/kernels/k/exec"),
    "events": (lambda c: list(c.events(follow=True)), "GET /v1/events"),
    "prepare_image": (lambda c: list(c.prepare_image()), "POST /v1/images/prepare"),
}
LOGS = {"logs": (lambda c: list(c.logs("k", follow=True)), "GET /v1/kernels/k/logs")}
BODIES = {
    "of another version": b'{"x": 1}',
    "no JSON": b"<html>",
    "not UTF-8": b'{"id": "\xff"}',
    "nested": b"[" * 100_000,
    "nothing": b"",
    "a date that is none": b'{"exit_code": "now"}',
    "broken off": b'{"exit_code": ',
}


@contextlib.contextmanager
def answering(folder: Path, answer: bytes) -> Iterator[SandboxClient]:
    """A client of somebody who answers every request with these bytes, and hangs up."""
    path = folder / "api.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            while True:
                sock, _ = listener.accept()
                with sock:
                    if not sock.recv(65536):
                        return
                    with contextlib.suppress(OSError):
                        sock.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield SandboxClient(path, timeout_s=5)
        finally:
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(str(path))
            thread.join()


def whole(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("call", [*VALUES, *STREAMS])
def test_an_answer_that_cannot_be_read_names_route_and_reason(
    tmp_path: Path, call: str, body: str
) -> None:
    do, route = {**VALUES, **STREAMS}[call]
    if call in STREAMS and not BODIES[body]:
        with answering(tmp_path, whole(b"")) as client:
            assert do(client) == []  # a stream of nothing is one
        return
    good = whole(BODIES[body])
    with answering(tmp_path, good) as client, pytest.raises(DaemonUnavailable) as caught:
        do(client)
    message = str(caught.value)
    assert f"the daemon's answer to {route}" in message
    assert "is none that this client knows: " in message
    assert "same version" in caught.value.hint


@pytest.mark.parametrize("call", [*VALUES, *STREAMS, *LOGS])
@pytest.mark.parametrize("answer", [
    b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n{",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nmoon\r\n{",
])  # fmt: skip
def test_an_answer_that_does_not_come_or_breaks_off_names_its_route(
    tmp_path: Path, call: str, answer: bytes
) -> None:
    if call == "wait":
        return  # a watch looks for the next daemon: tests/integration/test_recovery.py
    do, route = {**VALUES, **STREAMS, **LOGS}[call]
    with answering(tmp_path, answer) as client, pytest.raises(DaemonUnavailable) as caught:
        do(client)
    assert route in str(caught.value)


def test_an_error_in_a_stream_is_raised_as_what_it_is(tmp_path: Path) -> None:
    line = b'{"error": {"code": "kernel_not_found", "detail": "no kernel k"}}\n'
    with answering(tmp_path, whole(line)) as client, pytest.raises(KernelNotFound, match="no ker"):
        list(client.events())


@pytest.mark.parametrize("line", [b'{"error": 7}\n', b'{"error":{"code":[]}}\n', b'{"error":'])
def test_an_error_in_a_stream_that_is_none_is_an_error_all_the_same(
    tmp_path: Path, line: bytes
) -> None:
    with answering(tmp_path, whole(line)) as client, pytest.raises(SandboxError):
        list(client.events())


def test_no_connection_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[UnixConnection] = []

    class Recorded(UnixConnection):
        def __init__(self, path: Path, timeout_s: float | None) -> None:
            super().__init__(path, timeout_s)
            made.append(self)

    monkeypatch.setattr("sandboxkernel.client.UnixConnection", Recorded)
    with answering(tmp_path, whole(b"{}")) as client:
        for do, _ in [*VALUES.values(), *STREAMS.values()]:
            with pytest.raises(DaemonUnavailable):
                do(client)
    assert len(made) == len(VALUES) + len(STREAMS)
    assert not [connection for connection in made if connection.sock is not None]
