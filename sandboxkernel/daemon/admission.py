"""How much of the daemon one user may take: connections, requests, bytes of bodies. tornado.

Users share one event loop, one memory and one table of descriptors. Root gets
in whatever users do.
"""

from __future__ import annotations

import re
import resource
import socket
import struct
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
from tornado import httpserver, httputil, iostream

from sandboxkernel.daemon.subids import SubordinateIds
from sandboxkernel.errors import (
    NotPermitted,
    PayloadTooLarge,
    ResourcesExhausted,
    SandboxError,
)

__all__ = ["BODIES_MAX", "Admission", "AdmittingServer", "peer_of", "raise_descriptor_limit"]

BODIES_MAX = 64 * 1024 * 1024  # bytes of one user's requests in progress
_RETRY_S = 1
_DESCRIPTORS_MIN = 512  # of which a start uses some by number
_NR_OPEN = 1 << 20  # what no limit means (proc_sys_fs(5))
_FORMS = ("application/x-www-form-urlencoded", "multipart/")


def raise_descriptor_limit() -> int:
    """Take as many descriptors as are allowed (getrlimit(2)); returns how many these are.

    Raises SandboxError where these are too few to start anything.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if 0 <= hard < _DESCRIPTORS_MIN:
        raise SandboxError(
            f"the limit of open files is {hard}, below {_DESCRIPTORS_MIN}",
            hint="Raise LimitNOFILE of the service, or `ulimit -n` of the shell.",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return _NR_OPEN if hard == resource.RLIM_INFINITY else hard


def peer_of(stream: iostream.IOStream) -> tuple[int, int, int]:
    """Pid, uid and gid of whoever connected (unix(7), SO_PEERCRED)."""
    raw = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("3i", raw)
    return pid, uid & 0xFFFFFFFF, gid & 0xFFFFFFFF


@dataclass(slots=True)
class _Request:
    uid: int
    size: int


class Admission:
    """Who has what: `per_user` connections, and as many requests in progress.

    Of the daemon's descriptors, all users together take half, root another quarter; the rest is for
    what the daemon does.
    """

    def __init__(
        self, *, per_user: int, descriptors: int, subordinate: SubordinateIds | None = None
    ) -> None:
        self._subordinate = subordinate or SubordinateIds()
        self._users, self._everybody = descriptors // 2, descriptors // 4 * 3
        self._per_user = min(per_user, self._users)
        self._connections: Counter[int] = Counter()
        self._requests: Counter[int] = Counter()
        self._bytes: Counter[int] = Counter()
        self._admitted: dict[object, _Request] = {}

    def connect(self, uid: int) -> None:
        """Count a connection. Raises ResourcesExhausted when it is one too many.

        Raises NotPermitted for a subordinate id, with which one person would be many.
        """
        owner = self._subordinate.owner_of(uid)
        if owner is not None:
            raise NotPermitted(
                f"uid {uid} is a subordinate id of {owner}",
                hint="Call from outside of the container or user namespace.",
            )
        if uid:
            self._check(self._connections[uid], self._per_user, uid, "connections")
        if self._connections.total() >= (self._users if uid else self._everybody):
            raise ResourcesExhausted(
                f"all {self._connections.total()} connections are taken",
                hint="Raise the daemon's limit of open files (LimitNOFILE).",
                retry_after_s=_RETRY_S,
            )
        self._connections[uid] += 1

    def disconnect(self, uid: int) -> None:
        """The connection has ended."""
        _subtract(self._connections, uid, 1)

    def begin(self, connection: object, uid: int, size: int) -> None:
        """Count a request and its body. Raises ResourcesExhausted when that is too much."""
        if uid:
            self._check(self._requests[uid], self._per_user, uid, "requests in progress")
            if size and self._bytes[uid] + size > BODIES_MAX:
                raise ResourcesExhausted(
                    f"the requests in progress of uid {uid} exceed {BODIES_MAX} bytes",
                    hint="Send fewer large requests at once.",
                    retry_after_s=_RETRY_S,
                )
            self._requests[uid] += 1
            self._bytes[uid] += size
            self._admitted[connection] = _Request(uid, size)

    def end(self, connection: object) -> None:
        """The request has been dealt with. Idempotent."""
        request = self._admitted.pop(connection, None)
        if request is not None:
            _subtract(self._requests, request.uid, 1)
            _subtract(self._bytes, request.uid, request.size)

    def _check(self, count: int, limit: int, uid: int, what: str) -> None:
        if count >= limit:
            raise ResourcesExhausted(
                f"uid {uid} has {count} {what}, the limit is {limit}",
                hint="Close some, or raise SandboxKernelDaemon.max_connections.",
                retry_after_s=_RETRY_S,
            )


def _subtract(counter: Counter[int], uid: int, amount: int) -> None:
    if uid in counter:
        counter[uid] -= amount
        if counter[uid] <= 0:
            del counter[uid]


class AdmittingServer(httpserver.HTTPServer):
    """Turns away what is too much with a problem document, before any of it is kept."""

    def admit_by(self, admission: Admission, body_max: int) -> None:
        """To be called before a socket is added. `body_max`: bytes of a body of unknown length."""
        self._admission, self._body_max = admission, body_max
        self._peers: dict[object, int] = {}

    def handle_stream(self, stream: iostream.IOStream, address: Any) -> None:
        """A connection has been accepted."""
        _, uid, _ = peer_of(stream)
        try:
            self._admission.connect(uid)
        except (ResourcesExhausted, NotPermitted) as exc:
            _turn_away(stream, exc)
            return
        self._peers[stream] = uid
        super().handle_stream(stream, address)

    def on_close(self, server_conn: Any) -> None:
        """A connection has ended."""
        super().on_close(server_conn)
        self._admission.disconnect(self._peers.pop(server_conn.stream))

    def start_request(self, server_conn: Any, request_conn: Any) -> httputil.HTTPMessageDelegate:
        """A request begins: its headers come next."""
        return _Admitted(
            super().start_request(server_conn, request_conn),
            request_conn,
            self._peers[server_conn.stream],
            self._admission,
            self._body_max,
        )


class _Admitted(httputil.HTTPMessageDelegate):
    """One request, from its headers to its handler, which calls Admission.end."""

    def __init__(
        self,
        delegate: httputil.HTTPMessageDelegate,
        connection: Any,
        uid: int,
        admission: Admission,
        body_max: int,
    ) -> None:
        self._delegate, self._connection = delegate, connection
        self._uid, self._admission, self._body_max = uid, admission, body_max
        self._handled = self._refused = False

    def headers_received(
        self, start_line: Any, headers: httputil.HTTPHeaders
    ) -> Awaitable[None] | None:
        if headers.get("Content-Type", "").lower().startswith(_FORMS):
            # tornado would parse it, older ones without a bound, and nothing here reads forms.
            del headers["Content-Type"]
        length = headers.get("Content-Length", "0")
        unknown = "Transfer-Encoding" in headers or re.fullmatch(r"\d{1,18}", length) is None
        size = self._body_max if unknown else int(length)
        try:
            if size > self._body_max:
                raise PayloadTooLarge(f"body of {size} bytes exceeds {self._body_max}")
            self._admission.begin(self._connection, self._uid, size)
        except (ResourcesExhausted, PayloadTooLarge) as exc:
            self._refused = True
            fields, body = _problem(exc)
            line = httputil.ResponseStartLine("HTTP/1.1", exc.status, _reason(exc))
            self._connection.write_headers(line, httputil.HTTPHeaders(fields), body)
            self._connection.finish()  # and what still comes of its body is read to nowhere
            return None
        return self._delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._delegate.data_received(chunk)

    def finish(self) -> None:
        self._handled = True
        self._delegate.finish()

    def on_connection_close(self) -> None:
        if self._refused:
            return
        if not self._handled:
            self._admission.end(self._connection)
        self._delegate.on_connection_close()


def _reason(exc: SandboxError) -> str:
    return HTTPStatus(exc.status).phrase


def _problem(exc: SandboxError) -> tuple[dict[str, str], bytes]:
    body = msgspec.json.encode(exc.to_problem())
    fields = {
        "Content-Type": "application/problem+json",
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    if isinstance(exc, ResourcesExhausted):
        fields["Retry-After"] = str(exc.retry_after_s)
    return fields, body


def _turn_away(stream: iostream.IOStream, exc: SandboxError) -> None:
    fields, body = _problem(exc)
    head = [f"HTTP/1.1 {exc.status} {_reason(exc)}", *(f"{k}: {v}" for k, v in fields.items())]
    try:
        stream.socket.send("\r\n".join([*head, "", ""]).encode() + body, socket.MSG_DONTWAIT)
    except OSError:
        pass  # it has gone
    stream.close()
