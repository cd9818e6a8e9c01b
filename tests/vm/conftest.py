"""The units as an administrator installs them, in a machine that systemd runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxkernel.client import SandboxClient
from sandboxkernel.errors import DaemonUnavailable
from sandboxkernel.models import Kernel, KernelCreate
from tests.support import SHARED_DATA, wait_until

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "packaging/systemd"
SERVICE, SOCKET = "sandboxkernel.service", "sandboxkernel.socket"
RUN_DIR, DATA_DIR = Path("/run/sandboxkernel"), Path("/var/lib/sandboxkernel")
CONFIG = """
course = {"memory": "384M", "cpus": 0.8, "pids": 96}
c.SandboxKernelDaemon.profiles = {
    "default": {"limits": course, "spares": 1},
    "on_demand": {"limits": {**course, "io_write": "64M"}},
    "cold": {"limits": {**course, "io_write": "64M"}, "zygote": "off"},
    "runc": {"limits": {**course, "io_write": "64M"}, "executor": "runc"},
    "throwaway": {"limits": course, "ephemeral": True, "zygote": "off"},
}
"""
# A profile, and the way to a kernel that it is here for.
WAYS = (("cold", "cold"), ("on_demand", "warm"), ("default", "spare"), ("runc", "cold"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These change the machine's own services."""
    if os.environ.get("SANDBOXKERNEL_TEST_VM"):
        return
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.skip(reason="needs the virtual machine: make test-vm"))


def systemctl(*arguments: str) -> str:
    """Run it; its output. Raises CalledProcessError."""
    done = subprocess.run(
        ["systemctl", *arguments], check=True, capture_output=True, text=True, timeout=300
    )
    return done.stdout.strip()


def shown(unit: str, name: str) -> str:
    """A property of a unit."""
    return systemctl("show", "--value", "--property", name, unit)


def end_everything() -> None:
    """As docs/configuration.md says it: the daemon and all kernels."""
    systemctl("stop", SOCKET)
    if shown(SERVICE, "ActiveState") == "active":
        systemctl("kill", "--kill-whom=main", "--signal=SIGINT", SERVICE)
    wait_until(lambda: shown(SERVICE, "ActiveState") in ("inactive", "failed"))


def install() -> None:
    """The units and a configuration, where docs/configuration.md puts them."""
    for unit in UNITS.iterdir():
        shutil.copy(unit, "/etc/systemd/system")
    config = Path("/etc/jupyter/sandboxkernel_config.py")
    config.parent.mkdir(exist_ok=True)
    config.write_text(CONFIG)
    DATA_DIR.mkdir(mode=0o700, exist_ok=True)
    if not (DATA_DIR / "images").exists():
        # Made with the machine's disk; the same files under a second name, with the same owners.
        source = str(SHARED_DATA / "images")
        subprocess.run(["cp", "--archive", "--link", source, str(DATA_DIR)], check=True)
    systemctl("daemon-reload")


def start(client: SandboxClient, profile: str = "cold") -> Kernel:
    """A kernel of root's: of a profile with zygotes its first one calls for them, a minute here."""
    name = f"vm-{profile}-{os.urandom(4).hex()}"
    return client.create(KernelCreate(kernel_id=name, profile=profile))


def start_by(client: SandboxClient, profile: str, path: str) -> Kernel:
    """A kernel that came about in this way: the first of a profile calls for its zygote."""

    def prepared() -> bool:
        answer = client.zygotes()
        mine = [z for z in answer.zygotes if z.domain == profile and not z.retired]
        ready = profile not in answer.starting
        return path == "cold" or (ready and any(z.spares or path == "warm" for z in mine))

    if not prepared():
        client.remove(start(client, profile).id)
        wait_until(prepared, what=f"a zygote for a {path} start")
    kernel = start(client, profile)
    assert kernel.start_path == path, kernel.cold_reason
    return kernel


@pytest.fixture(scope="session")
def installed() -> Iterator[None]:
    """The units and a configuration; ended after the last test."""
    install()
    yield
    end_everything()


@pytest.fixture
def service(installed: None) -> Iterator[SandboxClient]:
    """The service and its socket, started."""
    systemctl("start", SOCKET, SERVICE)
    yield SandboxClient(RUN_DIR / "api.sock")


@pytest.fixture
def stopped(installed: None) -> Iterator[None]:
    """Neither service nor socket, nor any kernel."""
    end_everything()
    yield
    end_everything()


def answers() -> bool:
    """Whether a daemon serves the machine's socket."""
    try:
        SandboxClient(RUN_DIR / "api.sock").ping()
    except DaemonUnavailable:
        return False
    return True
