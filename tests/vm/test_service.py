"""The daemon as a service of systemd, on pure cgroup v2."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandboxkernel.client import SandboxClient
from sandboxkernel.errors import SandboxError
from sandboxkernel.models import Kernel, KernelCreate
from sandboxruntime.cgroup import Cgroup, Mode, devices, read_layout
from tests.support import wait_until
from tests.vm.conftest import (
    RUN_DIR,
    SERVICE,
    SOCKET,
    UNITS,
    WAYS,
    answers,
    end_everything,
    shown,
    start,
    start_by,
    systemctl,
)

ALICE = 61001
CGROUPS = Path("/sys/fs/cgroup")
RESULTS = Path("/srv/results")
MIB = 1 << 20


def cgroup_of(client: SandboxClient, kernel: Kernel) -> Path:
    confinement = client.inspect(kernel.id).confinement
    assert confinement is not None
    return CGROUPS / confinement.cgroups["unified"].lstrip("/")


def value(directory: Path, name: str) -> str:
    return (directory / name).read_text().strip()


def test_systemd_has_booted_the_machine_on_pure_v2() -> None:
    assert Path("/proc/1/comm").read_text() == "systemd\n"
    layout = read_layout()
    assert (layout.mode, layout.v1) == (Mode.V2, {})
    # Its delegation rule is what the zygote's clones have to obey (cgroups(7)).
    assert "nsdelegate" in Path("/proc/mounts").read_text()
    assert systemctl("list-units", "--failed", "--plain", "--no-legend") == ""
    # What this machine has and the one that the tests come from has not.
    modules = Path("/sys/kernel/security/lsm").read_text().strip().split(",")
    assert {"apparmor", "yama"} <= set(modules)
    assert Path("/sys/module/apparmor/parameters/enabled").read_text() == "Y\n"


def test_the_units_are_well_formed(installed: None) -> None:
    units = [str(Path("/etc/systemd/system") / unit.name) for unit in UNITS.iterdir()]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_service_has_no_more_power_than_it_needs(service: SandboxClient) -> None:
    """As systemd-analyze scores it: 10 is root with everything. What is left out, says the unit."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--no-pager", SERVICE], capture_output=True, text=True
    )
    RESULTS.joinpath("security.txt").write_text(done.stdout)
    (score,) = re.findall(rf"Overall exposure level for {SERVICE}: ([\d.]+)", done.stdout)
    assert float(score) <= 8.4, done.stdout
    status = Path(f"/proc/{shown(SERVICE, 'MainPID')}/status").read_text()
    (bounding,) = re.findall(r"CapBnd:\t(\w+)", status)
    # CAP_NET_BIND_SERVICE, BROADCAST, RAW, CAP_IPC_LOCK, IPC_OWNER, CAP_SYS_MODULE, RAWIO, BOOT, TIME
    for number in (10, 11, 13, 14, 15, 16, 17, 22, 25):
        assert not int(bounding, 16) >> number & 1
    kernel = start(service)  # and that is enough
    service.remove(kernel.id)


def test_the_service_is_started_when_the_daemon_serves(stopped: None) -> None:
    """Without the socket unit: the daemon binds, and readiness comes after that."""
    systemctl("start", SERVICE)
    assert answers()
    assert shown(SERVICE, "Type") == "notify"
    assert int(shown(SERVICE, "MainPID")) > 1
    systemctl("stop", SERVICE)
    assert shown(SERVICE, "Result") == "success"
    assert not answers()


def test_the_first_client_starts_the_daemon_through_the_socket(stopped: None) -> None:
    systemctl("start", SOCKET)
    path = RUN_DIR / "api.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert shown(SERVICE, "ActiveState") == "inactive"
    program = "from sandboxkernel.client import SandboxClient; from pathlib import Path;"
    program += f"SandboxClient(Path({str(path)!r})).ping()"
    for _ in range(2):  # the daemon leaves the socket, which is systemd's, where it is
        subprocess.run([sys.executable, "-c", program], check=True, user=ALICE, group=ALICE)
        assert shown(SERVICE, "ActiveState") == "active"
        systemctl("stop", SERVICE)
        assert path.is_socket()
    inode = path.stat().st_ino
    systemctl("start", SERVICE)
    assert answers()
    assert path.stat().st_ino == inode


