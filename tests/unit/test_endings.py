"""How a program ended has words, whatever Linux says of it."""

from __future__ import annotations

import pytest

from sandboxkernel.daemon.endings import describe_exit
from sandboxkernel.models import ExitInfo


def describe(wait_status: int | None) -> ExitInfo:
    return describe_exit(
        wait_status, oom_kills=0, memory_peak_bytes=0, memory_limit_bytes=None, profile="default",
        generation=1, asked=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("wait_status", "message"),
    [
        (3 << 8, "exited with code 3"),
        (9, "killed (SIGKILL)"),
        (None, "killed (SIGKILL)"),
        (32, "killed (32)"),  # the C library's own
        (34, "killed (SIGRTMIN)"),
        (40, "killed (SIGRTMIN+6)"),
        (64, "killed (SIGRTMAX)"),
        (11 | 0x80, "killed (SIGSEGV)"),  # with a core
    ],
)
def test_an_end_is_said_in_words(wait_status: int | None, message: str) -> None:
    assert describe(wait_status).message == message


def test_every_wait_status_can_be_described() -> None:
    for wait_status in range(1 << 16):
        assert describe(wait_status).message
