"""The Python client: one method a row of the API, typed models, exceptions by error code.

Blocking, standard library HTTP over the unix socket. AsyncSandboxClient runs the same calls in
threads, for callers with an event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from sandboxkernel.errors import error_from_problem
from sandboxkernel.exitwatch import ExitWatch
from sandboxkernel.models import (
    CheckReport,
    DiskUsage,
    Event,
    ExecExit,
    ExecOutput,
    ExecRequest,
    Image,
    ImageList,
    ImagePrepare,
    Kernel,
    KernelConnection,
    KernelCreate,
    KernelList,
    KernelRestart,
    Progress,
    PruneReport,
    SignalRequest,
    Stats,
    UserLayer,
    UserLayerDiff,
    UserLayerList,
    Version,
    ZygoteList,
)
from sandboxkernel.paths import api_socket_path
from sandboxkernel.unixhttp import (
    UnixConnection,
    answering,
    decode_answer,
    error_from_response,
    unavailable,
)

__all__ = ["AsyncSandboxClient", "ExitWatch", "SandboxClient"]

# A first start may build the host image; everything else answers at once.
REQUEST_TIMEOUT_S = 300.0
T = TypeVar("T")


class _Failure(msgspec.Struct):
    """The last line of a stream in which something went wrong."""

    error: dict[str, Any]


class SandboxClient:
    """Talks to one daemon. Thread-safe: every call has a connection of its own.

    Raises the exceptions of sandboxkernel.errors, and DaemonUnavailable when nobody answers.
    """

    def __init__(
        self, socket_path: Path | None = None, *, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> None:
        self.socket_path = socket_path or api_socket_path()
        self._timeout_s = timeout_s

    def _send(
        self, method: str, path: str, body: object = None, *, timeout_s: float | None
    ) -> http.client.HTTPConnection:
        connection = UnixConnection(self.socket_path, timeout_s)
        data = None if body is None else msgspec.json.encode(body)
        try:
            connection.request(method, path, data, {"Content-Type": "application/json"})
        except BrokenPipeError:
            pass  # it has been turned away, and the answer says why
        except OSError as exc:
            connection.close()
            raise unavailable(self.socket_path, exc) from exc
        return connection

    def _open(
        self, method: str, path: str, body: object = None, *, timeout_s: float | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """The connection, which the caller closes, and the beginning of a good answer."""
        connection = self._send(method, path, body, timeout_s=timeout_s)
        try:
            with answering(f"{method} {path}"):
                response = connection.getresponse()
                if response.status < http.client.BAD_REQUEST:
                    return connection, response
                raise error_from_response(response.status, response.read())
        except BaseException:
            connection.close()
            raise

    def _call(self, method: str, path: str, body: object = None) -> bytes:
        connection, response = self._open(method, path, body, timeout_s=self._timeout_s)
        with contextlib.closing(connection), answering(f"{method} {path}"):
            return response.read()

    def _get(self, path: str, model: type[T], **query: object) -> T:
        text = urlencode({k: v for k, v in query.items() if v is not None})
        where = f"{path}?{text}" if text else path
        return decode_answer(self._call("GET", where), model, f"GET {path}")

    def _post(self, path: str, model: type[T], body: object = None) -> T:
        return decode_answer(self._call("POST", path, body), model, f"POST {path}")

    def _stream(
        self, method: str, path: str, model_of: Callable[[bytes], type[T]], body: object = None
    ) -> Iterator[T]:
        """Lines of a streamed reply; an error line of the daemon is raised."""
        request = f"{method} {path}"
        for line in _lines(self._pieces(method, path, body)):
            if line.startswith(b'{"error":'):
                raise error_from_problem(decode_answer(line, _Failure, request).error)
            yield decode_answer(line, model_of(line), request)

    def _pieces(self, method: str, path: str, body: object = None) -> Iterator[bytes]:
        """A streamed reply as it comes, to its end: one that breaks off is an error."""
        connection, response = self._open(method, path, body, timeout_s=None)
        with contextlib.closing(connection):
            while True:
                with answering(f"{method} {path}"):
                    piece = response.read1(65536)  # readline() passes over a broken end
                    if not piece and response.length:
                        raise http.client.IncompleteRead(piece, response.length)
                if not piece:
                    return
                yield piece

    def ping(self) -> None:
        """Raises DaemonUnavailable unless a daemon answers."""
        self._call("GET", "/_ping")

    def version(self) -> Version:
        """Versions and features of the daemon."""
        return self._get("/v1/version", Version)

    def create(self, request: KernelCreate) -> Kernel:
        """Start a kernel."""
        return self._post("/v1/kernels", Kernel, request)

    def kernels(self) -> Iterator[Kernel]:
        """Every kernel that the caller may see."""
        after: str | None = None
        while True:
            page = self._get("/v1/kernels", KernelList, after=after)
            yield from page.kernels
            after = page.next
            if after is None:
                return

    def inspect(self, name: str) -> Kernel:
        """One kernel with everything known about it."""
        return self._get(f"/v1/kernels/{quote(name, safe='')}", Kernel)

    def connection(self, name: str) -> KernelConnection:
        """What it takes to attach to a kernel of the caller's own, its key included."""
        return self._get(f"/v1/kernels/{quote(name, safe='')}/connection", KernelConnection)

    def remove(self, name: str) -> None:
        """Kill a kernel and release everything it holds."""
        self._call("DELETE", f"/v1/kernels/{quote(name, safe='')}")

    def restart(self, name: str, request: KernelRestart) -> Kernel:
        """End what runs and start again on the same sockets."""
        path = f"/v1/kernels/{quote(name, safe='')}/restart"
        return self._post(path, Kernel, request)

    def signal(self, name: str, signum: int) -> None:
        """Signal the kernel's process group."""
        self._verb(name, "signal", SignalRequest(signal=signum))

    def kill(self, name: str) -> None:
        """SIGKILL for everything in the sandbox; returns when it has ended."""
        self._verb(name, "kill")

    def stop(self, name: str, timeout_s: int = 10) -> None:
        """SIGTERM, and SIGKILL after `timeout_s`."""
        self._verb(name, f"stop?timeout={timeout_s}")

    def pause(self, name: str) -> None:
        """Freeze a sandbox."""
        self._verb(name, "pause")

    def unpause(self, name: str) -> None:
        """Let a paused sandbox go on."""
        self._verb(name, "unpause")

    def _verb(self, name: str, verb: str, body: object = None) -> None:
        self._call("POST", f"/v1/kernels/{quote(name, safe='')}/{verb}", body)

    def watch_exit(self, name: str, generation: int, *, kernel: Kernel | None = None) -> ExitWatch:
        """Watch the end of a start; the request is on its way when this returns.

        With `kernel`, its process is looked at while no daemon answers.
        """
        path = f"/v1/kernels/{quote(name, safe='')}/wait?generation={generation}"
        return ExitWatch(lambda: self._send("GET", path, timeout_s=None), kernel)

    def logs(self, name: str, *, follow: bool = False, tail: int | None = None) -> Iterator[bytes]:
        """Output of the kernel's processes in pieces."""
        query = urlencode({"follow": int(follow)} | ({} if tail is None else {"tail": tail}))
        path = f"/v1/kernels/{quote(name, safe='')}/logs?{query}"
        return self._pieces("GET", path)

    def stats(self, name: str) -> Stats:
        """What the sandbox uses now."""
        return self._get(f"/v1/kernels/{quote(name, safe='')}/stats", Stats)

    def stream_stats(self, name: str) -> Iterator[Stats]:
        """What the sandbox uses, every second until it ends."""
        path = f"/v1/kernels/{quote(name, safe='')}/stats?stream=1"
        return self._stream("GET", path, lambda _: Stats)

    def exec(
        self,
        name: str,
        argv: list[str],
        *,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        stdin: str = "",
    ) -> Iterator[ExecOutput | ExecExit]:
        """Run a program inside; its output as it comes, then its exit code."""
        request = ExecRequest(argv=argv, env=env or {}, cwd=cwd, stdin=stdin)
        path = f"/v1/kernels/{quote(name, safe='')}/exec"
        return self._stream("POST", path, _kind_of_exec, request)

    def events(self, *, follow: bool = False, since: str | None = None) -> Iterator[Event]:
        """What happened, and with `follow` what happens."""
        query = urlencode({"follow": int(follow)} | ({"since": since} if since else {}))
        return self._stream("GET", f"/v1/events?{query}", lambda _: Event)

    def images(self) -> list[Image]:
        """The images of the store."""
        return self._get("/v1/images", ImageList).images

    def image(self, ref: str) -> Image:
        """One image."""
        return self._get(f"/v1/images/{quote(ref, safe='')}", Image)

    def remove_image(self, ref: str) -> None:
        """Remove an image; administrators only."""
        self._call("DELETE", f"/v1/images/{quote(ref, safe='')}")

    def prepare_image(
        self, ref: str = "host", *, refresh: bool = False
    ) -> Iterator[Progress | Image]:
        """Make an image ready; progress, then the image."""
        request = ImagePrepare(ref=ref, refresh=refresh)
        return self._stream("POST", "/v1/images/prepare", _kind_of_progress, request)

    def layers(self, user: str = "me") -> list[UserLayer]:
        """User layers of `me`, a uid, or `all`."""
        return self._get(f"/v1/users/{quote(user, safe='')}/layers", UserLayerList).layers

    def layer_diff(self, lineage: str, *, user: str = "me", limit: int = 1000) -> UserLayerDiff:
        """What a user layer changes."""
        path = f"/v1/users/{quote(user, safe='')}/layers/{quote(lineage, safe='')}/diff"
        return self._get(path, UserLayerDiff, limit=limit)

    def reset_layer(self, lineage: str, *, user: str = "me") -> None:
        """Delete a user layer; refused while in use."""
        self._call("DELETE", f"/v1/users/{quote(user, safe='')}/layers/{quote(lineage, safe='')}")

    def disk_usage(self) -> DiskUsage:
        """Disk blocks in use; administrators only."""
        return self._get("/v1/system/df", DiskUsage)

    def zygotes(self) -> ZygoteList:
        """What kernels are forked from; administrators only."""
        return self._get("/v1/system/zygotes", ZygoteList)

    def check(self, *, repair: bool = False) -> CheckReport:
        """Leftovers and damage on the host, mended with `repair`. Takes seconds."""
        return self._post(f"/v1/system/check?repair={int(repair)}", CheckReport)

    def prune(self, *, dry_run: bool = False) -> PruneReport:
        """Remove what nothing uses; administrators only."""
        return self._post(f"/v1/system/prune?dry_run={int(dry_run)}", PruneReport)


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _kind_of_exec(line: bytes) -> type[ExecOutput | ExecExit]:
    return ExecExit if line.startswith(b'{"exit_code"') else ExecOutput


def _kind_of_progress(line: bytes) -> type[Progress | Image]:
    return Progress if line.startswith(b'{"phase"') else Image


class AsyncSandboxClient:
    """The blocking client's calls, run in threads: `await client.call("inspect", name)`."""

    def __init__(self, client: SandboxClient) -> None:
        self._client = client

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Run a method of SandboxClient without blocking the event loop."""
        return await asyncio.to_thread(getattr(self._client, method), *args, **kwargs)
