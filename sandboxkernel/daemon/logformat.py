"""The daemon's log: one line an event, for people or as JSON. Effects: configure() alone.

What a line is about (kernel, user, request, error code) comes from the request that is being
served, through a context variable, or from the call that logs (`extra=about(kernel=...)`). Messages
are made by us and name no key, environment or file content.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

__all__ = ["Style", "about", "configure", "formatter", "note", "serving"]

Style = Literal["text", "json"]
_FACTS = "sandbox_facts"
_current: ContextVar[Mapping[str, Any]] = ContextVar("what the log is about", default={})  # noqa: B039  # read-only


def serving(**facts: Any) -> None:
    """Begin with what a request is known by; later lines of the same task carry it."""
    _current.set(_given(facts))


def note(**facts: Any) -> None:
    """Add to what the lines of this task carry."""
    _current.set({**_current.get(), **_given(facts)})


def about(**facts: Any) -> dict[str, Any]:
    """For `extra=`: what one line is about."""
    return {_FACTS: _given(facts)}


def _given(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value not in (None, "")}


def _facts_of(record: logging.LogRecord) -> dict[str, Any]:
    return {**_current.get(), **getattr(record, _FACTS, {})}


class _Json(logging.Formatter):
    """One object a line: time (RFC 3339), level, logger, message, then what it is about."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_facts_of(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Text(logging.Formatter):
    """As people read it; what it is about comes last, in brackets."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        facts = _facts_of(record)
        if not facts:
            return text
        first, newline, traceback = text.partition("\n")
        named = " ".join(f"{name}={value}" for name, value in facts.items())
        return f"{first} [{named}]{newline}{traceback}"


def formatter(style: Style, *, timestamps: bool = True) -> logging.Formatter:
    """The formatter of a style. systemd's journal has times of its own."""
    if style == "json":
        return _Json()
    return _Text(f"{'%(asctime)s ' if timestamps else ''}%(levelname)s %(name)s: %(message)s")


def configure(style: Style, level: int) -> None:
    """Send everything that is logged in this process to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(style, timestamps="JOURNAL_STREAM" not in os.environ))
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("tornado.access").setLevel(logging.WARNING)
