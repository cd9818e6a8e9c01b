"""Commands about sandboxes that exist: list, look at, end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import chain

import click

from sandboxkernel.cli import options, output, views
from sandboxkernel.cli.connection import connect, connect_or_none
from sandboxkernel.cli.names import find_kernel
from sandboxkernel.client import REQUEST_TIMEOUT_S, SandboxClient
from sandboxkernel.errors import (
    Conflict,
    DaemonUnavailable,
    KernelNotFound,
    KernelNotRunning,
    SandboxError,
)
from sandboxkernel.models import Event, Kernel, Stats

__all__ = [
    "events_command",
    "inspect_command",
    "kill_command",
    "logs_command",
    "pause_command",
    "ps_command",
    "rm_command",
    "stats_command",
    "stop_command",
    "unpause_command",
]

STOP_TIMEOUT_S = 10
NO_DAEMON = "no daemon is running, so there are no sandboxes"
EVENT_WIDTHS = (29, 15, 20, 5, 0)
STATS_WIDTHS = (12, 16, 5, 8, 9, 20, 9, 9, 9, 10, 0)


def _find(client: SandboxClient, name: str) -> Kernel:
    return find_kernel(name, client.kernels(), uid=os.geteuid())


def _each(
    client: SandboxClient, names: tuple[str, ...], act: Callable[[SandboxClient, Kernel], None]
) -> None:
    """Do it to one after the other and print their names; go on after an error, then exit 1."""
    failed = False
    for name in names:
        try:
            act(client, _find(client, name))
            output.line(name)
        except DaemonUnavailable:
            raise
        except SandboxError as exc:
            output.error(exc)
            failed = True
    if failed:
        raise click.exceptions.Exit(1)


def _show_model(value: Kernel, form: str) -> None:
    import msgspec

    if form == "json":
        output.document(value)
    else:
        output.table(("MEMBER", "VALUE"), views.flatten(msgspec.to_builtins(value)))


@click.command("ps", epilog=options.example("sandboxkernel ps -a", "sandboxkernel ps -q"))
@click.option("-a", "--all", "everything", is_flag=True, help="Show those that have ended, too.")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@options.format_option()
def ps_command(*, everything: bool, quiet: bool, form: str) -> None:
    """List sandboxes.

    Yours, or everybody's for an administrator; by default those that have not ended.
    """
    client = connect_or_none()
    if client is None:
        output.note(NO_DAEMON)
    found = [k for k in client.kernels() if everything or k.state != "exited"] if client else []
    if quiet:
        for kernel in found:
            output.line(kernel.id)
    elif form == "json":
        output.document(found)
    else:
        now = datetime.now(UTC)
        output.table(views.KERNEL_HEADERS, [views.kernel_row(k, now) for k in found])


@click.command("inspect", epilog=options.example("sandboxkernel inspect 3f2a --format json"))
@options.format_option()
@options.one_name
def inspect_command(*, name: str, form: str) -> None:
    """Show everything known about a sandbox.

    Its limits as they were set and as Linux has them now, its end, and its confinement.
    """
    client = connect()
    _show_model(client.inspect(_find(client, name).id), form)


@click.command("logs", epilog=options.example("sandboxkernel logs -f --tail 20 3f2a"))
@click.option("-f", "--follow", is_flag=True, help="Go on until the sandbox ends.")
@click.option(
    "-n",
    "--tail",
    metavar="LINES",
    type=click.IntRange(0),
    help="Last lines only.  [default: all kept]",
)
@options.one_name
def logs_command(*, name: str, follow: bool, tail: int | None) -> None:
    """Show the output of a sandbox.

    What its first program wrote to stdout and stderr; the daemon keeps the last 256 KiB.
    """
    client = connect()
    sandbox_id = _find(client, name).id
    size = None
    if tail is not None:
        # The API counts bytes. Lines that come between the two requests push older ones out.
        size = tail_size(b"".join(client.logs(sandbox_id)), tail)
    for chunk in client.logs(sandbox_id, follow=follow, tail=size):
        output.raw(chunk)


def tail_size(data: bytes, lines: int) -> int:
    """How many bytes the last `lines` lines have."""
    return sum(len(line) for line in data.splitlines(keepends=True)[-lines:]) if lines else 0


@click.command(
    "stats", epilog=options.example("sandboxkernel stats", "sandboxkernel stats --stream 3f2a")
)
@click.option("-s", "--stream", is_flag=True, help="One sandbox, every second until it ends.")
@options.format_option()
@click.argument("names", metavar="[SANDBOX...]", nargs=-1, shell_complete=options.sandboxes)
@click.pass_context
def stats_command(ctx: click.Context, *, names: tuple[str, ...], stream: bool, form: str) -> None:
    """Show what sandboxes use.

    Memory, CPU time, processes and disk traffic, from their cgroups; by default of all that run.
    With --stream, JSON is one object a line.
    """
    if stream:
        if len(names) != 1:
            raise click.UsageError("--stream needs one sandbox", ctx)
        client = connect()
        kernel = _find(client, names[0])
        _stream_stats(kernel, client.stream_stats(kernel.id), form)
        return
    client_or_none = connect() if names else connect_or_none()
    if client_or_none is None:
        output.note(NO_DAEMON)
    readings = list(_readings(client_or_none, names)) if client_or_none else []
    if form == "json":
        output.document([stats for _, stats in readings])
    else:
        output.table(views.STATS_HEADERS, [views.stats_row(k.id, s) for k, s in readings])


def _readings(client: SandboxClient, names: tuple[str, ...]) -> Iterator[tuple[Kernel, Stats]]:
    if names:
        for name in names:
            kernel = _find(client, name)
            yield kernel, client.stats(kernel.id)
        return
    for kernel in client.kernels():
        try:
            if kernel.state in ("running", "paused"):
                yield kernel, client.stats(kernel.id)
        except (KernelNotRunning, KernelNotFound):
            continue  # it ended meanwhile


def _stream_stats(kernel: Kernel, readings: Iterator[Stats], form: str) -> None:
    previous = None
    for stats in readings:
        if form == "json":
            output.json_line(stats)
            continue
        if previous is None:
            output.row(views.STATS_HEADERS, STATS_WIDTHS)
        output.row(views.stats_row(kernel.id, stats, previous), STATS_WIDTHS)
        previous = stats


@click.command(
    "events",
    epilog=options.example("sandboxkernel events --since 10m", "sandboxkernel events -f"),
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens.")
@click.option(
    "--since", type=options.SINCE,
    help="Only from then on: 30s, 10m, 2h, 1d, or RFC 3339.  [default: all kept]",
)  # fmt: skip
@options.format_option()
def events_command(*, follow: bool, since: str | None, form: str) -> None:
    """Show what happened to sandboxes.

    The daemon keeps the last 1000 events since its start. JSON is one object a line.
    """
    client = connect() if follow else connect_or_none()
    if client is None:
        output.note(NO_DAEMON)
        return
    client.ping()  # before the table's head
    events = client.events(follow=follow, since=since)
    if form == "json":
        for event in events:
            output.json_line(event)
    else:
        _event_table(events)


def _event_table(events: Iterator[Event]) -> None:
    for cells in chain([views.EVENT_HEADERS], map(views.event_row, events)):
        output.row(cells, EVENT_WIDTHS)


@click.command("stop", epilog=options.example("sandboxkernel stop --time 30 3f2a"))
@click.option(
    "-t", "--time", "timeout_s", type=click.IntRange(0, 3600), default=STOP_TIMEOUT_S,
    show_default=True, help="Seconds between SIGTERM and SIGKILL.",
)  # fmt: skip
@options.many_names
def stop_command(*, names: tuple[str, ...], timeout_s: int) -> None:
    """Ask sandboxes to end, then kill them.

    A sandbox that has ended can still be inspected, and its logs read, until `rm`.
    """
    client = connect(timeout_s=timeout_s + REQUEST_TIMEOUT_S)
    _each(client, names, lambda c, kernel: c.stop(kernel.id, timeout_s))


@click.command("kill", epilog=options.example("sandboxkernel kill --signal INT 3f2a"))
@click.option(
    "-s", "--signal", "signum", type=options.SIGNAL, default="KILL", show_default=True,
    help="Signal. KILL ends every process; another goes to the process group of the first one.",
)  # fmt: skip
@options.many_names
def kill_command(*, names: tuple[str, ...], signum: int) -> None:
    """Kill sandboxes, or send them a signal."""

    def act(client: SandboxClient, kernel: Kernel) -> None:
        if kernel.state == "exited":
            raise KernelNotRunning(f"sandbox {kernel.kernel_id} has ended")
        if signum == signal.SIGKILL:
            client.kill(kernel.id)
        else:
            client.signal(kernel.id, signum)

    _each(connect(), names, act)


@click.command("pause", epilog=options.example("sandboxkernel pause 3f2a"))
@options.many_names
def pause_command(*, names: tuple[str, ...]) -> None:
    """Freeze every process of sandboxes.

    They keep their memory and use no CPU until `unpause`.
    """
    _each(connect(), names, lambda client, kernel: client.pause(kernel.id))


@click.command("unpause", epilog=options.example("sandboxkernel unpause 3f2a"))
@options.many_names
def unpause_command(*, names: tuple[str, ...]) -> None:
    """Let paused sandboxes go on."""
    _each(connect(), names, lambda client, kernel: client.unpause(kernel.id))


@click.command("rm", epilog=options.example("sandboxkernel rm -f 3f2a"))
@click.option("-f", "--force", is_flag=True, help="Kill those that have not ended.")
@options.many_names
def rm_command(*, names: tuple[str, ...], force: bool) -> None:
    """Remove sandboxes.

    The user's layer stays (see `user layer`); an ephemeral sandbox's is deleted.
    """

    def act(client: SandboxClient, kernel: Kernel) -> None:
        if kernel.state != "exited" and not force:
            raise Conflict(
                f"sandbox {kernel.kernel_id} is {kernel.state}",
                hint="Stop it first, or use --force.",
            )
        client.remove(kernel.id)

    _each(connect(), names, act)
