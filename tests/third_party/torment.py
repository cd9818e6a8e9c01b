"""A program that torments, in a sandbox with caps, beside a victim: what the outside sees of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sandboxkernel.client import SandboxClient
from sandboxkernel.errors import KernelNotRunning
from sandboxkernel.models import KernelCreate
from tests.conformance.session import Session
from tests.support import RunningDaemon

__all__ = [
    "CAPS",
    "CONFIG",
    "CPUS",
    "HEAD",
    "MEMORY",
    "PIDS",
    "Seen",
    "failures",
    "figures",
    "observe",
]

MEMORY, CPUS, PIDS = 512 << 20, 1.0, 128
CAPS = f"{MEMORY >> 20} MiB, {CPUS:g} processor and {PIDS} processes"
# "default" is the victim's.
CONFIG = f"""
c.SandboxKernelDaemon.profiles = {{
    "default": {{"limits": {{"memory": "512M", "cpus": 1, "pids": 128}}}},
    "torment": {{
        "limits": {{"memory": {MEMORY}, "cpus": {CPUS}, "pids": {PIDS}, "tmp": "256M", "shm": "64M"}},
        "ephemeral": True, "zygote": "off",
    }},
}}
"""
LOOK_S, CELL_AFTER_S = 0.05, 0.2
# Over a second and less, a quota of 100 ms periods may show one period more.
CPU_TOLERANCE, CPU_LEAST_S = 1.25, 0.8
# Others work on this machine, too: what they take in the same second is in the figure.
HOST_MEMORY = MEMORY + (256 << 20)
HEAD = ("most memory, MiB", "most processes", "most processors", "host's memory less by, MiB",
        "slowest cell of the victim, ms")  # fmt: skip


@dataclass(slots=True)
class Seen:
    """Of one sandbox, from its start to its end: the most that it had, and how it ended.

    `reason` is empty where it did not end by itself.
    """

    name: str
    reason: str = ""
    code: int | None = None
    seconds: float = 0.0
    memory_peak: int = 0
    pids_peak: int = 0
    cpus: float = 0.0
    host_memory: int = 0
    cell_s: float = 0.0
    output: str = ""

    def broken(self) -> list[str]:
        """Caps that it was not held to."""
        found = []
        if self.memory_peak > MEMORY:
            found.append(f"{self.name} took {self.memory_peak} bytes, of {MEMORY}")
        if self.pids_peak > PIDS:
            found.append(f"{self.name} had {self.pids_peak} processes, of {PIDS}")
        if self.cpus > CPUS * CPU_TOLERANCE:
            found.append(f"{self.name} took {self.cpus:.2f} processors, of {CPUS:g}")
        if self.host_memory > HOST_MEMORY:
            found.append(f"{self.name}: the host had {self.host_memory} bytes less")
        return found


def figures(seen: list[Seen]) -> list[str]:
    """Cells below HEAD: the most of several."""
    return [
        str(max(each.memory_peak for each in seen) >> 20),
        str(max(each.pids_peak for each in seen)),
        f"{max(each.cpus for each in seen):.2f}",
        str(max(each.host_memory for each in seen) >> 20),
        f"{1000 * max(each.cell_s for each in seen):.0f}",
    ]


def observe(
    client: SandboxClient, victim: Session, name: str, command: list[str], *, give_up_s: float
) -> Seen:
    """Run a program to its end, or until it is given up, with a cell of the victim's every second.

    Raises RuntimeError if the victim's cell fails; the daemon has to answer all the time.
    """
    before, began = _available(), time.monotonic()
    seen = Seen(name)
    cell_at = CELL_AFTER_S
    first: tuple[float, float] | None = None
    with _sandbox(client, command) as kernel_id:
        while time.monotonic() - began < give_up_s:
            shown = client.inspect(kernel_id)
            if shown.exit is not None:
                seen.reason, seen.code = shown.exit.reason, shown.exit.code
                seen.memory_peak = max(seen.memory_peak, shown.exit.memory_peak_bytes or 0)
                break
            with contextlib.suppress(KernelNotRunning):  # it ends between two questions
                stats = client.stats(kernel_id)
                now = time.monotonic()
                first = first or (now, stats.cpu_usage_s)
                seen.memory_peak = max(seen.memory_peak, stats.memory_peak_bytes)
                seen.pids_peak = max(seen.pids_peak, stats.pids)
                if now - first[0] > CPU_LEAST_S:
                    rate = (stats.cpu_usage_s - first[1]) / (now - first[0])
                    seen.cpus = max(seen.cpus, rate)
            seen.host_memory = max(seen.host_memory, before - _available())
            if time.monotonic() - began > cell_at:
                cell_at += 1
                seen.cell_s = max(seen.cell_s, _cell(victim))
            time.sleep(LOOK_S)
        seen.seconds = round(time.monotonic() - began, 2)
        seen.output = b"".join(client.logs(kernel_id)).decode(errors="replace")
    return seen


def failures(daemon: RunningDaemon) -> list[str]:
    """What the daemon's log tells as its own failure."""
    lines = daemon.log_path.read_text(errors="replace").splitlines()
    return [line for line in lines if "internal error" in line or "Traceback" in line]


@contextlib.contextmanager
def _sandbox(client: SandboxClient, command: list[str]) -> Iterator[str]:
    kernel = client.create(
        KernelCreate(kernel_id=f"torment-{time.monotonic_ns()}", argv=command, profile="torment")
    )
    try:
        yield kernel.id
    finally:
        client.remove(kernel.id)


def _cell(victim: Session) -> float:
    began = time.perf_counter()
    if victim.run("1 + 1").status != "ok":
        raise RuntimeError("the victim's cell failed")
    return time.perf_counter() - began


def _available() -> int:
    """The host's available memory in bytes (proc_meminfo(5))."""
    found = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(found["MemAvailable"].split()[0]) * 1024
