"""Everything that the command line prints: the only module that writes to stdout or stderr.

stdout is data, so that it can be piped. stderr is progress, notes and errors.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import click

from sandboxkernel.errors import SandboxError

__all__ = [
    "document",
    "error",
    "json_line",
    "line",
    "note",
    "prepare",
    "printable",
    "progress",
    "progress_end",
    "raw",
    "render_error",
    "render_table",
    "row",
    "table",
    "unbuffered",
    "usage_error",
]

COLUMN_GAP = 3


def prepare() -> None:
    """Let no name, however strange, fail for the terminal's encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    r"""`text` with control characters as \x1b: names come from inside sandboxes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def render_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; no trailing blanks."""
    lines = [list(headers), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in lines) for column in range(len(headers))]
    return "".join(
        (" " * COLUMN_GAP)
        .join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        .rstrip()
        + "\n"
        for row in lines
    )


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table."""
    _write(render_table(headers, rows))


def row(cells: Sequence[str], widths: Sequence[int]) -> None:
    """Print one row of a table that has no end, in columns of fixed least widths."""
    padded = [printable(cell).ljust(width) for cell, width in zip(cells, widths, strict=True)]
    _write((" " * COLUMN_GAP).join(padded).rstrip() + "\n")


def document(value: Any) -> None:
    """Print one JSON document of models, lists or dictionaries."""
    import msgspec

    _write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def json_line(value: Any) -> None:
    """Print one JSON object as one line."""
    import msgspec

    _write(msgspec.json.encode(value).decode() + "\n")


def line(text: str) -> None:
    """Print one line of data."""
    _write(printable(text) + "\n")


def raw(data: bytes, *, to_stderr: bool = False) -> None:
    """Pass a program's own output on, unchanged, at once."""
    stream = sys.stderr if to_stderr else sys.stdout
    try:
        stream.flush()
        stream.buffer.write(data)
        stream.flush()
    except BrokenPipeError:
        _reader_has_gone()


def unbuffered(data: bytes) -> None:
    """Pass output on to stderr from a thread that may hang in it, holding no lock."""
    while data:
        data = data[os.write(2, data) :]


def note(text: str) -> None:
    """Tell something that is neither data nor an error."""
    sys.stderr.write(printable(text) + "\n")


def progress(text: str) -> None:
    """Say how far long work is: one line that is rewritten, or nothing without a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{printable(text)}")
        sys.stderr.flush()


def progress_end() -> None:
    """Clear the line of `progress`."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def error(exc: SandboxError) -> None:
    """Print an error for a person."""
    sys.stderr.write(render_error(exc.message, hint=exc.hint, code=exc.code))


def usage_error(exc: click.ClickException) -> None:
    """Print what was wrong with the command line."""
    context = getattr(exc, "ctx", None)
    hint = f"Try `{context.command_path} --help`." if context is not None else ""
    sys.stderr.write(render_error(exc.format_message(), hint=hint, code="usage"))


def render_error(message: str, *, hint: str, code: str) -> str:
    """Three lines: what failed, what to do (if known), and the code that the docs list."""
    lines = [f"error: {message}"] + ([f"hint: {hint}"] if hint else []) + [f"code: {code}"]
    return "".join(printable(text) + "\n" for text in lines)


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _reader_has_gone()


def _reader_has_gone() -> NoReturn:
    """End as silently as a program that SIGPIPE ends: `ps | head -1` is no error."""
    # What is still buffered would fail again when the interpreter flushes at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)
