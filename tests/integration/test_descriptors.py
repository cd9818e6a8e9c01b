"""Descriptors: more of them than select(2) can count, and what one leads to."""

from __future__ import annotations

import os
import resource

import pytest

from sandboxruntime.cgroup import Cgroup, Limits, read_layout
from tests.support import CGROUP_PARENT, DEADLINE_S, RunningDaemon, sandbox

MANY = 1100


def test_an_end_is_told_to_a_process_with_many_descriptors(daemon: RunningDaemon) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4 * MANY)), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(MANY)]
    try:
        with sandbox(daemon, "sh", "-c", "exit 3") as kernel:
            watch = daemon.client().watch_exit(kernel.id, kernel.generation)
            assert watch.fileno() > 1023
            info = watch.wait(DEADLINE_S)
            assert info is not None and info.code == 3
    finally:
        for fd in held:
            os.close(fd)


def test_the_cgroup_directory_that_a_zygote_is_given_leads_nowhere() -> None:
    """Its control is a plain descriptor of the same directory, from which the host's root is near."""
    layout = read_layout()
    if "" not in layout.hierarchies():
        pytest.skip("no v2")
    cgroup = Cgroup.create(layout, f"{CGROUP_PARENT}/detached", Limits())
    given = cgroup.directory_fd()
    plain = os.open(cgroup.directories[""], os.O_RDONLY | os.O_DIRECTORY)
    up = "/".join([".."] * 20)
    try:
        assert os.path.samestat(os.stat(up, dir_fd=plain), os.stat("/"))
        assert os.path.samestat(os.stat(up, dir_fd=given), os.fstat(given))
    finally:
        os.close(given)
        os.close(plain)
        cgroup.remove()
