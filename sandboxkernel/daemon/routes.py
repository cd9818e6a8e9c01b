"""The rows of the API: one handler class per path, thin. tornado."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any

from tornado import iostream

from sandboxkernel.daemon.execution import execute
from sandboxkernel.daemon.handler import Handler, Services
from sandboxkernel.daemon.logformat import note
from sandboxkernel.daemon.system_routes import (
    CheckHandler,
    DiskUsageHandler,
    LayerDiffHandler,
    LayerHandler,
    LayersHandler,
    PruneHandler,
    ZygotesHandler,
)
from sandboxkernel.daemon.views import kernel_connection, kernel_model, kernel_stats
from sandboxkernel.errors import Conflict, KernelNotRunning, NotPermitted, RequestError
from sandboxkernel.models import (
    CheckReport,
    DiskUsage,
    Event,
    ExecExit,
    ExecOutput,
    ExecRequest,
    ExitInfo,
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
    UserLayerDiff,
    UserLayerList,
    Version,
    ZygoteList,
)

__all__ = ["ROUTES", "Route", "handlers"]

PAGE_DEFAULT, PAGE_MAX = 100, 1000
STATS_INTERVAL_S = 1.0
STOP_TIMEOUT_S = 10
_NAME = r"([^/]+)"


class PingHandler(Handler):
    """Is anybody there."""

    async def get(self) -> None:
        """Answer OK."""
        self.set_header("Content-Type", "text/plain")
        await self.finish("OK")


class VersionHandler(Handler):
    """Versions and features."""

    async def get(self) -> None:
        """Version."""
        self.reply(self.services.version)


class OpenApiHandler(Handler):
    """The API's own description."""

    async def get(self) -> None:
        """OpenAPI 3.1."""
        from sandboxkernel.daemon.openapi import document

        self.reply(document())


class KernelsHandler(Handler):
    """All of the caller's kernels."""

    async def get(self) -> None:
        """One page, oldest first."""
        limit = self.number("limit", PAGE_DEFAULT, least=1, most=PAGE_MAX)
        after = self.get_query_argument("after", "")
        visible = self.kernels.visible(self.caller)
        ids = [sandbox.id for sandbox in visible]
        start = ids.index(after) + 1 if after in ids else 0
        page = visible[start : start + limit]
        more = start + limit < len(visible)
        following = page[-1].id if more and page else None
        if following:
            self.set_header("Link", f'</v1/kernels?limit={limit}&after={following}>; rel="next"')
        removal = self.kernels.removals.get
        found = [kernel_model(sandbox, removal=removal(sandbox.id)) for sandbox in page]
        self.reply(KernelList(kernels=found, next=following))

    async def post(self) -> None:
        """Start one."""
        request = self.body(KernelCreate)
        note(kernel=request.kernel_id)
        # Whoever hangs up now will never know the kernel: it must not outlive the request.
        sandbox = await self.unless_gone(self.kernels.create(self.caller, request))
        if sandbox is None:
            return
        try:
            if self.gone:
                raise iostream.StreamClosedError
            self.set_header("Location", f"/v1/kernels/{sandbox.id}")
            await self.reply(kernel_model(sandbox), HTTPStatus.CREATED)
        except iostream.StreamClosedError:
            await self.kernels.remove(self.caller, sandbox.id)


class KernelHandler(Handler):
    """One kernel."""

    async def get(self, name: str) -> None:
        """Everything known, with what outside verification read."""
        sandbox = self.sandbox(name)
        removal = self.kernels.removals.get(sandbox.id)
        self.reply(kernel_model(sandbox, removal=removal, detail=True))

    async def delete(self, name: str) -> None:
        """Kill and release."""
        await self.kernels.remove(self.caller, name)
        self.reply_empty()


class ConnectionHandler(Handler):
    """Attaching to a kernel that runs."""

    async def get(self, name: str) -> None:
        """For the owner: whoever has the key can execute code in it."""
        sandbox = self.sandbox(name)
        if sandbox.ground.subject.uid != self.caller.uid:
            raise NotPermitted(f"kernel {name} is somebody else's")
        self.reply(kernel_connection(sandbox))


class RestartHandler(Handler):
    """End and start again."""

    async def post(self, name: str) -> None:
        """The kernel after its start."""
        request = self.body(KernelRestart)
        self.reply(kernel_model(await self.kernels.restart(self.caller, name, request)))


class SignalHandler(Handler):
    """Signals."""

    async def post(self, name: str) -> None:
        """Signal the program's process group."""
        request = self.body(SignalRequest)
        self.sandbox(name).send_signal(request.signal)
        self.reply_empty()


class KillHandler(Handler):
    """SIGKILL for everything."""

    async def post(self, name: str) -> None:
        """Returns when it has ended."""
        await self.sandbox(name).kill()
        self.reply_empty()


class StopHandler(Handler):
    """SIGTERM, then SIGKILL."""

    async def post(self, name: str) -> None:
        """Returns when it has ended."""
        timeout = self.number("timeout", STOP_TIMEOUT_S, most=3600)
        await self.sandbox(name).stop(timeout)
        self.reply_empty()


