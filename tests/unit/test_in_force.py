"""Limits read back, of both generations of cgroups."""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType

import pytest

from sandboxkernel.daemon.in_force import differing, limits_model, parse_mounts, parse_rlimits
from sandboxkernel.models import IoLimit, Limits
from sandboxruntime.cgroup import IoLimit as DiskLimit
from sandboxruntime.cgroup import Layout, Mode
from sandboxruntime.cgroup import Limits as CgroupLimits
from sandboxruntime.cgroup.readback import limits_in_force
from sandboxruntime.verify import read_mountinfo

V1 = Layout(
    Mode.V1,
    MappingProxyType({name: f"/c/{name}" for name in ("memory", "cpu", "pids", "blkio")}),
    None,
    frozenset(),
)
V2 = Layout(Mode.V2, MappingProxyType({}), "/c", frozenset({"memory", "cpu", "pids", "io"}))
WANTED = CgroupLimits(
    memory_bytes=1 << 30, swap_bytes=1 << 20, cpu_quota_us=50_000, cpu_weight=200, pids=99,
    io=(DiskLimit(8, 0, read_bytes_per_s=4096, write_ops_per_s=7),),
)  # fmt: skip


def reader(files: dict[str, str]) -> object:
    return lambda controller, file: files.get(f"{controller}/{file}", "")


def test_v1() -> None:
    files = {
        "memory/memory.limit_in_bytes": f"{1 << 30}\n",
        "memory/memory.memsw.limit_in_bytes": f"{(1 << 30) + (1 << 20)}\n",
        "cpu/cpu.cfs_quota_us": "50000\n",
        "cpu/cpu.cfs_period_us": "100000\n",
        "cpu/cpu.shares": "2048\n",
        "pids/pids.max": "99\n",
        "blkio/blkio.throttle.read_bps_device": "8:0 4096\n",
        "blkio/blkio.throttle.write_iops_device": "8:0 7\n",
    }
    assert limits_in_force(V1, reader(files)) == WANTED  # type: ignore[arg-type]


def test_v2() -> None:
    files = {
        "/memory.max": f"{1 << 30}\n",
        "/memory.swap.max": f"{1 << 20}\n",
        "/cpu.max": "50000 100000\n",
        "/cpu.weight": "200\n",
        "/pids.max": "99\n",
        "/io.max": "8:0 rbps=4096 wbps=max riops=max wiops=7\n",
    }
    assert limits_in_force(V2, reader(files)) == WANTED  # type: ignore[arg-type]


def test_what_is_not_capped_is_none() -> None:
    files = {"memory/memory.limit_in_bytes": "9223372036854771712\n", "cpu/cpu.cfs_quota_us": "-1",
             "pids/pids.max": "max\n"}  # fmt: skip
    assert limits_in_force(V1, reader(files)) == CgroupLimits()  # type: ignore[arg-type]
    files = {"/memory.max": "max\n", "/cpu.max": "max 100000\n", "/pids.max": "max\n"}
    assert limits_in_force(V2, reader(files)) == CgroupLimits()  # type: ignore[arg-type]


def test_what_differs_is_named() -> None:
    asked = Limits(memory_bytes=1 << 30, swap_bytes=1 << 20, cpus=0.5, cpu_weight=200, pids=99,
                   shm_bytes=5000, io=IoLimit(read_bytes_per_s=4096, write_ops_per_s=7))  # fmt: skip
    found = limits_model(WANTED, disk=(8, 0), shm_bytes=8192, tmp_bytes=1)
    assert differing(asked, found) == []
    other = limits_model(CgroupLimits(memory_bytes=1 << 29, pids=99), disk=(8, 0), shm_bytes=1 << 20,
                         tmp_bytes=1)  # fmt: skip
    assert differing(asked, other) == [
        "memory_bytes", "swap_bytes", "cpus", "cpu_weight", "shm_bytes", "io",
    ]  # fmt: skip


def test_proc_files() -> None:
    text = (
        "Limit                     Soft Limit           Hard Limit           Units     \n"
        "Max cpu time              unlimited            unlimited            seconds   \n"
        "Max open files            1024                 4096                 files     \n"
    )
    assert parse_rlimits(text) == {"cpu time": [None, None], "open files": [1024, 4096]}
    (mount,) = parse_mounts("22 1 0:1 / /a\\040b ro,nosuid shared:1 - tmpfs x rw,size=4k\n")
    assert (mount.destination, mount.type, mount.options) == ("/a b", "tmpfs", ["ro", "nosuid"])


def test_a_process_that_ends_while_it_is_looked_at_is_gone() -> None:
    """stress-ng's stressors that end at once made `inspect` an internal error."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    try:
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it stays, unreaped
        with pytest.raises(OSError, match="Invalid argument"):
            Path(f"/proc/{child}/mountinfo").read_text()
        with pytest.raises(ProcessLookupError):
            read_mountinfo(child)
    finally:
        os.waitpid(child, 0)
    assert read_mountinfo(os.getpid()) == Path("/proc/self/mountinfo").read_text()
