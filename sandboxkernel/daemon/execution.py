"""One more program inside a running sandbox: its output, then its exit code. asyncio."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import signal
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal

from sandboxkernel.daemon.handover import HandOver, Peer
from sandboxkernel.daemon.plan import plan_environment
from sandboxkernel.daemon.problems import convert
from sandboxkernel.daemon.sandbox import Sandbox
from sandboxkernel.daemon.service import Kernels
from sandboxkernel.errors import Conflict, LauncherLost
from sandboxkernel.models import ExecExit, ExecOutput, ExecRequest
from sandboxruntime.errors import ContainerError
from sandboxruntime.handover import Payload
from sandboxruntime.verify import root_device, verify

__all__ = ["execute"]

_CHUNK = 64 * 1024
_QUEUE_MAX = 16  # chunks; a slow client slows the program


async def execute(
    kernels: Kernels, sandbox: Sandbox, request: ExecRequest
) -> AsyncGenerator[ExecOutput | ExecExit, None]:
    """Start the program and yield its output; the last item is its exit code.

    Closing the generator early kills the program.
    """
    async with contextlib.AsyncExitStack() as stack:
        exited = kernels.execs.new_future()
        stack.callback(exited.cancel)
        with contextlib.ExitStack() as writers:
            streams = [await _Stream.open(name, stack, writers) for name in ("stdout", "stderr")]
            output_fds = [stream.write_fd for stream in streams]
            async with sandbox.freezing:  # nor may it be paused until the process is in it
                try:
                    peer = await _start(kernels, sandbox, request, output_fds, exited)
                except LauncherLost:  # so it has executed nothing
                    peer = await _start(kernels, sandbox, request, output_fds, exited)
        stack.callback(_end, peer)
        exited.add_done_callback(lambda done: _end_unseen(peer, done))
        outputs = await stack.enter_async_context(contextlib.aclosing(_outputs(streams)))
        async for item in outputs:
            yield item
        yield ExecExit(exit_code=_exit_code(await exited))


async def _start(
    kernels: Kernels,
    sandbox: Sandbox,
    request: ExecRequest,
    output_fds: list[int],
    exited: asyncio.Future[int | None],
) -> Peer:
    spec, root = sandbox.spec(), root_device(sandbox.facts().mountinfo)
    if sandbox.state == "paused":  # what enters its cgroup is frozen with it, and never answers
        raise Conflict(
            f"sandbox {sandbox.id} is paused",
            hint=f"Run `sandboxkernel unpause {sandbox.id}` first.",
        )
    payload = Payload(
        argv=list(request.argv),
        env=plan_environment(request.env, sandbox.ground),
        cwd=request.cwd or sandbox.request.cwd or "/",
        output_fds=True,
    )
    with contextlib.ExitStack() as stack:
        # A memory file needs nobody to feed it, however slowly the program reads.
        stdin_fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
        stack.callback(os.close, stdin_fd)
        os.write(stdin_fd, request.stdin.encode())
        os.lseek(stdin_fd, 0, os.SEEK_SET)
        null_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, null_fd)
        handover = HandOver()
        stack.callback(handover.close)
        await kernels.execs.start(sandbox.id, [handover.theirs.fileno(), null_fd], exited)
        handover.theirs.close()
        try:
            peer, _, _ = await handover.run(
                lambda facts: verify(
                    facts,
                    spec,
                    sandbox.cgroup(),
                    kernels.runtime.host_namespaces,
                    filters=kernels.runtime.host_filters + 1,
                    root=root,
                ),
                payload,
                [stdin_fd, *output_fds],
            )
        except ContainerError as exc:
            raise convert(exc) from exc
        return peer


def _end_unseen(peer: Peer, exited: asyncio.Future[int | None]) -> None:
    """Without the launcher nobody learns its status, and its output may never end."""
    if not exited.cancelled() and exited.exception() is not None:
        with contextlib.suppress(ProcessLookupError):
            peer.signal_group(signal.SIGKILL)


def _end(peer: Peer) -> None:
    try:
        peer.signal_group(signal.SIGKILL)
    except ProcessLookupError:
        pass  # the usual case: it has ended
    peer.close()


@dataclass(frozen=True)
class _Stream:
    """One output of the program: the transport owns the read end, the starter the write end."""

    name: Literal["stdout", "stderr"]
    write_fd: int
    reader: asyncio.StreamReader

    @classmethod
    async def open(
        cls,
        name: Literal["stdout", "stderr"],
        readers: contextlib.AsyncExitStack,
        writers: contextlib.ExitStack,
    ) -> _Stream:
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        writers.callback(os.close, write_fd)
        reader = asyncio.StreamReader(limit=_CHUNK)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_fd, "rb", buffering=0)
        )
        readers.callback(transport.close)
        return cls(name, write_fd, reader)


async def _outputs(streams: list[_Stream]) -> AsyncGenerator[ExecOutput, None]:
    queue: asyncio.Queue[ExecOutput | None] = asyncio.Queue(_QUEUE_MAX)
    tasks = [asyncio.create_task(_pump(stream, queue)) for stream in streams]
    try:
        for _ in tasks:
            while (item := await queue.get()) is not None:
                yield item
    finally:
        for task in tasks:
            task.cancel()


async def _pump(stream: _Stream, queue: asyncio.Queue[ExecOutput | None]) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    ended = False
    while not ended:
        chunk = await stream.reader.read(_CHUNK)
        ended = not chunk
        text = decoder.decode(chunk, final=ended)
        if text:
            await queue.put(ExecOutput(stream=stream.name, data=text))
    await queue.put(None)


def _exit_code(wait_status: int | None) -> int:
    if wait_status is None:
        return 128 + signal.SIGKILL
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code
