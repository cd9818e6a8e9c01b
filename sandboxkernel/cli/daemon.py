"""`daemon`: the root daemon in the foreground."""

from __future__ import annotations

import os
import sys

import click
from click.core import ParameterSource

from sandboxkernel.cli import options

__all__ = ["daemon_command"]


@click.command(
    "daemon",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog=options.example(
        "sandboxkernel daemon --config /etc/jupyter/sandboxkernel_config.py",
        "sandboxkernel daemon -- --help-all",
    ),
)
@click.argument("arguments", metavar="[DAEMON OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def daemon_command(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Run the daemon in the foreground.

    The same as `sandboxkerneld`; needs root. Its options follow; `-- --help-all` lists them
    with their defaults. SANDBOXKERNEL_RUN_DIR and SANDBOXKERNEL_DATA_DIR move its directories.
    """
    root = ctx.find_root()
    if root.get_parameter_source("host") is ParameterSource.COMMANDLINE:
        raise click.UsageError("the daemon's socket is in SANDBOXKERNEL_RUN_DIR, not --host", ctx)
    # In place of this process, not imported: signals and the exit code are the daemon's own.
    os.execv(sys.executable, [sys.executable, "-m", "sandboxkernel.daemon", *arguments])