class PauseHandler(Handler):
    """Freeze."""

    async def post(self, name: str) -> None:
        """Freeze every process."""
        await self.sandbox(name).pause()
        self.reply_empty()


class UnpauseHandler(Handler):
    """Thaw."""

    async def post(self, name: str) -> None:
        """Let it go on."""
        await self.sandbox(name).unpause()
        self.reply_empty()


class WaitHandler(Handler):
    """The end of a start."""

    async def get(self, name: str) -> None:
        """Held open until the start given by `generation` has ended."""
        sandbox = self.sandbox(name)
        generation = self.number("generation", sandbox.generation, least=1)
        exit_info = await self.unless_gone(sandbox.wait(generation))
        if exit_info is not None:
            self.reply(exit_info)


class LogsHandler(Handler):
    """Output of the program."""

    async def get(self, name: str) -> None:
        """What is kept; with `follow`, what comes."""
        log = self.sandbox(name).log
        self.start_stream("application/octet-stream")
        tail = log.tail(self.number("tail", 1 << 30))
        if not self.flag("follow"):
            await self.finish(tail)
            return
        position = log.end - len(tail)
        stream = log.follow(position)
        try:
            while True:
                chunk = await self.unless_gone(anext(stream, None))
                if chunk is None:
                    break
                self.write(chunk)
                await self.flush()
        finally:
            await stream.aclose()  # type: ignore[attr-defined]
        if not self._gone.is_set():
            await self.finish()


class StatsHandler(Handler):
    """What a sandbox uses."""

    async def get(self, name: str) -> None:
        """Once, or every second with `stream` until it ends."""
        sandbox = self.sandbox(name)
        if not self.flag("stream"):
            self.reply(kernel_stats(sandbox))
            return
        self.start_stream()
        while sandbox.state in ("running", "paused") and not self._gone.is_set():
            try:
                stats = kernel_stats(sandbox)
            except KernelNotRunning:  # it is being removed: the end, and no error
                break
            await self.stream_line(stats)
            await self.unless_gone(asyncio.sleep(STATS_INTERVAL_S))
        await self.finish()


class ExecHandler(Handler):
    """One more program inside."""

    async def post(self, name: str) -> None:
        """NDJSON of its output, then its exit code."""
        request = self.body(ExecRequest)
        sandbox = self.sandbox(name)
        lines = execute(self.kernels, sandbox, request)
        self.start_stream()
        try:
            while True:
                line = await self.unless_gone(anext(lines, None))
                if line is None:
                    break
                await self.stream_line(line)
        finally:
            await lines.aclose()
        if not self._gone.is_set():
            await self.finish()


class EventsHandler(Handler):
    """What happened."""

    async def get(self) -> None:
        """The history since `since`; with `follow`, what comes."""
        text = self.get_query_argument("since", None)
        try:
            since = datetime.fromisoformat(text) if text else None
        except ValueError:
            raise RequestError(f"since is {text!r}, not RFC 3339", field="since") from None
        if since is not None and since.tzinfo is None:
            raise RequestError("since has no time zone", field="since")

        def visible(event: Event) -> bool:
            return self.kernels.may_see(self.caller, event)

        self.start_stream()
        events = self.kernels.events
        follower = events.follow(visible)
        for event in events.history(visible, since):
            await self.stream_line(event)
        if self.flag("follow"):
            await self.flush()
            try:
                while True:
                    event = await self.unless_gone(anext(follower))
                    if event is None:
                        return
                    await self.stream_line(event)
            finally:
                await follower.aclose()  # type: ignore[attr-defined]
        await self.finish()


class ImagesHandler(Handler):
    """The store."""

    async def get(self) -> None:
        """Every image."""
        images = self.kernels.images
        stored = await asyncio.to_thread(images.store.list)
        counts = [self.kernels.image_in_use(str(image.digest)) for image in stored]
        self.reply(
            ImageList(images=[images.model(i, n) for i, n in zip(stored, counts, strict=True)])
        )


class ImageHandler(Handler):
    """One image."""

    async def get(self, ref: str) -> None:
        """By name, digest or prefix."""
        images = self.kernels.images
        stored = await asyncio.to_thread(images.store.resolve, ref)
        self.reply(images.model(stored, self.kernels.image_in_use(str(stored.digest))))

    async def delete(self, ref: str) -> None:
        """Administrators only; refused while a sandbox uses it."""
        self.require_admin()
        images = self.kernels.images
        stored = await asyncio.to_thread(images.store.resolve, ref)
        in_use = self.kernels.image_in_use(str(stored.digest))
        if in_use:
            raise Conflict(
                f"image {ref} is in use by {in_use} sandboxes", hint="Remove them first."
            )
        await self.services.housekeeping.remove_image(stored)
        self.reply_empty()


