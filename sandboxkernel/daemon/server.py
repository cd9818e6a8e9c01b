"""HTTP on the unix socket: who calls, how much they may send, how errors leave. tornado."""

from __future__ import annotations

import asyncio
import grp
import logging
import os
import pwd
import socket
import stat
import time
import uuid
from collections.abc import Awaitable
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from tornado import iostream, web

from sandboxkernel.daemon.admission import Admission, AdmittingServer, peer_of
from sandboxkernel.daemon.hangups import HangUps, has_hung_up
from sandboxkernel.daemon.logformat import about, serving
from sandboxkernel.daemon.problems import exhausted
from sandboxkernel.errors import (
    PayloadTooLarge,
    RequestError,
    SandboxError,
)
from sandboxkernel.limits import Subject

__all__ = [
    "BaseHandler",
    "NotFoundHandler",
    "answers",
    "bind_api_socket",
    "make_server",
    "subject_of",
]

log = logging.getLogger(__name__)

BODY_MAX = 4 * 1024 * 1024  # bytes: an environment of 2 MiB and its JSON
BODY_TIMEOUT_S = 30.0
IDLE_CONNECTION_S = 300.0
SUBJECT_CACHE_S = 30.0
_NDJSON = "application/x-ndjson"

Model = TypeVar("Model", bound=msgspec.Struct)
_subjects: dict[tuple[int, int], tuple[float, Subject]] = {}


def subject_of(uid: int, gid: int) -> Subject:
    """A caller by the ids of its socket, with names and groups from the user database."""
    cached = _subjects.get((uid, gid))
    now = time.monotonic()
    if cached is not None and now - cached[0] < SUBJECT_CACHE_S:
        return cached[1]
    try:
        entry = pwd.getpwuid(uid)
        name, home = entry.pw_name, entry.pw_dir
        groups = tuple(os.getgrouplist(name, gid))
    except KeyError:
        name, home, groups = str(uid), "", (gid,)
    names = set()
    for group in groups:
        try:
            names.add(grp.getgrgid(group).gr_name)
        except KeyError:
            names.add(str(group))
    subject = Subject(
        uid=uid, gid=gid, name=name, home=home, groups=groups, group_names=frozenset(names)
    )
    _subjects[(uid, gid)] = (now, subject)
    return subject


def answers(path: Path) -> bool:
    """Whether anybody accepts connections on a socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def bind_api_socket(path: Path, mode: int) -> socket.socket:
    """Bind the API socket with its mode from the start; a live daemon's socket is not replaced.

    Raises SandboxError when somebody answers there.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        if answers(path):
            raise SandboxError(
                f"a daemon already listens on {path}",
                hint="Stop it, or set SANDBOXKERNEL_RUN_DIR.",
            )
        path.unlink()
    # bind(2) takes the mode from the umask; a chmod afterwards would leave a window.
    previous = os.umask(0o777 & ~mode)
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.bind(str(path))
    finally:
        os.umask(previous)
    sock.listen(1024)
    return sock


def make_server(application: web.Application, admission: Admission) -> AdmittingServer:
    """A server with limits on every request and every user."""
    application.settings.update(admission=admission, hang_ups=HangUps())
    server = AdmittingServer(
        application,
        max_body_size=BODY_MAX,
        max_buffer_size=BODY_MAX + 64 * 1024,
        max_header_size=32 * 1024,
        idle_connection_timeout=IDLE_CONNECTION_S,
        body_timeout=BODY_TIMEOUT_S,
    )
    server.admit_by(admission, BODY_MAX)
    return server


