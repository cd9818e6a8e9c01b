"""A daemon without what the unit denies it (packaging/systemd) starts, enters and ends kernels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import (
    ROOT,
    ZYGOTES,
    RunningDaemon,
    run_inside,
    running_daemon,
    sandbox,
    warm_up,
)

UNIT = ROOT / "packaging/systemd/sandboxkernel.service"
DENIED = re.findall(
    r"CAP_(\w+)", " ".join(re.findall(r"^CapabilityBoundingSet=~(.*)$", UNIT.read_text(), re.M))
)
# The bounding set is of a process: what is executed after it has lost what it lacks.
PROGRAM = """
import os, sys
os.execvp("setpriv", ["setpriv", "--no-new-privs", "--bounding-set", sys.argv[1], sys.executable,
                      *sys.argv[2:]])
"""
CONFIG = 'c.SandboxKernelDaemon.profiles = {"default": {}, "cold": {"zygote": "off"}}\n'


@pytest.fixture(scope="module")
def powerless() -> Iterator[RunningDaemon]:
    drop = ",".join(f"-{name.lower()}" for name in DENIED)
    with running_daemon(
        CONFIG, program=("-c", PROGRAM, drop, "-m", "sandboxkernel.daemon")
    ) as running:
        yield running


def test_it_has_lost_what_the_unit_denies(powerless: RunningDaemon) -> None:
    """Of both it and its launcher, and not everything: it is root."""
    for pid in (powerless.process.pid, powerless.launcher):
        status = Path(f"/proc/{pid}/status").read_text()
        for name in ("CapBnd", "CapPrm", "CapEff"):
            (bits,) = re.findall(rf"^{name}:\t(\w+)$", status, re.M)
            assert int(bits, 16) >> 21 & 1  # CAP_SYS_ADMIN, which it needs
            # CAP_NET_BIND_SERVICE, BROADCAST, RAW, CAP_IPC_LOCK, IPC_OWNER, CAP_SYS_MODULE
            assert not any(int(bits, 16) >> number & 1 for number in (10, 11, 13, 14, 15, 16))


@pytest.mark.parametrize("profile", ["cold", "default"])
def test_kernels_start_are_entered_and_end(powerless: RunningDaemon, profile: str) -> None:
    """On every start path of the executor that the tests run with."""
    if profile == "default":
        warm_up(powerless)
    with sandbox(powerless, as_kernel=True, profile=profile) as kernel:
        assert (kernel.start_path == "cold") == (profile == "cold" or not ZYGOTES)
        assert run_inside(powerless, kernel, "id", "-u") == (0, "1000\n")
        # What of the network there is, which a launcher with less power could not have brought up.
        program = "import socket; socket.create_server(('127.0.0.1', 0)); print('up')"
        assert run_inside(powerless, kernel, "python3", "-c", program) == (0, "up\n")


def test_containers_of_runc_start_and_are_entered(powerless: RunningDaemon) -> None:
    config = 'c.SandboxKernelDaemon.profiles = {"default": {"executor": "runc"}}\n'
    drop = powerless.program[2]
    with (
        running_daemon(
            config, program=("-c", PROGRAM, drop, "-m", "sandboxkernel.daemon")
        ) as running,
        sandbox(running, as_kernel=True) as kernel,
    ):
        assert run_inside(running, kernel, "id", "-u") == (0, "1000\n")
