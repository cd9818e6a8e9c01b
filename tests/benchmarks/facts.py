"""What a run depends on and must be read with; and whether the machine is quiet enough for one."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandboxkernel.client import SandboxClient
from sandboxkernel.models import Image

__all__ = ["CpuTimes", "collect", "others_busy", "programs", "why_busy", "zygotes"]

LOAD_MAX, PRESSURE_MAX, STEAL_MAX = 0.5, 5.0, 1.0  # processes; percent of 10 s; percent
OTHERS_MAX = 5.0  # percent of one core that others may take while we do nothing
LOOK_S, SETTLE_S = 1.0, 20.0
PACKAGES = (
    "ipykernel", "ipython", "jupyter_client", "jupyter_server", "matplotlib", "numpy", "pandas",
    "pyzmq", "tornado",
)  # fmt: skip
PROGRAMS = {
    "bwrap": ("bwrap", "--version"),
    "runc": ("runc", "--version"),
    "docker": ("docker", "--version"),
    "runsc": ("runsc", "--version"),
}
KNOBS = {
    "rcu_expedited": "/sys/kernel/rcu_expedited",
    "rcu_normal": "/sys/kernel/rcu_normal",
    "transparent_hugepage": "/sys/kernel/mm/transparent_hugepage/enabled",
    "overcommit_memory": "/proc/sys/vm/overcommit_memory",
    "pid_max": "/proc/sys/kernel/pid_max",
}


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds of all processors since boot, from /proc/stat (proc_stat(5))."""

    busy_s: float
    steal_s: float
    total_s: float

    @classmethod
    def now(cls) -> CpuTimes:
        """Read them. Guests' time is part of user and nice and is not added again."""
        with open("/proc/stat", encoding="ascii") as stream:
            fields = [
                int(text) / os.sysconf("SC_CLK_TCK") for text in stream.readline().split()[1:9]
            ]
        user, nice, system, idle, iowait, irq, softirq, steal = fields
        busy = user + nice + system + irq + softirq
        return cls(busy, steal, busy + idle + iowait + steal)

    def since(self, earlier: CpuTimes) -> CpuTimes:
        """The difference."""
        return CpuTimes(
            self.busy_s - earlier.busy_s,
            self.steal_s - earlier.steal_s,
            self.total_s - earlier.total_s,
        )

    @property
    def steal_percent(self) -> float:
        """The share that the hypervisor gave to others."""
        return 100 * self.steal_s / self.total_s if self.total_s else 0.0


def _pressure() -> float:
    with open("/proc/pressure/cpu", encoding="ascii") as stream:
        return float(stream.readline().split("avg10=")[1].split()[0])


def why_busy() -> str:
    """Why this machine is too busy for a verdict; empty if it is not. Takes a second."""
    before = CpuTimes.now()
    time.sleep(LOOK_S)
    steal = CpuTimes.now().since(before).steal_percent
    load = os.getloadavg()[0]
    if load > LOAD_MAX:
        return f"the load average is {load:.2f}, more than {LOAD_MAX:g}"
    if (pressure := _pressure()) > PRESSURE_MAX:
        return f"others wait for the processor {pressure:.0f} % of the time"
    if steal > STEAL_MAX:
        return f"the hypervisor takes {steal:.1f} % of the time"
    return ""


def others_busy() -> str:
    """As why_busy(), in the middle of a run: our own load is still in the averages.

    Waits up to SETTLE_S for what the group before has left to be done, such as new spares.
    """
    deadline = time.monotonic() + SETTLE_S
    while reason := _others_now():
        if time.monotonic() > deadline:
            return reason
    return ""


def _others_now() -> str:
    before = CpuTimes.now()
    time.sleep(LOOK_S)
    taken = CpuTimes.now().since(before)
    percent = 100 * taken.busy_s / LOOK_S
    if percent > OTHERS_MAX:
        return f"{percent:.0f} % of a core was in use while nothing was measured"
    if taken.steal_percent > STEAL_MAX:
        return f"the hypervisor took {taken.steal_percent:.1f} % of the time"
    return ""


def collect(client: SandboxClient, image: Image) -> dict[str, Any]:
    """Linux, machine, versions and image."""
    version = client.version()
    return {
        "linux": platform.release(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "processor": _line("/proc/cpuinfo", "model name"),
        "memory_mib": _mib("MemTotal"),
        "cgroups": version.cgroup_mode,
        "knobs": {name: _read(path) for name, path in KNOBS.items()},
        "python": platform.python_version(),
        "sandboxkernel": version.version,
        "commit": _first_line("git", "-C", str(Path(__file__).parent), "describe", "--always",
                              "--dirty"),
        "packages": {name: _installed(name) for name in PACKAGES},
        "programs": programs(),
        "image_digest": image.digest,
        "image_mib": round(image.size_bytes / (1 << 20)),
    }  # fmt: skip


def programs() -> dict[str, str]:
    """What the other sandboxes that are installed here call their versions."""
    return {
        name: _first_line(*command) for name, command in PROGRAMS.items()
        if shutil.which(command[0])
    }  # fmt: skip


def zygotes(client: SandboxClient) -> dict[str, float]:
    """Memory of each zygote in MiB by its domain, its spares left out."""
    return {
        zygote.domain: round(zygote.memory_bytes / (1 << 20), 1)
        for zygote in client.zygotes().zygotes
    }


def memory_available_mib() -> float:
    """MemAvailable (proc_meminfo(5)) in MiB."""
    return _mib("MemAvailable")


def _mib(name: str) -> float:
    return float(int(_line("/proc/meminfo", name).split()[0]) / 1024)


def _line(path: str, name: str) -> str:
    for line in _read(path).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "0"


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "not there"  # a knob of another Linux


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return (done.stdout.splitlines() or ["unknown"])[0]
