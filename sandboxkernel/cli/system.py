"""Commands about the daemon's disk and the daemon itself."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from sandboxkernel import __version__
from sandboxkernel.cli import options, output, views
from sandboxkernel.cli.connection import connect_or_none, connect_or_start, daemon_address
from sandboxkernel.units import format_size

__all__ = ["system_command"]


@click.group("system", epilog=options.example("sandboxkernel system df"))
def system_command() -> None:
    """Show disk usage, versions and zygotes, free disk space."""


@system_command.command("info", epilog=options.example("sandboxkernel system info"))
@options.format_option()
def show_info(*, form: str) -> None:
    """Show versions and features of the daemon.

    Starts none; see `doctor` for the host.
    """
    client = connect_or_none()
    if client is None:
        output.note("no daemon is running")
    info: dict[str, Any] = {
        "client": __version__,
        "socket": str(daemon_address()),
        "daemon": msgspec.to_builtins(client.version()) if client else None,
    }
    if form == "json":
        output.document(info)
    else:
        output.table(("MEMBER", "VALUE"), views.flatten(info))


@system_command.command("df", epilog=options.example("sandboxkernel system df"))
@options.format_option()
def show_usage(*, form: str) -> None:
    """Show disk blocks in use; administrators only.

    RECLAIMABLE is what `prune`, and for unused images `image rm`, can give back.
    """
    usage = connect_or_start().disk_usage()
    if form == "json":
        output.document(usage)
        return
    rows: list[tuple[str, ...]] = [
        (e.kind, str(e.count), format_size(e.size_bytes), format_size(e.reclaimable_bytes))
        for e in usage.entries
    ]
    rows.append(("free", views.NOTHING, format_size(usage.free_bytes), views.NOTHING))
    output.table(("KIND", "COUNT", "SIZE", "RECLAIMABLE"), rows)


@system_command.command("zygotes", epilog=options.example("sandboxkernel system zygotes"))
@options.format_option()
def show_zygotes(*, form: str) -> None:
    """Show what kernels are forked from; administrators only.

    SPARES are forked already and wait for a user.
    """
    found = connect_or_start().zygotes()
    if form == "json":
        output.document(found)
        return
    rows = [
        (
            zygote.id,
            zygote.domain,
            "retired" if zygote.retired else "serving",
            str(zygote.forks),
            str(len(zygote.spares)),
            format_size(zygote.memory_bytes),
            ", ".join(zygote.preload) or views.NOTHING,
        )
        for zygote in found.zygotes
    ]
    output.table(("ID", "DOMAIN", "STATUS", "FORKS", "SPARES", "MEMORY", "PRELOAD"), rows)
    for domain in found.starting:
        output.note(f"note: one is being made for {domain}")


@system_command.command(
    "check",
    epilog=options.example("sandboxkernel system check", "sandboxkernel system check --repair"),
)
@options.format_option()
@click.option("--repair", is_flag=True, help="Give back leftovers, rebuild what can be.")
def check(*, repair: bool, form: str) -> None:
    """Look for leftovers and damage; administrators only.

    Cgroups, sockets and scratch layers of no sandbox, journal records that cannot be read, images
    whose files are not what they were. No sandbox, no user's layer and nothing of anybody else's is
    touched. Ends with 1 when something is found and not repaired.
    """
    report = connect_or_start().check(repair=repair)
    if form == "json":
        output.document(report)
    else:
        rows = [
            (
                f.kind,
                f.object,
                "repaired" if f.repaired else "found",
                f"{f.problem} {f.hint}".strip(),
            )
            for f in report.findings
        ]
        if rows:
            output.table(("KIND", "OBJECT", "STATUS", "PROBLEM"), rows)
        counts = ", ".join(f"{count} {kind}" for kind, count in report.checked.items())
        output.note(f"checked: {counts}")
    if not all(finding.repaired for finding in report.findings):
        raise click.exceptions.Exit(1)


@system_command.command("prune", epilog=options.example("sandboxkernel system prune --dry-run"))
@click.option("--dry-run", is_flag=True, help="Only tell what would be removed.")
@options.format_option()
def prune(*, dry_run: bool, form: str) -> None:
    """Remove data that nothing uses; administrators only.

    Image data of no image and scratch of no sandbox. Never a user's layer, so it does not ask.
    """
    report = connect_or_start().prune(dry_run=dry_run)
    if form == "json":
        output.document(report)
        return
    for name in report.removed:
        output.line(name)
    verb = "would free" if dry_run else "freed"
    output.note(f"{verb} {format_size(report.freed_bytes)}")
