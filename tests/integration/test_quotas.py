"""Quotas, measured from outside on real workloads, with a neighbour that must not notice.

SANDBOXKERNEL_REPORT=1 prints the figures.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxkernel.models import ExitInfo, IoLimit, Kernel, Limits
from sandboxruntime.cgroup import read_layout
from tests.benchmarks.client import RawClient
from tests.neighbour.__main__ import CONFIG, again_and_again
from tests.neighbour.bombs import AGAIN
from tests.support import (
    DEADLINE_S,
    SLOWDOWN,
    RunningDaemon,
    python_inside,
    running_daemon,
    sandbox,
    wait_until,
)

LAYOUT = read_layout()
MIB = 1 << 20
KEY = "neighbour-key"


def say(text: str) -> None:
    if os.environ.get("SANDBOXKERNEL_REPORT"):
        print(f"\n  {text}", end="")


def wait_for_end(daemon: RunningDaemon, kernel: Kernel) -> ExitInfo:
    info = daemon.client().watch_exit(kernel.id, kernel.generation).wait(2 * DEADLINE_S)
    assert info is not None
    return info


class Neighbour:
    """A kernel of another sandbox, whose cell round trips are timed."""

    def __init__(self, daemon: RunningDaemon, kernel: Kernel) -> None:
        assert kernel.connection is not None
        info = {
            "transport": "ipc", "ip": kernel.connection.ip, "shell_port": 1, "iopub_port": 2,
            "key": KEY.encode(), "signature_scheme": "hmac-sha256",
        }  # fmt: skip
        self._client = RawClient(info)
        for _ in range(20):
            self._client.run_cell()

    def round_trip_ms(self, count: int = 40) -> float:
        values = []
        for _ in range(count):
            began = time.perf_counter()
            self._client.run_cell()
            values.append((time.perf_counter() - began) * 1000)
        return statistics.median(values)

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module")
def neighbour(daemon: RunningDaemon) -> Iterator[Neighbour]:
    with sandbox(daemon, key=KEY, as_kernel=True) as kernel:
        watcher = Neighbour(daemon, kernel)
        yield watcher
        watcher.close()


def test_a_memory_bomb_dies_alone_and_is_reported_as_out_of_memory(
    daemon: RunningDaemon, neighbour: Neighbour
) -> None:
    before = neighbour.round_trip_ms()
    bomb = "import time; time.sleep(0.3); b = []\nwhile True: b.append(bytearray(8 << 20))"
    with sandbox(daemon, "python3", "-c", bomb, profile="small") as kernel:
        during = neighbour.round_trip_ms()
        info = wait_for_end(daemon, kernel)
    assert info.reason == "oom_killed"
    assert "memory limit 256.0 MiB reached" in info.message
    assert info.memory_peak_bytes is not None
    assert info.memory_peak_bytes <= 256 * MIB
    say(f"memory bomb: peak {info.memory_peak_bytes / MIB:.1f} of 256 MiB; "
        f"neighbour {before:.1f} -> {during:.1f} ms ({during / before:.2f}x)")  # fmt: skip


def test_a_subprocess_over_the_limit_ends_the_whole_sandbox(daemon: RunningDaemon) -> None:
    child = "b = []\nwhile True: b.append(bytearray(8 << 20))"
    parent = f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {child!r}])\ntime.sleep(600)"
    with sandbox(daemon, "python3", "-c", parent, profile="small") as kernel:
        assert wait_for_end(daemon, kernel).reason == "oom_killed"


@pytest.mark.parametrize("name", AGAIN)
def test_a_bomb_is_ended_at_its_cap_again_and_again(name: str) -> None:
    """Those of tests/neighbour: what they are over is their memory, or what there is of swap, too."""
    with running_daemon(CONFIG) as running, again_and_again(running, name) as ends:
        wait_until(lambda: len(ends) >= 3, what="three ends", timeout_s=2 * DEADLINE_S)
    assert {end.reason for end in ends} == {"oom_killed"}
    # Linux ends it at the first page that does not fit: another 8 MiB were asked for by then.
    assert all(504 * MIB <= (end.memory_peak_bytes or 0) <= 512 * MIB for end in ends)


def test_a_kill_signal_is_not_taken_for_out_of_memory(daemon: RunningDaemon) -> None:
    with sandbox(daemon, "python3", "-c", "import os; os.kill(os.getpid(), 9)") as kernel:
        info = wait_for_end(daemon, kernel)
    assert (info.reason, info.signal, info.asked) == ("signaled", 9, False)


def test_swap_does_not_stretch_the_limit(daemon: RunningDaemon) -> None:
    with sandbox(daemon, profile="small") as kernel:
        controller = "memory" if "memory" in LAYOUT.v1 else ""
        directory = Path(LAYOUT.directory(controller, kernel_cgroup(daemon, kernel, controller)))
        if controller:  # v1 limits the sum of both
            limit, with_swap = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
            expected = str(256 * MIB)
        else:
            limit, with_swap = "memory.max", "memory.swap.max"
            expected = "0"
        assert (directory / limit).read_text().strip() == str(256 * MIB)
        if (directory / with_swap).exists():
            assert (directory / with_swap).read_text().strip() == expected


def kernel_cgroup(daemon: RunningDaemon, kernel: Kernel, controller: str) -> str:
    confinement = daemon.client().inspect(kernel.id).confinement
    assert confinement is not None
    return confinement.cgroups[controller or "unified"].lstrip("/")


def test_a_cpu_burn_on_four_threads_gets_its_quota_and_no_more(
    daemon: RunningDaemon, neighbour: Neighbour
) -> None:
    before = neighbour.round_trip_ms()
    burn = (
        "import os\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0: break\n"
        "while True: pass"
    )  # fmt: skip
    with sandbox(daemon, "python3", "-c", burn, profile="hungry") as kernel:
        client = daemon.client()
        wait_until(lambda: client.stats(kernel.id).cpu_throttled_s > 0.5)
        first, began = client.stats(kernel.id), time.monotonic()
        wait_until(lambda: time.monotonic() - began > 6)
        last, ended = client.stats(kernel.id), time.monotonic()
        during = neighbour.round_trip_ms()
    share = (last.cpu_usage_s - first.cpu_usage_s) / (ended - began)
    say(f"CPU burn with quota 0.5: {share:.3f} cores; "
        f"neighbour {before:.1f} -> {during:.1f} ms ({during / before:.2f}x)")  # fmt: skip
    assert share <= 0.525
    # An emulated processor is as fast as its host lets it: it promises no least.
    assert share >= 0.475 or SLOWDOWN > 1


def test_a_fork_bomb_stops_at_the_cap(daemon: RunningDaemon, neighbour: Neighbour) -> None:
    before = neighbour.round_trip_ms()
    bomb = (
        "import os, time\n"
        "while True:\n"
        "    try: os.fork()\n"
        "    except BlockingIOError: time.sleep(0.01)"
    )  # fmt: skip
    with sandbox(daemon, "python3", "-c", bomb, profile="small") as kernel:
        client = daemon.client()
        stats = wait_until(lambda: (s := client.stats(kernel.id)).pids >= 60 and s)
        during = neighbour.round_trip_ms()
        stats = client.stats(kernel.id)
        client.kill(kernel.id)
    say(f"fork bomb: {stats.pids} of {stats.pids_limit} tasks; "
        f"neighbour {before:.1f} -> {during:.1f} ms ({during / before:.2f}x)")  # fmt: skip
    assert stats.pids <= 64
    assert stats.pids_limit == 64


def test_the_io_cap_holds_for_direct_writes(daemon: RunningDaemon, neighbour: Neighbour) -> None:
    """cgroup v1 throttles direct and synchronous I/O; buffered writes are written back by root."""
    before = neighbour.round_trip_ms()
    rate = 4 * MIB
    write = (
        "import mmap, os, time\n"
        "fd = os.open('/home/sandbox/io', os.O_CREAT | os.O_WRONLY | os.O_DIRECT | os.O_DSYNC)\n"
        "block = mmap.mmap(-1, 1 << 20)\n"
        "began = time.monotonic()\n"
        "for _ in range(24): os.write(fd, block)\n"
        "print((24 << 20) / (time.monotonic() - began))\n"
        "os.unlink('/home/sandbox/io')"
    )
    with sandbox(
        daemon, profile="disk", limits=Limits(io=IoLimit(write_bytes_per_s=rate))
    ) as kernel:
        assert kernel.limits.io is not None
        code, text = python_inside(daemon, kernel, write)
        during = neighbour.round_trip_ms()
        stats = daemon.client().stats(kernel.id)
    assert code == 0, text
    measured = float(text)
    with sandbox(daemon) as kernel:
        code, text = python_inside(daemon, kernel, write)
    assert code == 0, text
    say(f"I/O cap 4 MiB/s: {measured / MIB:.2f} MiB/s (uncapped {float(text) / MIB:.0f}); "
        f"neighbour {before:.1f} -> {during:.1f} ms ({during / before:.2f}x)")  # fmt: skip
    assert stats.io_write_bytes >= 24 * MIB
    assert measured < rate * 1.15
    assert float(text) > 2 * rate, "the control, without a cap, is no faster"


def test_tmp_and_shm_are_bounded(daemon: RunningDaemon) -> None:
    fill = (
        "import errno\n"
        "for path in ('/tmp/fill', '/dev/shm/fill'):\n"
        "    try:\n"
        "        with open(path, 'wb', buffering=0) as f:\n"
        "            while True: f.write(bytes(1 << 20))\n"
        "    except OSError as error: print(errno.errorcode[error.errno])\n"
        "    __import__('os').unlink(path)"
    )
    limits = Limits(tmp_bytes=16 * MIB, shm_bytes=8 * MIB)
    with sandbox(daemon, limits=limits) as kernel:
        assert python_inside(daemon, kernel, fill) == (0, "ENOSPC\nENOSPC\n")


def test_a_paused_sandbox_uses_no_cpu_and_goes_on(daemon: RunningDaemon) -> None:
    with sandbox(daemon, "python3", "-c", "while True: pass") as kernel:
        client = daemon.client()
        client.pause(kernel.id)
        assert client.inspect(kernel.id).state == "paused"
        frozen = client.stats(kernel.id).cpu_usage_s
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 0.5)
        assert client.stats(kernel.id).cpu_usage_s == frozen
        client.unpause(kernel.id)
        wait_until(lambda: client.stats(kernel.id).cpu_usage_s > frozen)
        client.pause(kernel.id)  # a paused sandbox can be removed


def test_inspect_tells_what_is_in_force_and_what_is_not_as_set(daemon: RunningDaemon) -> None:
    with sandbox(daemon, profile="small") as kernel:
        found = daemon.client().inspect(kernel.id).in_force
        assert found is not None
        assert found.differs == []
        assert (found.limits.memory_bytes, found.limits.pids) == (256 << 20, 64)
        assert found.limits.cpus == 0.5
        assert found.rlimits["core file size"] == [0, 0]
        mounts = {mount.destination: mount for mount in found.mounts}
        assert {"nosuid", "nodev"} <= set(mounts["/"].options)
        assert "ro" in mounts["/proc/sys"].options
        layout = read_layout()
        key = "pids" if "pids" in layout.v1 else ""
        path = daemon.client().inspect(kernel.id).confinement.cgroups[key or "unified"].lstrip("/")
        Path(layout.directory(key, path), "pids.max").write_text("65")  # behind the daemon's back
        found = daemon.client().inspect(kernel.id).in_force
        assert (found.differs, found.limits.pids) == (["pids"], 65)