class BaseHandler(web.RequestHandler):
    """Caller, typed bodies, problem documents and NDJSON for every handler."""

    caller: Subject

    def prepare(self) -> None:
        """Identify the caller by the socket's credentials (unix(7), SO_PEERCRED)."""
        self._gone = asyncio.Event()
        if self._stream().closed():
            raise web.Finish
        _, uid, gid = peer_of(self._stream())
        self.caller = subject_of(uid, gid)
        serving(request=uuid.uuid4().hex[:8], user=self.caller.name)

    def on_finish(self) -> None:
        """Nothing of the request is held any more."""
        admission: Admission = self.settings["admission"]
        admission.end(self.request.connection)

    def _stream(self) -> iostream.IOStream:
        connection: Any = self.request.connection
        stream: iostream.IOStream = connection.stream
        return stream

    @property
    def gone(self) -> bool:
        """Whether the client has hung up."""
        return self._gone.is_set() or self._stream().closed()

    def on_connection_close(self) -> None:
        """The client hung up: streams and waits end."""
        self._gone.set()

    def body(self, model: type[Model]) -> Model:
        """The request body as a model; unknown members and wrong types are refused."""
        data = self.request.body or b"{}"
        if len(data) > BODY_MAX:
            raise PayloadTooLarge(f"body of {len(data)} bytes exceeds {BODY_MAX}")
        try:
            return msgspec.json.decode(data, type=model)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            text = str(exc)
            field = text.rpartition("`$.")[2].rstrip("`") if "`$." in text else None
            raise RequestError(
                f"body is not a {model.__name__}: {text}",
                hint="See /v1/openapi.json for the members.",
                field=field,
            ) from exc

    def flag(self, name: str) -> bool:
        """A boolean query parameter: present and not 0 or false."""
        value = self.get_query_argument(name, None)
        return value is not None and value.lower() not in ("0", "false", "no")

    def number(self, name: str, default: int, *, least: int = 0, most: int = 1 << 31) -> int:
        """A whole number of the query, within bounds."""
        text = self.get_query_argument(name, str(default))
        try:
            value = int(text)
        except ValueError:
            raise RequestError(f"{name} is {text!r}, not a number", field=name) from None
        if not least <= value <= most:
            raise RequestError(f"{name} is {value}, outside {least} to {most}", field=name)
        return value

    def reply(self, model: object, status: int = HTTPStatus.OK) -> asyncio.Future[None]:
        """Send a model as JSON; done, or failed with StreamClosedError, when it is written."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        return self.finish(msgspec.json.encode(model))

    def reply_empty(self) -> None:
        """204."""
        self.set_status(HTTPStatus.NO_CONTENT)
        self.finish()

    def start_stream(self, content_type: str = _NDJSON) -> None:
        """Begin a streamed reply."""
        self.set_header("Content-Type", content_type)

    async def stream_line(self, model: object) -> None:
        """One NDJSON line; raises StreamClosedError when the client has gone."""
        self.write(msgspec.json.encode(model) + b"\n")
        await self.flush()

    async def unless_gone(self, work: Awaitable[Any]) -> Any:
        """The result of `work`, or None as soon as the client hangs up, which cancels it."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._gone.wait())
        try:
            # tornado tells of a hang-up unless it happened before the handler first waited.
            await asyncio.sleep(0)
            if not self.gone and not task.done():
                hang_ups: HangUps = self.settings["hang_ups"]
                with hang_ups.watching(self._stream().socket, self._gone.set):
                    await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
                if self.gone or has_hung_up(self._stream().socket):
                    self._gone.set()  # what has just been done may be for nobody
            if task.done():
                return await task
            task.cancel()
            await asyncio.wait({task})
            return None
        finally:
            gone.cancel()

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Tornado's own tells nothing once a stream has begun."""
        is_lines = self._headers.get("Content-Type") == _NDJSON
        if self._headers_written and is_lines and not self._finished:
            self.write_error(status_code, **kwargs)
        else:
            super().send_error(status_code, **kwargs)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Every error leaves as a problem document (RFC 9457); internals stay in the log."""
        exc_info = kwargs.get("exc_info")
        exc = exc_info[1] if exc_info else None
        if not isinstance(exc, SandboxError):
            exc = self._foreign_error(status_code, exc)
        problem = exc.to_problem()
        problem["instance"] = self.request.path
        if self._headers_written:
            self.write(msgspec.json.encode({"error": problem}) + b"\n")
            self.finish()
            return
        self.set_status(exc.status)
        self.set_header("Content-Type", "application/problem+json")
        retry_after = getattr(exc, "retry_after_s", None)
        if retry_after:
            self.set_header("Retry-After", str(retry_after))
        self.finish(msgspec.json.encode(problem))

    def _foreign_error(self, status_code: int, exc: BaseException | None) -> SandboxError:
        if isinstance(exc, web.HTTPError) or exc is None:
            reason = exc.log_message if isinstance(exc, web.HTTPError) else None
            error = RequestError(reason or HTTPStatus(status_code).phrase.lower())
            error.status = status_code  # type: ignore[misc]  # 404 and 405 of the router
            return error
        out_of = exhausted(exc)
        if out_of is not None:
            log.error(
                "%s %s: %s", self.request.method, self.request.path, exc,
                extra=about(code=out_of.code),
            )  # fmt: skip
            return out_of
        reference = uuid.uuid4().hex[:12]
        log.error("internal error %s", reference, exc_info=exc, extra=about(code=SandboxError.code))
        return SandboxError(
            f"internal error {reference}",
            hint="The daemon's log has the details under this number.",
        )

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log once, at the border; expected errors without a traceback."""
        if isinstance(value, SandboxError):
            facts = {name: getattr(value, name) for name in value.facts}
            log.info(
                "%s %s: %s",
                self.request.method,
                self.request.path,
                value.message,
                extra=about(code=value.code, status=value.status, **facts),
            )
        elif isinstance(value, iostream.StreamClosedError):
            log.debug("client of %s has gone", self.request.path)


class NotFoundHandler(BaseHandler):
    """Paths that do not exist."""

    def prepare(self) -> None:
        """Answer every method."""
        super().prepare()
        raise web.HTTPError(404, "no such path")
