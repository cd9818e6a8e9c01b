"""`launch`: the kernelspec's command, for clients that know nothing of kernel provisioners.

Such a client writes a connection file with TCP ports of its own choice, runs the command, and
takes that process for the kernel: it signals it, waits for it, and reads its exit code. So this
process stands in for the kernel: it listens on those ports for as long as the sandbox lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sandboxkernel.bridge import Bridge, Endpoints, bind_endpoints
from sandboxkernel.cli import options, output
from sandboxkernel.cli.connection import starter
from sandboxkernel.client import SandboxClient
from sandboxkernel.connection_file import ConnectionFile, read_connection_file
from sandboxkernel.environment import select_environment
from sandboxkernel.errors import (
    Conflict,
    DaemonUnavailable,
    KernelNotFound,
    KernelNotRunning,
    RemovalPending,
    SandboxError,
)
from sandboxkernel.models import ExitInfo, Kernel, KernelCreate

__all__ = ["launch_command"]

# What a client or a terminal sends to a kernel's process; SIGKILL and SIGSTOP are ours alone.
FORWARDED = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2
)  # fmt: skip
TAKE_OVER_S, TAKE_OVER_RETRY_S = 20.0, 0.2
LAST_WORDS_S = 1.0  # for the last messages and log lines to reach a client that reads


class LaunchCommand(click.Command):
    """Options of ours up to `-f FILE`; what follows is ipykernel's, whatever it looks like."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Cut the command line behind the connection file."""
        for index, word in enumerate(args):
            if word == "--":
                break
            if word.startswith("-f"):
                end = index + (2 if word == "-f" else 1)
                return super().parse_args(ctx, [*args[:end], "--", *args[end:]])
        return super().parse_args(ctx, args)


@click.command(
    "launch",
    cls=LaunchCommand,
    hidden=True,
    context_settings=options.COMMAND_SETTINGS,
    epilog=options.example(
        "sandboxkernel launch -f kernel.json",
        "sandboxkernel launch --profile bio101 --memory 1G -f kernel.json",
    ),
)
@click.option("-p", "--profile", help="Profile of the administrator.  [default: the daemon's]")
@click.option(
    "-w", "--work-folder", type=click.Path(file_okay=False, resolve_path=True),
    help="Folder to mount; it holds the current one.  [default: the current one]",
)  # fmt: skip
@click.option("--ephemeral", is_flag=True, help="Start with an empty home that is thrown away.")
@click.option(
    "-e", "--env", "variables", type=options.VARIABLE, multiple=True,
    help="Set an environment variable; may be repeated.",
)  # fmt: skip
@click.option(
    "--pass-env", metavar="PATTERN", multiple=True,
    help="Pass variables on, e.g. 'COURSE_*'; may be repeated.",
)  # fmt: skip
@options.limit_options
@click.option(
    "-f", "connection_file", metavar="FILE", required=True, type=click.Path(path_type=Path),
    help="The client's connection file; what follows goes to ipykernel.",
)  # fmt: skip
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def launch_command(
    ctx: click.Context, /, *, connection_file: Path, arguments: tuple[str, ...], **wishes: Any
) -> None:
    """Be a kernel for a client that starts kernels by their command.

    Listens on the ports of the connection file, passes signals on, and ends as the kernel does.
    """
    connection = read_connection_file(connection_file)
    request = _request(connection, connection_file, list(arguments), **wishes)
    with contextlib.ExitStack() as stack:
        # First of all: a port that is taken costs no sandbox, and a client may connect already.
        endpoints = bind_endpoints(connection)
        for sock in endpoints.values():
            stack.callback(sock.close)
        end = asyncio.run(_live(starter(), request, endpoints))
    ctx.exit(_end_like(end))


def _request(
    connection: ConnectionFile, path: Path, arguments: list[str], *, profile: str | None,
    work_folder: str | None, ephemeral: bool, variables: tuple[tuple[str, str], ...],
    pass_env: tuple[str, ...], **limits: Any,
) -> KernelCreate:  # fmt: skip
    # The same for every start with this file, and nobody else's: see _create.
    name = hmac.new(connection.key.encode(), os.fsencode(os.path.realpath(path)), "sha256")
    env = select_environment(os.environ, server=os.environ, kernelspec={}, chosen=pass_env)
    return KernelCreate(
        kernel_id=f"launch-{name.hexdigest()[:16]}",
        kernel_name=connection.kernel_name,
        profile=profile,
        limits=options.limits_of(limits),
        cwd=os.getcwd(),
        work_folder=work_folder,
        env={**env, **dict(variables)},
        extra_arguments=arguments,
        ephemeral=ephemeral,
        key=connection.key,
        signature_scheme=connection.signature_scheme,
        curve_publickey=connection.curve_publickey,
        curve_secretkey=connection.curve_secretkey,
    )


