"""The command line: one module a noun, loaded when its command is called.

Errors become exit codes here and nowhere else: 1 failed, 2 wrong usage, 125 no daemon, 130
interrupted; `run` and `exec` end with the program's own code, 126 and 127 when it cannot start.
"""

from __future__ import annotations

import importlib

import click

from sandboxkernel import __version__
from sandboxkernel.cli import output
from sandboxkernel.errors import DaemonUnavailable, SandboxError
from sandboxkernel.paths import HOST_VARIABLE

__all__ = ["COMMANDS", "cli", "main"]

EXIT_FAILED, EXIT_USAGE, EXIT_NO_DAEMON, EXIT_INTERRUPTED = 1, 2, 125, 130
# Section -> command -> (module, summary). The summaries stand here so that `--help` loads nothing;
# a test compares them with the commands' own. Without a summary a command is hidden.
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Sandboxes": {
        "run": ("run", "Run a command in a new sandbox."),
        "exec": ("run", "Run a command in a running sandbox."),
        "ps": ("kernels", "List sandboxes."),
        "inspect": ("kernels", "Show everything known about a sandbox."),
        "logs": ("kernels", "Show the output of a sandbox."),
        "stats": ("kernels", "Show what sandboxes use."),
        "events": ("kernels", "Show what happened to sandboxes."),
        "stop": ("kernels", "Ask sandboxes to end, then kill them."),
        "kill": ("kernels", "Kill sandboxes, or send them a signal."),
        "pause": ("kernels", "Freeze every process of sandboxes."),
        "unpause": ("kernels", "Let paused sandboxes go on."),
        "rm": ("kernels", "Remove sandboxes."),
    },
    "Images and users": {
        "image": ("images", "Manage images."),
        "user": ("users", "Manage users' layers."),
    },
    "Host": {
        "system": ("system", "Show disk usage, versions and zygotes, free disk space."),
        "doctor": ("doctor", "Check what this host lacks, and how to mend it."),
        "daemon": ("daemon", "Run the daemon in the foreground."),
        "completion": ("completion", "Print the completion script of a shell."),
        "launch": ("launch", ""),
    },
}


class LazyGroup(click.Group):
    """Imports the module of a command when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command that is shown, section after section."""
        return [name for section in COMMANDS.values() for name, (_, s) in section.items() if s]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command; None for an unknown name."""
        for section in COMMANDS.values():
            if cmd_name in section:
                module = importlib.import_module(f"{__name__}.{section[cmd_name][0]}")
                command = getattr(module, f"{cmd_name}_command")
                assert isinstance(command, click.Command)
                return command
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The sections, from the table alone."""
        for title, section in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_, text) in section.items() if text])


def _check_host(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value and not value.startswith(("unix:///", "/")):
        raise click.BadParameter(
            f"{value!r} is not a unix socket. Write unix:///run/sandboxkernel/api.sock.",
            ctx=ctx, param=param,
        )  # fmt: skip
    return value


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`sandboxkernel COMMAND --help` explains a command. SANDBOX is an id, a name, or the "
    "beginning of one.",
)
@click.option(
    "-H", "--host", envvar=HOST_VARIABLE, show_envvar=True, metavar="unix:///PATH",
    callback=_check_host, help="Socket of the daemon.  [default: the system's]",
)  # fmt: skip
@click.version_option(__version__, "-V", "--version", prog_name="sandboxkernel")
def cli(host: str | None) -> None:
    """Run Jupyter kernels and programs, each in a Linux container of its own."""
    del host  # connection.py reads it from the context


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code. Only unexpected errors leave a traceback."""
    output.prepare()
    try:
        result = cli.main(arguments, prog_name="sandboxkernel", standalone_mode=False)
    except click.Abort:
        return EXIT_INTERRUPTED
    except click.ClickException as exc:
        output.usage_error(exc)
        return EXIT_USAGE
    except SandboxError as exc:
        output.error(exc)
        return EXIT_NO_DAEMON if isinstance(exc, DaemonUnavailable) else EXIT_FAILED
    return result if isinstance(result, int) else 0
