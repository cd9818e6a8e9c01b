"""Option types and decorators that several commands share; help texts in one form."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click

from sandboxkernel import units
from sandboxkernel.errors import LimitError
from sandboxkernel.models import IoLimit, Limits

__all__ = [
    "COMMAND_SETTINGS",
    "CPUS",
    "SIGNAL",
    "SINCE",
    "SIZE",
    "VARIABLE",
    "example",
    "format_option",
    "limit_options",
    "limits_of",
    "many_names",
    "one_name",
    "sandboxes",
]

F = TypeVar("F", bound=Callable[..., Any])
# Everything after the sandbox or the first word of the program belongs to the program.
COMMAND_SETTINGS: dict[str, Any] = {"allow_interspersed_args": False}
_SPAN = re.compile(r"(\d{1,9})([smhd])\Z", re.ASCII)
_SPAN_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class _Limit(click.ParamType[Any]):
    def __init__(self, name: str, parse: Callable[..., Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._parse(value)
        except LimitError as exc:
            raise click.BadParameter(
                f"{value!r} is not a number of {self.name}. {exc.hint}".rstrip(),
                ctx=ctx,
                param=param,
            ) from exc


class _Signal(click.ParamType[int]):
    name = "signal"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).upper()
        name = text if text.startswith("SIG") else f"SIG{text}"
        found = signal.Signals.__members__.get(name)
        number = int(found) if found else int(text) if text.isdecimal() and len(text) < 4 else 0
        if number not in signal.valid_signals():
            self.fail(f"{value!r} is not a signal. Write SIGINT, INT or 2.", param, ctx)
        return number


class _Since(click.ParamType[str]):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        span = _SPAN.match(value)
        if span:
            seconds = int(span[1]) * _SPAN_SECONDS[span[2]]
            try:
                return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()
            except OverflowError:
                self.fail(f"{value!r} is too long ago", param, ctx)
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a time. Write 10m, 2h or RFC 3339.", param, ctx)
        return moment.astimezone(UTC).isoformat()


class _Variable(click.ParamType[tuple[str, str]]):
    name = "NAME=VALUE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, content = value.partition("=")
        if not name or not equals:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        return name, content


SIZE = _Limit("bytes", units.parse_size)
CPUS = _Limit("cores", units.parse_cpus)
SIGNAL = _Signal()
SINCE = _Since()
VARIABLE = _Variable()


def example(*lines: str) -> str:
    """The epilogue of a command's help, marked so that click does not join its lines."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def format_option(default: str = "table") -> Callable[[F], F]:
    """`--format table|json`."""
    return click.option(
        "--format",
        "form",
        type=click.Choice(["table", "json"]),
        default=default,
        show_default=True,
        help="A table for people, or JSON.",
    )


def sandboxes(ctx: click.Context, param: click.Parameter, incomplete: str) -> Any:
    """What a shell may complete a sandbox's name to."""
    from sandboxkernel.cli.completion import complete_sandboxes

    return complete_sandboxes(ctx, param, incomplete)


def one_name(function: F) -> F:
    """One sandbox, by id or name."""
    return click.argument("name", metavar="SANDBOX", shell_complete=sandboxes)(function)


def many_names(function: F) -> F:
    """One or more sandboxes."""
    return click.argument(
        "names", metavar="SANDBOX...", nargs=-1, required=True, shell_complete=sandboxes
    )(function)


def limit_options(function: F) -> F:
    """Caps of a new sandbox. They are wishes: the profile and the grants bound them."""
    default = "[default: the profile's]"
    for decorator in reversed(
        [
            click.option("-m", "--memory", type=SIZE, help=f"Memory cap.  {default}"),
            click.option("--swap", type=SIZE, help=f"Swap on top of memory.  {default}"),
            click.option("--cpus", type=CPUS, help=f"CPU cap in cores.  {default}"),
            click.option("--pids", metavar="N", type=click.IntRange(1), help=f"Tasks.  {default}"),
            click.option("--shm", type=SIZE, help=f"Size of /dev/shm.  {default}"),
            click.option("--tmp", type=SIZE, help=f"Size of /tmp.  {default}"),
            click.option("--io-read", type=SIZE, help=f"Disk reads a second.  {default}"),
            click.option("--io-write", type=SIZE, help=f"Disk writes a second.  {default}"),
        ]
    ):  # fmt: skip
        function = decorator(function)
    return function


def limits_of(values: dict[str, Any]) -> Limits:
    """The values of `limit_options` as wishes of the API."""
    reads, writes = values["io_read"], values["io_write"]
    return Limits(
        memory_bytes=values["memory"],
        swap_bytes=values["swap"],
        cpus=values["cpus"],
        pids=values["pids"],
        shm_bytes=values["shm"],
        tmp_bytes=values["tmp"],
        io=None
        if reads is None and writes is None
        else IoLimit(read_bytes_per_s=reads, write_bytes_per_s=writes),
    )
