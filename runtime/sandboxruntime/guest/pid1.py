"""Pid 1 of a container that another runtime has made: what that leaves undone, then pid 1's work.

Executed by the image's Python in the finished container, without a capability, as the user. Its
descriptors follow a number: the orders, then the pipes and the socket of every pid 1 (init.py).
"""

from __future__ import annotations

import json
import os
from typing import NoReturn

from sandboxruntime import init, syscalls
from sandboxruntime.spec import Spec, from_json
from sandboxruntime.steps import Step
from sandboxruntime.zygote import decode_program

__all__ = ["main"]

# The rest of init.CREATE_STEPS is done: what needs a privilege, the runtime had.
_STEPS = (Step.SESSION, Step.CLOSE_FDS, Step.NO_NEW_PRIVS, Step.LANDLOCK, Step.SECCOMP)


def main(first: str) -> NoReturn:
    """Confine this process the rest of the way and be pid 1. `first` is the orders' descriptor."""
    orders_fd = int(first)
    status, handover, exit_write, log, kept_exit, kept_log = range(orders_fd + 1, orders_fd + 7)
    syscalls.prctl(init.PR_SET_DUMPABLE, 0)
    with os.fdopen(orders_fd, encoding="utf-8") as stream:
        orders = json.load(stream)
    context = init.Context(
        spec=from_json(Spec, orders["spec"]),
        status_fd=status,
        handover_fd=handover,
        exit_fd=exit_write,
        log_fd=log,
        cgroup_fds=[],
        seccomp_program=decode_program(orders["program"]),
        kept_fds=[kept_exit, kept_log],
    )
    steps = {step: init.CREATE_STEPS[step] for step in _STEPS}
    # The runtime has given it a keyring, and has made it a session's leader.
    init.confine(context, {**steps, Step.SESSION: lambda _: init.default_signals()})
    try:
        init.run_init(context)
    except BaseException as exc:
        init.report_failure(context.status_fd, Step.HAND_OVER, exc)
