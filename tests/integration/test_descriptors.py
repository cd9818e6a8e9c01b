"""A server with more descriptors than select(2) can count, and its kernels."""

from __future__ import annotations

import os
import resource

from tests.support import RunningDaemon, sandbox

MANY = 1100


def test_an_end_is_told_to_a_process_with_many_descriptors(daemon: RunningDaemon) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4 * MANY)), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(MANY)]
    try:
        with sandbox(daemon, "sh", "-c", "exit 3") as kernel:
            watch = daemon.client().watch_exit(kernel.id, kernel.generation)
            assert watch.fileno() > 1023
            info = watch.wait(30)
            assert info is not None and info.code == 3
    finally:
        for fd in held:
            os.close(fd)