async def _live(
    start: Callable[[], SandboxClient], request: KernelCreate, endpoints: Endpoints
) -> ExitInfo:
    """From the sandbox's start to its end; nothing of it is left. `start` gives a daemon."""
    signals: asyncio.Queue[int] = asyncio.Queue()
    for signum in FORWARDED:
        if signum == signal.SIGINT or signal.getsignal(signum) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(signum, signals.put_nowait, signum)
    bridge = Bridge(endpoints)
    kernel: Kernel | None = None
    try:
        client = await asyncio.to_thread(start)
        kernel = await _create(client, request)
        assert kernel.connection is not None
        await bridge.serve(kernel.connection)
        log = _in_background(_copy_log, client, kernel)
        forwarding = asyncio.create_task(_forward(start, client, kernel, signals))
        try:
            end = await _end_of(client, kernel)
        finally:
            forwarding.cancel()
        log.join(LAST_WORDS_S)
        return end
    finally:
        if kernel is not None:
            # This also refuses the clients that the kernel has not accepted any more.
            with contextlib.suppress(KernelNotFound, DaemonUnavailable, RemovalPending):
                await _again(start, client.remove, kernel.id)
            await bridge.drain(LAST_WORDS_S)
        await bridge.close()


async def _create(client: SandboxClient, request: KernelCreate) -> Kernel:
    """Start the sandbox, in place of one that an earlier process of the same kernel has left.

    A client that restarts a kernel kills its process and runs the command again with the same
    connection file. We hold that file's ports, so nobody else uses the old sandbox.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + TAKE_OVER_S
    while True:
        try:
            return await asyncio.to_thread(client.create, request)
        except Conflict:
            if loop.time() > deadline:
                raise
        try:
            await asyncio.to_thread(client.remove, request.kernel_id)
        except KernelNotFound:  # its start, which nobody waits for any more, is not over
            await asyncio.sleep(TAKE_OVER_RETRY_S)


async def _forward(
    start: Callable[[], SandboxClient], client: SandboxClient, kernel: Kernel,
    signals: asyncio.Queue[int],
) -> None:  # fmt: skip
    while True:
        signum = await signals.get()
        with contextlib.suppress(KernelNotFound, KernelNotRunning, DaemonUnavailable):
            await _again(start, client.signal, kernel.id, signum)


async def _again(
    start: Callable[[], SandboxClient], call: Callable[..., None], *arguments: Any
) -> None:
    """A call of the client's; where the daemon has gone and may be started, with the next one."""
    try:
        await asyncio.to_thread(call, *arguments)
    except DaemonUnavailable:
        await asyncio.to_thread(start)
        await asyncio.to_thread(call, *arguments)


async def _end_of(client: SandboxClient, kernel: Kernel) -> ExitInfo:
    """Wait for the kernel's end. Raises DaemonUnavailable when nobody can tell it."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[ExitInfo] = loop.create_future()

    def tell(result: ExitInfo | SandboxError) -> None:
        if ended.done():
            return
        if isinstance(result, ExitInfo):
            ended.set_result(result)
        else:
            ended.set_exception(result)

    def watch() -> None:
        result: ExitInfo | SandboxError | None = None
        try:
            watch = client.watch_exit(kernel.id, kernel.generation, kernel=kernel)
            while result is None:
                result = watch.wait()
        except KernelNotFound:
            result = ExitInfo(reason="signaled", signal=signal.SIGKILL, message="removed")
        except SandboxError as exc:
            result = exc
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits
            loop.call_soon_threadsafe(tell, result)

    _in_background(watch)
    return await ended


def _in_background(function: Callable[..., None], *arguments: Any) -> threading.Thread:
    """Run in a thread for which this process does not wait at its end."""
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def _copy_log(client: SandboxClient, kernel: Kernel) -> None:
    """What the kernel writes besides its messages, to where the client expects it."""
    with contextlib.suppress(SandboxError, OSError):
        for chunk in client.logs(kernel.id, follow=True):
            output.unbuffered(chunk)


def _end_like(end: ExitInfo) -> int:
    """End as the kernel did: by its signal, or with its exit code."""
    if end.message and not end.asked and end.returncode() != 0:
        # A client that does not read our stderr must learn of the end all the same.
        text = f"kernel ended: {output.printable(end.message)}\n"
        _in_background(output.unbuffered, text.encode()).join(LAST_WORDS_S)
    code = end.returncode()
    if code >= 0:
        return code
    # The core would be ours and not the kernel's.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    return 128 - code  # a signal that ends nobody by default