def test_the_daemon_hands_no_word_of_systemds_on(service: SandboxClient) -> None:
    """A launcher that speaks for the service, or a kernel that could, would be heard."""
    pid = shown(SERVICE, "MainPID")
    kernel = start(service)
    launcher = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
    for process in (launcher, str(service.inspect(kernel.id).pid)):
        environment = Path(f"/proc/{process}/environ").read_bytes()
        assert b"LISTEN_" not in environment and b"NOTIFY_SOCKET" not in environment
    service.remove(kernel.id)


def test_a_cell_of_a_user_is_answered(service: SandboxClient) -> None:
    home = Path("/home/alice")
    home.mkdir(exist_ok=True)
    os.chown(home, ALICE, ALICE)
    done = subprocess.run(
        [sys.executable, "-c", CELL],
        capture_output=True, text=True, timeout=300, cwd=home, user=ALICE, group=ALICE,
        extra_groups=[], env={"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "uid 1000, pid 1 is not systemd\n"


CELL = """
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(kernel_name="sandboxed-python", startup_timeout=200)
code = '''
import os
one = open("/proc/1/comm").read().strip()
print("uid", str(os.getuid()) + ", pid 1 is", "not systemd" if one != "systemd" else one)
'''
client.execute_interactive(code, timeout=100)
client.stop_channels()
manager.shutdown_kernel(now=True)
"""


@pytest.mark.parametrize(("profile", "path"), WAYS)
def test_the_limits_are_in_the_files_of_cgroup_v2(
    service: SandboxClient, profile: str, path: str
) -> None:
    """On each way to a kernel, and what systemd does to its own tree does not take them away."""
    kernel = start_by(service, profile, path)
    directory = cgroup_of(service, kernel)
    pid = service.inspect(kernel.id).pid
    assert str(pid) in value(directory, "cgroup.procs").split()
    assert directory.parts[4] == "sandboxkernel"

    def in_force() -> dict[str, str]:
        names = (
            "memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max", "io.max",
        )  # fmt: skip
        return {name: value(directory, name) for name in names}

    limits = in_force()
    assert devices.PROGRAM_NAME in devices.attached(str(directory))
    assert limits["memory.max"] == str(384 * MIB)
    assert limits["memory.swap.max"] == "0"
    assert limits["memory.oom.group"] == "1"
    assert limits["pids.max"] == "96"
    quota, period = map(int, limits["cpu.max"].split())
    assert quota == round(0.8 * period)
    assert path == "spare" or f"wbps={64 * MIB}" in limits["io.max"]
    systemctl("daemon-reload")
    subprocess.run(
        ["systemd-run", "--quiet", "--wait", "--property=CPUQuota=50%", "--property=IOWeight=50",
         "true"], check=True,
    )  # fmt: skip
    assert in_force() == limits
    assert devices.PROGRAM_NAME in devices.attached(str(directory))
    service.remove(kernel.id)
    assert not directory.exists()


def test_a_memory_bomb_ends_its_sandbox_and_not_the_service(service: SandboxClient) -> None:
    before = shown(SERVICE, "MainPID")
    bomb = "b = []\nwhile True: b.append(bytearray(8 << 20))"
    kernel = service.create(KernelCreate(kernel_id="bomb", argv=["python3", "-c", bomb]))
    info = service.watch_exit(kernel.id, kernel.generation).wait(120)
    assert info is not None and info.reason == "oom_killed"
    service.remove(kernel.id)
    assert (shown(SERVICE, "MainPID"), shown(SERVICE, "ActiveState")) == (before, "active")


def test_only_the_daemon_and_its_launcher_are_in_the_services_cgroup(
    service: SandboxClient,
) -> None:
    """So that no limit or end of the service's is the kernels'."""
    kernel = start(service)
    group = CGROUPS / shown(SERVICE, "ControlGroup").lstrip("/")
    pids = {int(pid) for file in group.rglob("cgroup.procs") for pid in file.read_text().split()}
    pid = int(shown(SERVICE, "MainPID"))
    launchers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert pids == {pid, *map(int, launchers)}
    service.remove(kernel.id)


def test_a_restart_of_the_service_costs_no_kernel(service: SandboxClient) -> None:
    kernel = start(service)
    pid = service.inspect(kernel.id).pid
    systemctl("restart", SERVICE)
    found = service.inspect(kernel.id)
    service.remove(kernel.id)
    assert (found.state, found.pid) == ("running", pid)


def test_restarts_under_load_cost_no_kernel_and_leave_nothing(service: SandboxClient) -> None:
    """Kernels of each way stand by, and come and go, while the service is restarted again and again."""
    # runc's first: zygotes, once they are being made, leave little of an emulated processor to a
    # start that has a deadline.
    standing = [start(service, profile) for profile, _ in reversed(WAYS)]
    processes = {kernel.id: service.inspect(kernel.id).pid for kernel in standing}
    over = threading.Event()
    came: Counter[str] = Counter()

    def come_and_go(profile: str) -> None:
        while not over.is_set():
            try:
                service.remove(start(service, profile).id)
                came["started and ended"] += 1
            except SandboxError as exc:  # and no other: any else ends the thread, and is raised
                came[exc.code] += 1

    with ThreadPoolExecutor(len(WAYS)) as pool:
        # Spares but the one that stands by are left to test_reboot.py: each makes zygotes anew after
        # each restart, for a minute of an emulated processor.
        loads = [pool.submit(come_and_go, profile) for profile, path in WAYS if path != "spare"]
        try:
            for enough in (1, 2):
                while came["started and ended"] < enough and not any(one.done() for one in loads):
                    time.sleep(0.1)
                systemctl("restart", SERVICE)
        finally:
            over.set()
    for load in loads:
        load.result()
    print(dict(came))
    found = {kernel.id: kernel for kernel in service.kernels()}
    assert {key: found[key].pid for key in processes} == processes
    assert {found[key].state for key in processes} == {"running"}
    for key in found:
        service.remove(key)  # also those of which the answer came too late
    assert service.check().findings == []


def test_a_daemon_that_was_killed_is_started_again(service: SandboxClient) -> None:
    pid = int(shown(SERVICE, "MainPID"))
    os.kill(pid, signal.SIGKILL)
    wait_until(
        lambda: (
            int(shown(SERVICE, "MainPID")) not in (0, pid)
            and shown(SERVICE, "ActiveState") == "active"
        ),
        what="another daemon",
    )
    assert answers()
    kernel = start(service)
    service.remove(kernel.id)


@pytest.mark.parametrize(("profile", "path"), [("cold", "cold"), ("default", "spare")])
def test_nothing_is_left_when_all_has_ended(
    service: SandboxClient, profile: str, path: str
) -> None:
    mounts = Path("/proc/mounts").read_text()
    kernel = start_by(service, profile, path)
    pidfd = os.pidfd_open(service.inspect(kernel.id).pid or 0)
    end_everything()
    assert shown(SERVICE, "Result") == "success"
    assert not answers()
    with pytest.raises(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, 0)
    os.close(pidfd)
    left = [path for path in (CGROUPS / "sandboxkernel").rglob("*") if len(path.name) == 12]
    assert [path for path in left if path.is_dir()] == []
    assert Cgroup.attach(read_layout(), "sandboxkernel").pids() == []
    assert Path("/proc/mounts").read_text() == mounts
    assert list((RUN_DIR / "k").glob("*")) == []
    assert shown(SERVICE, "ControlGroup") == "" or not any(
        file.read_text().split()
        for file in (CGROUPS / shown(SERVICE, "ControlGroup").lstrip("/")).rglob("cgroup.procs")
    )
