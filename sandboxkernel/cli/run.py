"""`run` and `exec`: programs in sandboxes, with our stdin, stdout, stderr and exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import uuid
from collections.abc import Iterator
from typing import Any, NoReturn

import click

from sandboxkernel.cli import options, output, views
from sandboxkernel.cli.connection import connect, connect_or_start
from sandboxkernel.cli.names import find_kernel
from sandboxkernel.client import SandboxClient
from sandboxkernel.errors import (
    DaemonUnavailable,
    KernelNotFound,
    KernelNotRunning,
    KernelStartFailed,
    PayloadTooLarge,
    RequestError,
    SandboxError,
)
from sandboxkernel.models import ExecExit, Kernel, KernelCreate
from sandboxkernel.units import format_size

__all__ = ["exec_command", "run_command"]

HOME = "/home/sandbox"  # docs/architecture.md, "Inside a sandbox"
IDLE_PROGRAM = ["sleep", "infinity"]
STDIN_MAX = 1 << 20  # characters; ExecRequest.stdin
ENDING_S = 10.0
EXIT_CANNOT_EXECUTE, EXIT_NO_SUCH_PROGRAM, EXIT_KILLED = 126, 127, 128 + signal.SIGKILL

_NO_STDIN = click.option(
    "--no-stdin", is_flag=True, help="Do not read stdin. By default it is read unless a terminal."
)
_ENV = click.option(
    "-e", "--env", "variables", type=options.VARIABLE, multiple=True,
    help="Set an environment variable; may be repeated.",
)  # fmt: skip


@click.command(
    "run",
    context_settings=options.COMMAND_SETTINGS,
    epilog=options.example(
        "sandboxkernel run --memory 512M --cpus 0.5 -- python3 -c 'print(6 * 7)'",
        "sandboxkernel run -d --name worker --work-folder . -- python3 work.py",
    ),
)
@click.option("-p", "--profile", help="Profile of the administrator.  [default: the daemon's]")
@click.option("--name", help="Name of the sandbox.  [default: run- and random digits]")
@click.option(
    "-w", "--work-folder", type=click.Path(file_okay=False, resolve_path=True),
    help="Folder to mount at its own path, read-write, and to start in.  [default: none]",
)  # fmt: skip
@click.option("--ephemeral", is_flag=True, help="Start with an empty home that is thrown away.")
@click.option("-d", "--detach", is_flag=True, help="Leave it running and print its id.")
@click.option(
    "--rm/--no-rm", "remove", default=None,
    help="Remove the sandbox at the end of the command.  [default: --rm, without -d]",
)  # fmt: skip
@_ENV
@_NO_STDIN
@options.limit_options
@click.argument("argv", metavar="[--] COMMAND...", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run_command(
    ctx: click.Context,
    /,
    *,
    argv: tuple[str, ...],
    detach: bool,
    remove: bool | None,
    no_stdin: bool,
    **wishes: Any,
) -> None:
    """Run a command in a new sandbox.

    Ends with the command's exit code: 128 + N if signal N ended it, 127 if there is no such
    program, 126 if it cannot be executed. The command sees none of your environment.
    """
    if detach and remove:
        raise click.UsageError("--rm and --detach exclude each other: use `rm` later", ctx)
    if not argv and not detach:
        raise click.UsageError("missing command (only --detach does without)", ctx)
    program = list(argv) if detach and argv else IDLE_PROGRAM
    request = _request(program, **wishes)
    if detach:
        kernel = _create_detached(connect_or_start(), request)
        output.line(kernel.id)
        return
    stdin = "" if no_stdin else read_stdin()
    with _ended_by_signals():
        code = _run(connect_or_start(), request, list(argv), stdin, remove=remove is not False)
    ctx.exit(code)


def _request(
    argv: list[str], *, profile: str | None, name: str | None, work_folder: str | None,
    ephemeral: bool, variables: tuple[tuple[str, str], ...], **limits: Any,
) -> KernelCreate:  # fmt: skip
    return KernelCreate(
        kernel_id=name if name is not None else f"run-{uuid.uuid4().hex[:12]}",
        profile=profile,
        limits=options.limits_of(limits),
        work_folder=work_folder,
        cwd=work_folder,
        env=dict(variables),
        argv=argv,
        ephemeral=ephemeral,
    )


def _create(client: SandboxClient, request: KernelCreate) -> Kernel:
    kernel = client.create(request)
    for sentence in views.clamped(request.limits, kernel.limits):
        output.note(f"note: {sentence}")
    return kernel


def _create_detached(client: SandboxClient, request: KernelCreate) -> Kernel:
    try:
        return _create(client, request)
    except KernelStartFailed as exc:
        _exit_like_a_shell(exc)


def _run(
    client: SandboxClient, request: KernelCreate, argv: list[str], stdin: str, *, remove: bool
) -> int:
    # The sandbox idles and the command is an exec: only an exec has a stdin, and stdout and
    # stderr apart.
    kernel = _create(client, request)
    try:
        return execute(
            client, kernel, argv, env=request.env, cwd=request.work_folder or HOME, stdin=stdin
        )
    finally:
        if remove:
            with contextlib.suppress(KernelNotFound):  # somebody else was faster
                client.remove(kernel.id)
        else:
            output.note(f"note: sandbox {kernel.id} is still running")


@click.command(
    "exec",
    context_settings=options.COMMAND_SETTINGS,
    epilog=options.example(
        "sandboxkernel exec 3f2a -- ps aux", "sandboxkernel exec worker -- python3 - < script.py"
    ),
)
@_ENV
@click.option("-w", "--workdir", help="Directory to start in.  [default: the sandbox's]")
@_NO_STDIN
@options.one_name
@click.argument("argv", metavar="[--] COMMAND...", nargs=-1, type=click.UNPROCESSED, required=True)
@click.pass_context
def exec_command(
    ctx: click.Context, *, name: str, argv: tuple[str, ...], workdir: str | None,
    variables: tuple[tuple[str, str], ...], no_stdin: bool,
) -> None:  # fmt: skip
    """Run a command in a running sandbox.

    As confined as the sandbox itself. Ends with the command's exit code, as `run` does.
    """
    if argv[0] == "--":  # SANDBOX came first, so click took it for a word of the command
        argv = argv[1:]
    if not argv:
        raise click.UsageError("missing command", ctx)
    client = connect()
    kernel = find_kernel(name, client.kernels(), uid=os.geteuid())
    stdin = "" if no_stdin else read_stdin()
    with _ended_by_signals():
        code = execute(client, kernel, list(argv), env=dict(variables), cwd=workdir, stdin=stdin)
    ctx.exit(code)


def execute(
    client: SandboxClient, kernel: Kernel, argv: list[str], *, env: dict[str, str],
    cwd: str | None, stdin: str,
) -> int:  # fmt: skip
    """Run a program, pass its output on, and return its exit code."""
    code: int | None = None
    try:
        for item in client.exec(kernel.id, argv, env=env, cwd=cwd, stdin=stdin):
            if isinstance(item, ExecExit):
                code = item.exit_code
            else:
                output.raw(item.data.encode(), to_stderr=item.stream == "stderr")
    except KernelStartFailed as exc:
        _exit_like_a_shell(exc)
    if code is None:
        raise DaemonUnavailable(
            "the daemon went away while the command ran", hint="Look at its log."
        )
    if code == EXIT_KILLED:
        _tell_about_memory(client, kernel)
    return code


def _exit_like_a_shell(exc: KernelStartFailed) -> NoReturn:
    """127 and 126 for a program that is not there or cannot be executed; else raise again."""
    codes = {
        errno.ENOENT: EXIT_NO_SUCH_PROGRAM,
        errno.EACCES: EXIT_CANNOT_EXECUTE,
        errno.ENOEXEC: EXIT_CANNOT_EXECUTE,
    }
    if exc.step != "hand_over" or exc.errno not in codes:
        raise exc
    output.error(exc)
    raise click.exceptions.Exit(codes[exc.errno]) from exc


def _tell_about_memory(client: SandboxClient, kernel: Kernel) -> None:
    """SIGKILL from nowhere is most often the memory cap: say so."""
    limit = kernel.limits.memory_bytes
    try:
        usage = client.stats(kernel.id)
    except KernelNotRunning:
        # It may be ending still: how it ended is told in a moment.
        with contextlib.closing(client.watch_exit(kernel.id, kernel.generation)) as watch:
            info = watch.wait(ENDING_S)
        if info is not None and info.message:
            output.note(f"note: {info.message}")
        return
    except SandboxError:  # removed meanwhile: there is nothing more to tell
        return
    # The peak tells it, too: on cgroup v1 not every end for lack of memory is counted.
    if limit is not None and (usage.oom_kills or usage.memory_peak_bytes >= limit):
        output.note(f"note: the sandbox reached its memory cap of {format_size(limit)}")


def read_stdin() -> str:
    """All of stdin unless it is a terminal or closed. Raises RequestError, PayloadTooLarge."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return ""
    data = sys.stdin.buffer.read(STDIN_MAX * 4 + 1)
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        raise RequestError(
            f"stdin is not UTF-8 text: {exc.reason} at byte {exc.start}",
            hint="Put binary data into the work folder, or encode it, e.g. with base64.",
            field="stdin",
        ) from exc
    if len(text) > STDIN_MAX:
        raise PayloadTooLarge(
            f"stdin has more than {STDIN_MAX} characters", hint="Put it into the work folder."
        )
    return text


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that what was started is removed."""

    def leave(signum: int, frame: object) -> None:
        sys.exit(128 + signum)

    old = {}
    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup stays in force
            old[signum] = signal.signal(signum, leave)
    try:
        yield
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)
