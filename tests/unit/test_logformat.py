"""Lines of the daemon's log."""

from __future__ import annotations

import contextvars
import json
import logging
import sys

import pytest

from sandboxkernel.daemon.logformat import about, formatter, note, serving


def record(
    message: str, *args: object, extra: dict[str, object] | None = None
) -> logging.LogRecord:
    made = logging.LogRecord("a.logger", logging.WARNING, "f.py", 1, message, args, None)
    made.__dict__.update(extra or {})
    return made


def test_json_is_one_object_a_line_with_what_is_known() -> None:
    def request() -> str:
        serving(request="r1", user="ada")
        note(kernel="k-1", empty="")
        return formatter("json").format(
            record("it %s\nreally", "failed", extra=about(code="conflict", errno=None))
        )

    text = contextvars.copy_context().run(request)
    assert "\n" not in text
    line = json.loads(text)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "warning", "logger": "a.logger", "message": "it failed\nreally",
        "request": "r1", "user": "ada", "kernel": "k-1", "code": "conflict",
    }  # fmt: skip
    assert set(json.loads(formatter("json").format(record("later")))) == {
        "time", "level", "logger", "message",
    }  # fmt: skip


def test_text_names_it_before_a_traceback() -> None:
    made = record("it failed", extra=about(kernel="k-1"))
    try:
        raise ValueError("x")
    except ValueError:
        made.exc_info = sys.exc_info()
    lines = formatter("text").format(made).splitlines()
    assert lines[0].endswith("WARNING a.logger: it failed [kernel=k-1]")
    assert lines[-1] == "ValueError: x"


@pytest.mark.parametrize("timestamps", [True, False])
def test_systemd_has_times_of_its_own(timestamps: bool) -> None:
    text = formatter("text", timestamps=timestamps).format(record("x"))
    assert text.startswith("WARNING") != timestamps