class ImagePrepareHandler(Handler):
    """Make an image ready."""

    async def post(self) -> None:
        """NDJSON progress, the image last."""
        request = self.body(ImagePrepare)
        if request.refresh:
            self.require_admin()
        queue: asyncio.Queue[Progress | None] = asyncio.Queue()
        images = self.kernels.images
        task = asyncio.ensure_future(
            images.ensure(request.ref, refresh=request.refresh, progress=queue.put_nowait)
        )
        task.add_done_callback(lambda _: queue.put_nowait(None))
        self.start_stream()
        while (step := await queue.get()) is not None:
            try:
                await self.stream_line(step)
            except iostream.StreamClosedError:
                return  # the build goes on for whoever comes next
        stored = await task
        await self.stream_line(images.model(stored, self.kernels.image_in_use(str(stored.digest))))
        await self.finish()


@dataclass(frozen=True, slots=True)
class Route:
    """One row: tornado's pattern, the path of the documentation, and what travels.

    `replies` maps a method to (status, model or None); a model in a list is NDJSON.
    """

    pattern: str
    path: str
    handler: type[Handler]
    bodies: dict[str, Any]
    replies: dict[str, tuple[int, Any]]
    query: tuple[str, ...] = ()


def _kernel(
    verb: str, handler: type[Handler], method: str, body: Any, reply: Any, *query: str
) -> Route:
    status = 200 if reply is not None else 204
    return Route(
        rf"/v1/kernels/{_NAME}{verb}", f"/v1/kernels/{{id}}{verb}", handler,
        {method: body} if body else {}, {method: (status, reply)}, query,
    )  # fmt: skip


_USER = r"/v1/users/([^/]+)/layers"
ROUTES: tuple[Route, ...] = (
    Route(r"/_ping", "/_ping", PingHandler, {}, {"get": (200, str)}),
    Route(r"/v1/version", "/v1/version", VersionHandler, {}, {"get": (200, Version)}),
    Route(r"/v1/openapi\.json", "/v1/openapi.json", OpenApiHandler, {}, {"get": (200, dict)}),
    Route(r"/v1/kernels", "/v1/kernels", KernelsHandler, {"post": KernelCreate},
          {"get": (200, KernelList), "post": (201, Kernel)}, ("limit", "after")),
    Route(rf"/v1/kernels/{_NAME}", "/v1/kernels/{id}", KernelHandler, {},
          {"get": (200, Kernel), "delete": (204, None)}),
    _kernel("/connection", ConnectionHandler, "get", None, KernelConnection),
    _kernel("/restart", RestartHandler, "post", KernelRestart, Kernel),
    _kernel("/signal", SignalHandler, "post", SignalRequest, None),
    _kernel("/kill", KillHandler, "post", None, None),
    _kernel("/stop", StopHandler, "post", None, None, "timeout"),
    _kernel("/pause", PauseHandler, "post", None, None),
    _kernel("/unpause", UnpauseHandler, "post", None, None),
    _kernel("/wait", WaitHandler, "get", None, ExitInfo, "generation"),
    _kernel("/logs", LogsHandler, "get", None, bytes, "follow", "tail"),
    _kernel("/stats", StatsHandler, "get", None, Stats, "stream"),
    _kernel("/exec", ExecHandler, "post", ExecRequest, [ExecOutput, ExecExit]),
    Route(r"/v1/events", "/v1/events", EventsHandler, {}, {"get": (200, [Event])},
          ("follow", "since")),
    Route(r"/v1/images", "/v1/images", ImagesHandler, {}, {"get": (200, ImageList)}),
    Route(r"/v1/images/prepare", "/v1/images/prepare", ImagePrepareHandler,
          {"post": ImagePrepare}, {"post": (200, [Progress, Image])}),
    Route(r"/v1/images/(.+)", "/v1/images/{ref}", ImageHandler, {},
          {"get": (200, Image), "delete": (204, None)}),
    Route(_USER, "/v1/users/{user}/layers", LayersHandler, {}, {"get": (200, UserLayerList)}),
    Route(rf"{_USER}/{_NAME}/diff", "/v1/users/{user}/layers/{lineage}/diff", LayerDiffHandler,
          {}, {"get": (200, UserLayerDiff)}, ("limit",)),
    Route(rf"{_USER}/{_NAME}", "/v1/users/{user}/layers/{lineage}", LayerHandler, {},
          {"delete": (204, None)}),
    Route(r"/v1/system/df", "/v1/system/df", DiskUsageHandler, {}, {"get": (200, DiskUsage)}),
    Route(r"/v1/system/zygotes", "/v1/system/zygotes", ZygotesHandler, {},
          {"get": (200, ZygoteList)}),
    Route(r"/v1/system/prune", "/v1/system/prune", PruneHandler, {},
          {"post": (200, PruneReport)}, ("dry_run",)),
    Route(r"/v1/system/check", "/v1/system/check", CheckHandler, {},
          {"post": (200, CheckReport)}, ("repair",)),
)  # fmt: skip


def handlers(services: Services) -> Iterable[tuple[str, type[Handler], dict[str, Any]]]:
    """The routes as tornado takes them."""
    return [(route.pattern, route.handler, {"services": services}) for route in ROUTES]
