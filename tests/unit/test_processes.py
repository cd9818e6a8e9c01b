"""Descriptors of processes."""

from __future__ import annotations

import errno
import os

import pytest

from sandboxruntime.processes import open_process


def test_the_leader_of_a_group_that_lives_on_has_ended() -> None:
    """Its number is still the group's: Linux 6.1 answers pidfd_open(2) with EINVAL."""
    read, write = os.pipe()
    leader = os.fork()
    if leader == 0:
        os.setsid()
        if os.fork() == 0:
            os.close(write)
            os.read(read, 1)  # until the test closes its end
        os._exit(0)
    try:
        os.waitpid(leader, 0)
        os.killpg(leader, 0)  # the group is there
        with pytest.raises(ProcessLookupError):
            open_process(leader)
    finally:
        os.close(write)
        os.close(read)


@pytest.mark.parametrize("answer", [errno.EINVAL, errno.ENOENT, errno.ESRCH])
def test_each_answer_of_linux_says_that_it_has_ended(
    answer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pidfd_open(pid: int) -> int:
        raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    with pytest.raises(ProcessLookupError):
        open_process(1)


def test_arguments_that_mean_no_process_stay_errors() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        open_process(-1)


def test_the_descriptor_is_the_process() -> None:
    fd = open_process(os.getpid())
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as stream:
            assert f"\nPid:\t{os.getpid()}\n" in stream.read()
    finally:
        os.close(fd)
